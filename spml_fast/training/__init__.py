"""Training: multi-label classifiers from single positive labels, and the density-ratio classifiers of S2M."""

from typing import Any

from .classifier import train_classifier
from .density_ratio import DensityRatio, DensityRatioClassifier, DensityRatioReport, train_density_ratio
from .model import MultiLabelClassifier, load_classifier
from .options import DensityRatioFit, FineTuning, Heads, LinearPhase, RunRecord, Validation
from .result import TrainedClassifier

__all__ = [
    "DensityRatio",
    "DensityRatioClassifier",
    "DensityRatioFit",
    "DensityRatioReport",
    "FineTuning",
    "Heads",
    "LinearPhase",
    "MultiLabelClassifier",
    "RunRecord",
    "SPMLModule",
    "SinglePositiveClassifier",
    "TrainedClassifier",
    "Validation",
    "load_classifier",
    "train_classifier",
    "train_density_ratio",
]


def __getattr__(name: str) -> Any:
    # The base classes of these two are Lightning's and scikit-learn's, which take seconds to import.
    if name == "SPMLModule":
        from .module import SPMLModule

        return SPMLModule
    if name == "SinglePositiveClassifier":
        from .estimator import SinglePositiveClassifier

        return SinglePositiveClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
