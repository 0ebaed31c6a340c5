"""A linear head and its loss in one op, for label sets whose logits would not fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _ops
from .base import Call, Logits, Loss, make


class _LinearLogits(Logits):
    """x @ weight.T + bias, not computed yet."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        for name, tensor in (("x", x), ("weight", weight)):
            if not isinstance(tensor, Tensor) or tensor.dim() != 2:
                raise ValueError(
                    f"fused_linear_loss: {name} must be a tensor of two dimensions, got {_shape(tensor)}"
                )
        self.x, self.weight, self.bias = x, weight, bias
        self.shape = (x.shape[0], weight.shape[0])

    def run(self, labels: Tensor, call: Call) -> Any:
        tensors = (self.x, self.weight, self.bias)
        kind = self.x.device.type
        if torch.is_autocast_enabled(kind):  # as torch.nn.functional.linear does
            dtype = torch.get_autocast_dtype(kind)
            tensors = tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)
        return _ops.linear_loss(*tensors, labels, *call)


def _shape(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def fused_linear_loss(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, loss: str | Loss = "an"
) -> Tensor:
    """The loss of ``torch.nn.functional.linear(x, weight, bias)``, whose (N, L) logits never exist at once.

    Labels are worked through in chunks: a product for the chunk's logits, the loss and its gradient in their
    place, and the products for the gradients of x, weight and bias. All gradients are ready when the forward pass
    ends, so the peak is that of one chunk (about 4 MiB) beside the gradients themselves. EPR needs every p before
    the first gradient and computes the logits twice.

    Args:
        x: (N, D) features.
        weight: (L, D), of x's dtype, as in ``torch.nn.Linear``.
        bias: (L,) or None.
        labels: (N,) or (N, L), as the loss takes them.
        loss: a loss of single entries (bce, an, wan, pns, em, gr, hill, ...) or EPR, by name or as a module whose
            reduction is "mean" or "sum".

    Returns:
        A scalar, float32 (float64 for float64), differentiable by x, weight and bias.

    Raises:
        ValueError, TypeError, IndexError: as the loss; or a loss that cannot be computed in chunks.
    """
    module = make(loss) if isinstance(loss, str) else loss
    if not isinstance(module, Loss):
        raise TypeError(f"loss must be a name or a loss module of this package, got {type(module).__name__}")
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
    if len(module.inputs) > 2:
        raise TypeError(
            f"{type(module).__name__} is called with {', '.join(module.inputs)} and cannot be computed in chunks "
            "of labels"
        )
    return module(_LinearLogits(x, weight, bias), labels)
