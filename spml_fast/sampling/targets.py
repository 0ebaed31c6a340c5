"""Joint classes, and a list of them in the form that the kernels read."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Numbers = float | Sequence[float] | np.ndarray | Tensor
"""One number, or one per class."""

PerTarget = Numbers | Callable[[tuple[int, ...], tuple[int, ...]], Numbers]
"""The same for all targets, or a function of a target's ``(I, J)``."""


@dataclass(frozen=True)
class JointClass:
    """The instances that have every attribute in ``I`` and none in ``J``."""

    I: tuple[int, ...]
    J: tuple[int, ...] = ()

    @classmethod
    def of(cls, I: int | Iterable[int], J: int | Iterable[int] = ()) -> JointClass:
        """Checks and normalises what a user passes; an int is taken as one index.

        Raises ``ValueError``, naming the index, when I is empty, an index is negative or repeated, or I and J
        overlap; ``TypeError`` when something is not an integer.
        """
        members = _indices(I, "I")
        excluded = _indices(J, "J")
        if not members:
            raise ValueError("I is empty: a joint class needs at least one attribute that it has")
        overlap = sorted(set(members) & set(excluded))
        if overlap:
            raise ValueError(f"index {overlap[0]} is in both I={members} and J={excluded}")
        return cls(members, excluded)

    def check_range(self, n_classes: int) -> None:
        for name, indices in (("I", self.I), ("J", self.J)):
            for index in indices:
                if index >= n_classes:
                    raise ValueError(
                        f"index {index} in {name}={indices} is out of range: "
                        f"clf returns {n_classes} class logits (0 to {n_classes - 1})"
                    )

    def __str__(self) -> str:
        return "".join([*(f"+{i}" for i in self.I), *(f"-{j}" for j in self.J)])


def _indices(given: int | Iterable[int], name: str) -> tuple[int, ...]:
    items: Any = [given] if _is_integer(given) else given
    if isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
        raise TypeError(f"{name} must be class indices (int or iterable of int), got {given!r}")
    indices = []
    for item in items:
        if not _is_integer(item):
            raise TypeError(f"{name} must hold integers, got {item!r} in {given!r}")
        index = operator.index(item)
        if index < 0:
            raise ValueError(f"index {index} in {name} is negative; classes are numbered from 0")
        if index in indices:
            raise ValueError(f"index {index} is repeated in {name}={given!r}")
        indices.append(index)
    return tuple(indices)


def _is_integer(item: Any) -> bool:
    if isinstance(item, (bool, np.bool_)):
        return False
    if isinstance(item, (Tensor, np.ndarray)) and item.ndim > 0:
        return False
    try:
        operator.index(item)
    except TypeError:
        return False
    return True


class Targets(NamedTuple):
    """T targets over N classes, as tensors on the device that the sampler runs on."""

    masks: Tensor
    """(T, 2, ceil(N / 64)) int64: the bits of I, then the bits of J."""
    log_gamma: Tensor
    """(T, N): log gamma_i by the role that class i plays in the target."""
    inv_temperature: Tensor
    """(T, 2): 1 / temperature of the class logits, then of the validity logit."""


def pack_targets(
    joint_classes: Sequence[JointClass],
    n_classes: int,
    *,
    gamma: PerTarget = 1.0,
    gamma_J: PerTarget | None = None,
    temperature: PerTarget = 1.0,
    validity_temperature: PerTarget = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Targets:
    """Targets for the kernels; see :class:`spml_fast.S2MSampler` for gamma and the temperatures."""
    n_words = -(-n_classes // 64)
    masks = np.zeros((len(joint_classes), 2, n_words), dtype=np.uint64)
    log_gamma = np.zeros((len(joint_classes), n_classes))
    inverse = np.zeros((len(joint_classes), 2))
    for t, target in enumerate(joint_classes):
        target.check_range(n_classes)
        for role, indices in enumerate((target.I, target.J)):
            for index in indices:
                masks[t, role, index // 64] |= np.uint64(1 << (index % 64))
        ratio = _class_ratio(_resolve(gamma, target), n_classes, "gamma")
        if gamma_J is not None:
            excluded = _class_ratio(_resolve(gamma_J, target), n_classes, "gamma_J")
            ratio = np.where(np.isin(np.arange(n_classes), target.J), excluded, ratio)
        log_gamma[t] = np.log(ratio)
        inverse[t, 0] = 1 / _positive(_resolve(temperature, target), "temperature")
        inverse[t, 1] = 1 / _positive(_resolve(validity_temperature, target), "validity_temperature")
    return Targets(
        torch.from_numpy(masks.view(np.int64)).to(device),
        torch.from_numpy(log_gamma).to(device=device, dtype=dtype),
        torch.from_numpy(inverse).to(device=device, dtype=dtype),
    )


def _resolve(given: PerTarget, target: JointClass) -> Numbers:
    return given(target.I, target.J) if callable(given) else given


def _class_ratio(given: Numbers, n_classes: int, name: str) -> np.ndarray:
    ratio = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=float)
    if ratio.shape not in ((), (n_classes,)):
        raise ValueError(f"{name} must be a number or one number per class ({n_classes},), got {ratio.shape}")
    if not (np.isfinite(ratio).all() and (ratio > 0).all()):
        raise ValueError(f"{name} must be positive and finite, got {given!r}")
    return np.broadcast_to(ratio, (n_classes,))


def _positive(given: Any, name: str) -> float:
    value = float(given)
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {given!r}")
    return value
