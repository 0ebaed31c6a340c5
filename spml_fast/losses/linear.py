"""A linear head and its loss in one op, for label sets whose logits would not fit into memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .. import _ops
from .base import Loss, as_module, require_spec
from .spec import LossSpec, op_arguments


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
    module = as_module(loss)
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
    for name, tensor in (("x", x), ("weight", weight)):
        if not isinstance(tensor, Tensor) or tensor.dim() != 2:
            got = f"shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"fused_linear_loss: {name} must be a tensor of two dimensions, got {got}")
    if len(module.inputs) > 2:
        raise TypeError(
            f"{type(module).__name__} is called with {', '.join(module.inputs)} and cannot be computed in chunks "
            "of labels"
        )
    require_spec(module, "computed in chunks of labels")
    tensors = module.tensors(None, labels, n_labels=weight.shape[0])
    value = _apply_to_linear(module.current_spec(), x, weight, bias, labels, **tensors)
    module.remember(None, labels, tensors)
    return value


def _apply_to_linear(
    spec: LossSpec, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, **tensors: Tensor | None
) -> Tensor:
    """The loss of the logits x @ weight.T + bias, computed in chunks of labels."""
    head = (x, weight, bias)
    device = x.device.type
    if torch.is_autocast_enabled(device):  # as torch.nn.functional.linear does
        dtype = torch.get_autocast_dtype(device)
        head = tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in head)
    arguments = op_arguments(spec, weight.shape[0], is_compiling(), **tensors)
    return _ops.linear_loss(*head, labels, *arguments)
