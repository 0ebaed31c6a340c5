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
    * ``tv_bound`` = (1 - 1/M)^n_steps, an upper bound on the total variation distance between a chain's state
      and the target (Mengersen and Tweedie, 1996). M is estimated from the run, so a run that never met the
      heaviest proposals reports too small a bound.
    """

    n_chains: int
    n_steps: int
    acceptance_rate: float
    """Share of all proposals that were accepted, each chain's first one included."""
    support_rate: float
    """Share of all proposals with positive weight."""
    ess_per_proposal: float
    max_weight_ratio: float
    tv_bound: float
    chains_without_support: int
    """Chains that never met a proposal of positive weight; they have no sample."""
    proposals_per_second: float
    seconds_in_generator: float
    seconds_in_classifier: float
    seconds_in_sampler: float
    """Everything else: latents, weights, accept steps, bookkeeping."""
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


def diagnose(state: ChainState, target: int, n_steps: int, timing: Timing, interrupted: bool) -> Diagnostics:
    """Diagnostics of one target; sums over chains in float64 and in a fixed order."""
    _, largest, sums, squares = state.weights[:, target].double().cpu().numpy()
    winner, accepted, supported = state.counts[:, target].cpu().numpy().astype(np.int64)
    n_chains = winner.size
    n = n_chains * n_steps
    top = largest.max(initial=-math.inf)
    ess = ratio = 0.0
    if top > -math.inf:
        scale = np.exp(largest - top)
        total = float((sums * scale).sum())
        ess = total**2 / float((squares * scale**2).sum()) / n
        ratio = n / total
    return Diagnostics(
        n_chains=n_chains,
        n_steps=n_steps,
        acceptance_rate=float(accepted.sum()) / n,
        support_rate=float(supported.sum()) / n,
        ess_per_proposal=ess,
        max_weight_ratio=ratio if ratio > 0 else math.inf,
        tv_bound=(1 - 1 / ratio) ** n_steps if ratio > 0 else 1.0,
        chains_without_support=int((winner < 0).sum()),
        proposals_per_second=n / timing.total,
        seconds_in_generator=timing.generator,
        seconds_in_classifier=timing.classifier,
        seconds_in_sampler=max(0.0, timing.total - timing.generator - timing.classifier),
        interrupted=interrupted,
    )
