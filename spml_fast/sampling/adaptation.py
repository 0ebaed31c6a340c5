"""Latent adaptation: proposals fitted to latents of target samples, one attribute after the other.

Source: Cho et al., "Mining Multi-Label Samples from Single Positive Labels", NeurIPS 2022, latent adaptation. IMH
needs about 1/p(target) steps; proposals from p~_z, close to the latents of the target, need few, and the weight
p_z/p~_z keeps the target what it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .diagnostics import Diagnostics
from .length import FIRST_LOOK
from .mixture import LatentMixture
from .result import S2MResult, warn
from .targets import JointClass

if TYPE_CHECKING:
    from .session import Session

WELL_SERVED = 0.05
"""Effective samples per proposal from which on the prior is kept: a fitted proposal would give more, but its
tails are lighter, and with them grows M, the largest weight, which chains have to wait for."""

MET = 4
"""Expected samples of a joint class among the proposals, below which a run is taken not to have met it."""

OFTEN_ENOUGH = 2 / 64
"""Effective samples per proposal from which on a joint class is fitted at once, not attribute by attribute."""

SHOWN_SAMPLES = 64
"""Samples of each stage that an adaptation path keeps, for pictures."""


class AdaptationError(ValueError):
    """A joint class that adaptation did not find."""


@dataclass(frozen=True)
class AdaptationStage:
    """One stage of a repeated adaptation.

    Attributes:
        joint_class: of the attributes so far.
        diagnostics: of the run whose samples the next proposal was fitted to.
        proposals: that the stage took, those that chose its attribute included.
        mixture: what was fitted.
        samples: some of those whose latents it was fitted to, (m, *x_shape), for pictures.
    """

    joint_class: JointClass
    diagnostics: Diagnostics
    proposals: int
    mixture: LatentMixture
    samples: Tensor


@dataclass(frozen=True)
class AdaptationPath:
    """A proposal for a joint class, and how it was found: one attribute after the other.

    Attributes:
        stages: in order.
    """

    stages: tuple[AdaptationStage, ...]

    @property
    def mixture(self) -> LatentMixture:
        """The proposal for the whole joint class."""
        return self.stages[-1].mixture

    @property
    def proposals(self) -> int:
        """That all stages took together."""
        return sum(stage.proposals for stage in self.stages)

    def to_state(self) -> list[dict[str, Any]]:
        """In dicts, lists and tensors, for a checkpoint."""
        return [asdict(stage) for stage in self.stages]

    @classmethod
    def from_state(cls, state: list[dict[str, Any]]) -> AdaptationPath:
        stages = (
            AdaptationStage(
                JointClass(**stage["joint_class"]),
                Diagnostics(**stage["diagnostics"]),
                stage["proposals"],
                LatentMixture(**stage["mixture"]),
                stage["samples"],
            )
            for stage in state
        )
        return cls(tuple(stages))

    @property
    def order(self) -> tuple[int, ...]:
        """The attributes as they were added; those of one stage in the joint class's order."""
        found: list[int] = []
        for stage in self.stages:
            found += [i for i in (*stage.joint_class.I, *stage.joint_class.J) if i not in found]
        return tuple(found)


def candidates(target: JointClass, taken: Sequence[int], order: Sequence[int] | None) -> list[JointClass]:
    """What a stage may be: the attributes ``taken`` and the next of ``order``, or any other; the first is of I.

    Raises:
        ValueError: an order that is not one of all attributes of I and J, or that begins in J.
    """
    if order is None:
        following = [i for i in (*target.I, *(target.J if taken else ())) if i not in taken]
    else:
        if sorted(order) != sorted((*target.I, *target.J)):
            raise ValueError(f"order must name each attribute of {target} once, got {tuple(order)}")
        if order[0] not in target.I:
            raise ValueError(f"order must begin with an attribute of I={target.I}, got {order[0]}")
        following = [order[len(taken)]]
    found = []
    for attribute in following:
        among = {*taken, attribute}
        I, J = (tuple(i for i in part if i in among) for part in (target.I, target.J))
        found.append(JointClass.of(I, J))
    return found


