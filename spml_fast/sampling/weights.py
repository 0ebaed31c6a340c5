"""Joint classes, and the weights by which they are told from the proposals."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _ops, reference
from .._checks import renamed, shown
from .._conventions import ClassifierOutput
from .chains import ChainState, Targets

Numbers = float | Sequence[float] | np.ndarray | Tensor
"""One number, or one per class."""

PerTarget = Numbers | Callable[[tuple[int, ...], tuple[int, ...]], Numbers]
"""The same for all targets, or a function of a target's ``(I, J)``."""

Indices = int | Iterable[int]
"""One class index, or several."""

NOW_OF_WEIGHTS = {
    name: f"weight=spml_fast.MinMax({name}=...)"
    for name in ("gamma", "gamma_J", "temperature", "validity_temperature")
}
"""How keywords are spelled that were arguments of functions before they became options of a weight."""


@dataclass(frozen=True)
class JointClass:
    """The instances that have every attribute in ``I`` and none in ``J``.

    Args:
        I, J: class indices; an int is one index. They are kept as tuples. ``J`` may be empty.

    Raises:
        ValueError: I is empty, an index is negative or repeated, or I and J overlap; the message names the index.
        TypeError: something is not an integer.
    """

    I: tuple[int, ...]
    J: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        members, excluded = _indices(self.I, "I"), _indices(self.J, "J")
        if not members:
            raise ValueError("I is empty: a joint class needs at least one attribute that it has")
        overlap = sorted(set(members) & set(excluded))
        if overlap:
            raise ValueError(f"index {overlap[0]} is in both I={shown(members)} and J={shown(excluded)}")
        object.__setattr__(self, "I", members)
        object.__setattr__(self, "J", excluded)

    def check_range(self, n_classes: int) -> None:
        for name, indices in (("I", self.I), ("J", self.J)):
            for index in indices:
                if index >= n_classes:
                    raise ValueError(
                        f"index {index} in {name}={shown(indices)} is out of range: "
                        f"clf returns {n_classes} class logits (0 to {n_classes - 1})"
                    )

    def __str__(self) -> str:
        return "".join([*(f"+{i}" for i in self.I), *(f"-{j}" for j in self.J)])


def joint_class(target: object) -> JointClass:
    """The joint class of a pair (I, J), or of what is one already."""
    if isinstance(target, JointClass):
        return target
    if not isinstance(target, (tuple, list)) or len(target) != 2:
        raise ValueError(f"each target must be a pair (I, J), got {shown(target)}")
    return JointClass(*target)


def _indices(given: Indices, name: str) -> tuple[int, ...]:
    items: Any = [given] if _is_integer(given) else given
    if isinstance(items, (str, bytes)) or not isinstance(items, Iterable) or getattr(items, "ndim", 1) == 0:
        raise TypeError(f"{name} must be class indices (int or iterable of int), got {shown(given)}")
    indices = []
    for item in items:
        if not _is_integer(item):
            mask = "; for a mask, give the indices: mask.nonzero()" if _is_bool(item) else ""
            raise TypeError(f"{name} must hold integers, got {shown(item)} in {shown(given)}{mask}")
        index = operator.index(item)
        if index < 0:
            raise ValueError(f"index {index} in {name} is negative; classes are numbered from 0")
        if index in indices:
            raise ValueError(f"index {index} is repeated in {name}={shown(given)}")
        indices.append(index)
    return tuple(indices)


def _is_integer(item: Any) -> bool:
    if _is_bool(item) or (isinstance(item, (Tensor, np.ndarray)) and item.ndim > 0):
        return False
    try:
        operator.index(item)
    except TypeError:
        return False
    return True


def _is_bool(item: Any) -> bool:
    return isinstance(item, (bool, np.bool_)) or getattr(item, "dtype", None) in (torch.bool, np.bool_)


# --- the weight of the paper ----------------------------------------------------------------------


