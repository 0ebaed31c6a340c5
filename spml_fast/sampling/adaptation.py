"""Latent adaptation: proposals fitted to latents of target samples, one attribute after the other.

Source: Cho et al., "Mining Multi-Label Samples from Single Positive Labels", NeurIPS 2022, latent adaptation. IMH
needs about 1/p(target) steps; proposals from p~_z, close to the latents of the target, need few, and the weight
p_z/p~_z keeps the target what it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .kernels import IMH
from .processes import Processes
from .proposals import LatentMixture, Mixture
from .results import AdaptationPath, AdaptationStage, Diagnostics, S2MResult, warn
from .weights import JointClass

KEEP_PRIOR_ESS = 0.05
"""Effective samples per proposal from which on the prior is kept: a fitted proposal would give more, but its
tails are lighter, and with them grows M, the largest weight, which chains have to wait for."""

MIN_EXPECTED_HITS = 4
"""Expected samples of a joint class among the proposals, below which a run is taken not to have met it."""

DIRECT_FIT_ESS = 2 / 64
"""Effective samples per proposal from which on a joint class is fitted at once, not attribute by attribute."""

SHOWN_SAMPLES = 64
"""Samples of each stage that an adaptation path keeps, for pictures."""

DrawChains = Callable[[Sequence[JointClass], int, int, int, LatentMixture | None, int | None], list[S2MResult]]
"""``draw(joint_classes, n_chains, n_steps, seed, proposal, label)``: the states of IMH chains in all processes.
A proposal of None is the prior; a label of None is each joint class's own."""


class AdaptationError(ValueError):
    """A joint class that adaptation did not find."""


def candidates(target: JointClass, taken: Sequence[int], order: Sequence[int] | None) -> list[JointClass]:
    """Joint classes that the next stage may sample: of the attributes ``taken`` and the next of ``order``, or any
    other. The first attribute is one of I.
    """
    if order is None:
        following = [i for i in (*target.I, *(target.J if taken else ())) if i not in taken]
    else:
        following = [order[len(taken)]]
    found = []
    for attribute in following:
        among = {*taken, attribute}
        I, J = (tuple(i for i in part if i in among) for part in (target.I, target.J))
        found.append(JointClass(I, J))
    return found


def check_order(target: JointClass, order: Sequence[int] | None) -> None:
    """``ValueError`` for an order that does not name all attributes of I and J once, or that begins in J."""
    if order is None:
        return
    if sorted(order) != sorted((*target.I, *target.J)):
        raise ValueError(f"order must name each attribute of {target} once, got {tuple(order)}")
    if order[0] not in target.I:
        raise ValueError(f"order must begin with an attribute of I={target.I}, got {order[0]}")


def adapt(
    draw: DrawChains,
    processes: Processes,
    target: JointClass,
    seed: int,
    how: Mixture,
    order: Sequence[int] | None = None,
) -> AdaptationPath:
    """A proposal for one joint class, found in stages; see :meth:`spml_fast.S2MSampler.adapt`.

    Raises:
        AdaptationError: a stage that the chains hardly met.
    """
    check_order(target, order)
    stages: list[AdaptationStage] = []
    taken: tuple[int, ...] = ()
    while set(taken) != {*target.I, *target.J}:
        key = stage_seed(seed, len(stages))
        mixture = stages[-1].mixture if stages else None
        choice = candidates(target, taken, order)
        if not stages and order is None and choice != [target]:
            choice.append(target)
        looking = min(IMH.first_look, how.max_steps)
        before = [stages[-1].joint_class] if stages else []
        looks = draw([*choice, *before], how.n_chains, looking, key, mixture, target.I[0])
        base = looks.pop().diagnostics if stages else None
        result = _next_stage(looks, target, base)
        proposals = how.n_chains * looking
        # Long enough for most chains to hold a sample: what is fitted need not be exact, weights mend it.
        n_steps = math.ceil(min(2 / max(_efficiency(result, base), 1e-9), how.max_steps))
        if n_steps > looking:
            (result,) = draw([result.joint_class], how.n_chains, n_steps, stage_seed(key, 1), mixture, target.I[0])
            proposals += how.n_chains * n_steps
        if _efficiency(result, base) == 0 or len(result.latents) < max(2, how.n_components or 0):
            raise AdaptationError(
                f"adaptation: {how.n_chains} chains hardly met {result.joint_class} in "
                f"{result.diagnostics.n_steps} steps, too little to fit a proposal to; take more chains or "
                "steps, or another order"
            )
        latents = result.latents
        fitted = processes.from_first(lambda z=latents, key=key: LatentMixture.fit(z, how, seed=key))
        shown = result.samples[:SHOWN_SAMPLES].clone()
        stages.append(AdaptationStage(result.joint_class, result.diagnostics, proposals, fitted, shown))
        taken = (*result.joint_class.I, *result.joint_class.J)
    return AdaptationPath(tuple(stages))


def adapt_where_it_pays(
    draw: DrawChains, processes: Processes, joint_classes: Sequence[JointClass], seed: int, how: Mixture
) -> list[AdaptationPath | None]:
    """A path for each target of which the prior gives few effective samples, None for the others.

    What is found for a target does not depend on the others.
    """
    pilot = draw(joint_classes, 1024, IMH.first_look, stage_seed(seed, 0), None, None)
    paths: list[AdaptationPath | None] = []
    for target, look in zip(joint_classes, pilot, strict=True):
        paths.append(None)
        if _efficiency(look, None) < KEEP_PRIOR_ESS:
            key = stage_seed(seed, 1, len(target.I), *target.I, *target.J)
            try:
                paths[-1] = adapt(draw, processes, target, key, how)
            except AdaptationError as error:
                if processes.rank == 0:
                    warn(f"{error}; the prior is kept")
    return paths


def _next_stage(looks: list[S2MResult], target: JointClass, base: Diagnostics | None) -> S2MResult:
    """The whole target where it is met often enough or nothing else is left, otherwise what is served best."""
    parts = [look for look in looks if look.joint_class != target]
    whole = looks[-1]
    if not parts or (whole.joint_class == target and _efficiency(whole, base) >= DIRECT_FIT_ESS):
        return whole
    return max(parts, key=lambda look: _efficiency(look, base))


def _efficiency(look: S2MResult, base: Diagnostics | None) -> float:
    """Effective samples per proposal; 0 where the joint class was hardly met.

    Classifiers whose logits are finite give every proposal some weight, and where none belongs to the joint class
    the weights are small and alike: many effective samples of nothing. ``base`` belongs to a wider joint class,
    for which the proposals were made (None: the prior): the ratio of mean weights is the share of its samples that
    belong.
    """
    d = look.diagnostics
    samples, log_mean = d.n_chains * d.n_steps, 0.0
    if base is not None:
        samples, log_mean = samples * base.ess_per_proposal, base.log_mean_weight
    hits = samples * math.exp(min(d.log_mean_weight - log_mean, 0.0))
    return d.ess_per_proposal if hits >= MIN_EXPECTED_HITS else 0.0


def stage_seed(seed: int, *stage: int) -> int:
    """A seed of its own for each stage; the draws of different keys are independent."""
    state = np.random.SeedSequence([seed % 2**64, *stage]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
