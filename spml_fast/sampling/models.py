"""G and clf as one function from latents to logits: in batches that fit, under the plan's precision, timed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import _ops
from .._conventions import ClassifierOutput, Generator, images_of, parse_classifier_output
from .._models import Stopwatch, channels_last, eval_mode, first_tensor, modules_in, unwrapped
from .classifiers import Classifiers
from .plan import FORMATS, Plan
from .proposals import LatentPrior, Proposal

T = TypeVar("T")

BLOCK_ROWS = 65536
"""Proposals whose logits are held between two accept passes, if the plan does not say."""

PIECE_BYTES = 2**26
"""Memory that is set aside for what is kept of a block before it is known how far the block will come."""


@dataclass(frozen=True)
class Found:
    """What the probe found of G and clf.

    Attributes:
        plan: the plan, complete.
        x_shape: shape of one x; None before it is known.
        x_bytes: bytes of one x.
        n_classes: number of class logits.
        has_D_f: whether clf returns logits of D_f.
        squashed: whether logits were told to be probabilities.
        fewest_rows: 2 where a model fails on a batch of one row, which is given twice then; otherwise 1.
    """

    plan: Plan
    x_shape: tuple[int, ...] | None = None
    x_bytes: int = 0
    n_classes: int = 0
    has_D_f: bool = False
    squashed: bool = False
    fewest_rows: int = 1


@dataclass
class Models:
    """G and clf, and how they are run; :meth:`given` makes the copy that one pool of proposals uses.

    What only running them can tell is filled in by :func:`spml_fast.sampling.probe.probe`.

    Attributes:
        generator: G under one convention.
        z_shape: shape of one latent.
        z_dtype, x_dtype: dtypes that latents and x are brought to for G and clf; None: left as they are.
        stochastic: whether G draws noise of its own, so that x must be kept rather than made again.
        plan: the user's.
        prior: of latents, None for the standard normal.
        found: what the probe found; None before it.
    """

    generator: Generator
    clf: Callable[[Tensor], object]
    z_shape: tuple[int, ...]
    stochastic: bool
    plan: Plan
    prior: LatentPrior | None = None
    found: Found | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.both = (self.G, self.clf)
        if self.plan.device is not None:
            for module in modules_in(*self.both):
                module.to(self.plan.device)
        of_G, of_clf = (first_tensor(model) for model in self.both)
        known = of_G if of_G is not None else of_clf
        self.device = torch.device(self.plan.device or "cpu") if known is None else known.device
        if isinstance(self.clf, nn.Module) and of_clf is not None and of_clf.device != self.device:
            raise ValueError(
                f"clf is on {of_clf.device}, G on {self.device}: move one of them, or pass "
                f"plan=Plan(device={str(self.device)!r}), which moves both"
            )
        double = known is not None and known.dtype == torch.float64
        self.dtype = torch.float64 if double else torch.float32  # of the latents
        # A function knows best what its modules want; the probe tries theirs where it does not.
        self.z_dtype, self.x_dtype = (
            tensor.dtype if tensor is not None and isinstance(model, nn.Module) else None
            for model, tensor in zip(map(unwrapped, self.both), (of_G, of_clf), strict=True)
        )
        if isinstance(unwrapped(self.clf), Classifiers):  # each of whose heads has a dtype of its own
            self.x_dtype = None

    @property
    def G(self) -> Callable[..., object]:  # noqa: N802
        return self.generator.G

    @property
    def conditional(self) -> bool | None:
        """Whether G takes a label; None where the probe has to tell and has not yet."""
        return self.generator.conditional

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """The modules in eval mode and in the memory formats of the plan; they come back as they were."""
        with eval_mode(*self.both), contextlib.ExitStack() as stack:
            for model, wanted in zip(self.both, self.found.plan.memory_format, strict=True):
                if wanted == "channels_last":
                    stack.enter_context(channels_last(model))
            yield

    def trial_normals(self, n: int, seed: int) -> Tensor:
        """Standard normals (n, *z_shape) to try the models on, the same for a seed on every machine."""
        rows = torch.arange(n, device=self.device)
        dim = torch.Size(self.z_shape).numel()
        z = _ops.philox_normal(rows, torch.zeros_like(rows), seed, dim, dtype=self.dtype)
        return z.view(n, *self.z_shape)

    def given(self, label: int | None, proposal: Proposal | None = None) -> BatchedModels:
        """The models with G given ``label`` (None: unconditional), for the latents of ``proposal``."""
        normal = proposal is None or proposal.normal_coordinates
        places = normal and self.prior is not None and self.prior.from_normals
        return BatchedModels(self, label, self.prior if places else None, self.found)


class BatchedModels:
    """The models of one pool: one label, one pair of batch sizes, one pair of stopwatches.

    Attributes:
        batch_sizes: rows in a batch, of G and of clf.
        prior: what makes G's latents of the proposals', which are standard normal under it; None: the same.
        largest: (3,) of all that clf returned, the largest size of a class logit that is its row's largest, the
            largest validity logit, and the smallest, negated.
    """

    def __init__(self, models: Models, label: int | None, prior: LatentPrior | None, found: Found) -> None:
        self.models, self.label, self.prior, self.found = models, label, prior, found
        self.z_shape, self.stochastic = models.z_shape, models.stochastic
        self.device, self.dtype = models.device, models.dtype
        self.plan = found.plan
        models.generator.check_c_dim(label)
        self.batch_sizes: tuple[int, int] = self.plan.batch_size
        self.generator_time = Stopwatch(self.device)
        self.classifier_time = Stopwatch(self.device)
        self.largest: Tensor | None = None
        kind = self.device.type
        self._callers = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))

    @property
    def batch_size(self) -> int:
        """Rows in a batch that goes through both."""
        return max(self.batch_sizes)

    def batches(
        self,
        first: int,
        last: int,
        run: Callable[[int, int], T],
        stop: Callable[[], bool] = lambda: False,
        decoding: bool = False,
    ) -> Iterator[tuple[int, int, T]]:
        """``(a, b, run(a, b))`` for rows a to b of a batch, from ``first`` to ``last``, in batches that fit.

        ``stop()`` is asked before each; True ends them there. Batches end at multiples of their size, so that how
        rows are batched does not depend on where a block of them began. Out of memory, they are halved, but not if
        the plan says their size. ``decoding``: ``run`` calls G alone.
        """
        while first < last and not stop():
            size = self.batch_sizes[0] if decoding else self.batch_size
            end = min(last, (first // size + 1) * size)
            try:
                found = run(first, end)
            except torch.OutOfMemoryError:
                fewer = self._by_rule(tuple(max(1, min(size, end - first) // 2) for size in self.batch_sizes))
                if fewer == self.batch_sizes:
                    raise
                self.batch_sizes = fewer
                continue
            yield first, end, found
            first = end

    def _by_rule(self, sizes: Sequence[int]) -> tuple[int, int]:
        """The batch sizes that the user's plan says, and of ``sizes`` those that it leaves open."""
        said = self.models.plan.batch_size or (None, None)
        return tuple(own or size for own, size in zip(said, sizes, strict=True))

    def classify(self, z: Tensor) -> tuple[Tensor, ClassifierOutput]:
        """x and the logits of one batch of latents."""
        x = self.generate(z)
        rows = self.batch_sizes[1]
        outputs = [self._logits(x[a : a + rows]) for a in range(0, len(x), rows)]
        if len(outputs) == 1:
            output = outputs[0]
        else:
            output = ClassifierOutput(
                *(None if parts[0] is None else torch.cat(parts) for parts in zip(*outputs, strict=True))
            )
        return x, output

    def _logits(self, x: Tensor) -> ClassifierOutput:
        # Copies: clf may return the same buffer every time.
        output = ClassifierOutput(*(None if part is None else part[: len(x)].clone() for part in self.call_clf(x)))
        if self.label is None:
            output = output._replace(fake_class_logits=None)
        else:
            self.models.generator.check_label(self.label, output)
        self._note(output)
        return output

    def call_clf(self, x: Tensor) -> ClassifierOutput:
        """What clf returns for x, as it is: perhaps a buffer of clf's own."""
        given = x
        if self.models.x_dtype is not None and x.is_floating_point() and not self._autocasts():
            given = given.to(self.models.x_dtype)
        memory_format = FORMATS[self.plan.memory_format[1]]
        if given.ndim == 4 and memory_format is torch.channels_last:
            given = given.contiguous(memory_format=memory_format)
        if given is x:
            given = x.clone()  # clf may work in place on what it is given
        given = self._enough_rows(given)
        with self.classifier_time, self._autocast():
            output = self.models.clf(given)
        output = parse_classifier_output(output, len(given))
        return ClassifierOutput(*(None if part is None else part.to(self.device) for part in output))

    def _note(self, output: ClassifierOutput) -> None:
        with torch.no_grad():
            tops = [part.amax(1).abs() for part in output[:2] if part is not None]
            top = tops[0] if len(tops) == 1 else torch.maximum(*tops)
            validity = output.validity_logit
            seen = torch.stack([top.amax(), validity.amax(), -validity.amin()]).double()
            self.largest = seen if self.largest is None else torch.maximum(self.largest, seen)

    def generate(self, z: Tensor) -> Tensor:
        """x of one batch of latents; perhaps a buffer of G's own."""
        z = self.latents(z)
        rows = self.batch_sizes[0]
        if len(z) <= rows:
            return self.call_G(z)
        if torch.is_grad_enabled():
            return torch.cat([self.call_G(z[a : a + rows]) for a in range(0, len(z), rows)])
        found = None
        for a in range(0, len(z), rows):
            x = self.call_G(z[a : a + rows])
            if found is None:
                memory_format = FORMATS[self.plan.memory_format[1]] if x.ndim == 4 else torch.contiguous_format
                like = dict(dtype=x.dtype, device=x.device)
                found = torch.empty(len(z), *x.shape[1:], memory_format=memory_format, **like)
            found[a : a + rows] = x  # a copy: G may return the same buffer every time
        return found

    def latents(self, z: Tensor) -> Tensor:
        """G's latents of those of the proposals."""
        return z if self.prior is None else self.prior(z)

    def call_G(self, z: Tensor) -> Tensor:  # noqa: N802
        """What G returns for its latents, as it is: perhaps a buffer of its own."""
        given = z
        if self.models.z_dtype is not None and not self._autocasts():
            given = given.to(self.models.z_dtype)
        if given is z:
            given = z.clone()  # G may work in place on what it is given
        given = self._enough_rows(given)
        labels = None
        if self.label is not None:
            labels = torch.full((len(given),), self.label, device=z.device)
        with self.generator_time, self._autocast():
            x = self.models.generator(given, labels)
        return images_of(x, len(given), self.found.x_shape)[: len(z)]

    def _enough_rows(self, batch: Tensor) -> Tensor:
        """The batch, its row twice if there is one alone and the models fail on that."""
        return batch.repeat(2, *[1] * (batch.ndim - 1)) if len(batch) < self.found.fewest_rows else batch

    def _autocasts(self) -> bool:
        return self.plan.precision is not None or self._callers[0]

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        """The plan's precision; without one, whatever the caller of the sampler has chosen."""
        if self.plan.precision is not None:
            return torch.autocast(self.device.type, self.plan.precision)
        enabled, dtype = self._callers
        return torch.autocast(self.device.type, dtype) if enabled else contextlib.nullcontext()


