"""spml-fast: fused losses and S2M sampling for the single positive setting."""

from . import data, sampling, training
from ._version import __version__
from .sampling import JointClass, S2MResult, S2MSampler, s2m_sample
from .training import DensityRatio, train_density_ratio

__all__ = [
    "DensityRatio",
    "JointClass",
    "S2MResult",
    "S2MSampler",
    "__version__",
    "data",
    "s2m_sample",
    "sampling",
    "train_density_ratio",
    "training",
]
