"""What a run of the sampler returns: samples, diagnostics, and how its proposals were adapted."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from .plan import Plan
from .proposals.mixture import LatentMixture
from .weights import JointClass


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

    Other methods than independent Metropolis-Hastings read some fields their own way:

    * "rejection": ``acceptance_rate`` is the share of all proposals that were returned. ``tv_bound`` is the share
      of the largest weight in the sum of all: the bound on w is the largest one seen, and this much is expected
      to lie above it in proposals not seen (the mean of (w' - max w)+ over the mean of w is at most that);
    * "resample": ``acceptance_rate`` is the share of all proposals that were returned, each counted once however
      often. ``tv_bound`` is 6 / ESS (:data:`spml_fast.sampling.kernels.pooled.RESAMPLING_BIAS`), at most 1, for
      each sample by itself; a set of samples cannot say more than ESS independent ones;
    * "mala": ``acceptance_rate`` and ``support_rate`` are those of the Langevin steps, ``ess_per_proposal`` that
      of the log density along the chains after warm-up (NaN where they are too short to tell). No bound is known,
      so ``tv_bound`` is None. ``max_weight_ratio`` and ``log_mean_weight`` are those of the proposals that the
      chains started from.

    A kernel of one's own that does not report a rate leaves it NaN, and what it has no bound for None.
    """

    n_chains: int
    n_steps: int
    acceptance_rate: float = math.nan
    """Share of all proposals that were accepted, each chain's first one included."""
    support_rate: float = math.nan
    """Share of all proposals with positive weight."""
    ess_per_proposal: float = math.nan
    max_weight_ratio: float = math.nan
    log_mean_weight: float = math.nan
    tv_bound: float | None = None
    chains_without_support: int = 0
    """Chains that never met a proposal of positive weight; they have no sample."""
    proposals_per_second: float = 0.0
    seconds_in_generator: float = 0.0
    seconds_in_classifier: float = 0.0
    seconds_in_sampler: float = 0.0
    """Everything else: latents, weights, accept steps, bookkeeping."""
    burn_in: int = 0
    """Steps to the first sample of each chain."""
    thin: int = 0
    """Steps from one sample of a chain to the next."""
    n_samples: int = 0
    """Samples that the run brought, over all processes."""
    interrupted: bool = False
    """Whether Ctrl-C stopped the run after n_steps of its steps, all of them if it came after the last."""
    method: str = "imh"
    r_hat: float | None = None
    """Split R-hat of the log density, "mala" only: 1 when the chains agree, infinite where they are stuck, None
    where they are too short to tell."""
    step_size: float | None = None
    """Standard deviation of the noise of a step, in the units of the latent; "mala" only."""
    plan: Plan | None = None
    """How G and clf were run: the :class:`~spml_fast.Plan` with what its rule or the user chose."""

    def to_dict(self) -> dict[str, Any]:
        """The fields in plain values."""
        return asdict(replace(self, plan=None)) | {"plan": None if self.plan is None else self.plan.to_dict()}


@dataclass(frozen=True)
class AdaptationStage:
    """One stage of a repeated adaptation.

    Attributes:
        joint_class: the joint class of the attributes so far.
        diagnostics: those of the run whose samples the next proposal was fitted to.
        proposals: number of proposals that the stage took, those that chose its attribute included.
        mixture: the proposal that was fitted.
        samples: some of the samples whose latents it was fitted to, (m, *x_shape), for pictures.
    """

    joint_class: JointClass
    diagnostics: Diagnostics
    proposals: int
    mixture: LatentMixture
    samples: Tensor


@dataclass(frozen=True)
class AdaptationPath:
    """A proposal for a joint class, and the stages by which it was found.

    Attributes:
        stages: in order; each adds attributes to the one before.
    """

    stages: tuple[AdaptationStage, ...]

    @property
    def mixture(self) -> LatentMixture:
        """The proposal for the whole joint class."""
        return self.stages[-1].mixture

    @property
    def proposals(self) -> int:
        """Total number of proposals that the stages took."""
        return sum(stage.proposals for stage in self.stages)

    @property
    def order(self) -> tuple[int, ...]:
        """The attributes as they were added; within one stage in the order of the joint class."""
        found: list[int] = []
        for stage in self.stages:
            found += [i for i in (*stage.joint_class.I, *stage.joint_class.J) if i not in found]
        return tuple(found)

    def to_state(self) -> list[dict[str, Any]]:
        """The stages as dicts, lists and tensors, for a checkpoint."""
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


@dataclass(frozen=True)
class S2MResult:
    """Samples of one joint class. Chains that never met its support have no row."""

    joint_class: JointClass
    samples: Tensor
    """(n, *x_shape)"""
    latents: Tensor
    """(n, *z_shape), of G's own prior: ``G(latents)`` are the samples, for a deterministic G."""
    log_weights: Tensor
    """(n,) log p_(I,J)(x) / q(x) of the samples, up to a constant."""
    chains: Tensor
    """(n,) int64: number of the chain that each row is the state of, or whose proposal it was, counted from
    ``first_chain``."""
    diagnostics: Diagnostics
    """Measured over all chains, whichever process ran them."""
    adaptation: AdaptationPath | None = None
    """How the proposals were adapted, if they were."""

    def first(self, n: int) -> S2MResult:
        """The result with its first ``n`` samples alone."""
        names = ("samples", "latents", "log_weights", "chains")
        return replace(self, **{name: getattr(self, name)[:n] for name in names})


class SamplingWarning(UserWarning):
    """A run that did not bring what was asked for: chains without a sample, a length that was not enough."""


def warn(text: str) -> None:
    """Gives a :class:`SamplingWarning` that points at whoever called the package, from however deep within it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "spml_fast":
        level, frame = level + 1, frame.f_back
    warnings.warn(text, SamplingWarning, stacklevel=level)
