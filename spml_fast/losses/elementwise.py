"""Losses that are a sum over entries: each a functor of csrc/losses/elementwise.h, a function and a module.

z are the logits, p = sigmoid(z), s the observed labels: 1 observed positive, 0 unobserved, -1 observed negative.
Papers: CVPR 2021 is Cole et al., "Multi-Label Learning from Single Positive Labels".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .base import Loss
from .schedules import From, Linear, Schedule
from .spec import LossSpec, apply, at_least, in_unit_interval, positive

__all__ = [
    "ANLSLoss",
    "ANLoss",
    "ASLLoss",
    "BCELSLoss",
    "BCELoss",
    "EMLoss",
    "FocalMarginLoss",
    "GRLoss",
    "HillLoss",
    "IULoss",
    "IUNLoss",
    "SPLCLoss",
    "WANLoss",
    "an_loss",
    "an_ls_loss",
    "asl_loss",
    "bce_loss",
    "bce_ls_loss",
    "em_loss",
    "focal_margin_loss",
    "gr_loss",
    "hill_loss",
    "iu_loss",
    "iun_loss",
    "splc_loss",
    "wan_loss",
]

_COMMON = """
    Args:
        logits: (N, L), float32, float64, float16 or bfloat16 (arithmetic is float32, float64 for float64), of any
            strides.
        labels: {labels}
        class_weight: (L,), multiplies the columns' losses; the mean still divides by N * L.
        reduction: "mean" over all N * L entries, "sum", or "none".
        eps: added inside the logarithms where the authors' code does; 0 is the exact formula.

    Returns:
        A scalar of the arithmetic's dtype, or (N, L) of the logits' dtype. An empty batch has mean NaN and sum 0.

    Raises:
        ValueError, TypeError, IndexError: shapes, dtypes, devices, label values or hyper-parameters out of range;
            the message says what was passed, what was expected and where. On a GPU only the kernel sees label
            values: the loss is NaN then, and the next loss on that device raises.
"""
_OBSERVED = """(N,) int64, the index of each row's one observed positive (-1: none), never expanded; or (N, L)
            bool, integer or floating point with 1 observed positive, 0 unobserved, -1 observed negative."""
_FULL = """(N, L) full labels, bool, integer or floating point: 1 positive, 0 **negative**, fractions are soft
            targets. -1 and the (N,) form are refused: they say that something is unknown."""


def documented(labels: str = _OBSERVED) -> Callable:
    """Append what all losses have in common to a docstring."""

    def append(function: Callable) -> Callable:
        function.__doc__ = f"{function.__doc__.rstrip()}\n{_COMMON.format(labels=labels)}"
        return function

    return append


# --- full labels ----------------------------------------------------------------------------------


def _bce_spec(eps: float, reduction: str) -> LossSpec:
    return LossSpec("bce", (), eps, reduction)


@documented(_FULL)
def bce_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross entropy with full labels y: -y log p - (1 - y) log(1 - p)."""
    return apply(_bce_spec(eps, reduction), logits, labels, class_weight=class_weight)


class BCELoss(Loss, name="bce"):
    """Module form of :func:`bce_loss`."""

    function = staticmethod(bce_loss)
    specify = staticmethod(_bce_spec)


def _bce_ls_spec(smoothing: float, eps: float, reduction: str) -> LossSpec:
    in_unit_interval("smoothing", smoothing)
    return LossSpec("bce_ls", (smoothing,), eps, reduction)


@documented(_FULL)
def bce_ls_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.1,
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross entropy with label smoothing: y becomes (1 - smoothing) y + smoothing (1 - y).

    ``smoothing`` is the share that changes sides, 0.1 in the authors' code; the paper's epsilon is twice that.
    """
    return apply(_bce_ls_spec(smoothing, eps, reduction), logits, labels, class_weight=class_weight)


class BCELSLoss(Loss, name="bce_ls"):
    """Module form of :func:`bce_ls_loss`."""

    function = staticmethod(bce_ls_loss)
    specify = staticmethod(_bce_ls_spec)


def _iun_spec(eps: float, reduction: str) -> LossSpec:
    return LossSpec("iun", (), eps, reduction)


@documented()
def iun_loss(
    logits: Tensor,
    labels: Tensor,
    full_labels: Tensor,
    *,
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Ignore unobserved negatives (CVPR 2021): -log p if s = 1; otherwise -log(1 - p) where ``full_labels`` (N, L)
    is 0, and nothing where it is not. A ceiling for experiments: it has to know the true labels."""
    spec = _iun_spec(eps, reduction)
    return apply(spec, logits, labels, class_weight=class_weight, second_matrix=full_labels)


