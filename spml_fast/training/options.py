"""Options of the trainings as values: options that belong together are one argument, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

if TYPE_CHECKING:
    from ..data.base import Split


@dataclass(frozen=True, eq=False)
class LinearPhase:
    """A linear classifier on fixed features: Adam, over a grid of learning rates and batch sizes.

    Attributes:
        lr, batch_size: learning rate and batch size of Adam; one number or several, which make a grid. Kept as
            tuples.
        epochs: passes over the training rows, for each point of the grid.
        standardize: scale features to mean 0 and variance 1 (sparse ones to variance 1); the classifier returned
            takes x as it is.
        trunk: module from x to features (N, F), which stays as it is; only without fine-tuning, whose own trunk
            computes the features otherwise.
        workers: processes that load instances for ``trunk``.

    Raises:
        ValueError, TypeError: an option that cannot be trained with.
    """

    lr: float | Sequence[float] = (1e-2, 1e-3, 1e-4, 1e-5)
    batch_size: int | Sequence[int] = (8, 16)
    epochs: int = 25
    _: KW_ONLY
    standardize: bool = False
    trunk: nn.Module | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        put = _setter(self)
        lrs, sizes = _several(self.lr), _several(self.batch_size)
        if not lrs or not all(_is_positive(v) for v in lrs):
            raise ValueError(f"linear: lr must be positive, a number or several, got {self.lr!r}")
        if not sizes or not all(_is_integer(v, 1) for v in sizes):
            raise ValueError(f"linear: batch_size must be a positive integer, got {self.batch_size!r}")
        put("lr", tuple(float(v) for v in lrs))
        put("batch_size", tuple(int(v) for v in sizes))
        put("epochs", _positive_integer("linear: epochs", self.epochs))
        put("workers", _workers("linear", self.workers))
        if self.trunk is not None:
            check_module("linear: trunk", self.trunk)
        elif self.workers:
            raise ValueError(f"linear: workers load instances for a trunk, got workers={self.workers} and none")


@dataclass(frozen=True, eq=False)
class FineTuning:
    """A trunk and a linear head trained end to end by Lightning.

    Attributes:
        trunk: module from x to features (N, F). It is copied.
        lr: learning rate of Adam for the trunk.
        batch_size: rows per step, of all processes together.
        epochs: passes over the training rows.
        head_factor: how many times as fast as the trunk the head learns.
        precision: precision of Lightning: "32-true", "bf16-mixed", "16-mixed".
        workers: processes that load instances.
        trainer_options: more arguments of ``lightning.Trainer``: loggers, callbacks, clipping.

    Raises:
        ValueError, TypeError: an option that cannot be trained with.
    """

    trunk: nn.Module
    _: KW_ONLY
    lr: float = 1e-5
    batch_size: int = 16
    epochs: int = 10
    head_factor: float = 10.0
    precision: str = "32-true"
    workers: int = 0
    trainer_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        put = _setter(self)
        check_module("finetune: trunk", self.trunk)
        for name in ("lr", "head_factor"):
            if not _is_positive(getattr(self, name)):
                raise ValueError(f"finetune: {name} must be positive, a number, got {getattr(self, name)!r}")
            put(name, float(getattr(self, name)))
        for name in ("batch_size", "epochs"):
            put(name, _positive_integer(f"finetune: {name}", getattr(self, name)))
        put("workers", _workers("finetune", self.workers))
        if self.trainer_options is not None and not isinstance(self.trainer_options, Mapping):
            raise TypeError(
                f"finetune: trainer_options must be a mapping, got {type(self.trainer_options).__name__}"
            )


@dataclass(frozen=True, eq=False)
class Validation:
    """The rows and labels by which a training chooses its run and its epoch.

    Attributes:
        data: a share of the training rows, which are then not trained on, or data of its own; 0 for none.
        labels: "full" for full labels where they are known, as in the papers, or "observed" for observed labels
            alone.
    """

    data: float | Split = 0.2
    _: KW_ONLY
    labels: str = "full"

    def __post_init__(self) -> None:
        if self.labels not in ("full", "observed"):
            raise ValueError(f"validation: labels must be 'full' or 'observed', got {self.labels!r}")


@dataclass(frozen=True)
class RunRecord:
    """What is kept of a training, and where.

    Attributes:
        folder: where ``model.safetensors``, ``metrics.json``, ``predictions.npz``, pictures, ``report.html`` and a
            checkpoint after every epoch are written; None writes nothing.
        title: what the report calls the data.
        resume: continue an interrupted run in ``folder``; False removes it and starts anew.
        track_recovery: measure after every epoch how well the training labels are recovered, where full labels are
            known: the report's pictures. Default: when there is a folder.
    """

    folder: str | Path | None = None
    _: KW_ONLY
    title: str | None = None
    resume: bool = True
    track_recovery: bool | None = None

    def __post_init__(self) -> None:
        if self.folder is not None:
            if not isinstance(self.folder, str | Path):
                raise TypeError(f"out: folder must be a path, got {type(self.folder).__name__}")
            _setter(self)("folder", Path(self.folder))
        elif not self.resume:
            raise ValueError("out: resume=False starts the run of a folder anew; there is no folder")
        if self.track_recovery is None:
            _setter(self)("track_recovery", self.folder is not None)


@dataclass(frozen=True, eq=False)
class Heads:
    """The networks of a density ratio: a trunk, on which linear heads are made, or one module for each head.

    Modules are copied, the ones passed stay as they are.

    Attributes:
        trunk: module from x to features (B, F), shared by linear heads D_v, D_r and, for a class-conditional
            generator, D_f.
        D_v: module from x to the validity logit (B,) or (B, 1), instead of a trunk.
        D_r: module from x to class logits (B, L).
        D_f: module from x to class logits (B, L), for a class-conditional generator.

    Raises:
        ValueError: both a trunk and heads, or D_v without D_r.
        TypeError: something that is no module.
    """

    trunk: nn.Module | None = None
    _: KW_ONLY
    D_v: nn.Module | None = None
    D_r: nn.Module | None = None
    D_f: nn.Module | None = None

    def __post_init__(self) -> None:
        heads = {"D_v": self.D_v, "D_r": self.D_r, "D_f": self.D_f}
        for name, module in {"trunk": self.trunk, **heads}.items():
            if module is not None:
                check_module(f"heads: {name}", module)
        given = [name for name, module in heads.items() if module is not None]
        if self.trunk is not None and given:
            raise ValueError(f"heads: pass either trunk or D_v, D_r and D_f, got trunk and {given}")
        missing = [name for name in ("D_v", "D_r") if heads[name] is None]
        if self.trunk is None and missing:
            raise ValueError(f"heads: pass a trunk (x -> (B, F)), or D_v and D_r (x -> logits); {missing} missing")


@dataclass(frozen=True, eq=False)
class DensityRatioFit:
    """How the heads of a density ratio are trained.

    Attributes:
        epochs: at most so many passes over the training share of the data.
        batch_size: real instances per step; as many are generated.
        lr: first learning rate of AdamW; it falls to zero along a cosine over ``epochs``.
        weight_decay: weight decay of AdamW.
        patience: stop after so many epochs without a better held-out likelihood (calibrated).
        holdout: share of the data held out, stratified by label.
        augment: function from a batch to a batch of the same shape, applied to real and generated instances alike
            in training.
        accelerator: accelerator of Lightning: "auto", "cpu", "gpu", ...
        precision: precision of Lightning: "32-true", "bf16-mixed", "16-mixed", ...
        prior: distribution of G's latents, as that of :class:`~spml_fast.S2MSampler`; the standard normal unless
        given.

    Raises:
        ValueError: a number out of range.
    """

    epochs: int = 100
    _: KW_ONLY
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-2
    patience: int = 10
    holdout: float = 0.2
    augment: Callable[[Tensor], Tensor] | None = None
    accelerator: str = "auto"
    precision: str = "32-true"
    prior: Distribution | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if not _is_integer(getattr(self, name), 1):
                raise ValueError(f"fit: {name} must be an integer, at least 1, got {getattr(self, name)!r}")
        if not _is_positive(self.lr):
            raise ValueError(f"fit: lr must be positive, got {self.lr!r}")
        if not (_is_number(self.weight_decay) and 0 <= self.weight_decay < math.inf):
            raise ValueError(f"fit: weight_decay must not be negative, got {self.weight_decay!r}")
        if not (_is_number(self.holdout) and 0 < self.holdout < 1):
            raise ValueError(f"fit: holdout must be a share in (0, 1), got {self.holdout!r}")
        if self.augment is not None and not callable(self.augment):
            raise TypeError(f"fit: augment must be callable, got {type(self.augment).__name__}")


# ---------------------------------------------------------------------------------------- checks


def check_kind(name: str, value: object, kind: type) -> None:
    """Raises TypeError for a value that is not of this class of options."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}(...), got {type(value).__name__}")


def check_module(name: str, module: object) -> None:
    """Raises TypeError for a value that is no module, which a class of modules is not."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")


def check_integer(name: str, value: object, lowest: int) -> int:
    """The value as an int; raises ValueError where it is no integer or too small."""
    if not _is_integer(value, lowest):
        raise ValueError(f"{name} must be an integer, at least {lowest}, got {value!r}")
    return int(value)


def _setter(options: object) -> Callable[[str, object], None]:
    """A function that sets fields of a frozen dataclass while it is made."""
    return lambda name, value: object.__setattr__(options, name, value)


def _several(value: Any) -> list[Any]:
    """The values of a grid, which may be a single one."""
    if isinstance(value, np.ndarray | torch.Tensor):
        value = value.tolist()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and 0 < value < math.inf


def _is_integer(value: Any, lowest: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= lowest


def _positive_integer(name: str, value: Any) -> int:
    if not _is_integer(value, 1):
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def _workers(where: str, value: Any) -> int:
    return check_integer(f"{where}: workers", value, 0)
