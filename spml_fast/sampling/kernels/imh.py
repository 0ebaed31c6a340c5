"""Independent Metropolis-Hastings: every sample is the state of a chain of its own.

Proposals do not depend on the chain's state, so they are generated and classified in large blocks of steps x
chains, one pool of them serves every target, and only what becomes a sample is decoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..._checks import keep_count, shown
from ..chains import ChainState, State, along
from ..length import MAX_STEPS, bound_steps
from ..models import Offer
from ..statistics import weight_summary
from .base import Draws, Kernel, Problem


@dataclass
class IMHState(State):
    """Chains of every target, and the latents or samples of their states that cannot be made again."""

    chains: ChainState
    kept: dict[str, Tensor] = along(1, dict)
    """(T, C, ...) by name."""


def check_length(kernel: Kernel) -> None:
    """Checks the options of an automatic length."""
    if not isinstance(kernel.tol, Real) or not 0 < kernel.tol < 1:
        raise ValueError(f"tol must be between 0 and 1, got {shown(kernel.tol)}")
    keep_count(kernel, "max_steps", most=MAX_STEPS)


def check_thinning(kernel: Kernel) -> None:
    """Checks the options of chains that give several samples."""
    keep_count(kernel, "samples_per_chain", most=MAX_STEPS)
    if kernel.thin is not None:
        keep_count(kernel, "thin", most=MAX_STEPS)


@dataclass(frozen=True)
class IMH(Kernel):
    """Independent Metropolis-Hastings chains: every sample is independent of the others.

    Source: Cho et al., "Mining Multi-Label Samples from Single Positive Labels", NeurIPS 2022, Algorithm 1.

    Attributes:
        tol: ``n_steps="auto"`` runs until the bound (1 - 1/M)^n on the distance to every target, in total
            variation, is at most this, with M estimated from the weights of all chains.
        max_steps: limit of an automatic length.
        samples_per_chain: samples that each chain gives, ``thin`` steps apart. As many fewer chains run.
        thin: as many steps as the bound asks for, for "auto", otherwise n_steps, unless given. Fewer leave samples
            of one chain correlated.
    """

    tol: float = 0.01
    max_steps: int = 10_000
    samples_per_chain: int = 1
    thin: int | None = None
    name: ClassVar[str] = "imh"
    keeps_states: ClassVar[bool] = True
    automatic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_length(self)
        check_thinning(self)

    def init(self, problem: Problem) -> IMHState:
        return IMHState(start_chains(problem))

    def accept(self, problem: Problem, state: IMHState, offer: Offer) -> None:
        scan(problem, state, offer)

    def check(self, problem: Problem, state: IMHState) -> None:
        state.chains.raise_if_invalid(problem.first)

    def glance(self, problem: Problem, state: IMHState, at: int) -> dict[str, str]:
        return glance_at(state.chains, at)

    def needed(self, problem: Problem, state: IMHState, at: int) -> float:
        weights = problem.gather(state.chains.weights, 2).numpy()
        ratios = [weight_summary(weights[:, t], at)[1] for t in range(len(problem.joint_classes))]
        return max(bound_steps(ratio, self.tol) for ratio in ratios)

    def draws(self, problem: Problem, state: IMHState, at: int) -> Draws:
        rows = torch.nonzero(state.chains.accepted_step >= 0, as_tuple=True)
        kept = {name: tensor[rows] for name, tensor in state.kept.items()}
        return Draws(*rows, state.chains.log_weight[rows], state.chains.accepted_step[rows].long(), kept=kept)

    def diagnostics(
        self, problem: Problem, state: IMHState, at: int, between: int, chosen: Draws
    ) -> list[dict[str, Any]]:
        found = summaries(problem, state.chains, at)
        for fields in found:
            fields["tv_bound"] = (1 - 1 / fields["max_weight_ratio"]) ** between
        return found


def start_chains(problem: Problem) -> ChainState:
    """Chains without a state, in the dtype of logits like the latents; the first logits may say another."""
    shape = (len(problem.joint_classes), problem.shard.n)
    return ChainState.start(*shape, problem.models.dtype, problem.models.device)


def scan(problem: Problem, state: IMHState, offer: Offer) -> None:
    """The accept steps of an offer, for all targets at once."""
    weights = problem.weights(offer.output)
    dtype = weights.targets.log_gamma.dtype
    if offer.at == 0 and state.chains.weights.dtype != dtype:  # of the logits, which the latents' need not be
        state.chains.weights = state.chains.weights.to(dtype)
    at = dict(seed=problem.seed, first_chain=problem.first, first_step=offer.at)
    weights.scan(state.chains, offer.output, offer.log_correction, **at)
    if not offer.kept:
        return
    accepted_step = state.chains.accepted_step
    target, chain = torch.nonzero(accepted_step >= offer.at, as_tuple=True)
    step = accepted_step[target, chain].long() - offer.at
    for name, tensor in offer.kept.items():
        if name not in state.kept:
            state.kept[name] = tensor.new_zeros(*accepted_step.shape, *tensor.shape[2:])
        state.kept[name][target, chain] = tensor[step, chain]


def glance_at(chains: ChainState, at: int) -> dict[str, str]:
    """What a progress bar shows of chains: of their targets, the worst."""
    accepted = chains.accepted.double().mean(1)
    without = int((chains.accepted_step < 0).sum(1).max())
    ratios = [weight_summary(weights, at)[1] for weights in chains.weights.movedim(1, 0).cpu().numpy()]
    return {
        "accepted": f"{float(accepted.min()) / at:.3f}",
        "without support": f"{without}/{chains.counts.shape[2]}",
        "bound": f"{max((1 - 1 / ratio) ** at for ratio in ratios):.2g}",
    }


def summaries(problem: Problem, chains: ChainState, at: int) -> list[dict[str, Any]]:
    """Fields of the diagnostics that all methods with a pool of proposals share, for each target."""
    weights, counts = (problem.gather(part, 2).numpy() for part in (chains.weights, chains.counts))
    n = weights.shape[2] * at
    found = []
    for t in range(weights.shape[1]):
        ess, ratio, log_mean = weight_summary(weights[:, t], at)
        accepted_step, accepted, supported = counts[:, t].astype("int64")
        found.append(
            {
                "acceptance_rate": float(accepted.sum()) / n,
                "support_rate": float(supported.sum()) / n,
                "ess_per_proposal": ess,
                "max_weight_ratio": ratio if n else math.inf,
                "log_mean_weight": log_mean,
                "chains_without_support": int((accepted_step < 0).sum()),
            }
        )
    return found