class IUNLoss(Loss, name="iun"):
    """Module form of :func:`iun_loss`; called with (logits, labels, full_labels)."""

    function = staticmethod(iun_loss)
    specify = staticmethod(_iun_spec)

    def tensors(
        self, logits: Tensor, labels: Tensor, full_labels: Tensor, n_labels: int | None = None
    ) -> dict[str, Tensor | None]:
        return {"class_weight": self.class_weight, "second_matrix": full_labels}

    def forward(self, logits: Tensor, labels: Tensor, full_labels: Tensor) -> Tensor:
        return self.evaluate(apply, logits, labels, full_labels)


# --- cross entropy in its variants ----------------------------------------------------------------


def _iu_spec(eps: float, reduction: str) -> LossSpec:
    return LossSpec("iu", (), eps, reduction)


@documented()
def iu_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Ignore unobserved (CVPR 2021): -log p if s = 1, -log(1 - p) if s = -1, **0 costs nothing**.

    Without a single observed negative the best answer is "everything is positive".
    """
    return apply(_iu_spec(eps, reduction), logits, labels, class_weight=class_weight)


class IULoss(Loss, name="iu"):
    """Module form of :func:`iu_loss`."""

    function = staticmethod(iu_loss)
    specify = staticmethod(_iu_spec)
    needs_observed = True


def _an_spec(eps: float, reduction: str) -> LossSpec:
    return LossSpec("an", (), eps, reduction)


@documented()
def an_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Assume negative (CVPR 2021): -log p if s = 1, otherwise -log(1 - p): **0 is taken for a negative**."""
    return apply(_an_spec(eps, reduction), logits, labels, class_weight=class_weight)


class ANLoss(Loss, name="an"):
    """Module form of :func:`an_loss`."""

    function = staticmethod(an_loss)
    specify = staticmethod(_an_spec)


def _an_ls_spec(smoothing: float, eps: float, reduction: str) -> LossSpec:
    in_unit_interval("smoothing", smoothing)
    return LossSpec("an_ls", (smoothing,), eps, reduction)


@documented()
def an_ls_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.1,
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Assume negative with label smoothing (CVPR 2021): each side keeps 1 - ``smoothing`` of its loss and takes
    ``smoothing`` of the other's. **0 is taken for a negative.**

    ``smoothing`` is 0.1 in the authors' code; the paper's epsilon is twice that.
    """
    return apply(_an_ls_spec(smoothing, eps, reduction), logits, labels, class_weight=class_weight)


class ANLSLoss(Loss, name="an_ls"):
    """Module form of :func:`an_ls_loss`."""

    function = staticmethod(an_ls_loss)
    specify = staticmethod(_an_ls_spec)


def _balanced_weight(n_labels: int) -> tuple[float]:
    """The weight with which all unobserved labels of a row together weigh as much as its one positive."""
    return (1 / max(n_labels - 1, 1),)


def _wan_spec(negative_weight: float | None, eps: float, reduction: str) -> LossSpec:
    if negative_weight is None:
        return LossSpec("wan", _balanced_weight, eps, reduction)
    at_least("negative_weight", negative_weight, 0)
    return LossSpec("wan", (negative_weight,), eps, reduction)


@documented()
def wan_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    negative_weight: float | None = None,
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Weak assume negative (CVPR 2021): -log p if s = 1, -gamma log(1 - p) if s = 0, -log(1 - p) if s = -1.
    **0 is taken for a negative, with little weight.**

    ``negative_weight`` is gamma, 1 / (L - 1) unless given: all unobserved labels of a row together weigh as much
    as its one positive.
    """
    return apply(_wan_spec(negative_weight, eps, reduction), logits, labels, class_weight=class_weight)


class WANLoss(Loss, name="wan"):
    """Module form of :func:`wan_loss`."""

    function = staticmethod(wan_loss)
    specify = staticmethod(_wan_spec)


# --- entropy --------------------------------------------------------------------------------------


def _em_spec(alpha: float, eps: float, reduction: str) -> LossSpec:
    at_least("alpha", alpha, 0)
    return LossSpec("em", (alpha,), eps, reduction)