def adapt(
    session: Session,
    target: JointClass,
    seed: int,
    order: Sequence[int] | None = None,
    n_chains: int = 1024,
    max_steps: int = 1000,
    **fit: Any,
) -> AdaptationPath:
    """:meth:`spml_fast.S2MSampler.adapt`, in a session of the sampler."""
    if session.proposal_class is None and session.sampler.conditional:
        session = replace(session, proposal_class=target.I[0])
    stages: list[AdaptationStage] = []
    taken: tuple[int, ...] = ()
    while set(taken) != {*target.I, *target.J}:
        key = stage_seed(seed, len(stages))
        mixture = stages[-1].mixture if stages else None
        choice = candidates(target, taken, order)
        if not stages and order is None and choice != [target]:
            choice.append(target)
        looking = min(FIRST_LOOK, max_steps)
        before = [stages[-1].joint_class] if stages else []
        looks = session.chains([*choice, *before], n_chains, looking, key, mixture)
        base = looks.pop().diagnostics if stages else None
        result = _next_stage(looks, target, base)
        proposals = n_chains * looking
        # Long enough for most chains to hold a sample: what is fitted need not be exact, weights mend it.
        n_steps = math.ceil(min(2 / max(_efficiency(result, base), 1e-9), max_steps))
        if n_steps > looking:
            (result,) = session.chains([result.joint_class], n_chains, n_steps, stage_seed(key, 1), mixture)
            proposals += n_chains * n_steps
        if _efficiency(result, base) == 0 or len(result.latents) < 2:
            raise AdaptationError(
                f"adaptation: {n_chains} chains hardly met {result.joint_class} in "
                f"{result.diagnostics.n_steps} steps, too little to fit a proposal to; take more chains or "
                "steps, or another order"
            )
        latents = result.latents
        fitted = session.processes.from_first(lambda z=latents, key=key: LatentMixture.fit(z, seed=key, **fit))
        shown = result.samples[:SHOWN_SAMPLES]
        stages.append(AdaptationStage(result.joint_class, result.diagnostics, proposals, fitted, shown))
        taken = (*result.joint_class.I, *result.joint_class.J)
    return AdaptationPath(tuple(stages))


def adapt_where_it_pays(
    session: Session, joint_classes: Sequence[JointClass], seed: int, **options: Any
) -> list[AdaptationPath | None]:
    """A path for each target of which the prior gives few effective samples, None for the others."""
    pilot = session.chains(joint_classes, 1024, FIRST_LOOK, stage_seed(seed, 0))
    paths: list[AdaptationPath | None] = []
    for t, (target, look) in enumerate(zip(joint_classes, pilot, strict=True)):
        paths.append(None)
        if _efficiency(look, None) < WELL_SERVED:
            try:
                paths[t] = adapt(session, target, stage_seed(seed, t + 1), **options)
            except AdaptationError as error:
                if session.processes.rank == 0:
                    warn(f"{error}; the prior is kept")
    return paths


def _next_stage(looks: list[S2MResult], target: JointClass, base: Diagnostics | None) -> S2MResult:
    """The whole target where it is met often enough or nothing else is left, otherwise what is served best."""
    parts = [look for look in looks if look.joint_class != target]
    whole = looks[-1]
    if not parts or (whole.joint_class == target and _efficiency(whole, base) >= OFTEN_ENOUGH):
        return whole
    return max(parts, key=lambda look: _efficiency(look, base))


def _efficiency(look: S2MResult, base: Diagnostics | None) -> float:
    """Effective samples per proposal; 0 where the joint class was hardly met.

    Classifiers whose logits are finite give every proposal some weight, and where none belongs to the joint class
    the weights are small and alike: many effective samples of nothing. ``base`` is of a wider joint class that the
    proposals were made for (None: the prior): the ratio of mean weights is the share of its samples that belong.
    """
    d = look.diagnostics
    samples, log_mean = d.n_chains * d.n_steps, 0.0
    if base is not None:
        samples, log_mean = samples * base.ess_per_proposal, base.log_mean_weight
    return d.ess_per_proposal if samples * math.exp(min(d.log_mean_weight - log_mean, 0.0)) >= MET else 0.0


def stage_seed(seed: int, stage: int) -> int:
    """A seed of its own for each stage; the draws of different keys are independent."""
    state = np.random.SeedSequence([seed % 2**64, stage]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
