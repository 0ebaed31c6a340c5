"""What weights and traces of many chains say about how well they have mixed."""

from __future__ import annotations

import math

import numpy as np


def weight_summary(weights: np.ndarray, n_steps: int) -> tuple[float, float, float]:
    """(effective samples per proposal, M, log E[w]) of one target from its chains' sums (4, C) over ``n_steps``.

    M is infinite while no proposal had positive weight. Sums over chains are in float64 and in a fixed order.
    """
    _, largest, sums, squares = weights.astype(np.float64)
    top = largest.max(initial=-math.inf)
    if top == -math.inf:
        return 0.0, math.inf, -math.inf
    n = largest.size * n_steps
    scale = np.exp(largest - top)
    total = float((sums * scale).sum())
    return total**2 / float((squares * scale**2).sum()) / n, n / total, float(top) + math.log(total / n)


def mixing(trace: np.ndarray) -> tuple[float, float]:
    """(effective samples per draw, split R-hat) of a quantity (steps, chains) along many chains.

    Sources: Vehtari, Gelman, Simpson, Carpenter and Buerkner, "Rank-Normalization, Folding, and Localization: An
    Improved R-hat for Assessing Convergence of MCMC", Bayesian Analysis 2021, equations 3.1 to 3.4 without the
    ranks; the sum over lags ends as in Geyer, "Practical Markov Chain Monte Carlo", Statistical Science 1992.

    Chains that are all stuck give (0, inf); too few steps to tell, fewer than four, give NaN for both.
    """
    half = len(trace) // 2
    if half < 2:
        return math.nan, math.nan
    x = np.concatenate([trace[:half], trace[-half:]], axis=1).astype(np.float64)
    if (x == x[0]).all():
        return 0.0, math.inf
    within = x.var(axis=0, ddof=1).mean()
    total = within * (half - 1) / half + (x.mean(axis=0).var(ddof=1) if x.shape[1] > 1 else 0.0)
    centred = x - x.mean(axis=0)
    size = 2 ** math.ceil(math.log2(2 * half))
    spectrum = np.abs(np.fft.rfft(centred, size, axis=0)) ** 2
    autocovariance = np.fft.irfft(spectrum.mean(axis=1), size)[:half] / half
    correlation = 1 - (within - autocovariance * half / (half - 1)) / total
    correlation[0] = 1
    pairs = correlation[: half // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0)
    pairs = np.minimum.accumulate(pairs[: negative[0] if len(negative) else len(pairs)])
    time = max(2 * pairs.sum() - 1, 1 / math.log10(x.size))  # anticorrelated chains: no more than they can tell
    return float(1 / time), math.sqrt(total / within)
