"""The data of a training: splits in any form that users have, checked and brought into one form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from ..data.base import (
    MultiLabelData,
    as_x,
    check_features,
    check_labels_observed,
    check_rows_observed,
    check_training,
)
from ..labels import check_observed
from .linear import value_and_gradients
from .options import Validation
from .recipe import Recipe

if TYPE_CHECKING:
    from ..data.base import Split

SPLIT_SEED = 1200
"""Seed of the split into training and validation rows, as in the paper's code."""


@dataclass(frozen=True)
class TrainingData:
    """Checked data: training rows, validation and test, with the labels that each part may see."""

    train: MultiLabelData
    rows: Tensor
    validation: MultiLabelData | None
    validation_rows: Tensor | None
    validation_labels: Tensor | None
    test: MultiLabelData | None
    inputs: dict[str, Tensor]
    expected_positives: float | None
    names: tuple[str, ...]

    @property
    def n_labels(self) -> int:
        return len(self.names)

    @property
    def full_labels(self) -> Tensor | None:
        return None if self.train.labels is None else self.train.labels[self.rows]


def prepare(train: Split, test: Split | None, validation: Validation, recipe: Recipe) -> TrainingData:
    """Check everything that can be checked before a training; see :func:`spml_fast.train_classifier`."""
    test = None if test is None else _full_split(test, "test")
    train = _training_split(train, test, recipe.needs_full_labels)
    held_out = None if isinstance(validation.data, Real) else _full_split(validation.data, "validation")
    for what, split in (("test", test), ("validation", held_out)):
        if split is not None:
            with _located(what):
                _check_goes_with(split, train, recipe)
    if test is not None and test.labels is None:
        raise ValueError("test: full labels (N, L) are needed to measure by")
    with _located("train"):
        _check_kind(train.x, recipe)
    taught = _taught_labels(train, recipe)

    rows, held = torch.arange(len(train)), None
    if held_out is None:
        rows, held = split_rows(len(train), float(validation.data))
        held_out = None if held is None else train
    linear = recipe.linear
    if held_out is None and linear is not None and len(linear.lr) * len(linear.batch_size) > 1:
        raise ValueError("without validation there is nothing to choose by: pass one lr and one batch_size")
    measured = None
    if held_out is not None:
        measured = _measured_labels(held_out, validation.labels)
        measured = measured if held is None else measured[held]
    if train.empty_labels == "refuse":
        advice = "; leave them out, or train the others with MultiLabelData(..., empty_labels='keep')"
        with _located("train", advice):
            check_labels_observed(taught[rows], train.names)

    positives = None if train.labels is None else float(train.labels[rows].sum(1).float().mean())
    inputs = {"labels": taught[rows]}
    if "full_labels" in recipe.inputs:
        inputs["full_labels"] = train.labels[rows]
    if recipe.loss_name == "gpr":
        inputs["pseudo_labels"] = _checked_pseudo_labels(train)[rows]
    data = TrainingData(train, rows, held_out, held, measured, test, inputs, positives, tuple(train.names))
    _try_loss(recipe, data)
    return data


def _try_loss(recipe: Recipe, data: TrainingData) -> None:
    """Lets the loss complain before training, about its hyper-parameters in any epoch and about the labels."""
    loss = recipe.make_loss(len(data.rows), data.n_labels, data.expected_positives)
    rows = torch.tensor([0, len(data.rows) - 1])  # the last row has the largest index
    given = {name: value[rows] for name, value in data.inputs.items()} | {"index": rows}
    if "table" in recipe.inputs:
        given["table"] = torch.zeros(len(data.rows), data.n_labels)
    unknown = [name for name in recipe.inputs if name not in given]
    if unknown:
        raise ValueError(f"loss {recipe.loss_name!r} asks for {', '.join(unknown)}; there are {', '.join(given)}")
    arguments = [given[name] for name in recipe.inputs]
    loss.eval()  # to leave no traces
    with torch.random.fork_rng():
        for epoch in range(1, recipe.total_epochs + 1):
            if hasattr(loss, "set_epoch"):
                loss.set_epoch(epoch)
        value, _, _ = value_and_gradients(loss, torch.zeros(2, data.n_labels), arguments)
    if value.dim() != 0:
        raise ValueError(
            f"a loss to train with is a number; {recipe.loss_name!r} gave shape {tuple(value.shape)}, as with "
            "reduction='none'"
        )