@documented()
def em_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.2,
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Entropy maximisation (Zhou et al., ECCV 2022): -log p if s = 1, -log(1 - p) if s = -1, -alpha H(p) if s = 0,
    H(p) = -p log p - (1 - p) log(1 - p). **0 is unknown: the model is asked to stay undecided.**

    The authors use alpha 0.2 on VOC, 0.1 on COCO and NUS, 0.01 on CUB.
    """
    return apply(_em_spec(alpha, eps, reduction), logits, labels, class_weight=class_weight)


class EMLoss(Loss, name="em"):
    """Module form of :func:`em_loss`."""

    function = staticmethod(em_loss)
    specify = staticmethod(_em_spec)


# --- focal losses ---------------------------------------------------------------------------------


def _focal_margin_spec(margin: float, gamma: float, reduction: str) -> LossSpec:
    at_least("gamma", gamma, 0)
    return LossSpec("focal_margin", (margin, gamma), reduction=reduction)


@documented()
def focal_margin_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    margin: float = 1.0,
    gamma: float = 2.0,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss with a margin on positives (Zhang et al., 2021): (1 - p_m)^gamma (-log p_m) with
    p_m = sigmoid(z - margin) if s = 1, otherwise p^gamma (-log(1 - p)). **0 is taken for a negative.**"""
    return apply(_focal_margin_spec(margin, gamma, reduction), logits, labels, class_weight=class_weight)


class FocalMarginLoss(Loss, name="focal_margin"):
    """Module form of :func:`focal_margin_loss`."""

    function = staticmethod(focal_margin_loss)
    specify = staticmethod(_focal_margin_spec)


def _hill_spec(margin: float, gamma: float, lam: float, reduction: str) -> LossSpec:
    at_least("gamma", gamma, 0)
    return LossSpec("hill", (margin, gamma, lam), reduction=reduction)


@documented()
def hill_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    margin: float = 1.0,
    gamma: float = 2.0,
    lam: float = 1.5,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Hill loss (Zhang et al., "Simple and Robust Loss Design for Multi-Label Learning with Missing Labels",
    2021): positives as :func:`focal_margin_loss`, otherwise (lam - p) p^2, which falls again where p is large:
    **0 is taken for a negative unless the model is sure of the opposite.** The authors' code sums; so does
    ``reduction="sum"``."""
    return apply(_hill_spec(margin, gamma, lam, reduction), logits, labels, class_weight=class_weight)


class HillLoss(Loss, name="hill"):
    """Module form of :func:`hill_loss`."""

    function = staticmethod(hill_loss)
    specify = staticmethod(_hill_spec)


def _splc_spec(margin: float, gamma: float, tau: float, correct: bool, reduction: str) -> LossSpec:
    at_least("gamma", gamma, 0)
    in_unit_interval("tau", tau)
    # p never exceeds 2: nothing is corrected.
    return LossSpec("splc", (margin, gamma, tau if correct else 2.0), reduction=reduction)


@documented()
def splc_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    margin: float = 1.0,
    gamma: float = 2.0,
    tau: float = 0.6,
    correct: bool = True,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Self-paced loss correction (Zhang et al., 2021): as :func:`focal_margin_loss`, but where s = 0 and p > tau
    the label is taken for a positive without margin: (1 - p)^gamma (-log p). **0 is taken for a negative unless
    p > tau.**

    ``correct=False`` is the loss before corrections begin.
    """
    return apply(_splc_spec(margin, gamma, tau, correct, reduction), logits, labels, class_weight=class_weight)


class SPLCLoss(Loss, name="splc"):
    """Module form of :func:`splc_loss`; corrects from epoch ``start_epoch`` on.

    The authors count epochs from 0 and correct from their epoch 1, which is the second: ``start_epoch=2`` here.
    """

    function = staticmethod(splc_loss)
    specify = staticmethod(_splc_spec)

    def __init__(self, *, start_epoch: int = 2, **hyper: object) -> None:
        hyper.setdefault("correct", From(start_epoch, before=False, after=True))
        super().__init__(**hyper)


def _asl_spec(gamma_pos: float, gamma_neg: float, margin: float, reduction: str) -> LossSpec:
    at_least("gamma_pos", gamma_pos, 0)
    at_least("gamma_neg", gamma_neg, 0)
    in_unit_interval("margin", margin)
    return LossSpec("asl", (gamma_pos, gamma_neg, margin), reduction=reduction)


