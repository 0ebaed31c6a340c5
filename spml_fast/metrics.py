"""Measures of a multi-label classifier: average precision, precision and recall at k, and how well it separates
unobserved labels that are positive from those that are negative."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Entries of a score matrix that are worked on at a time: bounds what is copied, and stays in the caches.
BLOCK = 1 << 18
GPU_BLOCK = 1 << 22


def average_precision(scores: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> Tensor:
    """Average precision of every class: the mean, over its positives, of the precision at their scores.

    With all scores as thresholds, ties included, it is what ``sklearn.metrics.average_precision_score`` gives. A
    class without positives counts 0, as in Cole et al., CVPR 2021. Scores may be logits or probabilities: only
    their order matters.

    Args:
        scores: (N, L), floating, on any device.
        labels: (N, L) bool, the full labels.

    Returns:
        (L,) float64 on the CPU.

    Raises:
        TypeError: scores are not floating or labels not bool.
        ValueError: other shapes than these, no rows or no classes, a score that is NaN.
    """
    values, positive = _checked(scores, labels)
    if isinstance(values, Tensor):
        return by_one_sort(values, positive).cpu()
    n, n_labels = values.shape
    result = np.zeros(n_labels)
    width = max(1, BLOCK // n)
    # Not torchmetrics, which sorts a class at a time: 900 x 1500 scores with 3 % positives take it 208 ms on one
    # core of an AMD EPYC, this 17 ms; 5000 x 1500 take it 817 ms, this 65 ms. tests/test_metrics.py holds the two
    # equal. Sorting values alone, without their order, is what numpy is fastest at, and all that is needed.
    for first in range(0, n_labels, width):
        columns = values[:, first : first + width].T.copy()  # sorted in place below
        relevant = positive[:, first : first + width].T.copy()
        of_positives = [np.sort(column[mask]) for column, mask in zip(columns, relevant, strict=True)]
        columns.sort(axis=1)
        for i, (all_scores, hits) in enumerate(zip(columns, of_positives, strict=True)):
            if len(hits):
                # Positives, and all rows, that score at least as high as each positive.
                true = len(hits) - hits.searchsorted(hits)
                result[first + i] = (true / (n - all_scores.searchsorted(hits))).mean()
    return torch.from_numpy(result)


def by_one_sort(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision by one sort of all classes, (L,) float64.

    For GPUs, where a loop over classes would wait for each of them.
    """
    n = len(scores)
    result = []
    for columns, relevant in zip(*(x.split(max(1, GPU_BLOCK // n), dim=1) for x in (scores, labels)), strict=True):
        ordered, order = columns.T.contiguous().sort(dim=1, descending=True)
        hits = relevant.T.gather(1, order)
        # Every place counts with the last of those that share its score.
        place = torch.arange(n, device=scores.device).expand_as(ordered)
        tied = torch.zeros_like(hits)
        tied[:, :-1] = ordered[:, :-1] == ordered[:, 1:]
        last = place.masked_fill(tied, n).flip(1).cummin(1).values.flip(1)
        precision = hits.cumsum(1).gather(1, last) / (last + 1.0).double()
        result.append((precision * hits).sum(1) / hits.sum(1).clamp(min=1))
    return torch.cat(result)


def mean_average_precision(scores: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> float:
    """The mean over classes of :func:`average_precision`, in [0, 1]."""
    return float(average_precision(scores, labels).mean())


def precision_recall_at(
    scores: Tensor | np.ndarray, labels: Tensor | np.ndarray, ks: Iterable[int] = (1, 3, 5)
) -> dict[str, dict[int, float]]:
    """Precision and recall at k: the share of positives among the k classes that a row scores highest, and the
    share of the row's positives that are among those k.

    Args:
        scores, labels: as for :func:`average_precision`, and the same errors.
        ks: at least 1 each; those greater than L are left out.

    Returns:
        ``{"precision_at": {k: ...}, "recall_at": {k: ...}}``. precision@k is the mean over all rows of (positives
        among the top k) / k, to which a row without positives adds 0. recall@k is the mean of (positives among the
        top k) / (positives) over the rows that have any; NaN where none has. Of equal scores the class of lower
        index comes first.
    """
    values, positive = _checked(_as_array(scores), _as_array(labels))
    n, n_labels = values.shape
    wanted = sorted(set(ks))
    if wanted and wanted[0] < 1:
        raise ValueError(f"ks must be at least 1, got {wanted[0]}")
    wanted = [k for k in wanted if k <= n_labels]
    found = np.zeros((n, len(wanted)))
    # torchmetrics' RetrievalPrecision(empty_target_action="neg") and RetrievalRecall(empty_target_action="skip")
    # are these two, by a loop over rows: 900 rows of 1500 labels take them ten times as long.
    height = max(1, BLOCK // n_labels)
    for first in range(0, n, height):
        rows = slice(first, first + height)
        top = np.argsort(-values[rows], axis=1, kind="stable")[:, : max(wanted, default=0)]
        hits = np.take_along_axis(positive[rows], top, axis=1).cumsum(axis=1)
        found[rows] = hits[:, [k - 1 for k in wanted]]
    total = positive.sum(axis=1)
    some = total > 0
    recall = (found[some] / total[some, None]).mean(axis=0) if some.any() else np.full(len(wanted), math.nan)
    precision = found.mean(axis=0) / np.array(wanted, dtype=float)
    return {
        "precision_at": dict(zip(wanted, precision.tolist(), strict=True)),
        "recall_at": dict(zip(wanted, recall.tolist(), strict=True)),
    }


def evaluate(
    scores: Tensor | np.ndarray, labels: Tensor | np.ndarray, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Average precision, its mean, precision and recall at k, as plain values ready for JSON.

    Args:
        scores, labels: as for :func:`average_precision`, and the same errors.
        names: the L classes' names, all different; "0", "1", ... unless given.

    Returns:
        ``{"n": N, "map": ..., "ap": {name: ...}, "precision_at": {"1": ...}, "recall_at": {"1": ...},
        "classes_without_positives": [name, ...]}``; a recall that is undefined is None.
    """
    ap = average_precision(scores, labels)
    names = list(map(str, range(len(ap)) if names is None else names))
    if len(names) != len(ap) or len(set(names)) != len(names):
        raise ValueError(f"names must be {len(ap)} different names, got {len(names)}, {len(set(names))} different")
    has_positives = _as_array(labels).any(axis=0)
    at = {
        kind: {str(k): None if math.isnan(value) else value for k, value in values.items()}
        for kind, values in precision_recall_at(scores, labels).items()
    }
    return {
        "n": len(labels),
        "map": float(ap.mean()),
        "ap": dict(zip(names, ap.tolist(), strict=True)),
        **at,
        "classes_without_positives": [name for name, has in zip(names, has_positives, strict=True) if not has],
    }


def probability_counts(probabilities: Tensor, labels: Tensor, observed: Tensor, bins: int = 100) -> Tensor:
    """Histograms of the probabilities predicted for unobserved labels, of true positives and of true negatives.

    Args:
        probabilities: (N, L), floating, in [0, 1], on any device.
        labels: (N, L) bool, the full labels.
        observed: what training sees: (N,) int64, the index of the one observed positive (-1: none), or (N, L) with
            1 observed positive, 0 unobserved, -1 observed negative. Only unobserved entries are counted.
        bins: equal bins of [0, 1]; p is in bin floor(p * bins), 1 in the last.

    Returns:
        (2, bins) int64 on the CPU: row 0 counts the entries that are truly positive, row 1 those truly negative.

    Raises:
        TypeError, ValueError, IndexError: other shapes, dtypes or values than these.
    """
    if not probabilities.is_floating_point() or labels.dtype != torch.bool:
        raise TypeError(
            f"probabilities must be floating and labels bool, got {probabilities.dtype} and {labels.dtype}"
        )
    if probabilities.dim() != 2 or labels.shape != probabilities.shape:
        raise ValueError(
            "probabilities and labels must have the same shape (N, L), "
            f"got {tuple(probabilities.shape)} and {tuple(labels.shape)}"
        )
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    n, n_labels = probabilities.shape
    by_index = observed.dim() == 1
    if tuple(observed.shape) != ((n,) if by_index else (n, n_labels)):
        raise ValueError(f"observed must have shape {(n,)} or {(n, n_labels)}, got {tuple(observed.shape)}")
    if by_index:
        _check_index(observed, n_labels)

    device = probabilities.device
    # Rows of bins: unobserved and truly positive, unobserved and truly negative, observed.
    counts = torch.zeros(3 * bins, dtype=torch.int64, device=device)
    height = max(1, BLOCK // max(1, n_labels))
    for first in range(0, n, height):
        p = probabilities[first : first + height].detach()
        p = p.float() if p.dtype in (torch.float16, torch.bfloat16) else p
        if not bool(((p >= 0) & (p <= 1)).all()):
            row, column = (~((p >= 0) & (p <= 1))).nonzero()[0].tolist()
            raise ValueError(
                f"probabilities must lie in [0, 1], got probabilities[{first + row}, {column}] = "
                f"{float(p[row, column])}"
            )
        place = (p * bins).to(torch.int64).clamp_(max=bins - 1)
        place.add_(labels[first : first + height].to(device).logical_not(), alpha=bins)
        seen = observed[first : first + height].to(device)
        if by_index:
            rows = (seen >= 0).nonzero().squeeze(1)
            place[rows, seen[rows]] = 2 * bins
        else:
            hidden = seen == 0
            wrong = ~(hidden | (seen == 1) | (seen == -1))
            if bool(wrong.any()):
                row, column = wrong.nonzero()[0].tolist()
                value = observed[first + row, column].item()
                raise ValueError(f"observed[{first + row}, {column}] is {value}; expected 1, 0 or -1")
            place.masked_fill_(~hidden, 2 * bins)
        counts += torch.bincount(place.flatten(), minlength=3 * bins)
    return counts[: 2 * bins].view(2, bins).cpu()


def separation(counts: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ROC AUC and Wasserstein distance of missing positives against true negatives, up to the width of a bin.

    Args:
        counts: (T, 2, bins), :func:`probability_counts` of T epochs.

    Returns:
        (T,) AUC, the chance that a positive is in a higher bin than a negative, half of it when in the same; and
        (T,) distance, the area between the two distribution functions; arrays. NaN where there are no positives or
        no negatives.
    """
    counts = np.asarray(counts, dtype=float)
    if counts.ndim != 3 or counts.shape[1] != 2:
        raise ValueError(f"counts must have shape (T, 2, bins), got {counts.shape}")
    with np.errstate(invalid="ignore"):
        share = counts / counts.sum(axis=2, keepdims=True)
    positive, negative = share[:, 0], share[:, 1]
    below = negative.cumsum(axis=1) - negative / 2
    gap = positive.cumsum(axis=1) - negative.cumsum(axis=1)
    return (positive * below).sum(axis=1), np.abs(gap).sum(axis=1) / counts.shape[2]


def _check_index(observed: Tensor, n_labels: int) -> None:
    """Refuse observed labels (N,) that are not int64 in -1 ... L - 1."""
    if observed.dtype != torch.int64:
        raise TypeError(f"observed of shape (N,) must be int64, got {observed.dtype}")
    wrong = (observed < -1) | (observed >= n_labels)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise IndexError(f"observed[{row}] is {int(observed[row])}; expected -1 (none) or 0 to {n_labels - 1}")


def _checked(
    scores: Tensor | np.ndarray, labels: Tensor | np.ndarray
) -> tuple[Tensor, Tensor] | tuple[np.ndarray, np.ndarray]:
    """Scores in float32 or float64 and labels, checked, both (N, L): tensors on the scores' GPU, else arrays."""
    if isinstance(scores, Tensor) and scores.is_cuda:
        scores, labels = scores.detach(), torch.as_tensor(labels, device=scores.device)
        floating, half, is_bool = (
            scores.is_floating_point(),
            scores.element_size() == 2,
            labels.dtype == torch.bool,
        )
    else:
        scores, labels = _as_array(scores), _as_array(labels)
        floating, half = np.issubdtype(scores.dtype, np.floating), scores.dtype == np.float16
        is_bool = labels.dtype == bool
    if not floating:
        raise TypeError(f"scores must be floating, got {scores.dtype}")
    if not is_bool:
        raise TypeError(f"labels must be bool, True where the label is positive, got {labels.dtype}")
    shapes = tuple(scores.shape), tuple(labels.shape)
    if len(shapes[0]) != 2 or shapes[0] != shapes[1]:
        raise ValueError(f"scores and labels must have the same shape (N, L), got {shapes[0]} and {shapes[1]}")
    if 0 in shapes[0]:
        raise ValueError(f"scores have shape {shapes[0]}; there must be a row and a class")
    bad = scores != scores
    if bool(bad.any()):
        row, column = np.argwhere(_as_array(bad))[0]
        raise ValueError(f"scores must not be NaN: {int(bad.sum())} are, the first is scores[{row}, {column}]")
    if half:
        scores = scores.float() if isinstance(scores, Tensor) else scores.astype(np.float32)
    return scores, labels


def _as_array(values: Tensor | np.ndarray) -> np.ndarray:
    """The values as a numpy array, which has no bfloat16."""
    if isinstance(values, Tensor):
        values = values.detach()
        return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()
    return np.asarray(values)
