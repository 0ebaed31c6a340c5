"""How long chains run, and at which steps their states are taken as samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

MAX_STEPS = 2**31 - 1


def bound_steps(max_weight_ratio: float, tol: float) -> float:
    """Steps after which the bound (1 - 1/M)^n is ``tol``; infinite while no weight was seen.

    After n steps an IMH chain is within (1 - 1/M)^n of its target in total variation, wherever it was before
    (Mengersen and Tweedie, 1996), M = max w / E[w]. So the same number of steps makes the first state a sample and
    a state that is nearly independent of an earlier sample.
    """
    if not math.isfinite(max_weight_ratio):
        return math.inf
    if max_weight_ratio <= 1:
        return 1
    return max(1, math.ceil(math.log(tol) / math.log1p(-1 / max_weight_ratio)))


@dataclass
class Schedule:
    """The steps at which chains of one run are looked at, or give a sample.

    Attributes:
        n_steps: steps to the first sample; None ("auto"): until the kernel needs no more, at most ``max_steps``.
        max_steps: limit of an automatic length.
        left: samples that each chain has yet to give.
        thin: steps from one sample to the next. None: as many as to the first, or, for an automatic length, as
            many as the bound asked for.
        next: the next step to stop at; None when the run is over.
        last: the step stopped at before.
        burn_in: steps to the first sample, once that is known.
    """

    n_steps: int | None
    max_steps: int
    left: int
    thin: int | None
    next: int | None
    last: int = 0
    burn_in: int | None = None

    @classmethod
    def of(
        cls, n_steps: int | None, max_steps: int, samples_per_chain: int, thin: int | None, first_look: int
    ) -> Schedule:
        """The schedule of a run that has not begun."""
        if n_steps is None:
            return cls(None, max_steps, samples_per_chain, thin, min(first_look, max_steps))
        return cls(n_steps, max_steps, samples_per_chain, thin or n_steps, n_steps, burn_in=n_steps)

    @property
    def looks(self) -> bool:
        """Whether the next stop is a look at the weights, to see whether they were enough steps."""
        return self.burn_in is None

    @property
    def expected_steps(self) -> int:
        """Steps of the whole run, as far as known before it; its limit for an automatic length."""
        if self.n_steps is None:
            return self.max_steps
        return self.n_steps + (self.left - 1) * (self.thin or self.n_steps)

    def arrive(self, needed: float) -> bool:
        """Called on reaching ``next``, with the steps needed as far as known by then; schedules the next stop and
        returns whether to take a sample.
        """
        done = self.last = self.next
        if self.burn_in is None:
            if done < min(needed, self.max_steps):
                # Where the bound should be met, but never far beyond what was seen.
                self.next = int(min(max(needed, done + 1), 2 * done, self.max_steps))
                return False
            self.burn_in = done
            self.thin = self.thin or int(min(needed, done))
        self.left -= 1
        self.next = done + self.thin if self.left else None
        return True

    def to_plain(self) -> dict[str, Any]:
        """The fields as a dict, for a checkpoint."""
        return dict(vars(self))
