"""What a run tells about itself, from sums that the chains keep anyway."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from .chains import ChainState
from .selection import RESAMPLING_BIAS

if TYPE_CHECKING:
    from .forward import Forward


@dataclass(frozen=True)
class Diagnostics:
    """How well the proposals serve one joint class.

    With w the weight of a proposal and E the mean over all n_chains * n_steps of them:

    * ``ess_per_proposal`` = E[w]^2 / E[w^2], the effective sample size of importance sampling per proposal;
    * ``max_weight_ratio`` M = max w / E[w];
    * ``log_mean_weight`` = log E[w]: between joint classes of one generator, how much rarer one is than another;
    * ``tv_bound`` = (1 - 1/M)^n, an upper bound on the total variation distance between a sample and the target
      (Mengersen and Tweedie, 1996), n the steps to the first sample, or from one to the next where those are
      fewer. M is estimated from the run, so a run that never met the heaviest proposals reports too small a bound.

    For other methods than independent Metropolis-Hastings:

    * "rejection": ``acceptance_rate`` is the share of all proposals that were returned. ``tv_bound`` is the share
      of the largest weight in the sum of all: the bound on w is the largest one seen, and this much is expected
      to lie above it in proposals not seen (the mean of (w' - max w)+ over the mean of w is at most that);
    * "resample": ``acceptance_rate`` is the share of all proposals that were returned, each counted once however
      often. ``tv_bound`` is 6 / ESS (:data:`spml_fast.sampling.selection.RESAMPLING_BIAS`), at most 1. It is of
      each sample; a set of samples cannot say more than ESS independent ones;
    * "mala": ``acceptance_rate`` and ``support_rate`` are of the Langevin steps, ``ess_per_proposal`` is that of
      the log density along the chains after warm-up (NaN where they are too short to tell), and ``r_hat`` compares
      the chains. No bound is known, so ``tv_bound`` is None. ``max_weight_ratio`` and ``log_mean_weight`` are of
      the proposals that it started from.
    """

    n_chains: int
    n_steps: int
    acceptance_rate: float
    """Share of all proposals that were accepted, each chain's first one included."""
    support_rate: float
    """Share of all proposals with positive weight."""
    ess_per_proposal: float
    max_weight_ratio: float
    log_mean_weight: float
    tv_bound: float | None
    chains_without_support: int
    """Chains that never met a proposal of positive weight; they have no sample."""
    proposals_per_second: float
    seconds_in_generator: float
    seconds_in_classifier: float
    seconds_in_sampler: float
    """Everything else: latents, weights, accept steps, bookkeeping."""
    burn_in: int
    """Steps to the first sample of each chain."""
    thin: int
    """Steps from one sample of a chain to the next."""
    n_samples: int = 0
    """Samples that the run brought, of all processes."""
    interrupted: bool = False
    """The run was stopped by Ctrl-C after n_steps of its steps."""
    method: str = "imh"
    r_hat: float | None = None
    """Of method "mala": how much more the log density varies between chains than within; 1 when they agree."""
    step_size: float | None = None
    """Of method "mala": standard deviation of the noise of a step, in the units of the latent."""

    def to_dict(self) -> dict[str, float | int | bool | str | None]:
        return asdict(self)


@dataclass(frozen=True)
class Timing:
    """Seconds of one run; all its targets share them."""

    total: float = 0.0
    generator: float = 0.0
    classifier: float = 0.0

    def plus(self, forward: Forward, total: float) -> Timing:
        """And those of the models since, ``total`` in all."""
        generator, classifier = forward.generator_time.seconds(), forward.classifier_time.seconds()
        return Timing(self.total + total, self.generator + generator, self.classifier + classifier)


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


def diagnose(
    state: ChainState,
    target: int,
    n_steps: int,
    timing: Timing,
    *,
    interrupted: bool = False,
    burn_in: int,
    thin: int | None,
    method: str = "imh",
    n_samples: int = 0,
    n_distinct: int = 0,
) -> Diagnostics:
    """Diagnostics of one target from the sums of all chains; ``n_distinct`` proposals became its samples."""
    ess, ratio, log_mean = weight_summary(state.weights[:, target].cpu().numpy(), n_steps)
    winner, accepted, supported = state.counts[:, target].cpu().numpy().astype(np.int64)
    n_chains = winner.size
    n = n_chains * n_steps
    thin = burn_in if thin is None else thin  # not yet known where a run was interrupted
    without_support = int((winner < 0).sum())
    if method == "imh":
        acceptance = float(accepted.sum()) / n
        tv_bound = (1 - 1 / ratio) ** min(burn_in, thin)
    else:
        acceptance = n_distinct / n
        without_support = n_chains if without_support == n_chains else 0  # the chains' proposals are one pool
        tv_bound = min(1.0, ratio / n if method == "rejection" else RESAMPLING_BIAS / (ess * n) if ess else 1.0)
    return Diagnostics(
        n_chains=n_chains,
        n_steps=n_steps,
        acceptance_rate=acceptance,
        support_rate=float(supported.sum()) / n,
        ess_per_proposal=ess,
        max_weight_ratio=ratio,
        log_mean_weight=log_mean,
        tv_bound=tv_bound,
        chains_without_support=without_support,
        proposals_per_second=n / timing.total,
        seconds_in_generator=timing.generator,
        seconds_in_classifier=timing.classifier,
        seconds_in_sampler=max(0.0, timing.total - timing.generator - timing.classifier),
        burn_in=burn_in,
        thin=thin,
        n_samples=n_samples,
        interrupted=interrupted,
        method=method,
    )


def mixing(trace: np.ndarray) -> tuple[float, float]:
    """(effective samples per draw, split R-hat) of a quantity (steps, chains) along many chains.

    Sources: Vehtari, Gelman, Simpson, Carpenter and Buerkner, "Rank-Normalization, Folding, and Localization: An
    Improved R-hat for Assessing Convergence of MCMC", Bayesian Analysis 2021, equations 3.1 to 3.4 without the
    ranks; the sum over lags ends as in Geyer, "Practical Markov Chain Monte Carlo", Statistical Science 1992.
    """
    half = len(trace) // 2
    if half < 2:
        return math.nan, math.nan
    x = np.concatenate([trace[:half], trace[-half:]], axis=1).astype(np.float64)
    within = x.var(axis=0, ddof=1).mean()
    total = within * (half - 1) / half + (x.mean(axis=0).var(ddof=1) if x.shape[1] > 1 else 0.0)
    if not total > 0 or not within > 0:
        return (0.0, math.inf) if total > 0 else (math.nan, math.nan)
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
