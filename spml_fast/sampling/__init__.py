"""S2M sampling from single positive labels."""

from .adaptation import AdaptationError
from .chains import ChainState, State, Targets, along
from .classifiers import Classifiers
from .kernels import IMH, MALA, Draws, Kernel, OneStep, Problem, Rejection, Resample, Steps, Stopped
from .models import Offer
from .multilabel import MultiLabelDensityRatio
from .plan import Plan
from .processes import FailedProcessError, LostProcessError
from .proposals import DrawLatents, LatentMixture, Mixture, TruncatedNormal
from .results import AdaptationPath, AdaptationStage, Diagnostics, S2MResult, SamplingWarning
from .run import Run
from .sampler import S2MSampler, s2m_sample
from .weights import JointClass, MinMax, pack_targets, s2m_log_weight

__all__ = [
    "IMH",
    "MALA",
    "AdaptationError",
    "AdaptationPath",
    "AdaptationStage",
    "ChainState",
    "Classifiers",
    "Diagnostics",
    "DrawLatents",
    "Draws",
    "FailedProcessError",
    "JointClass",
    "Kernel",
    "LatentMixture",
    "LostProcessError",
    "MinMax",
    "Mixture",
    "MultiLabelDensityRatio",
    "Offer",
    "OneStep",
    "Plan",
    "Problem",
    "Rejection",
    "Resample",
    "Run",
    "S2MResult",
    "S2MSampler",
    "SamplingWarning",
    "State",
    "Steps",
    "Stopped",
    "Targets",
    "TruncatedNormal",
    "along",
    "pack_targets",
    "s2m_log_weight",
    "s2m_sample",
]