def _measured_labels(split: MultiLabelData, which: str) -> Tensor:
    """The labels (N, L) bool by which validation chooses."""
    if split.labels is not None and which == "full":
        return split.labels
    if split.observed is None:
        missing = "labels" if which == "full" else "observed labels"
        raise ValueError(f"validation: the data have no {missing} to choose by")
    with _located("validation"):
        check_observed(split.observed, split.n_labels)
    return _positives(split.observed, split.n_labels)


@contextmanager
def _located(what: str, advice: str = "") -> Iterator[None]:
    """Adds to an error the split that it speaks of, and what may be done."""
    try:
        yield
    except (ValueError, TypeError, IndexError) as error:
        raise type(error)(f"{what}: {error}{advice}") from error


def _check_goes_with(split: MultiLabelData, train: MultiLabelData, recipe: Recipe) -> None:
    if not len(split):
        raise ValueError("the data have no rows")
    check_features(split.x)
    _check_kind(split.x, recipe)
    if split.n_labels != train.n_labels:
        raise ValueError(f"there are {split.n_labels} labels, the training data have {train.n_labels}")
    unnamed = tuple(map(str, range(train.n_labels)))
    if tuple(split.names) != tuple(train.names) and unnamed not in (tuple(split.names), tuple(train.names)):
        raise ValueError(f"the labels are {tuple(split.names)}, those of the training data {tuple(train.names)}")
    if _width(split.x) != _width(train.x):
        raise ValueError(f"x has rows of shape {_width(split.x)}, the training data of {_width(train.x)}")


def _taught_labels(train: MultiLabelData, recipe: Recipe) -> Tensor:
    """The labels that the loss is called with, checked for it."""
    loss = recipe.loss_name
    if (recipe.needs_full_labels or "full_labels" in recipe.inputs) and train.labels is None:
        raise ValueError(f"train: loss {loss!r} needs full labels; the training data have none")
    with _located("train"):
        if recipe.needs_full_labels:
            check_features(train.x)
        else:
            check_training(train)
    taught = train.labels if recipe.needs_full_labels else train.observed
    if recipe.needs_observed:
        with _located("train", f"; loss {loss!r} learns nothing from such rows: leave them out"):
            check_rows_observed(taught)
    return taught


def _checked_pseudo_labels(train: MultiLabelData) -> Tensor:
    pseudo_labels, shape = train.pseudo_labels, (len(train), train.n_labels)
    if pseudo_labels is None:
        raise ValueError(
            "loss 'gpr' needs pseudo_labels (N, L) in {-1, 0, 1}; give them with the training data, "
            "MultiLabelData(..., pseudo_labels=...)"
        )
    if tuple(pseudo_labels.shape) != shape:
        raise ValueError(f"pseudo_labels must have shape {shape}, got {tuple(pseudo_labels.shape)}")
    _check_values(pseudo_labels, (1, 0, -1), "pseudo_labels")
    return pseudo_labels.float()


def _check_values(labels: Tensor, allowed: tuple[int, ...], what: str) -> None:
    if labels.is_complex():
        raise TypeError(f"{what} must be real, got {labels.dtype}")
    if labels.dtype in (torch.bool, torch.uint8):  # to which -1 is 1 or 255
        labels = labels.short()
    wrong = (~torch.isin(labels, torch.tensor(allowed, dtype=labels.dtype))).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        expected = ", ".join(map(str, allowed))
        raise ValueError(f"{what}[{row}, {column}] is {labels[row, column].item()}; expected one of {expected}")


