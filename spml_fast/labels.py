"""The label estimator of ROLE: a table of logits, one for every label of every training instance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

UNOBSERVED = 0.6
"""Estimates of unobserved labels start with logits uniform within plus or minus logit(0.6)."""
POSITIVE = 0.995
NEGATIVE = 0.005
CLAMP = 1e-5
"""Given probabilities are clamped to [1e-5, 1 - 1e-5]."""


def _logit(p: float) -> float:
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
        generator: of the random start; torch's own unless given.
        device, dtype: of the table. float32 serves logits of float32, float16 and bfloat16; float64 those of
            float64.

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
