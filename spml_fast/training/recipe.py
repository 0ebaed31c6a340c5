"""How to train: the arguments of ``train_classifier`` that do not depend on the data, checked."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import nn

from .._processes import world_size
from ..losses import Loss, make, registry

TRAIN_MODES = ("linear", "finetune", "linear_init")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
"""Where the linear phase runs; fine-tuning runs on whatever Lightning knows."""

FULL_LABEL_LOSSES = ("bce", "bce_ls")
"""Losses whose labels are the full ones."""


@dataclass(frozen=True)
class Recipe:
    """The arguments of :func:`spml_fast.train_classifier` that say how to train.

    Raises:
        ValueError, TypeError: one that cannot be trained with.
    """

    loss: str | Loss | nn.Module
    loss_options: Mapping[str, Any] | None
    train_mode: str
    trunk: nn.Module | None
    lr: float | Sequence[float]
    batch_size: int | Sequence[int]
    epochs: int
    finetune_lr: float
    finetune_batch_size: int
    finetune_epochs: int
    head_factor: float
    expected_positives: float | None
    standardize: bool
    empty_labels: str
    watch: bool | None
    seed: int
    accelerator: str
    precision: str
    workers: int
    progress: bool
    trainer_options: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        if self.train_mode not in TRAIN_MODES:
            raise ValueError(f"train_mode must be one of {', '.join(TRAIN_MODES)}, got {self.train_mode!r}")
        if self.empty_labels not in ("refuse", "keep"):
            raise ValueError(f"empty_labels must be 'refuse' or 'keep', got {self.empty_labels!r}")
        for name in ("lr", "finetune_lr", "head_factor"):
            values = _several(getattr(self, name)) if name == "lr" else [getattr(self, name)]
            if not values or not all(_is_number(v) and 0 < v < math.inf for v in values):
                kind = "a number or several" if name == "lr" else "a number"
                raise ValueError(f"{name} must be positive, {kind}, got {getattr(self, name)!r}")
        for name in ("batch_size", "epochs", "finetune_epochs", "finetune_batch_size"):
            values = _several(getattr(self, name)) if name == "batch_size" else [getattr(self, name)]
            if not values or not all(_is_integer(v) and v >= 1 for v in values):
                raise ValueError(f"{name} must be a positive integer, got {getattr(self, name)!r}")
        for name, lowest in (("seed", -(2**63)), ("workers", 0)):
            if not _is_integer(getattr(self, name)) or getattr(self, name) < lowest:
                raise ValueError(f"{name} must be an integer, at least {lowest}, got {getattr(self, name)!r}")
        for name in ("epochs", "finetune_epochs", "finetune_batch_size", "seed", "workers"):
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in ("finetune_lr", "head_factor"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.loss_options is not None and not isinstance(self.loss_options, Mapping):
            raise TypeError(f"loss_options must be a mapping, got {type(self.loss_options).__name__}")
        if self.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ValueError(f"accelerator={self.accelerator!r}, but PyTorch sees no CUDA device")
        if not self.tunes and self.accelerator not in ACCELERATORS:
            raise ValueError(f"accelerator must be one of {', '.join(ACCELERATORS)}, got {self.accelerator!r}")
        if self.tunes and self.trunk is None:
            raise ValueError(f"train_mode={self.train_mode!r} needs a trunk, a module from x to features (N, F)")
        if self.trunk is not None and not isinstance(self.trunk, nn.Module):
            raise TypeError(f"trunk must be a torch.nn.Module, got {type(self.trunk).__name__}")
        if isinstance(self.loss, str):
            if self.loss not in registry:
                raise ValueError(f"no loss is called {self.loss!r}; there are {', '.join(sorted(registry))}")
        elif not isinstance(self.loss, nn.Module):
            raise TypeError(f"loss must be a name or a module, got {type(self.loss).__name__}")
        elif self.loss_options:
            raise ValueError("loss_options are for a loss given by name; this one is a module")

    @property
    def lrs(self) -> list[float]:
        return [float(v) for v in _several(self.lr)]

    @property
    def batch_sizes(self) -> list[int]:
        return [int(v) for v in _several(self.batch_size)]

    @property
    def tunes(self) -> bool:
        return self.train_mode != "linear"

    @property
    def has_linear_phase(self) -> bool:
        return self.train_mode != "finetune"

    @property
    def linear_epochs(self) -> int:
        return self.epochs if self.has_linear_phase else 0

    @property
    def total_epochs(self) -> int:
        return self.linear_epochs + (self.finetune_epochs if self.tunes else 0)

    @property
    def loss_name(self) -> str:
        if isinstance(self.loss, str):
            return self.loss
        return getattr(type(self.loss), "name", type(self.loss).__name__)

    @property
    def needs_full_labels(self) -> bool:
        return self.loss_name in FULL_LABEL_LOSSES

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the loss is called with beside the logits."""
        return called_with(self._loss)

    @property
    def needs_observed(self) -> bool:
        """Whether the loss learns nothing from a row of which nothing was observed."""
        return getattr(self._loss, "needs_observed", False)

    @property
    def _loss(self) -> Any:
        return registry[self.loss] if isinstance(self.loss, str) else self.loss

    def make_loss(self, n_samples: int, n_labels: int, expected_positives: float | None) -> nn.Module:
        """A new loss module, what it has to know of the data filled in."""
        if not isinstance(self.loss, str):
            return copy.deepcopy(self.loss)
        return build_loss(
            self.loss,
            self.loss_options or {},
            n_samples=n_samples,
            n_labels=n_labels,
            epochs=self.total_epochs,
            frozen_epochs=self.linear_epochs if self.tunes else 0,
            expected_positives=expected_positives,
        )


