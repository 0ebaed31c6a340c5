"""States of independent Metropolis-Hastings chains, and the state that any kernel's chains are kept in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from .. import _ops

NO_INVALID = torch.iinfo(torch.int64).max


def along(dim: int, default: Callable[[], Any] | None = None) -> Any:
    """A field of a :class:`State` whose tensors, alone or in lists or dicts, have the chains along ``dim``.

    ``default()`` is its value before the first step; without it the field must be given.
    """
    metadata = {"chains": dim}
    return field(metadata=metadata) if default is None else field(metadata=metadata, default_factory=default)


class State:
    """What a kernel knows of its chains: a dataclass of tensors, lists, dicts, plain values and other states.

    Fields made by :func:`along` have one entry per chain. The driver saves them, restores them and shares them out
    among processes by :meth:`map_chains`; all else is the same in every process.
    """

    def map_chains(
        self, f: Callable[[Tensor, int], Tensor], rest: Callable[[Tensor], Tensor] = lambda tensor: tensor
    ) -> Self:
        """A copy with ``f(tensor, dim)`` in the place of every tensor that has chains, along ``dim``, and
        ``rest(tensor)`` in that of the others.
        """

        def mapped(value: Any, dim: int | None) -> Any:
            if isinstance(value, State):
                return value.map_chains(f, rest)
            if isinstance(value, dict):
                return {name: mapped(part, dim) for name, part in value.items()}
            if isinstance(value, list):
                return [mapped(part, dim) for part in value]
            if isinstance(value, tuple) and dim is not None:
                raise TypeError(
                    f"{type(self).__name__}: tensors with chains may be in lists or dicts, not in tuples"
                )
            if isinstance(value, Tensor):
                return rest(value) if dim is None else f(value, dim)
            return value

        parts = {at.name: mapped(getattr(self, at.name), at.metadata.get("chains")) for at in fields(self)}
        return type(self)(**parts)

    def to_plain(self) -> dict[str, Any]:
        """The fields as a dict, in which other states are dicts, for a checkpoint.

        Raises:
            TypeError: what a checkpoint cannot hold; a list or a dict of states, whose classes it would not know.
        """
        parts = {at.name: getattr(self, at.name) for at in fields(self)}
        for name, part in parts.items():
            if not isinstance(part, State):
                _check_plain(part, f"{type(self).__name__}.{name}")
        return {name: part.to_plain() if isinstance(part, State) else part for name, part in parts.items()}

    def kinds(self) -> dict[str, type]:
        """The classes of the states within this one, by their field."""
        found: dict[str, type] = {}
        for at in fields(self):
            part = getattr(self, at.name)
            if isinstance(part, State):
                found |= {at.name: type(part)} | {f"{at.name}.{name}": kind for name, kind in part.kinds().items()}
        return found

    def from_plain(self, plain: dict[str, Any]) -> Self:
        """A state as ``to_plain`` wrote it, whose inner states are of the classes that this one's are."""
        parts = dict(plain)
        for name, part in plain.items():
            now = getattr(self, name)
            parts[name] = now.from_plain(part) if isinstance(now, State) else part
        return type(self)(**parts)


def _check_plain(value: object, where: str, in_tuple: bool = False) -> None:
    """``TypeError`` for what is not read back from a file without executing code."""
    if isinstance(value, State):
        raise TypeError(f"{where}: a state may be a field of another, not an item of a list")
    if type(value) in PLAIN or (isinstance(value, np.generic) and not in_tuple):
        return
    if type(value) not in (list, tuple, dict, set, OrderedDict):
        raise TypeError(
            f"{where} holds something of type {type(value).__name__}, which a checkpoint cannot: a state is of "
            "tensors, numbers, strings, and lists, tuples and dicts of these"
        )
    for item in value.keys() if isinstance(value, dict) else ():
        _check_plain(item, where, True)
    for item in value.values() if isinstance(value, dict) else value:
        _check_plain(item, where, in_tuple or isinstance(value, (tuple, set)))


