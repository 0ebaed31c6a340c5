"""What a run gives back."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from .diagnostics import Diagnostics
from .targets import JointClass

if TYPE_CHECKING:
    from .adaptation import AdaptationPath


@dataclass(frozen=True)
class S2MResult:
    """Samples of one joint class. Chains that never met its support have no row."""

    joint_class: JointClass
    samples: Tensor
    """(n, *x_shape)"""
    latents: Tensor
    """(n, *z_shape): ``G(latents)`` are the samples, for a deterministic G."""
    log_weights: Tensor
    """(n,) log p_(I,J)(x) / q(x) of the samples, up to a constant."""
    chains: Tensor
    """(n,) int64: the chain that each row is the state of, or whose proposal it was."""
    diagnostics: Diagnostics
    """Of all chains, whichever process ran them."""
    adaptation: AdaptationPath | None = None
    """How the proposals were adapted, if they were."""

    def first(self, n: int) -> S2MResult:
        """Its first ``n`` samples."""
        return self.rows(slice(n))

    def rows(self, which: slice | Tensor) -> S2MResult:
        """Those of its samples."""
        names = ("samples", "latents", "log_weights", "chains")
        return replace(self, **{name: getattr(self, name)[which] for name in names})


class SamplingWarning(UserWarning):
    """A run that did not bring what was asked for: chains without a sample, a length that was not enough."""


def warn(text: str) -> None:
    """A :class:`SamplingWarning` to whoever called the package, from however deep within it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "spml_fast":
        level, frame = level + 1, frame.f_back
    warnings.warn(text, SamplingWarning, stacklevel=level)
