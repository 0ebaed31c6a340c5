"""Rejection and importance resampling: samples are chosen from all proposals of the run, at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ... import _ops
from ..chains import State, along
from ..models import Offer
from ..statistics import weight_summary
from .base import Draws, Kernel, Problem
from .imh import ChainState, check_length, start_chains, summaries

RESAMPLING_BIAS = 6
"""A resampled draw is at most 6 / ESS from the target in total variation: half of the 12 / ESS by which the mean
of a function between -1 and 1 can be off (Agapiou, Papaspiliopoulos, Sanz-Alonso and Stuart, "Importance Sampling:
Intrinsic Dimension and Computational Cost", Statistical Science 2017, Theorem 2.1)."""


@dataclass
class PooledState(State):
    """The weights of all proposals, in blocks of steps, and what of the proposals cannot be made again."""

    chains: ChainState
    log_weights: list[Tensor] = along(2, list)
    """(T, S, C) of each block."""
    kept: dict[str, list[Tensor]] = along(1, dict)
    """(S, C, ...) of each block, by name."""

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first step, log weights (T, S, C)) of each block."""
        at = 0
        for weights in self.log_weights:
            yield at, weights
            at += weights.shape[1]


@dataclass(frozen=True)
class Pooled(Kernel):
    """A method whose samples are chosen from all proposals at the end of the run.

    It keeps the weights of all proposals, and for a stochastic G all that it makes.

    Attributes:
        tol: ``n_steps="auto"``, the default, takes proposals until there are ``n_samples`` of every target and
            ``diagnostics.tv_bound`` is at most this.
        max_steps: limit on the proposals per sample.
    """

    tol: float = 0.01
    max_steps: int = 10_000
    steps: ClassVar[int | None] = None
    automatic: ClassVar[bool] = True
    first_look: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_length(self)

    def init(self, problem: Problem) -> PooledState:
        return PooledState(start_chains(problem))

    def accept(self, problem: Problem, state: PooledState, offer: Offer) -> None:
        weights = problem.weights(offer.output)
        dtype = weights.targets.log_gamma.dtype
        correction = None if offer.log_correction is None else offer.log_correction.flatten()
        rows = (None if part is None else part.flatten(0, 1) for part in offer.output)
        log_weights = weights.log_weights(type(offer.output)(*rows), correction)
        log_weights = log_weights.view(-1, offer.steps, problem.shard.n)
        if offer.at == 0:
            state.chains.weights = state.chains.weights.to(dtype)
        state.log_weights.append(log_weights)
        state.chains.scan(log_weights, seed=problem.seed, first_chain=problem.first, first_step=offer.at)
        for name, tensor in offer.kept.items():
            spare = tensor.untyped_storage().nbytes() > tensor.nbytes  # of a block that ended early
            state.kept.setdefault(name, []).append(tensor.clone() if spare else tensor)

    def glance(self, problem: Problem, state: PooledState, at: int) -> dict[str, str]:
        n = problem.shard.n * at
        found = [weight_summary(w, at)[:2] for w in state.chains.weights.movedim(1, 0).cpu().numpy()]
        bound = max(min(1.0, self._bias(ess * n, ratio / n)) for ess, ratio in found)
        return {"ESS": f"{min(ess for ess, _ in found) * n:.0f}", "bound": f"{bound:.2g}"}

    def check(self, problem: Problem, state: PooledState) -> None:
        state.chains.raise_if_invalid(problem.first)

    def diagnostics(
        self, problem: Problem, state: PooledState, at: int, between: int, chosen: Draws
    ) -> list[dict[str, Any]]:
        found = summaries(problem, state.chains, at)
        n_chains, n = problem.shard.n_chains, problem.shard.n_chains * at
        for t, fields in enumerate(found):
            rows = chosen.target == t
            fields["acceptance_rate"] = len(torch.unique(chosen.step[rows] * n_chains + chosen.chain[rows])) / n
            fields["tv_bound"] = min(
                1.0, self._bias(fields["ess_per_proposal"] * n, fields["max_weight_ratio"] / n)
            )
            if fields["chains_without_support"] < n_chains:  # the chains' proposals are one pool
                fields["chains_without_support"] = 0
        return found

    def _bias(self, ess: float, largest_share: float) -> float:
        """The bound on the distance to the target, for pools worth ``ess`` independent samples."""
        raise NotImplementedError

    def _summaries(self, problem: Problem, state: PooledState, at: int) -> list[tuple[float, float]]:
        """(effective samples in the pool, M) of each target."""
        weights = problem.gather(state.chains.weights, 2).numpy()
        n = problem.shard.n_chains * at
        found = (weight_summary(weights[:, t], at) for t in range(weights.shape[1]))
        return [(ess * n, ratio) for ess, ratio, _ in found]

    def _draws(self, problem: Problem, state: PooledState, rows: list[tuple[Tensor, Tensor, Tensor]]) -> Draws:
        """Draws from (step, chain, order) (n,) of each target."""
        blocks = [weights.shape[1] for weights in state.log_weights]
        step, chain, order = (torch.cat(parts) for parts in zip(*rows, strict=True))
        target = torch.repeat_interleave(torch.tensor([len(part) for part, *_ in rows], device=step.device))
        log_weight = torch.empty(len(step), dtype=state.chains.weights.dtype, device=step.device)
        kept = {name: parts[0].new_empty(len(step), *parts[0].shape[2:]) for name, parts in state.kept.items()}
        at = 0
        for number, steps in enumerate(blocks):
            here = torch.nonzero((step >= at) & (step < at + steps))[:, 0]
            log_weight[here] = state.log_weights[number][target[here], step[here] - at, chain[here]]
            for name, parts in state.kept.items():
                kept[name][here] = parts[number][step[here] - at, chain[here]]
            at += steps
        return Draws(target, chain, log_weight, step, order, kept)


@dataclass(frozen=True)
class Rejection(Pooled):
    """Rejection sampling: a proposal is accepted with probability w / max w, the maximum being the run's largest.

    Source: Azadi, Olsson, Darrell, Goodfellow and Odena, "Discriminator Rejection Sampling", ICLR 2019.

    Attributes:
        tol: ``n_steps="auto"``, the default, takes proposals until there are ``n_samples`` of every target and
            ``diagnostics.tv_bound`` is at most this.
        max_steps: limit on the proposals per sample.
    """

    name: ClassVar[str] = "rejection"

    def needed(self, problem: Problem, state: PooledState, at: int) -> float:
        per_chain = torch.zeros(len(problem.joint_classes), problem.shard.n, dtype=torch.int64)
        for _, mask in self._accepted(problem, state):
            per_chain += mask.sum(1).cpu()
        found = problem.gather(per_chain, 1).sum(1).tolist()
        needed, n_proposals = 0.0, problem.shard.n_chains * at
        for n, (_, ratio) in zip(found, self._summaries(problem, state, at), strict=True):
            share = problem.n_samples / max(n, 1)
            # Beyond what is expected to do, or many short looks would follow.
            steps = at * max(share if share <= 1 else 1.05 * share, ratio / n_proposals / self.tol)
            needed = max(needed, math.ceil(steps) if math.isfinite(steps) else steps)
        return needed

    def draws(self, problem: Problem, state: PooledState, at: int) -> Draws:
        rows: list[list[Tensor]] = [[] for _ in problem.joint_classes]
        for first, mask in self._accepted(problem, state):
            for t, found in enumerate(rows):
                if sum(map(len, found)) < problem.n_samples:
                    found.append(torch.nonzero(mask[t]) + torch.tensor([first, 0], device=mask.device))
        picked = [torch.cat(found)[: problem.n_samples] for found in rows]
        n_chains, first_chain = problem.shard.n_chains, problem.shard.first
        return self._draws(
            problem,
            state,
            [
                (step, chain, step * n_chains + first_chain + chain)
                for step, chain in (p.unbind(1) for p in picked)
            ],
        )

    def _accepted(self, problem: Problem, state: PooledState) -> Iterator[tuple[int, Tensor]]:
        """(first step, which proposals are accepted (T, S, C)) of each block, under the largest weight of all."""
        bounds = problem.gather(state.chains.weights[1], 1).amax(1).double().to(state.chains.weights.device)
        for first, weights in state.blocks():
            steps = torch.arange(first, first + weights.shape[1], device=weights.device)
            chains, steps = torch.broadcast_tensors(problem.chains, steps[:, None])
            uniforms = rejection_uniforms(chains, steps, problem.seed)
            yield first, accepted(weights, uniforms, bounds[:, None, None])

    def _bias(self, ess: float, largest_share: float) -> float:
        return largest_share


@dataclass(frozen=True)
class Resample(Pooled):
    """Importance resampling: proposals are drawn with probability proportional to w, some more than once.

    Source: Rubin, "The calculation of posterior distributions by data augmentation: Comment", JASA 1987.

    Attributes:
        tol: ``n_steps="auto"``, the default, takes proposals until they are worth ``n_samples`` independent
            samples of every target and ``diagnostics.tv_bound`` is at most this.
        max_steps: limit on the proposals per sample.
    """

    name: ClassVar[str] = "resample"

    def needed(self, problem: Problem, state: PooledState, at: int) -> float:
        worth = max(problem.n_samples, RESAMPLING_BIAS / self.tol)
        found = [ess for ess, _ in self._summaries(problem, state, at)]
        return max(math.ceil(at * worth / ess) if ess else math.inf for ess in found)

    def draws(self, problem: Problem, state: PooledState, at: int) -> Draws:
        n_chains = problem.shard.n_chains
        chains = problem.first_chain + torch.arange(n_chains)

        def uniforms(chains: Tensor, step: int) -> Tensor:
            steps = torch.full_like(chains, step)
            return _ops.philox_uniform(chains, steps, problem.seed, dtype=torch.float64)

        rows = []
        for t in range(len(problem.joint_classes)):
            # The uniforms after those of the accept steps: one moves all teeth of the comb, the others shuffle
            # what it picks in the order of the proposals, or the first samples would be of the first of them.
            (tooth,) = uniforms(chains[:1], at).tolist()
            picked = torch.from_numpy(
                resampled(
                    lambda t=t: (problem.gather(block[t], 1).reshape(-1).numpy() for block in state.log_weights),
                    problem.n_samples,
                    tooth,
                )
            )
            picked = picked[torch.argsort(uniforms(chains[: len(picked)], at + 1), stable=True)]
            step = torch.div(picked, n_chains, rounding_mode="floor")
            chain = picked - step * n_chains
            order = torch.nonzero(problem.shard.owns(chain))[:, 0]
            here = (step[order], chain[order] - problem.shard.first, order)
            rows.append(tuple(part.to(problem.models.device) for part in here))
        return self._draws(problem, state, rows)

    def _bias(self, ess: float, largest_share: float) -> float:
        return RESAMPLING_BIAS / ess if ess else 1.0


def accepted(log_weights: Tensor, log_uniforms: Tensor, log_bound: Tensor | float) -> Tensor:
    """Which proposals rejection sampling accepts under a bound on the weights; of one shape, bool."""
    return (log_weights - log_uniforms >= log_bound) & (log_weights > -math.inf)


def rejection_uniforms(chains: Tensor, steps: Tensor, seed: int) -> Tensor:
    """log u of chains at steps, of one shape: those of the Metropolis-Hastings accept step."""
    rows = (chains.reshape(-1), steps.reshape(-1))
    return _ops.philox_uniform(*rows, seed, dtype=torch.float64).log().view(chains.shape)


def resampled(blocks: Callable[[], Iterable[np.ndarray]], n: int, uniform: float) -> np.ndarray:
    """Indices (n,) drawn with probability proportional to the weights, in order; none if all weigh nothing.

    Systematic resampling: a proposal that should come out k times on average comes out floor(k) or ceil(k) times.

    Args:
        blocks: gives the log weights (m,) of all proposals block after block; called three times, so that no more
            than a block's weights are held at once.
        uniform: in [0, 1), moves all n points together.
    """
    top = max((block.max(initial=-math.inf) for block in blocks()), default=-math.inf)
    if top == -math.inf:
        return np.zeros(0, dtype=np.int64)

    def cumulative() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first index, log weights, sums of weights up to and with each), as one sum over all would round."""
        first, carry = 0, 0.0
        for block in blocks():
            weights = np.exp(block.astype(np.float64) - top)
            weights[:1] += carry
            sums = np.cumsum(weights)
            yield first, block, sums
            first, carry = first + len(block), sums[-1]

    total, last = 0.0, 0
    for first, block, sums in cumulative():
        total = sums[-1]
        supported = np.flatnonzero(block > -math.inf)
        last = first + supported[-1] if len(supported) else last
    teeth = (np.arange(n) + uniform) / n * total
    found = np.full(n, last)
    begin = 0
    for first, _, sums in cumulative():
        end = begin + int(np.searchsorted(teeth[begin:], sums[-1], side="left"))
        found[begin:end] = first + np.searchsorted(sums, teeth[begin:end], side="right")
        begin = end
    return np.minimum(found, last)
