"""Runs of one sampler under the same circumstances: a call of the user, with what it runs on the way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm.auto import tqdm

from .._models import eval_mode
from .forward import Forward
from .langevin import START_STEPS, LangevinChains
from .length import ChainLength
from .mixture import LatentMixture, MixtureProposal
from .pool import Pool, RunOptions
from .processes import Processes, Shard
from .proposals import DrawLatents, DrawnProposal, GivenLatents, PriorProposal, Proposal
from .result import S2MResult, SamplingWarning
from .targets import JointClass

if TYPE_CHECKING:
    from .adaptation import AdaptationPath
    from .s2m import S2MSampler


@dataclass(frozen=True)
class Session:
    sampler: S2MSampler
    processes: Processes
    proposal_class: int | None
    progress: bool

    def chains(
        self,
        joint_classes: Sequence[JointClass],
        n_chains: int,
        n_steps: int,
        seed: int,
        mixture: LatentMixture | None = None,
    ) -> list[S2MResult]:
        """The states of chains of independent Metropolis-Hastings, those of all processes.

        Raises:
            KeyboardInterrupt: on Ctrl-C, at any time.
        """
        run = RunOptions(Shard(n_chains, self.processes), ChainLength(n_steps), n_chains, "imh", seed, gather=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)
            results = self.draw(joint_classes, run, mixture)
        if any(result.diagnostics.interrupted for result in results):
            raise KeyboardInterrupt
        return results

    def draw(
        self,
        joint_classes: Sequence[JointClass],
        run: RunOptions,
        proposal: LatentMixture | DrawLatents | None = None,
        latents: Tensor | None = None,
        paths: Sequence[AdaptationPath | None] | None = None,
    ) -> list[S2MResult]:
        """Samples of each joint class; ``paths`` are the adaptations of their proposals, where there are any."""
        sampler, length = self.sampler, run.length
        paths = paths or [None] * len(joint_classes)
        # Targets share a pool if they share their proposals: those of one label, or of one adaptation.
        pools: dict[tuple[int | None, int | None], list[int]] = {}
        for t, target in enumerate(joint_classes):
            label = target.I[0] if self.proposal_class is None else self.proposal_class
            own = None if paths[t] is None else t
            pools.setdefault((label if sampler.conditional else None, own), []).append(t)
        steps = len(pools) * length.expected_steps
        if run.method == "mala":
            steps = len(pools) * START_STEPS + len(joint_classes) * (length.expected_steps + 1)
        results: dict[int, S2MResult] = {}
        with (
            eval_mode(sampler.G, sampler.clf),
            tqdm(
                total=None if length.automatic else steps * run.shard.n,
                desc="S2M sampling",
                unit=" proposals",
                unit_scale=True,
                disable=not self.progress,
            ) as bar,
        ):
            for number, ((label, _), members) in enumerate(pools.items()):
                path = paths[members[0]]
                of_pool = (
                    Forward(sampler, label, bar),
                    [joint_classes[t] for t in members],
                    self._proposal(run, proposal if path is None else path.mixture, latents),
                    f"pool {number}",
                )
                try:
                    found = self._langevin(run, *of_pool) if run.method == "mala" else Pool(run, *of_pool).run()
                except KeyboardInterrupt:
                    if not results:
                        raise
                    break
                for t, result in zip(members, found, strict=True):
                    results[t] = replace(result, adaptation=path)
                if any(result.diagnostics.interrupted for result in found):
                    break
        begun = next(iter(results.values()))
        return [results.get(t) or _not_begun(target, begun) for t, target in enumerate(joint_classes)]

    def _langevin(self, run: RunOptions, *of_pool) -> list[S2MResult]:
        n_chains = run.shard.n_chains
        start = Pool(
            replace(run, method="imh", length=ChainLength(START_STEPS), n_samples=n_chains, gather=True), *of_pool
        )
        results, interrupted = [], False
        for states in start.run(gradients_later=True):
            chains = LangevinChains(run, start, states)
            results.append(chains.where_it_began() if interrupted or start.interrupted else chains.run())
            interrupted = interrupted or chains.interrupted
        return results

    def _proposal(
        self, run: RunOptions, given: LatentMixture | DrawLatents | None, latents: Tensor | None
    ) -> Proposal:
        sampler, shard = self.sampler, run.shard
        if latents is not None:
            return GivenLatents(shard.part(latents, 1))
        if given is not None and not isinstance(given, LatentMixture):
            here = slice(shard.first, shard.first + shard.n)
            return DrawnProposal(
                given, shard.n_chains, run.seed, sampler.device, here, weighted=run.method == "mala"
            )
        arguments = (
            sampler.z_shape,
            shard.n,
            run.seed,
            run.first_chain + shard.first,
            sampler.dtype,
            sampler.device,
        )
        return PriorProposal(*arguments) if given is None else MixtureProposal(given, *arguments)


def _not_begun(target: JointClass, other: S2MResult) -> S2MResult:
    """The empty result of a joint class before whose pool Ctrl-C came; shapes are those of another's."""
    diagnostics = replace(
        other.diagnostics,
        n_steps=0,
        burn_in=0,
        thin=0,
        n_samples=0,
        acceptance_rate=0.0,
        support_rate=0.0,
        ess_per_proposal=0.0,
        max_weight_ratio=math.inf,
        log_mean_weight=-math.inf,
        tv_bound=None if other.diagnostics.method == "mala" else 1.0,
        chains_without_support=other.diagnostics.n_chains,
        proposals_per_second=0.0,
        seconds_in_generator=0.0,
        seconds_in_classifier=0.0,
        seconds_in_sampler=0.0,
        interrupted=True,
    )
    return replace(other.first(0), joint_class=target, diagnostics=diagnostics, adaptation=None)
