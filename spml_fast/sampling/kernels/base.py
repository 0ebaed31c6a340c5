"""The protocol of sampling kernels: what a method must say so that the driver can run it.

The driver (:mod:`spml_fast.sampling.run`) owns the loop: the schedule, several processes, checkpoints, Ctrl-C, the
progress bar. A kernel is a dataclass of options with four functions on a :class:`~spml_fast.sampling.State` of
tensors; none of them knows any of that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ... import _ops
from ..._conventions import ClassifierOutput
from ..chains import State, along
from ..models import BatchedModels, Classified, Offer
from ..processes import Shard
from ..proposals import Proposal
from ..weights import JointClass, MinMax, MinMaxWeights


class Stopped(Exception):  # noqa: N818, no error: how a proposal that was asked to stop says that it did
    """The run is to stop, and what was being proposed is dropped."""


@dataclass
class Problem:
    """What a kernel works on: targets, and the proposals, models and weights that they share.

    Attributes:
        joint_classes: the T targets.
        shard: the chains of this process, ``shard.n`` of ``shard.n_chains``.
        seed: of all draws; 64 bits.
        first_chain: number of the run's first chain among the chains of this seed.
        n_samples: samples that are asked for, for each target.
        n_steps: steps that are asked for; None: "auto".
        stop: asked between batches, with whether a whole step is done; True ends the proposal there.
    """

    joint_classes: tuple[JointClass, ...]
    weight: MinMax
    models: BatchedModels
    proposal: Proposal
    shard: Shard
    seed: int
    first_chain: int
    n_samples: int
    n_steps: int | None
    stop: Callable[[bool], bool] = lambda some_step: False
    _weights: MinMaxWeights | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.first = self.first_chain + self.shard.first
        """Number of the first chain of this process."""
        self.chains = self.shard.numbers(self.first_chain, self.models.device)
        """(C,) int64: the numbers of this process's chains, by which Philox knows them."""
        self.classified = Classified(self.models, self.proposal, self.shard.n)

    def offer(self, at: int, n: int) -> Offer:
        """The proposals of 1 to ``n`` steps from ``at``, classified.

        Raises:
            Stopped: the run is to stop, before a whole step is classified; what is, waits for the next call.
            ValueError: ``at`` is before the step of the call before.
        """
        offer = self.classified.offer(at, n, self.stop)
        if offer.steps < 1:
            raise Stopped
        return offer

    def weights(self, output: ClassifierOutput) -> MinMaxWeights:
        """The weights of the targets, for logits like these."""
        if self._weights is None:
            logits = output.class_logits
            self._weights = self.weight.on(
                self.joint_classes,
                logits.shape[-1],
                proposal_class=self.models.label or 0,
                dtype=_ops.compute_dtype(logits.dtype),
                device=logits.device,
            )
        return self._weights

    def log_weights(self, target: int, latents: Tensor) -> Tensor:
        """(n,) log weights of one target at latents (n, *z_shape), which may come from anywhere.

        Raises:
            Stopped: the run is to stop.
            ValueError: G draws noise of its own, so a latent has no weight.
        """
        if self.models.stochastic:
            raise ValueError(
                "log_weights: a latent of a stochastic G has no weight of its own, only what was made of it once: "
                "a method for such a G takes its proposals from offer(at, n)"
            )

        def run(first: int, last: int) -> Tensor:
            _, output = self.models.classify(latents[first:last])
            found = self.weights(output).log_weights(output)[target]
            if not (found < torch.inf).all():  # NaN included
                raise ValueError(
                    "clf returned NaN or infinite logits; a logit must be finite, or -inf for what cannot be"
                )
            return found

        if not len(latents):
            known = self._weights
            return latents.new_empty(
                0, dtype=self.models.dtype if known is None else known.targets.log_gamma.dtype
            )
        return torch.cat(self.in_batches(len(latents), run))

    def in_batches(self, n_rows: int, run: Callable[[int, int], Any]) -> list[Any]:
        """``run(first, last)`` over ``n_rows`` rows in batches that fit.

        Raises:
            Stopped: the run is to stop.
        """
        found, last = [], 0
        for _, end, part in self.models.batches(0, n_rows, run, lambda: self.stop(False)):
            found.append(part)
            last = end
        if last < n_rows:
            raise Stopped
        return found

    def check_logits(self) -> None:
        """``ValueError`` if logits are so large that weights are not told apart; waits for the device."""
        if self._weights is not None and self.models.largest is not None:
            self._weights.check_size(*self.models.largest.tolist()[:2])

    def log_uniform(self, step: int) -> Tensor:
        """(C,) float64: log u of the accept decision of each chain at ``step``."""
        steps = torch.full_like(self.chains, step)
        return _ops.philox_uniform(self.chains, steps, self.seed, dtype=torch.float64).log()

    def normal(self, step: int) -> Tensor:
        """(C, *z_shape): standard normal numbers of each chain at ``step``; those of the prior's proposals."""
        z_shape = self.models.z_shape
        steps = torch.full_like(self.chains, step)
        numbers = _ops.philox_normal(
            self.chains, steps, self.seed, torch.Size(z_shape).numel(), dtype=self.models.dtype
        )
        return numbers.reshape(-1, *z_shape)

    def gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """What the chains of all processes have along ``dim``, in their order, on the CPU."""
        return self.shard.all_gather(tensor, dim)