# --- proposals that were classified and wait for their chains -------------------------------------


@dataclass
class Offer:
    """What S steps offer to the C chains of this process.

    Attributes:
        at: the first of the steps.
        output: logits (S, C, N) of D_r and D_f, (S, C) of D_v.
        log_correction: (S, C) log p_z(z) - log p~_z(z), or None where it is zero.
        kept: "latents" (S, C, *z_shape) that cannot be had again, and "x" (S, C, *x_shape) where
            it is kept: of a stochastic G, or where that is cheaper than to make it again.
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
        self.keeps_x = models.stochastic
        """Whether x is part of what is offered."""
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

    def resume(self, at: int, batch_sizes: Sequence[int], after: int) -> None:
        """Go on with step ``at`` of an earlier run, whose batches did not reach over the end of step ``after``.

        The batch that the run was in is made whole again: convolutions round differently in a shorter one.
        """
        self.models.batch_sizes = self.models._by_rule(batch_sizes)
        self.row = at * self.n_chains
        if self.proposal.regenerates:
            size = self.models.batch_size
            self.row = max(self.row // size * size, after * self.n_chains)
        self.held = (self.row, {})

    def _rows(self, first: int, last: int) -> dict[str, Tensor]:
        latents, correction = self.proposal.rows(first, last)
        kept: dict[str, Any] = {} if self.proposal.regenerates else {"latents": latents}
        x, output = self.models.classify(latents)
        kept |= output._asdict()
        if self.keeps_x:
            kept["x"] = x
        kept["log_correction"] = correction
        return {name: tensor for name, tensor in kept.items() if tensor is not None}
