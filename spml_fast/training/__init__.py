"""Training: multi-label classifiers from single positive labels, and the density-ratio classifiers of S2M."""

from typing import Any

from .classifier import TrainedClassifier, train_classifier
from .density_ratio import DensityRatio, DensityRatioClassifier, DensityRatioReport, train_density_ratio
from .model import MultiLabelClassifier, load_classifier

__all__ = [
    "DensityRatio",
    "DensityRatioClassifier",
    "DensityRatioReport",
    "MultiLabelClassifier",
    "SPMLModule",
    "SinglePositiveClassifier",
    "TrainedClassifier",
    "load_classifier",
    "train_classifier",
    "train_density_ratio",
]


def __getattr__(name: str) -> Any:
    # Their base classes are Lightning's and scikit-learn's, which take seconds to import.
    if name == "SPMLModule":
        from .module import SPMLModule

        return SPMLModule
    if name == "SinglePositiveClassifier":
        from .estimator import SinglePositiveClassifier

        return SinglePositiveClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
