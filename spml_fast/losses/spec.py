"""The spec of a loss, a value that says what is computed, and the functions that compute it.

A loss describes itself by a :class:`LossSpec`: which functor of csrc/losses/table.h, with which numbers. The spec
is the same for every batch. What changes from batch to batch are tensors, which go beside it.

- :func:`apply` computes the loss of logits, differentiable by autograd.
- :func:`apply_with_gradients` computes the loss and its gradients at once, without autograd.
- :func:`spml_fast.losses.fused_linear_loss` computes it for logits that never exist as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .. import _ops

# The numbers of LossKind in csrc/losses/params.h.
ELEMENTWISE, ROLE, RANKING = 0, 1, 2
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}

Hyper = tuple[float | Tensor, ...]


class LossSpec(NamedTuple):
    """What a loss computes, whatever the batch.

    Immutable, and a tuple: to make a frozen dataclass takes as long as to compute a small loss.

    Attributes:
        functor: name in csrc/losses/table.h.
        hyper: the functor's hyper-parameters in its order, or a function that returns them for a number of labels
            L. A tensor stands for a number that a compiled graph reads anew in every call.
        eps: added inside logarithms.
        reduction: "mean", "sum" or "none".
        kind: ``ELEMENTWISE``, ``ROLE`` (classifier and label estimates teach each other) or ``RANKING``.
        lam: factor of the penalty on expected positives; 0 for no penalty.
        expected_positives: k of that penalty.
        sparse: whether the gradient of ROLE's table is a sparse tensor.
    """

    functor: str
    hyper: Hyper | Callable[[int], Hyper] = ()
    eps: float = 0.0
    reduction: str = "mean"
    kind: int = ELEMENTWISE
    lam: float = 0.0
    expected_positives: float = 0.0
    sparse: bool = False


def op_arguments(
    spec: LossSpec,
    n_labels: int | None,
    compiling: bool,
    class_weight: Tensor | None = None,
    second_matrix: Tensor | None = None,
    index: Tensor | None = None,
    negatives: Tensor | None = None,
    threshold: Tensor | None = None,
    k_hat: Tensor | None = None,
) -> tuple:
    """Arguments of the ops ``loss``, ``loss_and_grad`` and ``linear_loss`` after the labels, in their order.

    Args:
        spec: what to compute.
        n_labels: L, needed where ``spec.hyper`` is a function.
        compiling: whether torch.compile traces the call: scheduled numbers then stay tensors.
        class_weight: (L,), multiplies the columns' losses.
        second_matrix: what the loss reads beside the labels, (N, L), or a table (R, L) with ``index``.
        index: (N,) int64, the row of the table for each row of the batch.
        negatives: (N,) int64, a column of each row to take for an observed negative; -1 for none.
        threshold: (1,), the logit from which on unobserved labels have a large loss.
        k_hat: expected positives per row, where they are not the batch's own.
    """
    functor, hyper, eps, reduction, kind, lam, expected_positives, sparse = spec
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if eps != 0 and not 0 < eps < 1:
        raise ValueError(f"eps must be at least 0 and less than 1, got {eps}")
    if callable(hyper):
        hyper = hyper(n_labels)
    scheduled = None
    if compiling:
        scheduled = [value for value in hyper if isinstance(value, Tensor)]
        hyper = [math.nan if isinstance(value, Tensor) else value for value in hyper]
    return (
        kind, _ops.losses[functor], hyper, eps, REDUCTIONS[reduction], class_weight, second_matrix, index,
        negatives, threshold, lam, expected_positives, k_hat, sparse, scheduled,
    )  # fmt: skip


def apply(
    spec: LossSpec,
    logits: Tensor,
    labels: Tensor,
    class_weight: Tensor | None = None,
    second_matrix: Tensor | None = None,
    index: Tensor | None = None,
    negatives: Tensor | None = None,
    threshold: Tensor | None = None,
    k_hat: Tensor | None = None,
) -> Tensor:
    """The loss of ``logits`` (N, L) for ``labels`` (N,) or (N, L); for the tensors see :func:`op_arguments`."""
    if not (isinstance(logits, Tensor) and isinstance(labels, Tensor)):
        check_inputs(logits, labels)
    n_labels = columns(logits, labels) if callable(spec.hyper) else None
    compiling = is_compiling()
    op = _ops.loss if compiling else _ops.loss_unparsed
    # Positional arguments: names cost a small batch more than its loss.
    return op(
        logits, labels,
        *op_arguments(spec, n_labels, compiling, class_weight, second_matrix, index, negatives, threshold, k_hat),
    )  # fmt: skip


class LossAndGradients(NamedTuple):
    """A loss with its gradients.

    Attributes:
        value: the loss.
        logits_grad: (N, L), the gradient of the logits, in float32 for a mean over float16 logits: float16 could
            not hold it.
        table_grad: (N, L), for ROLE the gradient of the table's rows in the batch; otherwise empty.
    """

    value: Tensor
    logits_grad: Tensor
    table_grad: Tensor


def apply_with_gradients(
    spec: LossSpec, logits: Tensor, labels: Tensor, **tensors: Tensor | None
) -> LossAndGradients:
    """The loss and its gradients without autograd, for loops that do their own backward pass.

    Args:
        spec: with the reduction "mean" or "sum".
        logits, labels, tensors: as for :func:`apply`.
    """
    n_labels = columns(logits, labels) if callable(spec.hyper) else None
    arguments = op_arguments(spec, n_labels, is_compiling(), **tensors)
    value, grad, table_grad = _ops.loss_and_grad(logits, labels, *arguments)
    if logits.dtype == torch.float16 and spec.reduction == "mean":
        entries = max(logits.numel(), 1)  # the op leaves the division by N L to the backward pass
        grad, table_grad = grad.float() / entries, table_grad / entries
    return LossAndGradients(value, grad, table_grad)


def columns(logits: Tensor, labels: Tensor) -> int:
    """L, where logits are a matrix; otherwise :func:`check_inputs` says what is wrong."""
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        check_inputs(logits, labels)
    return logits.shape[1]


def check_inputs(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    """(N, L), for a loss that needs them before the op has checked its arguments."""
    if not (isinstance(logits, Tensor) and isinstance(labels, Tensor)):
        name, value = ("labels", labels) if isinstance(logits, Tensor) else ("logits", logits)
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if logits.dim() != 2:
        raise ValueError(f"logits must have shape (N, L), got {list(logits.shape)}")
    n, l = logits.shape
    if labels.dim() == 1:
        if labels.shape[0] != n:
            raise ValueError(f"labels has {labels.shape[0]} rows, logits has {n}")
    elif labels.shape != logits.shape:
        raise ValueError(
            f"labels must have shape ({n},) or ({n}, {l}) to go with the logits, got {list(labels.shape)}"
        )
    return n, l


# --- checks of hyper-parameters -------------------------------------------------------------------
#
# A tensor is a scheduled number in a graph that is being compiled; its value is not known then.


def at_least(name: str, value: float, lowest: float) -> None:
    """Refuse a hyper-parameter below ``lowest``."""
    if not isinstance(value, Tensor) and not value >= lowest:
        raise ValueError(f"{name} must be at least {lowest:g}, got {value}")


def positive(name: str, value: float) -> None:
    """Refuse a hyper-parameter that is not positive."""
    if not isinstance(value, Tensor) and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def in_unit_interval(name: str, value: float) -> None:
    """Refuse a hyper-parameter outside [0, 1]."""
    if not isinstance(value, Tensor) and not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
