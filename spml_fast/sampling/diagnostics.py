"""What a run tells about itself, from sums that the chains keep anyway."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from .chains import ChainState


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
    tv_bound: float
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
    interrupted: bool = False
    """The run was stopped by Ctrl-C after n_steps of its steps."""

    def to_dict(self) -> dict[str, float | int | bool]:
        return asdict(self)


@dataclass(frozen=True)
class Timing:
    """Seconds of one run; all its targets share them."""

    total: float
    generator: float
    classifier: float


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
    interrupted: bool,
    burn_in: int | None = None,
    thin: int | None = None,
) -> Diagnostics:
    """Diagnostics of one target; one sample per chain, at its end, unless burn_in and thin say otherwise."""
    ess, ratio, log_mean = weight_summary(state.weights[:, target].cpu().numpy(), n_steps)
    winner, accepted, supported = state.counts[:, target].cpu().numpy().astype(np.int64)
    n_chains = winner.size
    n = n_chains * n_steps
    burn_in = n_steps if burn_in is None else burn_in
    thin = burn_in if thin is None else thin
    return Diagnostics(
        n_chains=n_chains,
        n_steps=n_steps,
        acceptance_rate=float(accepted.sum()) / n,
        support_rate=float(supported.sum()) / n,
        ess_per_proposal=ess,
        max_weight_ratio=ratio,
        log_mean_weight=log_mean,
        tv_bound=(1 - 1 / ratio) ** min(burn_in, thin),
        chains_without_support=int((winner < 0).sum()),
        proposals_per_second=n / timing.total,
        seconds_in_generator=timing.generator,
        seconds_in_classifier=timing.classifier,
        seconds_in_sampler=max(0.0, timing.total - timing.generator - timing.classifier),
        burn_in=burn_in,
        thin=thin,
        interrupted=interrupted,
    )
