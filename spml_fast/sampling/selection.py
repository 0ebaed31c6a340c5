"""Which proposals of a pool become samples, where chains do not decide it: rejection and importance resampling."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .. import _ops

METHODS = ("imh", "rejection", "resample", "mala")

RESAMPLING_BIAS = 6
"""A resampled draw is at most 6 / ESS from the target in total variation: half of the 12 / ESS by which the mean
of a function between -1 and 1 can be off (Agapiou, Papaspiliopoulos, Sanz-Alonso and Stuart, "Importance Sampling:
Intrinsic Dimension and Computational Cost", Statistical Science 2017, Theorem 2.1)."""


def accepted(log_weights: Tensor, log_uniforms: Tensor, log_bound: float) -> Tensor:
    """Which proposals rejection sampling accepts under a bound on the weights; both of one shape, bool."""
    return (log_weights - log_uniforms >= log_bound) & (log_weights > -math.inf)


def resampled(log_weights: np.ndarray, n: int, uniform: float) -> np.ndarray:
    """Indices (n,) drawn with probability proportional to the weights (m,), in order; none if all weigh nothing.

    Systematic resampling: a proposal that should come out k times on average comes out floor(k) or ceil(k) times.
    """
    top = log_weights.max(initial=-math.inf)
    if top == -math.inf:
        return np.zeros(0, dtype=np.int64)
    cumulative = np.cumsum(np.exp(log_weights.astype(np.float64) - top))
    teeth = (np.arange(n) + uniform) / n * cumulative[-1]
    last = np.flatnonzero(log_weights > -math.inf)[-1]
    return np.minimum(np.searchsorted(cumulative, teeth, side="right"), last)


def rejection_uniforms(chains: Tensor, steps: int, seed: int) -> Tensor:
    """log u of every step (steps, n) of the chains (n,): those of the Metropolis-Hastings accept step."""
    numbers = torch.arange(steps, device=chains.device)
    chains, numbers = torch.broadcast_tensors(chains, numbers[:, None])
    rows = (chains.reshape(-1), numbers.reshape(-1))
    return _ops.philox_uniform(*rows, seed, dtype=torch.float64).log().view(steps, -1)
