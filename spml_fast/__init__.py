"""spml-fast: fused losses and S2M sampling for the single positive setting."""

from typing import Any

from . import data, labels, losses, metrics, sampling, training
from ._version import __version__
from .labels import LabelEstimator
from .losses import fused_linear_loss
from .losses.batch import *  # noqa: F403
from .losses.elementwise import *  # noqa: F403
from .sampling import JointClass, LatentMixture, MultiLabelDensityRatio, S2MResult, S2MSampler, s2m_sample
from .training import (
    DensityRatio,
    DensityRatioFit,
    FineTuning,
    Heads,
    LinearPhase,
    TrainedClassifier,
    train_classifier,
    train_density_ratio,
)

__all__ = [
    "DensityRatio",
    "DensityRatioFit",
    "FineTuning",
    "Heads",
    "JointClass",
    "LabelEstimator",
    "LatentMixture",
    "LinearPhase",
    "MultiLabelDensityRatio",
    "S2MResult",
    "S2MSampler",
    "SPMLModule",  # noqa: F405
    "SinglePositiveClassifier",  # noqa: F405
    "TrainedClassifier",
    "__version__",
    "data",
    "fused_linear_loss",
    "labels",
    "losses",
    "metrics",
    "s2m_sample",
    "sampling",
    "train_classifier",
    "train_density_ratio",
    "training",
    *losses.batch.__all__,
    *losses.elementwise.__all__,
]


def __getattr__(name: str) -> Any:
    if name in ("SPMLModule", "SinglePositiveClassifier"):
        return getattr(training, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
