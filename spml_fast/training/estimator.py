"""The linear classifier from single positive labels as a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from ..data.base import MultiLabelData
from ..metrics import mean_average_precision
from .classifier import train_classifier
from .options import LinearPhase
from .recipe import FULL_LABEL_LOSSES, takes_expected_positives


class SinglePositiveClassifier(MultiOutputMixin, ClassifierMixin, BaseEstimator):
    """Multi-label linear classifier, trained from one known positive label per instance.

    ``fit`` takes the labels that are observed; ``predict`` and ``predict_proba`` answer for every label of every
    instance: whether the instance has it, each on its own, so that rows of probabilities do not sum to 1.

    Parameters:
        loss: name of a loss, see :data:`spml_fast.losses.registry`; "bce" and "bce_ls" take a matrix y as full
            labels.
        loss_options: hyper-parameters of the loss.
        lr, batch_size: learning rate and batch size of Adam; sequences make a grid, from which validation chooses.
        epochs: passes over the data.
        validation: share of the rows that chooses learning rate, batch size and epoch by mAP on the observed
            labels; 0 trains on all rows and keeps the last epoch.
        expected_positives: k, how many positives an instance has on average, for "epr" and "role".
        standardize: scale the features to mean 0 and variance 1 first, sparse ones to variance 1.
        threshold: least probability for which ``predict`` gives 1.
        random_state: seed of starts and batches.
        accelerator: "auto", "cpu" or "gpu".
        verbose: show a progress bar.

    Attributes:
        classes_: the labels of the L columns of predictions: the values of y, or 0 ... L - 1 for a matrix.
        coef_, intercept_: (L, n_features) and (L,).
        metrics_: records of the training, see :class:`spml_fast.TrainedClassifier`.
        n_features_in_, feature_names_in_: as in scikit-learn.

    It fails those of scikit-learn's ``check_estimator`` that want one class per row, in ``predict`` or in the
    columns of ``decision_function``: check_estimator_sparse_array, check_estimator_sparse_matrix,
    check_classifiers_classes, check_classifiers_train and check_decision_proba_consistency.
    """

    def __init__(
        self,
        loss: str = "gr",
        *,
        loss_options: Mapping[str, Any] | None = None,
        lr: float | Sequence[float] = 1e-2,
        batch_size: int | Sequence[int] = 16,
        epochs: int = 25,
        validation: float = 0.0,
        expected_positives: float | None = None,
        standardize: bool = True,
        threshold: float = 0.5,
        random_state: int | np.random.RandomState | None = None,
        accelerator: str = "cpu",
        verbose: bool = False,
    ) -> None:
        self.loss = loss
        self.loss_options = loss_options
        self.lr = lr
        self.batch_size = batch_size
        self.epochs = epochs
        self.validation = validation
        self.expected_positives = expected_positives
        self.standardize = standardize
        self.threshold = threshold
        self.random_state = random_state
        self.accelerator = accelerator
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> SinglePositiveClassifier:
        """Train on observed labels.

        Args:
            X: (N, n_features), dense or sparse.
            y: (N,), each instance's one observed positive, any values; or (N, L) with 1 observed positive, 0
                unobserved, -1 observed negative (full labels for "bce" and "bce_ls").

        Raises:
            ValueError: shapes, values or settings that cannot be trained with.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float32, multi_output=True)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        full = self.loss in FULL_LABEL_LOSSES
        if y.ndim == 1:
            check_classification_targets(y)
            classes, observed = np.unique(y, return_inverse=True)
            if len(classes) < 2:
                raise ValueError(f"y has one class, {classes[0]}; two or more are needed to tell apart")
            if full:
                raise ValueError(f"loss {self.loss!r} takes full labels (N, L), got y of shape {y.shape}")
            observed = torch.from_numpy(observed.astype(np.int64))
        else:
            allowed = (0, 1) if full else (0, 1, -1)
            wrong = np.argwhere(~np.isin(y, allowed))
            if len(wrong):
                row, column = wrong[0]
                raise ValueError(f"y[{row}, {column}] is {y[row, column]}; a matrix holds {allowed}")
            classes = np.arange(y.shape[1])
            observed = torch.from_numpy(y.astype(np.int8))
        options = dict(names=tuple(map(str, classes)), empty_labels="keep")  # a fold may well lack a label
        x = X if hasattr(X, "indptr") else torch.from_numpy(np.ascontiguousarray(X))
        if full:
            data = MultiLabelData(x, labels=observed.bool(), **options)
        else:
            data = MultiLabelData(x, observed=observed, **options)
        result = train_classifier(
            data,
            validation=self.validation,
            loss=self._loss_with_options(),
            linear=LinearPhase(self.lr, self.batch_size, self.epochs, standardize=self.standardize),
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
            accelerator=self.accelerator,
            progress=self.verbose,
        )
        self.classes_ = classes
        self.coef_ = result.model.head.weight.detach().numpy()
        self.intercept_ = result.model.head.bias.detach().numpy()
        self.metrics_ = result.metrics
        return self

    def _loss_with_options(self) -> Any:
        """The loss's name and options; k is left out where the loss has none, for a grid over losses."""
        options = self.loss_options or {}
        if not isinstance(options, Mapping):
            raise TypeError(f"loss_options must be a mapping, got {type(options).__name__}")
        if not isinstance(self.loss, str):
            if options:
                raise ValueError("loss_options are for a loss given by name; this one is a module")
            return self.loss
        if self.expected_positives is not None and takes_expected_positives(self.loss):
            options = {"expected_positives": self.expected_positives, **options}
        return {**options, "name": self.loss}

    def decision_function(self, X: Any) -> np.ndarray:
        """The logits (N, L)."""
        check_is_fitted(self, "coef_")
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float32, reset=False)
        return X @ self.coef_.T + self.intercept_

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each label on its own, (N, L)."""
        return expit(self.decision_function(X))

    def predict(self, X: Any) -> np.ndarray:
        """The labels (N, L) int64: 1 where the probability is at least ``threshold``."""
        return (self.predict_proba(X) >= self.threshold).astype(np.int64)

    def score(self, X: Any, y: Any) -> float:
        """Mean average precision in [0, 1], over the columns of full labels y (N, L); a label without positives
        counts 0. For y (N,), the observed labels are taken for the full ones."""
        check_is_fitted(self, "coef_")
        y = np.asarray(y)
        if y.ndim == 1:
            unknown = set(np.unique(y)) - set(self.classes_)
            if unknown:
                first = np.asarray(sorted(unknown)[0]).item()
                raise ValueError(f"y holds {first!r}, which is none of the classes {self.classes_}")
            y = y[:, None] == self.classes_
        scores = self.decision_function(X)
        return mean_average_precision(torch.from_numpy(scores), torch.from_numpy(y == 1))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.classifier_tags.multi_label = True
        return tags
