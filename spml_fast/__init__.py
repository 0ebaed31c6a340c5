"""spml-fast: fused losses and S2M sampling for the single positive setting."""

from . import sampling
from ._version import __version__
from .sampling import JointClass, S2MResult, S2MSampler, s2m_sample

__all__ = [
    "JointClass",
    "S2MResult",
    "S2MSampler",
    "__version__",
    "s2m_sample",
    "sampling",
]