def _pair(value: Any, what: str) -> tuple[Any, Tensor]:
    try:
        x, labels = value
    except (TypeError, ValueError):
        raise TypeError(
            f"{what} must be MultiLabelData or a pair (x, labels), got {type(value).__name__}"
        ) from None
    if not isinstance(labels, Tensor | np.ndarray):
        raise TypeError(f"{what}: labels must be a tensor or an array, got {type(labels).__name__}")
    with _located(what):
        return as_x(x), torch.as_tensor(labels).detach().cpu()


def _training_split(train: Any, test: MultiLabelData | None, full: bool) -> MultiLabelData:
    if isinstance(train, MultiLabelData):
        return train
    if full:
        return _full_split(train, "train")
    x, observed = _pair(train, "train")
    names = ()
    if observed.dim() == 1 and not observed.is_floating_point() and observed.dtype != torch.bool:
        observed = observed.long()
        n_labels = test.n_labels if test is not None else int(observed.max()) + 1 if len(observed) else 0
        names = tuple(map(str, range(n_labels)))
    elif observed.dim() != 2:
        raise ValueError(
            f"train: labels must be (N,) integers or (N, L), got {observed.dtype} of shape {tuple(observed.shape)}"
        )
    else:
        _check_values(observed, (1, 0, -1), "train: labels")
        observed = observed.to(torch.int8)
    with _located("train"):
        return MultiLabelData(x, observed=observed, names=names)


def _full_split(split: Any, what: str) -> MultiLabelData:
    if isinstance(split, MultiLabelData):
        return split
    x, labels = _pair(split, what)
    if labels.dim() != 2:
        raise ValueError(f"{what}: full labels must have shape (N, L), got {tuple(labels.shape)}")
    _check_values(labels, (1, 0), f"{what}: labels")
    with _located(what):
        return MultiLabelData(x, labels=labels.bool())


def _width(x: Any) -> tuple[int, ...]:
    return tuple(x.shape[1:]) if hasattr(x, "shape") else tuple(x[0].shape)


def _check_kind(x: Any, recipe: Recipe) -> None:
    is_features = hasattr(x, "shape") and len(x.shape) == 2
    if recipe.trunk is None and not is_features:
        raise ValueError(
            f"x must be features (N, D) for a linear classifier, got rows of shape {_width(x)}; pass a "
            "trunk that computes features"
        )
    if recipe.finetune is not None and hasattr(x, "indptr"):
        raise ValueError("a trunk cannot be tuned on sparse features; densify them, or leave finetune out")


def split_rows(n: int, share: float) -> tuple[Tensor, Tensor | None]:
    """Rows to train on and rows held out, None where the share is 0; the same rows for every seed."""
    if not 0 <= share < 1:
        raise ValueError(f"validation must be a share of the training rows in [0, 1), or data, got {share}")
    held = math.ceil(share * n)
    if held == 0:
        return torch.arange(n), None
    if held >= n:
        raise ValueError(f"validation={share} of {n} rows leaves none to train on")
    from sklearn.model_selection import train_test_split

    rows, held_rows = train_test_split(np.arange(n), test_size=held, random_state=SPLIT_SEED)
    return torch.from_numpy(np.sort(rows)), torch.from_numpy(np.sort(held_rows))


def _positives(observed: Tensor, n_labels: int) -> Tensor:
    """The observed positives (N, L) bool, from observed labels in either form."""
    if observed.dim() == 2:
        return observed == 1
    return observed[:, None] == torch.arange(n_labels)


def take(x: Any, rows: Tensor | None) -> Any:
    """Rows of features in any form; None for all."""
    if rows is None:
        return x
    if isinstance(x, Tensor):
        return x[rows]
    if hasattr(x, "indptr"):
        return x[rows.numpy()]
    return Subset(x, rows.tolist())
