"""How to train: the arguments of ``train_classifier`` that do not depend on the data, checked."""

from __future__ import annotations

import copy
import inspect
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..losses import Loss, make, registry

TRAIN_MODES = ("linear", "finetune", "linear_init")
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
        for name, values in (("lr", self.lrs), ("finetune_lr", [self.finetune_lr])):
            if not values or not all(isinstance(v, int | float) and 0 < v < math.inf for v in values):
                raise ValueError(f"{name} must be positive, a number or several, got {getattr(self, name)!r}")
        counts = {name: [getattr(self, name)] for name in ("epochs", "finetune_epochs", "finetune_batch_size")}
        for name, values in ({"batch_size": self.batch_sizes} | counts).items():
            if not values or not all(isinstance(v, int | np.integer) and v >= 1 for v in values):
                raise ValueError(f"{name} must be a positive integer, got {getattr(self, name)!r}")
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
        return [float(v) for v in self.lr] if isinstance(self.lr, Sequence) else [self.lr]

    @property
    def batch_sizes(self) -> list[int]:
        return list(self.batch_size) if isinstance(self.batch_size, Sequence) else [self.batch_size]

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
        return getattr(self._loss, "inputs", ("logits", "labels"))[1:]

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
            epochs=self.linear_epochs + (self.finetune_epochs if self.tunes else 0),
            frozen_epochs=self.linear_epochs if self.tunes else 0,
            expected_positives=expected_positives,
        )


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
    if "sync" in own and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        options.setdefault("sync", True)
    loss = make(name, **options)
    if loss.hyper.get("reduction") == "none":
        raise ValueError("loss_options: a loss to train with is a number; reduction='none' leaves a matrix")
    return loss
