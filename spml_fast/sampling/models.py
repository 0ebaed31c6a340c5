"""G and clf as one function from latents to logits: in batches that fit, under the plan's precision, timed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._checks import count
from .._models import ClassifierOutput, Stopwatch, first_tensor, parse_classifier_output
from .proposals import Proposal

T = TypeVar("T")

BLOCK_ROWS = 65536
"""Proposals whose logits are held between two accept passes, if the plan does not say."""

FIRST_BATCH = 64
"""Proposals in the batch that shows the size of x, and in none fewer after it, if the plan does not say."""

BATCH_ELEMENTS = {"cpu": 2**16, "cuda": 2**24}
"""Elements of x in one batch, if the plan does not say: about what keeps the device busy from its cache."""

BATCH_ROWS = {"cpu": 8192, "cuda": BLOCK_ROWS}
"""Proposals in one batch at most, if the plan does not say: Ctrl-C and checkpoints wait for the end of a batch."""


PIECE_BYTES = 2**26
"""Memory that is set aside for what is kept of a block before it is known how far the block will come."""


@dataclass(frozen=True)
class Plan:
    """How G and clf are run.

    Attributes:
        batch_size: proposals per forward pass; by default from the size of x and the device.
        block_steps: steps per accept pass; by default as many as make about 65,536 proposals or take a second.
        device: where to work; G and clf are moved there if given. Default: where G (or clf) is.
        precision: run G and clf under ``torch.autocast`` in this dtype; weights are float32 all the same.
        memory_format: convert G and clf to this memory format: ``torch.channels_last``.

    Raises:
        ValueError, TypeError: an option out of range.
    """

    batch_size: int | None = None
    block_steps: int | None = None
    device: torch.device | str | None = None
    precision: torch.dtype | None = None
    memory_format: torch.memory_format | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "block_steps"):
            if getattr(self, name) is not None:
                count(getattr(self, name), name)
        if self.device is not None:
            try:
                torch.device(self.device)
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"device must be one of PyTorch's, got {self.device!r}") from error
        if self.precision is not None and not isinstance(self.precision, torch.dtype):
            raise TypeError(f"precision must be a torch.dtype, for example torch.bfloat16, got {self.precision!r}")
        if self.memory_format is not None and not isinstance(self.memory_format, torch.memory_format):
            raise TypeError(f"memory_format must be a torch.memory_format, got {self.memory_format!r}")


@dataclass
class Models:
    """G and clf, and how they are run; :meth:`given` makes the copy that one pool of proposals uses.

    Attributes:
        z_shape: shape of one latent.
        conditional: whether G takes a label.
        stochastic: whether G draws noise of its own, so that x must be kept rather than made again.
    """

    G: Callable[..., Tensor]
    clf: Callable[[Tensor], object]
    z_shape: tuple[int, ...]
    conditional: bool
    stochastic: bool
    plan: Plan

    def __post_init__(self) -> None:
        for model in (self.G, self.clf):
            if isinstance(model, nn.Module):
                if self.plan.device is not None:
                    model.to(self.plan.device)
                if self.plan.memory_format is not None:
                    model.to(memory_format=self.plan.memory_format)
        parameter = first_tensor(self.G, self.clf)
        self.device = torch.device(self.plan.device or (parameter.device if parameter is not None else "cpu"))
        double = parameter is not None and parameter.dtype == torch.float64
        self.dtype = torch.float64 if double else torch.float32  # of the latents

    def given(self, label: int | None) -> BatchedModels:
        """The models with G given ``label`` (None: unconditional)."""
        return BatchedModels(self, label)


class BatchedModels:
    """The models of one pool: one label, one batch size, one pair of stopwatches.

    Attributes:
        batch_size: rows in a batch, None until the first x was seen.
    """

    def __init__(self, models: Models, label: int | None) -> None:
        self.models, self.label = models, label
        self.z_shape, self.stochastic = models.z_shape, models.stochastic
        self.device, self.dtype = models.device, models.dtype
        self.batch_size = models.plan.batch_size
        self.generator_time = Stopwatch(self.device)
        self.classifier_time = Stopwatch(self.device)

    def batches(
        self, first: int, last: int, run: Callable[[int, int], T], stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, int, T]]:
        """``(a, b, run(a, b))`` for rows a to b of a batch, from ``first`` to ``last``, in batches that fit.

        ``stop()`` is asked before each; True ends them there. Batches end at multiples of their size, so that how
        rows are batched does not depend on where a block of them began. Out of memory, they are halved, but not if
        the plan says their size.
        """
        while first < last and not stop():
            size = self.batch_size or FIRST_BATCH
            end = min(last, (first // size + 1) * size)
            try:
                found = run(first, end)
            except torch.OutOfMemoryError:
                if self.models.plan.batch_size is not None or end - first == 1:
                    raise
                self.batch_size = max(1, (end - first) // 2)
                continue
            yield first, end, found
            first = end

    def classify(self, z: Tensor) -> tuple[Tensor, ClassifierOutput]:
        """x and the logits of one batch of latents."""
        x = self.generate(z)
        with self.classifier_time, self._autocast():
            # A copy of what is kept: clf may work in place on what it is given.
            output = self.models.clf(x.clone() if self.stochastic else x)
        output = parse_classifier_output(output, z.shape[0])
        if self.label is None:
            output = output._replace(fake_class_logits=None)
        elif output.fake_class_logits is None:
            raise ValueError(
                "class-conditional proposals need the logits of D_f: clf must return "
                "(class_logits, fake_class_logits, validity_logit)"
            )
        n_classes = output.class_logits.shape[1]
        if self.label is not None and not 0 <= self.label < n_classes:
            raise ValueError(f"proposal_class {self.label} is out of range: clf returns {n_classes} class logits")
        if self.batch_size is None:
            kind = "cpu" if x.device.type == "cpu" else "cuda"
            per_batch = 2 ** int(math.log2(max(1, BATCH_ELEMENTS[kind] // max(1, x[0].numel()))))
            self.batch_size = min(max(per_batch, FIRST_BATCH), BATCH_ROWS[kind])
        return x, output

    def generate(self, z: Tensor) -> Tensor:
        """x of one batch of latents."""
        arguments = [z]
        if self.label is not None:
            arguments.append(torch.full((z.shape[0],), self.label, device=z.device))
        with self.generator_time, self._autocast():
            x = self.models.G(*arguments)
            if self.models.plan.memory_format is not None and isinstance(x, Tensor) and x.ndim == 4:
                x = x.contiguous(memory_format=self.models.plan.memory_format)
        if not isinstance(x, Tensor) or x.ndim < 1 or x.shape[0] != z.shape[0]:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"G must return x of shape ({z.shape[0]}, ...), got {got}")
        return x

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        """The plan's precision; without one, whatever the caller has chosen."""
        dtype = self.models.plan.precision
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)


