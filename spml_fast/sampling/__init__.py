"""S2M sampling from single positive labels."""

from .adaptation import AdaptationPath, AdaptationStage, LatentMixture
from .chains import ChainState, s2m_log_weight
from .diagnostics import Diagnostics
from .multilabel import MultiLabelDensityRatio
from .proposals import DrawLatents
from .s2m import S2MResult, S2MSampler, SamplingWarning, s2m_sample
from .targets import JointClass, Targets, pack_targets

__all__ = [
    "AdaptationPath",
    "AdaptationStage",
    "ChainState",
    "Diagnostics",
    "DrawLatents",
    "JointClass",
    "LatentMixture",
    "MultiLabelDensityRatio",
    "S2MResult",
    "S2MSampler",
    "SamplingWarning",
    "Targets",
    "pack_targets",
    "s2m_log_weight",
    "s2m_sample",
]
