"""How to train a classifier: the options that do not depend on the data, checked together."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._processes import world_size
from ..losses import Loss, make, registry
from .options import FineTuning, LinearPhase, check_integer, check_kind

ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
"""Where the linear phase runs; fine-tuning runs on whatever Lightning knows."""

FULL_LABEL_LOSSES = ("bce", "bce_ls")
"""Names of losses that are called with full labels as their labels."""


@dataclass(frozen=True)
class Recipe:
    """The arguments of :func:`spml_fast.train_classifier` that say how to train.

    Without ``linear`` and ``finetune`` it is the linear phase with its defaults.

    Raises:
        ValueError, TypeError: arguments that cannot be trained with.
    """

    loss: str | Mapping[str, Any] | nn.Module
    linear: LinearPhase | None
    finetune: FineTuning | None
    seed: int
    accelerator: str
    progress: bool

    def __post_init__(self) -> None:
        if self.linear is not None:
            check_kind("linear", self.linear, LinearPhase)
        if self.finetune is not None:
            check_kind("finetune", self.finetune, FineTuning)
        elif self.linear is None:
            object.__setattr__(self, "linear", LinearPhase())
        if self.linear and self.finetune and self.linear.trunk is not None:
            raise ValueError(
                "linear: trunk is for a linear classifier alone; with fine-tuning, the features are those of "
                "finetune's trunk: leave it out of linear"
            )
        object.__setattr__(self, "seed", check_integer("seed", self.seed, -(2**63)))
        if self.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ValueError(f"accelerator={self.accelerator!r}, but PyTorch sees no CUDA device")
        if self.finetune is None and self.accelerator not in ACCELERATORS:
            raise ValueError(f"accelerator must be one of {', '.join(ACCELERATORS)}, got {self.accelerator!r}")
        if isinstance(self.loss, Mapping):
            if not isinstance(self.loss.get("name"), str):
                raise ValueError(f"loss must be a mapping with 'name' and the loss's options, got {self.loss!r}")
        elif not isinstance(self.loss, str | nn.Module):
            raise TypeError(
                "loss must be a name, a mapping with 'name' and options, or a module, got "
                f"{type(self.loss).__name__}"
            )
        if not isinstance(self.loss, nn.Module) and self.loss_name not in registry:
            raise ValueError(f"no loss is called {self.loss_name!r}; there are {', '.join(sorted(registry))}")

    @property
    def mode(self) -> str:
        """The mode's name in the records: "linear", "finetune", or "linear_init" for one and then the other."""
        if self.finetune is None:
            return "linear"
        return "finetune" if self.linear is None else "linear_init"

    @property
    def trunk(self) -> nn.Module | None:
        return self.linear.trunk if self.finetune is None else self.finetune.trunk

    @property
    def workers(self) -> int:
        return self.linear.workers if self.finetune is None else self.finetune.workers

    @property
    def linear_epochs(self) -> int:
        return 0 if self.linear is None else self.linear.epochs

    @property
    def total_epochs(self) -> int:
        return self.linear_epochs + (0 if self.finetune is None else self.finetune.epochs)

    @property
    def loss_name(self) -> str:
        if isinstance(self.loss, str):
            return self.loss
        if isinstance(self.loss, Mapping):
            return self.loss["name"]
        return getattr(type(self.loss), "name", type(self.loss).__name__)

    @property
    def needs_full_labels(self) -> bool:
        return self.loss_name in FULL_LABEL_LOSSES

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what the loss is called with beside the logits."""
        return called_with(self._loss)

    @property
    def needs_observed(self) -> bool:
        """Whether the loss learns nothing from a row of which nothing was observed."""
        return getattr(self._loss, "needs_observed", False)

    @property
    def _loss(self) -> Any:
        return self.loss if isinstance(self.loss, nn.Module) else registry[self.loss_name]

    def make_loss(self, n_samples: int, n_labels: int, expected_positives: float | None) -> nn.Module:
        """A new loss module, with options that depend on the data filled in; a module given is copied."""
        if isinstance(self.loss, nn.Module):
            return copy.deepcopy(self.loss)
        options = {} if isinstance(self.loss, str) else {n: v for n, v in self.loss.items() if n != "name"}
        return build_loss(
            self.loss_name,
            options,
            n_samples=n_samples,
            n_labels=n_labels,
            epochs=self.total_epochs,
            frozen_epochs=0 if self.finetune is None else self.linear_epochs,
            expected_positives=expected_positives,
        )

    def settings(self) -> dict[str, Any]:
        """The settings that a run must share with the one that it continues, by their names in a configuration."""
        found = {"loss": self.loss, "seed": self.seed, "accelerator": self.accelerator}
        for phase, names in (
            ("linear", ("lr", "batch_size", "epochs", "standardize")),
            ("finetune", ("lr", "batch_size", "epochs", "head_factor", "precision")),
        ):
            options = getattr(self, phase)
            if options is not None:
                found |= {f"{phase}.{name}": getattr(options, name) for name in names}
        return found


def called_with(loss: nn.Module | type[Loss]) -> tuple[str, ...]:
    """Names of what a loss is called with beside the logits; only labels for modules of other packages."""
    names = getattr(loss, "inputs", ("logits", "labels"))[1:]
    return (*names, "index") if "table" in names else names  # optional to ROLE's loss, not to batches


def takes_expected_positives(name: str) -> bool:
    """Whether the loss of this name has k, the expected number of positives, among its options."""
    return name in registry and "expected_positives" in inspect.signature(registry[name].function).parameters


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
    """The loss of this name, with options that are not given filled in for the size of the training.

    Args:
        frozen_epochs: number of first epochs in which the trunk does not learn, GR's warm-up.
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
    if takes_expected_positives(name) and expected_positives is not None:
        options.setdefault("expected_positives", expected_positives)
    if name in ("epr", "role") and "expected_positives" not in options:
        raise ValueError(
            f"loss {name!r} needs expected_positives, k: how many positives an instance has on average "
            "(1.5 on VOC, 2.9 on COCO); it is counted where full labels are known, otherwise give it with the "
            "loss's other options"
        )
    if "sync" in own and world_size() > 1:
        options.setdefault("sync", True)
    loss = make(name, **options)
    if loss.hyper.get("reduction") == "none":
        raise ValueError("loss: a loss to train with is a number; reduction='none' leaves a matrix")
    return loss
