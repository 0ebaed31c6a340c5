"""Hyper-parameters that change from epoch to epoch.

A schedule is a function of the epoch, which counts from 1 as in the papers. Any numeric hyper-parameter of a loss
module may be one; ``loss.set_epoch(t)`` evaluates them all.
"""

from __future__ import annotations

from dataclasses import dataclass


class Schedule:
    """A hyper-parameter that depends on the epoch."""

    def __call__(self, epoch: int) -> float | bool:
        """The value in ``epoch``, counted from 1."""
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(Schedule):
    """A value that moves from ``start`` to ``end`` by equal steps.

    ``start + (end - start) * max(epoch - warmup - delay, 0) / (epochs - warmup)``, but never
    beyond ``end``. The official GR schedule has ``delay=1`` for w and b, which start at ``start`` and stop one
    step before ``end``, and ``delay=0`` for mu and sigma, which have moved in epoch 1 and reach ``end``.
    """

    start: float
    end: float
    epochs: int
    warmup: int = 0
    delay: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(
                f"a schedule over {self.epochs} epochs cannot have {self.warmup} of warm-up; "
                "expected 0 <= warmup < epochs"
            )

    def __call__(self, epoch: int) -> float:
        share = max(epoch - self.warmup - self.delay, 0) / (self.epochs - self.warmup)
        return self.start + (self.end - self.start) * min(share, 1.0)


@dataclass(frozen=True)
class From(Schedule):
    """A value that is ``before`` in the epochs below ``first`` and ``after`` from ``first`` on."""

    first: int
    before: float | bool
    after: float | bool

    def __call__(self, epoch: int) -> float | bool:
        return self.after if epoch >= self.first else self.before


@dataclass(frozen=True)
class Growing(Schedule):
    """A value that grows: ``step * (epoch - 1)``, at most ``limit``; LL-R's and LL-Ct's share of large losses."""

    step: float
    limit: float = 1.0

    def __call__(self, epoch: int) -> float:
        return min(self.step * (epoch - 1), self.limit)