PLAIN = {Tensor, nn.Parameter, torch.Size, torch.dtype, torch.device}
PLAIN |= {bool, int, float, complex, str, bytes, type(None)}
"""Types of values that a checkpoint gives back as they were."""


class Targets(NamedTuple):
    """T targets over N classes, as tensors on the device that the sampler runs on."""

    masks: Tensor
    """(T, 2, ceil(N / 64)) int64: the bits of I, then the bits of J."""
    log_gamma: Tensor
    """(T, N): log gamma_i by the role that class i plays in the target."""
    inv_temperature: Tensor
    """(T, 2): 1 / temperature of the class logits, then of the validity logit."""


@dataclass
class ChainState(State):
    """T x C independent Metropolis-Hastings chains: C chains for each of T targets.

    A chain is the log weight of its state, the step that proposed it, and running sums over all that it was
    offered, from which the diagnostics come. The scans update it in place; nothing grows with the steps.
    """

    weights: Tensor = along(2)
    """(4, T, C): log weight of the state, largest log weight offered, sum of w, sum of w^2 (relative to it)."""
    counts: Tensor = along(2)
    """(3, T, C) int32: step of the last accepted proposal (-1: none), accepted, offered with w > 0."""
    invalid: Tensor
    """(1,) int64: the smallest step * C + chain with a NaN or +inf weight; NO_INVALID if there is none."""

    @classmethod
    def start(
        cls,
        n_targets: int,
        n_chains: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> ChainState:
        """Chains that have no state yet: each accepts its first proposal of positive weight."""
        weights = torch.zeros(4, n_targets, n_chains, dtype=dtype, device=device)
        weights[:2] = -torch.inf
        counts = torch.zeros(3, n_targets, n_chains, dtype=torch.int32, device=device)
        counts[0] = -1
        return cls(weights, counts, torch.full((1,), NO_INVALID, device=device))

    @property
    def log_weight(self) -> Tensor:
        return self.weights[0]

    @property
    def accepted_step(self) -> Tensor:
        return self.counts[0]

    @property
    def accepted(self) -> Tensor:
        return self.counts[1]

    @property
    def supported(self) -> Tensor:
        return self.counts[2]

    def scan(self, log_weights: Tensor, *, seed: int, first_chain: int = 0, first_step: int = 0) -> ChainState:
        """Runs the accept steps for given log weights (T, S, C), float32 or float64 as the state is.

        Chain c accepts at step k when log u(seed, c, k) <= log w' - log w; all targets share the uniforms.
        """
        _ops.imh_scan(log_weights, seed, first_chain, first_step, self.weights, self.counts, self.invalid)
        return self

    def scan_logits(
        self,
        class_logits: Tensor,
        validity_logit: Tensor,
        targets: Targets,
        *,
        seed: int,
        first_chain: int = 0,
        first_step: int = 0,
        fake_class_logits: Tensor | None = None,
        proposal_class: int = 0,
        log_correction: Tensor | None = None,
    ) -> ChainState:
        """Log weights and accept steps in one pass over logits (S, C, N) and validity (S, C)."""
        _ops.s2m_imh_scan(
            class_logits,
            validity_logit,
            fake_class_logits,
            log_correction,
            *targets,
            proposal_class,
            seed,
            first_chain,
            first_step,
            self.weights,
            self.counts,
            self.invalid,
        )
        return self

    def raise_if_invalid(self, first_chain: int = 0) -> None:
        """``ValueError`` if a proposal's weight was NaN or +inf; the message counts chains from ``first_chain``.
        Waits for the device.
        """
        index = int(self.invalid)
        if index != NO_INVALID:
            step, chain = divmod(index, self.counts.shape[-1])
            raise ValueError(
                f"clf returned NaN or infinite logits for the proposal of chain {first_chain + chain} at step "
                f"{step} (or the latent that the proposal drew, or its log weight, was not finite); a logit must "
                "be finite, or -inf for what cannot be, but not all class logits of a row"
            )
