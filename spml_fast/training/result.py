"""The result of training a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .model import MultiLabelClassifier

if TYPE_CHECKING:
    from ..data.base import Features


@dataclass(frozen=True)
class TrainedClassifier:
    """What :func:`spml_fast.train_classifier` returns.

    Attributes:
        model: the classifier, in eval mode on the CPU.
        metrics: the content of ``metrics.json`` of a run.
        rows: (n,) int64, the rows of the training data that were trained on, the others having validated.
        train_probabilities: (n, L), predicted for the rows trained on: the recovered labels.
        estimates: (n, L) probabilities of ROLE's label estimator, or None.
        test_probabilities: (N_test, L), or None without test data.
        counts: (epochs, 2, bins) of unobserved positives and negatives over predicted probability, where recovery
            was tracked, see :func:`spml_fast.metrics.probability_counts`.
    """

    model: MultiLabelClassifier
    metrics: dict[str, Any]
    rows: Tensor
    train_probabilities: Tensor
    estimates: Tensor | None = None
    test_probabilities: Tensor | None = None
    counts: Tensor | None = None

    def predict_proba(self, x: Features) -> Tensor:
        """The probabilities (N, L) of the labels of each row of x."""
        return self.model.predict_proba(x)
