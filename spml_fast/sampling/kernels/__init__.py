"""Sampling kernels: one method each, and the protocol by which anyone can write another."""

from .base import Draws, Kernel, OneStep, Problem, Steps, Stopped
from .imh import IMH
from .mala import MALA
from .pooled import Rejection, Resample

METHODS = {kernel.name: kernel for kernel in (IMH, Rejection, Resample, MALA)}
"""Methods by the names that are shorthand for them with their default options."""

__all__ = [
    "IMH",
    "MALA",
    "METHODS",
    "Draws",
    "Kernel",
    "OneStep",
    "Problem",
    "Rejection",
    "Resample",
    "Steps",
    "Stopped",
]