@documented()
def asl_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    margin: float = 0.05,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Asymmetric loss (Ridnik et al., ICCV 2021, eq. 7): (1 - p)^gamma_pos (-log p) if s = 1, otherwise
    p_m^gamma_neg (-log(1 - p_m)) with p_m = max(p - margin, 0). **0 is taken for a negative.**

    The gradient flows through the focal factors, as in the authors' ``AsymmetricLossOptimized``.
    """
    return apply(_asl_spec(gamma_pos, gamma_neg, margin, reduction), logits, labels, class_weight=class_weight)


class ASLLoss(Loss, name="asl"):
    """Module form of :func:`asl_loss`."""

    function = staticmethod(asl_loss)
    specify = staticmethod(_asl_spec)


# --- generalized robust loss ----------------------------------------------------------------------


def gr_hyper(w: float, b: float, mu: float, sigma: float, q: Sequence[float]) -> tuple[float, ...]:
    """The hyper-parameters of GR, checked, in the order of its functor."""
    try:
        q1, q2, q3 = q
    except (TypeError, ValueError):
        raise ValueError(f"q must be the three exponents (q1, q2, q3), got {q!r}") from None
    if not (q1 >= 0 and q2 >= 0 and q3 >= 0):
        raise ValueError(f"the exponents q must not be negative, got {tuple(q)}")
    positive("sigma", sigma)
    return (w, b, mu, sigma, q1, q2, q3)


def _gr_spec(
    w: float, b: float, mu: float, sigma: float, q: Sequence[float], eps: float, reduction: str
) -> LossSpec:
    return LossSpec("gr", gr_hyper(w, b, mu, sigma, q), eps, reduction)


@documented()
def gr_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    w: float,
    b: float,
    mu: float,
    sigma: float,
    q: Sequence[float] = (0.0, 0.01, 1.0),
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Generalized robust loss (Chen et al., "Boosting Single Positive Multi-label Classification with Generalized
    Robust Loss", IJCAI 2024).

    L1(p) if s = 1; v(p) [k(p) L2(p) + (1 - k(p)) L3(p)] if s = 0: **0 is positive with probability k**; L3(p) if
    s = -1. L1 and L2 are (1 - p^q) / q, L3 is (1 - (1 - p)^q) / q, with q1, q2, q3 = ``q`` and the limit
    -log at q = 0. k = sigmoid(w p + b) and v = exp(-(p - mu)^2 / (2 sigma^2)) are constants to the gradient.

    As in the authors' code, ``eps`` (theirs is 1e-7) enters logarithms only, not powers.
    """
    return apply(_gr_spec(w, b, mu, sigma, q, eps, reduction), logits, labels, class_weight=class_weight)


Value = float | Schedule | tuple[float, float]


def gr_schedules(epochs: int | None, warmup: int, w: Value, b: Value, mu: Value, sigma: Value) -> dict:
    """The official GR schedule for those of the four that are pairs (first, last)."""
    hyper = {}
    for name, value, delay in (("w", w, 1), ("b", b, 1), ("mu", mu, 0), ("sigma", sigma, 0)):
        if isinstance(value, tuple):
            if epochs is None:
                raise ValueError(
                    f"{name}={value} changes over the epochs: how many there are must be given as epochs"
                )
            value = Linear(*value, epochs=epochs, warmup=warmup, delay=delay)
        hyper[name] = value
    return hyper


class GRLoss(Loss, name="gr"):
    """Module form of :func:`gr_loss` with the official schedule.

    Args:
        epochs: T, over which w, b, mu and sigma move; the authors train 8.
        warmup: n, epochs at the start in which the trunk is frozen and they stay where they are.
        w, b, mu, sigma: a pair (first, last) moves as in the authors' code; a number stays; a
            :class:`~spml_fast.losses.Schedule` does as it says. The authors use w (0, 10) and b (-2, -8) on COCO,
            NUS and CUB.
        q, class_weight, eps, reduction: as in :func:`gr_loss`.
    """

    function = staticmethod(gr_loss)
    specify = staticmethod(_gr_spec)

    def __init__(
        self,
        *,
        epochs: int = 8,
        warmup: int = 0,
        w: Value = (0.0, 2.0),
        b: Value = (-2.0, -2.0),
        mu: Value = (0.5, 0.8),
        sigma: Value = (2.0, 0.5),
        **hyper: object,
    ) -> None:
        super().__init__(**gr_schedules(epochs, warmup, w, b, mu, sigma), **hyper)
