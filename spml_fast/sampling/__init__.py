"""S2M sampling from single positive labels."""

from .chains import ChainState, s2m_log_weight
from .diagnostics import Diagnostics
from .multilabel import MultiLabelDensityRatio
from .proposals import DrawLatents
from .s2m import S2MResult, S2MSampler, s2m_sample
from .targets import JointClass, Targets, pack_targets

__all__ = [
    "ChainState",
    "Diagnostics",
    "DrawLatents",
    "JointClass",
    "MultiLabelDensityRatio",
    "S2MResult",
    "S2MSampler",
    "Targets",
    "pack_targets",
    "s2m_log_weight",
    "s2m_sample",
]