# --- proposals that were classified and wait for their chains -------------------------------------


@dataclass
class Offer:
    """What S steps offer to the C chains of this process.

    Attributes:
        at: the first of the steps.
        output: logits (S, C, N) of D_r and D_f, (S, C) of D_v.
        log_correction: (S, C) log p_z(z) - log p~_z(z), or None where it is zero.
        kept: "latents" (S, C, *z_shape) that cannot be had again, and "x" (S, C, *x_shape) of a stochastic G.
    """

    at: int
    steps: int
    output: ClassifierOutput
    log_correction: Tensor | None
    kept: dict[str, Tensor]

    def first(self, steps: int) -> Offer:
        """The offer of its first ``steps`` steps alone."""
        parts = (None if part is None else part[:steps] for part in self.output)
        correction = None if self.log_correction is None else self.log_correction[:steps]
        kept = {name: tensor[:steps] for name, tensor in self.kept.items()}
        return Offer(self.at, steps, ClassifierOutput(*parts), correction, kept)


class Classified:
    """The proposals of one pool, classified in order and kept until their step is accepted.

    Rows beyond the last whole step wait for the next call, so nothing is classified twice and batches are what
    they would be if nothing had stopped them.

    Args:
        n_chains: chains of this process.
    """

    def __init__(self, models: BatchedModels, proposal: Proposal, n_chains: int) -> None:
        self.models, self.proposal, self.n_chains = models, proposal, n_chains
        self.row = 0
        """The first row that is not classified."""
        self.held: tuple[int, dict[str, Tensor]] = (0, {})
        """The number of the first row held, and what is held by name."""

    def offer(self, at: int, steps: int, stop: Callable[[bool], bool]) -> Offer:
        """The offer of up to ``steps`` steps from ``at``; fewer, also none, if ``stop(some whole step)`` says so,
        which is asked before each batch.
        """
        n = self.n_chains
        begin, end = at * n, (at + steps) * n
        first, held = self.held
        if begin < first:
            raise ValueError(
                f"offer: step {at} is over, and what was proposed then is gone; go on from {-(-first // n)}"
            )
        new: dict[str, Tensor] = {}

        def keep(a: int, rows: dict[str, Tensor]) -> None:
            # A copy: models may return the same buffer every time.
            for name, tensor in rows.items():
                part, at = tensor[max(begin - a, 0) :], max(a - begin, 0)
                if name not in new:
                    new[name] = tensor.new_empty(self._room(part, end - begin, at), *tensor.shape[1:])
                if tensor.shape[1:] != new[name].shape[1:]:
                    was, now = tuple(new[name].shape[1:]), tuple(tensor.shape[1:])
                    raise ValueError(f"{name} of a proposal has shape {now}, in the batches before {was}")
                if at + len(part) > len(new[name]):
                    larger = tensor.new_empty(self._room(part, end - begin, 2 * at), *tensor.shape[1:])
                    larger[:at] = new[name][:at]
                    new[name] = larger
                new[name][at:][: len(part)] = part

        keep(first, {name: tensor[: self.row - first] for name, tensor in held.items() if self.row > begin})
        asked = lambda: stop(self.row // n > at)  # noqa: E731
        for a, b, rows in self.models.batches(self.row, end, self._rows, asked):
            keep(a, rows)
            self.row = b
            self.held = (begin, new)
        steps = min(steps, self.row // n - at)
        tensors = {name: rows[: steps * n].view(steps, n, *rows.shape[1:]) for name, rows in new.items()}
        output = ClassifierOutput(*(tensors.get(name) for name in ClassifierOutput._fields))
        kept = {name: tensors[name] for name in ("latents", "x") if name in tensors}
        return Offer(at, steps, output, tensors.get("log_correction"), kept)

    @staticmethod
    def _room(part: Tensor, all_rows: int, at: int) -> int:
        """Rows to make room for: all of the block if they are small, or it may end long before them."""
        fit = PIECE_BYTES // max(1, part[:1].nbytes)
        return min(all_rows, max(fit, at + len(part)))

    def resume(self, at: int, batch_size: int | None, after: int) -> None:
        """Go on with step ``at`` of an earlier run, whose batches did not reach over the end of step ``after``.

        The batch that the run was in is made whole again: convolutions round differently in a shorter one.
        """
        self.models.batch_size = self.models.models.plan.batch_size or batch_size
        self.row = at * self.n_chains
        if self.proposal.regenerates and self.models.batch_size is not None:
            self.row = max(self.row // self.models.batch_size * self.models.batch_size, after * self.n_chains)
        self.held = (self.row, {})

    def _rows(self, first: int, last: int) -> dict[str, Tensor]:
        latents, correction = self.proposal.rows(first, last)
        # A copy: G may work in place on what it is given.
        kept: dict[str, Any] = {} if self.proposal.regenerates else {"latents": latents.clone()}
        x, output = self.models.classify(latents)
        kept |= output._asdict()
        if self.models.stochastic:
            kept["x"] = x
        kept["log_correction"] = correction
        return {name: tensor for name, tensor in kept.items() if tensor is not None}
