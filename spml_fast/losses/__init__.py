"""Losses for single positive labels: functions, modules, a registry by name, schedules and the GR frame."""

from . import batch, elementwise, frame
from .base import Loss, make, registry
from .batch import *  # noqa: F403
from .elementwise import *  # noqa: F403
from .linear import fused_linear_loss
from .schedules import From, Growing, Linear, Schedule
from .spec import LossAndGradients, LossSpec

__all__ = [
    "From",
    "Growing",
    "Linear",
    "Loss",
    "LossAndGradients",
    "LossSpec",
    "Schedule",
    "frame",
    "fused_linear_loss",
    "make",
    "registry",
    *batch.__all__,
    *elementwise.__all__,
]
