"""spml-fast: fused losses and S2M sampling for the single positive setting.

The top level holds what a training or a sampling script needs. Of the losses it has the modules that were proposed
for single positive labels; all others, and the functional form of every loss, are in :mod:`spml_fast.losses`.
"""

from typing import Any

from . import data, labels, losses, metrics, sampling, training
from ._version import __version__
from .labels import LabelEstimator
from .losses import EMAPLLoss, EMLoss, EPRLoss, GPRLoss, GRLoss, ROLELoss
from .sampling import (
    IMH,
    MALA,
    Classifiers,
    JointClass,
    LatentMixture,
    MinMax,
    Mixture,
    MultiLabelDensityRatio,
    Plan,
    Rejection,
    Resample,
    Run,
    S2MResult,
    S2MSampler,
    TruncatedNormal,
    s2m_sample,
)
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
    "IMH",
    "MALA",
    "Classifiers",
    "DensityRatio",
    "DensityRatioFit",
    "EMAPLLoss",
    "EMLoss",
    "EPRLoss",
    "FineTuning",
    "GPRLoss",
    "GRLoss",
    "Heads",
    "JointClass",
    "LabelEstimator",
    "LatentMixture",
    "LinearPhase",
    "MinMax",
    "Mixture",
    "MultiLabelDensityRatio",
    "Plan",
    "ROLELoss",
    "Rejection",
    "Resample",
    "Run",
    "S2MResult",
    "S2MSampler",
    "SPMLModule",
    "SinglePositiveClassifier",
    "TrainedClassifier",
    "TruncatedNormal",
    "__version__",
    "data",
    "labels",
    "losses",
    "metrics",
    "s2m_sample",
    "sampling",
    "train_classifier",
    "train_density_ratio",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in ("SPMLModule", "SinglePositiveClassifier"):  # their base classes take seconds to import
        return getattr(training, name)
    message = f"module {__name__!r} has no attribute {name!r}"
    if name in losses.__all__:
        message += f"; it is {__name__}.losses.{name}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted(__all__)