@dataclass(frozen=True)
class MinMax:
    """The paper's weight: the smallest class ratio over I, less the largest over J, times the validity ratio.

    With a the class logits of D_r and v the validity logit of D_v, l_i = log gamma_i + log_softmax(a / T)_i and
    log w = log(exp(min_I l_i) - exp(max_J l_j))+ + v / T_v; see :func:`s2m_log_weight`.

    Attributes:
        gamma: gamma_i = pi_i / p_data(i), a number, one per class (N,), or a function of (I, J) returning either.
            1 is right when each instance's label was drawn uniformly among its positives. If classes were picked
            first and instances drawn from p(x | y_c = 1), gamma_i = pi_i / p_data(i), and pi is yours to give.
        gamma_J: the same for the attributes in J where it differs. ``gamma=0.5, gamma_J=1`` is the official
            setting on CIFAR-10: below 1 on I, gamma is a margin against noise in D_r.
        temperature: T, divides the class logits; a number or a function of (I, J).
        validity_temperature: T_v, divides the validity logit; likewise.

    Raises:
        ValueError, TypeError: what is no positive number; here, or for a function when sampling begins.

    Source: Cho et al., "Mining Multi-Label Samples from Single Positive Labels", NeurIPS 2022, Algorithm 1.
    """

    gamma: PerTarget = 1.0
    gamma_J: PerTarget | None = None
    temperature: PerTarget = 1.0
    validity_temperature: PerTarget = 1.0

    def __post_init__(self) -> None:
        for name, given in vars(self).items():
            if not callable(given) and (given is not None or name != "gamma_J"):
                (_per_class if name.startswith("gamma") else _one_number)(given, name)

    def values(self, target: JointClass) -> dict[str, np.ndarray]:
        """What the options are for one target, as numbers: a function is asked.

        ``gamma`` and ``gamma_J`` are () or (N,), temperatures ().
        """

        def value(name: str, check: Callable[[Numbers, str], np.ndarray]) -> np.ndarray:
            given = getattr(self, name)
            return check(given(target.I, target.J) if callable(given) else given, name)

        found = {name: value(name, _one_number) for name in ("temperature", "validity_temperature")}
        found["gamma"] = value("gamma", _per_class)
        found["gamma_J"] = found["gamma"] if self.gamma_J is None else value("gamma_J", _per_class)
        return found

    def on(
        self,
        joint_classes: Sequence[JointClass],
        n_classes: int,
        *,
        proposal_class: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> MinMaxWeights:
        """The weights of these joint classes, for logits over ``n_classes`` classes of this dtype and device."""
        targets = pack_targets(joint_classes, n_classes, self, dtype=dtype, device=device)
        return MinMaxWeights(tuple(joint_classes), targets, proposal_class)


@renamed(**NOW_OF_WEIGHTS)
def pack_targets(
    joint_classes: Sequence[JointClass],
    n_classes: int,
    weight: MinMax | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Targets:
    """Targets in the form that the kernels read; the weight is by default :class:`MinMax` with gamma 1."""
    weight = weight or MinMax()
    n_words = -(-n_classes // 64)
    masks = np.zeros((len(joint_classes), 2, n_words), dtype=np.uint64)
    log_gamma = np.zeros((len(joint_classes), n_classes))
    inverse = np.zeros((len(joint_classes), 2))
    for t, target in enumerate(joint_classes):
        target.check_range(n_classes)
        for role, indices in enumerate((target.I, target.J)):
            for index in indices:
                masks[t, role, index // 64] |= np.uint64(1 << (index % 64))
        values = weight.values(target)
        for name in ("gamma", "gamma_J"):
            if values[name].shape not in ((), (n_classes,)):
                raise ValueError(
                    f"{name} must be a number or one number per class ({n_classes},), got {values[name].shape}"
                )
        excluded = np.isin(np.arange(n_classes), target.J)
        log_gamma[t] = np.log(np.where(excluded, values["gamma_J"], values["gamma"]))
        for part, name in enumerate(("temperature", "validity_temperature")):
            inverse[t, part] = 1 / values[name]
            if inverse[t, part] > torch.finfo(dtype).max:
                raise ValueError(
                    f"{name}={float(values[name])!r} of {target} is too small: {dtype} cannot hold 1 over it"
                )
    return Targets(
        torch.from_numpy(masks.view(np.int64)).to(device),
        torch.from_numpy(log_gamma).to(device=device, dtype=dtype),
        torch.from_numpy(inverse).to(device=device, dtype=dtype),
    )


def _per_class(given: Numbers, name: str) -> np.ndarray:
    ratio = _numbers(given, name, "a number, one number per class, or a function of (I, J)")
    if ratio.ndim > 1:
        raise ValueError(f"{name} must be a number or one number per class, got shape {ratio.shape}")
    return ratio


def _one_number(given: Numbers, name: str) -> np.ndarray:
    value = _numbers(given, name, what := "a number or a function of (I, J)")
    if value.size != 1:
        raise ValueError(f"{name} must be {what}, got shape {value.shape}")
    return value.reshape(())


def _numbers(given: Numbers, name: str, what: str) -> np.ndarray:
    """As float64, positive and finite."""
    values: Any = given.detach().cpu().double() if isinstance(given, Tensor) and not _is_bool(given) else given
    try:
        found = np.asarray(values)
        if found.dtype.kind == "O":  # None would become NaN
            found = np.reshape([float(value) for value in found.flat], found.shape)
        found = found.astype(float) if found.dtype.kind in "iuf" else None
    except (TypeError, ValueError):
        found = None
    if found is None or values is None:
        raise TypeError(f"{name} must be {what}, got {shown(given)}")
    if not (np.isfinite(found).all() and (found > 0).all()):
        raise ValueError(f"{name} must be positive and finite, got {shown(given)}")
    return found


LARGEST_LOG_WEIGHT = {torch.float32: 2.0**16, torch.float64: 2.0**44}
"""Log weights that are known to 0.01 at least, in float32; far better in float64."""


@dataclass(frozen=True)
class MinMaxWeights:
    """The weights of T joint classes, for logits of one dtype on one device.

    Attributes:
        proposal_class: the label of class-conditional proposals, for which D_f's logits are given.
    """

    joint_classes: tuple[JointClass, ...]
    targets: Targets
    proposal_class: int = 0

    def check_size(self, class_logit: float, validity_logit: float) -> None:
        """``ValueError`` if logits of these sizes make weights that are not told apart in this dtype.

        Args:
            class_logit: size of the largest logit of a row, of D_r or D_f, at its largest.
            validity_logit: the largest of D_v.
        """
        inverse = self.targets.inv_temperature.double().amax(0).tolist()
        sizes = {"class": class_logit * inverse[0], "validity": abs(validity_logit) * inverse[1]}
        dtype = self.targets.log_gamma.dtype
        for name, size in sizes.items():
            if LARGEST_LOG_WEIGHT[dtype] < size < math.inf:
                step = size * torch.finfo(dtype).eps
                raise ValueError(
                    f"clf's {name} logits over their temperature reach {size:.3g}, where {dtype} knows log "
                    f"weights only to about {step:.2g}: a temperature too small, or a classifier that is far from "
                    "calibrated. Raise the temperature (MinMax), calibrate, or return float64 logits"
                )

    def log_weights(self, output: ClassifierOutput, log_correction: Tensor | None = None) -> Tensor:
        """(T, B) of B proposals; ``log_correction`` (B,) is added, log p_z(z) - log p~_z(z)."""
        class_logits, fake, validity = output
        rest = (*self.targets, self.proposal_class)
        return _ops.s2m_log_weight(class_logits, validity, fake, self._as_weights(log_correction), *rest)

    def scan(
        self,
        chains: ChainState,
        output: ClassifierOutput,
        log_correction: Tensor | None = None,
        *,
        seed: int,
        first_chain: int = 0,
        first_step: int = 0,
    ) -> None:
        """Log weights and accept steps of ``chains`` in one pass over logits (S, C, N) and validity (S, C)."""
        class_logits, fake, validity = output
        chains.scan_logits(
            class_logits,
            validity,
            self.targets,
            fake_class_logits=fake,
            proposal_class=self.proposal_class,
            log_correction=self._as_weights(log_correction),
            seed=seed,
            first_chain=first_chain,
            first_step=first_step,
        )

    def _as_weights(self, log_correction: Tensor | None) -> Tensor | None:
        """In the dtype of the weights: proposals compute theirs in float64."""
        return None if log_correction is None else log_correction.to(self.targets.log_gamma.dtype)

    def differentiable(self, target: int, output: ClassifierOutput) -> Tensor:
        """(B,) log weights of one target, through which gradients flow to the logits."""
        class_logits, fake, validity = output
        dtype = self.targets.log_gamma.dtype
        inverse = self.targets.inv_temperature[target]
        return reference.s2m_log_weight(
            class_logits.to(dtype),
            validity.to(dtype),
            self.joint_classes[target].I,
            self.joint_classes[target].J,
            log_gamma=self.targets.log_gamma[target],
            temperature=1 / inverse[0],
            validity_temperature=1 / inverse[1],
            fake_logits=None if fake is None else fake.to(dtype),
            proposal_class=self.proposal_class,
        )


@renamed(**NOW_OF_WEIGHTS, extra_log_weight="log_correction=...")
def s2m_log_weight(
    class_logits: Tensor,
    validity_logit: Tensor,
    I: Indices,
    J: Indices = (),
    *,
    weight: MinMax | None = None,
    fake_class_logits: Tensor | None = None,
    proposal_class: int = 0,
    log_correction: Tensor | None = None,
) -> Tensor:
    """Log weight log p_(I,J)(x) / q(x), up to a constant, of proposals x that ``clf`` has seen.

    Args:
        class_logits: (B, N) logits of D_r, float32, float64, float16 or bfloat16.
        validity_logit: (B,) logit of D_v, v(x) = log p_data(x) / p_G(x), same dtype.
        I, J: class indices of the joint class.
        weight: gamma and temperatures; by default all are 1.
        fake_class_logits: (B, N) logits of D_f when proposals come from p_G(x | proposal_class).
        log_correction: (B,) added as it is, for example log p_z(z) - log p~_z(z).

    Returns:
        (B,) in float32, or float64 for float64 logits; -inf outside the support of the target or for logits of
        -inf that say so, NaN or +inf where ``clf`` returned NaN or +inf. Not differentiable;
        ``spml_fast.reference`` is.

    Source: Cho et al., "Mining Multi-Label Samples from Single Positive Labels", NeurIPS 2022, Algorithm 1.
    """
    weights = (weight or MinMax()).on(
        [JointClass(I, J)],
        class_logits.shape[-1],
        proposal_class=proposal_class,
        dtype=_ops.compute_dtype(class_logits.dtype),
        device=class_logits.device,
    )
    output = ClassifierOutput(class_logits, fake_class_logits, validity_logit)
    return weights.log_weights(output, log_correction)[0]