@dataclass
class Draws(State):
    """Samples of this process's chains: n rows.

    Attributes:
        target: (n,) index of the target.
        chain: (n,) index among this process's chains.
        log_weight: (n,).
        step: (n,) the step whose proposal each row is, where it is one; rows with one proposal are decoded once.
        order: (n,) the samples of a target are returned by it, across processes; by chain if None.
        kept: "latents" (n, *z_shape), unless the proposal can make them again from chain and step; "x"
            (n, *x_shape) of a stochastic G.
    """

    target: Tensor = along(0)
    chain: Tensor = along(0)
    log_weight: Tensor = along(0)
    step: Tensor | None = along(0, lambda: None)
    order: Tensor | None = along(0, lambda: None)
    kept: dict[str, Tensor] = along(0, dict)

    def rows(self, which: Tensor) -> Draws:
        """Some of the rows, by a mask or by their numbers."""
        return self.map_chains(lambda tensor, _: tensor[which])

    @staticmethod
    def join(parts: list[Draws]) -> Draws:
        """The rows of several draws, one after another."""
        if len(parts) == 1:
            return parts[0]
        kept = {name: torch.cat([part.kept[name] for part in parts]) for name in parts[0].kept}
        columns = ([getattr(part, name) for part in parts] for name in _COLUMNS)
        return Draws(*(None if column[0] is None else torch.cat(column) for column in columns), kept)


_COLUMNS = ("target", "chain", "log_weight", "step", "order")


class Steps(Protocol):
    """What a kernel proposes: any object that knows how many steps it holds."""

    steps: int

    def first(self, steps: int) -> Any:
        """The proposals of the first ``steps`` steps alone."""


class OneStep:
    """What a kernel proposes that goes a step at a time: a base class of its proposals."""

    steps = 1

    def first(self, steps: int) -> Any:
        return self


class Kernel:
    """A sampling method. Subclasses are frozen dataclasses of its options.

    Attributes:
        name: what results call the method.
        steps: default of ``n_steps``; None: "auto".
        automatic: whether ``n_steps="auto"`` is possible, for which :meth:`needed` must be given.
        first_look: steps after which an automatic length is looked at first.
        start_steps: steps before the first of ``n_steps``.
        samples_per_chain, thin, tol, max_steps: options that some methods have.
    """

    name: ClassVar[str] = "own"
    steps: ClassVar[int | None] = 200
    automatic: ClassVar[bool] = False
    first_look: ClassVar[int] = 16
    start_steps: ClassVar[int] = 0
    keeps_states: ClassVar[bool] = False
    """Whether an offer's x of the chains' states may be kept in the state, so that they need not be made again."""
    needs_correction: ClassVar[bool] = False
    """Whether proposals that a function draws must come with log p_z(z) - log p~_z(z)."""
    samples_per_chain: int = 1
    thin: int | None = None
    tol: float = 0.01
    max_steps: int = 10_000

    def init(self, problem: Problem) -> State:
        """The state before the first step."""
        raise NotImplementedError

    def propose(self, problem: Problem, state: Any, at: int, n: int) -> Steps:
        """Proposals of up to ``n`` steps from ``at``: calls G and clf, may be interrupted, changes nothing.

        It may hold fewer steps, none included, or raise :class:`Stopped`.
        """
        return problem.offer(at, n)

    def accept(self, problem: Problem, state: Any, offer: Any) -> None:
        """Moves the chains, in place; never interrupted half way."""
        raise NotImplementedError

    def check(self, problem: Problem, state: Any) -> None:
        """``ValueError`` if the chains were offered what no chain can weigh; waits for the device."""

    def glance(self, problem: Problem, state: Any, at: int) -> dict[str, str]:
        """What the progress bar shows after ``at`` steps, of this process's chains."""
        return {}

    def needed(self, problem: Problem, state: Any, at: int) -> float:
        """Steps until the target that needs most is served, as far as the weights of ``at`` steps tell."""
        raise NotImplementedError

    def draws(self, problem: Problem, state: Any, at: int) -> Draws:
        """Which proposals or states become samples, after ``at`` steps."""
        raise NotImplementedError

    def diagnostics(
        self, problem: Problem, state: Any, at: int, between: int, chosen: Draws
    ) -> list[dict[str, Any]]:
        """Fields of :class:`~spml_fast.sampling.Diagnostics` for each target that the driver does not know.

        Args:
            between: steps to the first sample, or from one sample of a chain to the next where those are fewer.
            chosen: the samples of all processes, without latents; chains are numbered over all processes.
        """
        return [{} for _ in problem.joint_classes]
