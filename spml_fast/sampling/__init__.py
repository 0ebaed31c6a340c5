"""S2M sampling from single positive labels."""

from .adaptation import AdaptationError, AdaptationPath, AdaptationStage
from .chains import ChainState, s2m_log_weight
from .diagnostics import Diagnostics
from .mixture import LatentMixture
from .multilabel import MultiLabelDensityRatio
from .processes import LostProcessError
from .proposals import DrawLatents
from .result import S2MResult, SamplingWarning
from .s2m import S2MSampler, s2m_sample
from .targets import JointClass, Targets, pack_targets

__all__ = [
    "AdaptationError",
    "AdaptationPath",
    "AdaptationStage",
    "ChainState",
    "Diagnostics",
    "DrawLatents",
    "JointClass",
    "LatentMixture",
    "LostProcessError",
    "MultiLabelDensityRatio",
    "S2MResult",
    "S2MSampler",
    "SamplingWarning",
    "Targets",
    "pack_targets",
    "s2m_log_weight",
    "s2m_sample",
]
