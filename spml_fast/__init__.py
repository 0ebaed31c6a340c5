"""spml-fast: fused losses and S2M sampling for the single positive setting."""

from . import data, labels, losses, sampling, training
from ._version import __version__
from .labels import LabelEstimator
from .losses import fused_linear_loss
from .losses.batch import *  # noqa: F403
from .losses.elementwise import *  # noqa: F403
from .sampling import JointClass, S2MResult, S2MSampler, s2m_sample
from .training import DensityRatio, train_density_ratio

__all__ = [
    "DensityRatio",
    "JointClass",
    "LabelEstimator",
    "S2MResult",
    "S2MSampler",
    "__version__",
    "data",
    "fused_linear_loss",
    "labels",
    "losses",
    "s2m_sample",
    "sampling",
    "train_density_ratio",
    "training",
    *losses.batch.__all__,
    *losses.elementwise.__all__,
]
