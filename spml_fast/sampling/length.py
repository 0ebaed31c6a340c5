"""How long chains run, and at which steps their states are taken as samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

FIRST_LOOK = 16
"""Steps after which chains of automatic length first look at their weights."""


@dataclass(frozen=True)
class ChainLength:
    """Burn-in and thinning of the chains of one run.

    After n steps an IMH chain is within (1 - 1/M)^n of its target in total variation, wherever it was before
    (Mengersen and Tweedie, 1996), M = max w / E[w]. So the same number of steps makes the first state a sample and
    a state that is nearly independent of an earlier sample.

    Attributes:
        n_steps: until the first sample; None: until the bound, with M estimated from all weights seen, is ``tol``.
        tol: of a length by itself.
        max_steps: its budget, until the first sample.
        samples_per_chain: samples that each chain gives.
        thin: steps from one to the next; as many as the bound asks for, or ``n_steps``, unless given.
    """

    n_steps: int | None
    tol: float = 0.01
    max_steps: int = 10_000
    samples_per_chain: int = 1
    thin: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.tol < 1:
            raise ValueError(f"tol must be between 0 and 1, got {self.tol}")

    @property
    def automatic(self) -> bool:
        return self.n_steps is None

    @property
    def expected_steps(self) -> int:
        """As far as known before the run."""
        if self.n_steps is None:
            return self.max_steps
        return self.n_steps + (self.samples_per_chain - 1) * (self.thin or self.n_steps)

    def needed(self, max_weight_ratio: float) -> float:
        """Steps after which the bound is ``tol``; infinite while no weight was seen."""
        if not math.isfinite(max_weight_ratio):
            return math.inf
        if max_weight_ratio <= 1:
            return 1
        return max(1, math.ceil(math.log(self.tol) / math.log1p(-1 / max_weight_ratio)))

    def next_look(self, done: int, needed: float) -> int:
        """The step at which to look again: where the bound should be met, but never far beyond what was seen."""
        return int(min(max(needed, done + 1), 2 * done, self.max_steps))
