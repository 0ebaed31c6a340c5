"""Separate modules for D_v, D_r and D_f, each with its own view of x, as one classifier."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._conventions import by_name
from .._models import first_tensor

HEADS = ("D_r", "D_f", "D_v")

Preprocess = Callable[[Tensor], Tensor]


class Classifiers(nn.Module):
    """What :class:`~spml_fast.S2MSampler` takes as ``clf``, from modules that were made apart.

    For example a GAN's discriminator as D_v and an ordinary pretrained classifier as D_r, which was trained on
    images of another size and normalised in its own way. They are used as density ratios, so they must be
    calibrated.

    >>> clf = spml_fast.Classifiers(
    ...     D_v=discriminator, D_r=resnet, preprocess={"D_r": normalise}, probabilities=["D_v"]
    ... )  # doctest: +SKIP

    Args:
        D_v: x (B, *x_shape) -> logit of real against generated, B numbers of any shape.
        D_r: x -> logits (B, N) of the classes of real instances.
        D_f: x -> logits (B, N) of the classes of generated ones, for class-conditional proposals.
        preprocess: a function of x for all of them, or a mapping from "D_v", "D_r" or "D_f" to one for each.
        probabilities: names of those that return probabilities: a D_v that ends in a sigmoid, a D_r or D_f that
            ends in a softmax. They are turned into logits. Of a sigmoid that is 1, no more is known than that its
            logit is at least 16 (in float32): a module without its last layer is better where it can be had.

    Each may return a tensor, a tuple that begins with it, or a mapping or dataclass with ``logits``.

    Raises:
        TypeError, ValueError: a name that is none of the three, or a value that cannot be called; in ``forward``
            numbers given as probabilities that are none.
    """

    def __init__(
        self,
        *,
        D_v: Callable[[Tensor], Any],
        D_r: Callable[[Tensor], Any],
        D_f: Callable[[Tensor], Any] | None = None,
        preprocess: Preprocess | Mapping[str, Preprocess] | None = None,
        probabilities: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.D_r, self.D_f, self.D_v = D_r, D_f, D_v
        if not isinstance(preprocess, Mapping):
            preprocess = dict.fromkeys(HEADS, preprocess)
        if isinstance(probabilities, str):
            probabilities = (probabilities,)
        for name, given in (("preprocess", preprocess), ("probabilities", probabilities)):
            unknown = [str(key) for key in given if key not in HEADS]
            if unknown:
                raise ValueError(f"{name} is for {', '.join(HEADS)}, got {', '.join(unknown)}")
        for name, value in {
            "D_v": D_v,
            "D_r": D_r,
            "D_f": D_f,
            **{f"preprocess {k}": v for k, v in preprocess.items()},
        }.items():
            if not callable(value) and (value is not None or name in ("D_v", "D_r")):
                raise TypeError(f"{name} must be callable, got {type(value).__name__}")
        self.preprocess = nn.ModuleDict({k: v for k, v in preprocess.items() if isinstance(v, nn.Module)})
        self.functions = {k: v for k, v in preprocess.items() if v is not None}
        self.probabilities = frozenset(probabilities)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """``x`` (B, *x_shape) -> class logits (B, N), logits of D_f (B, N) or None, validity logit (B,)."""
        views: dict[int, Tensor] = {}
        found: list[Tensor | None] = []
        for name in HEADS:
            head = getattr(self, name)
            if head is None:
                found.append(None)
                continue
            function = self.functions.get(name)
            if id(function) not in views:
                views[id(function)] = x if function is None else function(x.clone())
            given = views[id(function)].clone()  # the head may work in place on it
            weight = first_tensor(head) if isinstance(head, nn.Module) else None
            if weight is not None and given.is_floating_point():
                given = given.to(weight.dtype)
            output = head(given)
            logits = _logits_of(output, name, len(x))
            if name in self.probabilities:
                logits = _logits_of_probabilities(logits, name)
            found.append(logits)
        dtype = torch.promote_types(found[0].dtype, found[2].dtype)
        return found[0].to(dtype), None if found[1] is None else found[1].to(dtype), found[2].to(dtype)


def _logits_of(output: object, name: str, n_rows: int) -> Tensor:
    """(B, N) of D_r and D_f, (B,) of D_v."""
    named = by_name(output)
    if named is not None and "logits" in named:
        output = named["logits"]
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or not output.is_floating_point():
        got = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"{name} must return floating-point logits, got {got}")
    if name == "D_v":
        if output.numel() != n_rows:
            raise ValueError(f"D_v must return one logit for each of {n_rows} rows, got {tuple(output.shape)}")
        return output.reshape(n_rows)
    if output.numel() % max(n_rows, 1) or (n_rows > 1 and (output.ndim < 2 or output.shape[0] != n_rows)):
        raise ValueError(f"{name} must return logits ({n_rows}, classes), got {tuple(output.shape)}")
    return output.reshape(n_rows, -1)


def _logits_of_probabilities(given: Tensor, name: str) -> Tensor:
    if not bool(((given >= 0) & (given <= 1)).all()):
        low, high = float(given.min()), float(given.max())
        raise ValueError(
            f"{name} is said to return probabilities, but returned numbers from {low:.3g} to {high:.3g}"
        )
    if name != "D_v" and not bool(((given.sum(1) - 1).abs() < 0.02).all()):
        raise ValueError(
            f"{name} is said to return probabilities of classes, but rows do not sum to 1; for a multi-label "
            "classifier see spml_fast.MultiLabelDensityRatio"
        )
    if name == "D_v":
        return torch.logit(given, eps=torch.finfo(given.dtype).eps)
    return given.log()
