"""Trunks by name, for the command line: modules from x to features (N, F)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .._loading import resolve

HEADS = ("fc", "classifier", "head", "heads")
"""Names that torchvision's models have for their last layer, which a trunk does without."""


def small_cnn(channels: int = 3, width: int = 32, dropout: float = 0.1) -> nn.Module:
    """A small convolutional network for small images (N, channels, H, W); 4 x ``width`` features."""
    layers: list[nn.Module] = []
    before = channels
    for factor, stride in ((1, 1), (2, 2), (4, 2)):
        layers += [
            nn.Conv2d(before, factor * width, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(8, factor * width),  # the same in one process as in several
            nn.ReLU(),
        ]
        before = factor * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))


def make_trunk(spec: str | Mapping[str, Any]) -> nn.Module:
    """The trunk of a configuration.

    Args:
        spec: a name, or a mapping with "name" and keyword arguments for it. Names are "small_cnn", those of
            torchvision's models ("resnet50", with ``weights: DEFAULT`` for pretrained ones), whose last layer is
            taken off, and "package.module:function" or "path/to/file.py:function" for your own function that
            returns the module.

    Raises:
        ValueError: a name that is none of these.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"trunk must be a name, or a mapping with 'name' and its options, got {spec!r}")
    if name == "small_cnn":
        return small_cnn(**options)
    if ":" in name:
        return resolve(name, "trunk")(**options)
    try:
        from torchvision.models import get_model, list_models
    except ModuleNotFoundError:
        raise ValueError(
            f"trunk {name!r} is not 'small_cnn' or 'package.module:function', and torchvision, whose models go by "
            "name, is not installed"
        ) from None
    if name not in list_models():
        raise ValueError(f"trunk {name!r} is not 'small_cnn', 'package.module:function' or a model of torchvision")
    model = get_model(name, **options)
    for head in HEADS:
        if hasattr(model, head):
            setattr(model, head, nn.Identity())
            return model
    raise ValueError(f"trunk {name!r}: its last layer is none of {', '.join(HEADS)}")
