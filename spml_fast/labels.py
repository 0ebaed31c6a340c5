"""Observed labels simulated from full labels, checks of observed labels, and the label estimator of ROLE."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

UNOBSERVED = 0.6
"""Estimates of unobserved labels start with logits uniform within plus or minus logit(0.6)."""
POSITIVE = 0.995
"""Estimates of observed positives start here."""
NEGATIVE = 0.005
"""Estimates of observed negatives start here."""
CLAMP = 1e-5
"""Given probabilities are clamped to [1e-5, 1 - 1e-5]."""

Array = TypeVar("Array", np.ndarray, Tensor)


def single_positives(
    labels: Array,
    *,
    positives: int = 1,
    negatives: int = 0,
    class_weight: np.ndarray | Tensor | None = None,
    instance_weight: np.ndarray | Tensor | None = None,
    seed: int | np.random.Generator | None = None,
    empty: str = "raise",
) -> Array:
    """Observed labels of simulated annotators, who name few of an instance's labels: by default one positive,
    drawn uniformly.

    Args:
        labels: full labels (N, L), numpy or torch; nonzero is positive, 0 negative.
        positives: how many positives to draw per row, without replacement; all of a row that has fewer.
        negatives: how many negatives to draw per row, uniformly without replacement; all of a row with fewer.
        class_weight: (L,), biased annotators: a row's positives are drawn with probability proportional to their
            weight, again and again among those that are left. Weight 0 is never drawn.
        instance_weight: (N, L), the same for every instance; multiplied by ``class_weight`` if both are given.
        seed: an integer, or a ``numpy.random.Generator`` to draw from.
        empty: what to do with rows that have no positive: "raise", or "keep" them without an observed positive.

    Returns:
        An array or tensor, as ``labels`` was, on its device: with one positive and no negatives (N,) int64, the
        index of the positive that stays observed (-1: the row has none); otherwise (N, L) int8 with 1 observed
        positive, 0 unobserved, -1 observed negative.

    Raises:
        ValueError: labels that are not a matrix, negative or NaN; a row without a positive; a row whose positives
            all have weight 0; weights of another shape, negative, NaN or infinite.
    """
    for name, count, least in (("positives", positives, 1), ("negatives", negatives, 0)):
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {count!r}")
    if empty not in ("raise", "keep"):
        raise ValueError(f'empty must be "raise" or "keep", got {empty!r}')
    positive = _full_labels(labels)
    without = np.flatnonzero(~positive.any(axis=1))
    if empty == "raise" and without.size:
        raise ValueError(
            f"every row of labels needs a positive; {without.size} have none, the first is row {without[0]}"
            ' (empty="keep" keeps them without an observed label)'
        )
    log_weight = _log_weight(positive.shape, class_weight, instance_weight)
    rng = np.random.default_rng(seed)
    # The largest of independent uniform keys sits on each positive with the same probability.
    keys = rng.random(positive.shape)
    if log_weight is not None:
        # Gumbel keys: the k largest are k draws without replacement, proportional to the weights.
        keys = log_weight - np.log(-np.log(np.maximum(keys, np.finfo(np.float64).tiny)))
    keys = np.where(positive, keys, -np.inf)
    drawable = keys > -np.inf
    stuck = np.flatnonzero(positive.any(axis=1) & ~drawable.any(axis=1))
    if stuck.size:
        raise ValueError(
            f"every row needs a positive of nonzero weight; {stuck.size} have none, the first is row {stuck[0]}"
        )
    if positives == 1 and negatives == 0:
        observed = np.where(drawable.any(axis=1), keys.argmax(axis=1), -1).astype(np.int64)
    else:
        observed = _largest(keys, positives).astype(np.int8)
        if negatives:
            observed -= _largest(np.where(positive, -np.inf, rng.random(positive.shape)), negatives)
    return torch.from_numpy(observed).to(labels.device) if isinstance(labels, Tensor) else observed


def observed_matrix(observed: Array, n_labels: int) -> Array:
    """Observed labels of either form, (N,) or (N, L), as (N, L) int8 with 1, 0 and -1; array type as given.

    Raises:
        ValueError, TypeError, IndexError: see :func:`check_observed`.
    """
    check_observed(observed, n_labels)
    given = torch.as_tensor(observed)
    if given.dim() == 1:
        given = given[:, None] == torch.arange(n_labels, device=given.device)
    matrix = given.to(torch.int8)
    return matrix if isinstance(observed, Tensor) else matrix.numpy()


def check_observed(observed: np.ndarray | Tensor, n_labels: int) -> None:
    """Refuse observed labels that are not (N,) int64 in -1 ... L - 1 or (N, L) of 1, 0 and -1.

    Raises:
        ValueError: another shape or value, naming the first row and column.
        TypeError: (N,) of another dtype.
        IndexError: an index out of range, naming the first row.
    """
    observed = torch.as_tensor(observed)
    shape = tuple(observed.shape)
    if len(shape) == 1:
        if observed.dtype != torch.int64:
            raise TypeError(f"observed labels of shape (N,) must be int64, got {observed.dtype}")
        wrong = (observed < -1) | (observed >= n_labels)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise IndexError(f"observed[{row}] is {int(observed[row])}; expected -1 (none) or 0 to {n_labels - 1}")
    elif len(shape) == 2 and shape[1] == n_labels:
        # "< 0" because -1 wraps to 255 when it meets uint8.
        wrong = ~((observed == 0) | (observed == 1) | ((observed == -1) & (observed < 0)))
        if bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            value = observed[row, column].item()
            raise ValueError(
                f"observed[{row}, {column}] is {value}; expected 1 (positive), 0 (unobserved) or -1 (negative)"
            )
    else:
        raise ValueError(f"observed labels must have shape (N,) or (N, {n_labels}), got {shape}")


def _full_labels(labels: np.ndarray | Tensor) -> np.ndarray:
    """Full labels as (N, L) bool; refused where they look like observed labels or have missing values."""
    if not isinstance(labels, Tensor):
        labels = np.asarray(labels)
    if labels.ndim != 2 or not labels.shape[1]:
        raise ValueError(f"labels must have shape (N, L), got {tuple(labels.shape)}")
    # -1 is how observed labels say negative: taken for nonzero, it would silently become a positive.
    right = torch.as_tensor(labels >= 0).cpu().numpy()
    if not right.all():
        row, column = np.argwhere(~right)[0].tolist()
        raise ValueError(
            f"labels[{row}, {column}] is {labels[row, column].item()}; expected full labels, 0 negative and "
            "nonzero positive"
        )
    return torch.as_tensor(labels != 0).cpu().numpy()


def _log_weight(
    shape: tuple[int, int],
    class_weight: np.ndarray | Tensor | None,
    instance_weight: np.ndarray | Tensor | None,
) -> np.ndarray | None:
    """Logarithm of the weights, broadcastable to ``shape``; None where all are equal."""
    total = None
    given = {"class_weight": (class_weight, shape[1:]), "instance_weight": (instance_weight, shape)}
    for name, (weight, expected) in given.items():
        if weight is None:
            continue
        weight = np.asarray(weight.detach().cpu() if isinstance(weight, Tensor) else weight, dtype=np.float64)
        if weight.shape != expected:
            raise ValueError(f"{name} must have shape {expected}, got {weight.shape}")
        wrong = np.argwhere(~((weight >= 0) & (weight < np.inf)))
        if wrong.size:
            place = wrong[0].tolist()
            raise ValueError(f"{name}{place} is {weight[tuple(place)]}; weights must be finite and not negative")
        with np.errstate(divide="ignore"):  # log 0
            total = np.log(weight) if total is None else total + np.log(weight)
    return total


def _largest(keys: np.ndarray, k: int) -> np.ndarray:
    """(N, L) bool: where the k largest keys of each row are; keys of -inf are left out."""
    k = min(k, keys.shape[1])
    chosen = np.zeros(keys.shape, dtype=bool)
    np.put_along_axis(chosen, np.argpartition(keys, -k, axis=1)[:, -k:], True, axis=1)
    return chosen & (keys > -np.inf)


def _logit(p: float) -> float:
    """log(p / (1 - p))"""
    return math.log(p / (1 - p))


class LabelEstimator(nn.Module):
    """Estimates q = sigmoid(logits) of all labels of a training set (Cole et al., CVPR 2021, section 4.3).

    ``losses.ROLELoss(...)(logits, labels, estimator.logits, index)`` teaches it and the classifier from each
    other; its learning rate is ten times the classifier's.

    Args:
        labels: observed labels, (R,) int64 indices (-1: none) or (R, L) with 1, 0 and -1. Unobserved logits start
            uniform within +-logit(0.6), observed positives at logit(0.995), observed negatives at logit(0.005).
        n_labels: L; needed with labels of shape (R,).
        probabilities: (R, L), start from these instead, clamped to [1e-5, 1 - 1e-5]; ``labels`` is not needed
            then.
        generator: draws the random start; torch's global generator unless given.
        device, dtype: where and how the table is stored. A float32 table goes with logits in float32, float16 and
            bfloat16, a float64 table with logits in float64.

    Attributes:
        logits: (R, L) parameter.

    Raises:
        ValueError, IndexError: labels of another shape or value, neither labels nor probabilities given.
    """

    def __init__(
        self,
        labels: Tensor | None = None,
        *,
        n_labels: int | None = None,
        probabilities: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype must be float32 or float64, got {dtype}")
        if probabilities is not None:
            if probabilities.dim() != 2:
                raise ValueError(f"probabilities must have shape (R, L), got {tuple(probabilities.shape)}")
            p = probabilities.detach().to(device=device, dtype=torch.float64)
            if not bool(((p >= 0) & (p <= 1)).all()):
                raise ValueError("probabilities must lie between 0 and 1")
            start = torch.logit(p.clamp(CLAMP, 1 - CLAMP))
        elif labels is not None:
            start = self._from_labels(labels, n_labels, generator).to(device)
        else:
            raise ValueError("a label estimator starts from labels or from probabilities; neither was given")
        self.logits = nn.Parameter(start.to(dtype))

    @staticmethod
    def _from_labels(labels: Tensor, n_labels: int | None, generator: torch.Generator | None) -> Tensor:
        if labels.dim() == 1:
            if n_labels is None:
                raise ValueError("labels of shape (R,) need n_labels")
            if labels.dtype != torch.int64:
                raise TypeError(f"labels of shape (R,) must be int64, got {labels.dtype}")
            wrong = (labels < -1) | (labels >= n_labels)
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                raise IndexError(f"labels[{row}] is {int(labels[row])}; expected -1 (none) or 0 to {n_labels - 1}")
            shape = (len(labels), n_labels)
            positive = labels[:, None] == torch.arange(n_labels, device=labels.device)
            negative = torch.zeros_like(positive)
        elif labels.dim() == 2:
            shape = tuple(labels.shape)
            if n_labels not in (None, shape[1]):
                raise ValueError(f"n_labels is {n_labels}, but labels have shape {shape}")
            if labels.dtype == torch.uint8:  # which would read -1 as 255
                labels = labels.short()
            positive, negative = labels == 1, labels == -1
            wrong = ~(positive | negative | (labels == 0))
            if bool(wrong.any()):
                row, column = wrong.nonzero()[0].tolist()
                raise ValueError(f"labels[{row}, {column}] is {labels[row, column].item()}; expected 1, 0 or -1")
        else:
            raise ValueError(f"labels must have shape (R,) or (R, L), got {tuple(labels.shape)}")
        bound = _logit(UNOBSERVED)
        start = (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * bound
        start = start.to(labels.device)
        return start.masked_fill(positive, _logit(POSITIVE)).masked_fill(negative, _logit(NEGATIVE))

    def forward(self, index: Tensor | None = None) -> Tensor:
        """Estimates (N, L) of the rows in ``index``, or of all."""
        return torch.sigmoid(self.logits if index is None else self.logits[index])

    def extra_repr(self) -> str:
        return f"rows={self.logits.shape[0]}, labels={self.logits.shape[1]}"