def _several(value: Any) -> list[Any]:
    """The values of a grid, which may be a single one."""
    if isinstance(value, np.ndarray | torch.Tensor):
        value = value.tolist()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def called_with(loss: nn.Module | type[Loss]) -> tuple[str, ...]:
    """Names of what a loss is called with beside the logits, in order; another module's are labels alone."""
    names = getattr(loss, "inputs", ("logits", "labels"))[1:]
    return (*names, "index") if "table" in names else names  # optional to ROLE's loss, not to batches


def build_loss(
    name: str,
    options: Mapping[str, Any],
    *,
    n_samples: int,
    n_labels: int,
    epochs: int,
    frozen_epochs: int = 0,
    expected_positives: float | None = None,
) -> Loss:
    """The loss of this name for a training of so many rows, labels and epochs, where ``options`` do not say.

    The trunk is frozen in the first ``frozen_epochs``, GR's warm-up.
    """
    cls, options = registry[name], dict(options)
    own = set(inspect.signature(cls.__init__).parameters)
    for key, value in {"n_samples": n_samples, "n_labels": n_labels, "epochs": epochs}.items():
        if key in own:
            options.setdefault(key, value)
    if name in ("gr", "gpr"):
        options.setdefault("warmup", frozen_epochs)
    if name == "em_apl":
        options.setdefault("warmup", max(1, min(5, options["epochs"] // 2)))
    if "expected_positives" in inspect.signature(cls.function).parameters and expected_positives is not None:
        options.setdefault("expected_positives", expected_positives)
    if name in ("epr", "role") and "expected_positives" not in options:
        raise ValueError(
            f"loss {name!r} needs expected_positives, k: how many positives an instance has on average "
            "(1.5 on VOC, 2.9 on COCO); it is counted where full labels are known"
        )
    if "sync" in own and world_size() > 1:
        options.setdefault("sync", True)
    loss = make(name, **options)
    if loss.hyper.get("reduction") == "none":
        raise ValueError("loss_options: a loss to train with is a number; reduction='none' leaves a matrix")
    return loss
