"""The 8x8 digits that scikit-learn ships, as multi-label problems that need no download.

The 7-to-3 digits: seven digits stand for the seven non-empty joint classes of three attributes. The
mapping is that of CIFAR-7to3: digit 0 has attribute A only, 1 has A and B, ..., 6 has all three.

The digit attributes: nine properties of all ten digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch

from .base import MultiLabelData, Simulation, Splits, training_data

ATTRIBUTES = ("A", "B", "C")
"""Names of the three attributes; an attribute's class index is its place here."""

DIGIT_ATTRIBUTES = ((0,), (0, 1), (1,), (1, 2), (2,), (0, 2), (0, 1, 2))
"""The attributes that digit d has, as class indices, for d = 0 ... 6."""

JOINT_CLASSES = tuple((has, tuple(j for j in range(len(ATTRIBUTES)) if j not in has)) for has in DIGIT_ATTRIBUTES)
"""The joint class (I, J) that digit d stands for: every attribute in I, none in J."""

PROPERTIES = {
    "even": (0, 2, 4, 6, 8),
    "prime": (2, 3, 5, 7),
    "square": (0, 1, 4, 9),
    "multiple of three": (0, 3, 6, 9),
    "at least five": (5, 6, 7, 8, 9),
    "power of two": (1, 2, 4, 8),
    "Fibonacci": (0, 1, 2, 3, 5, 8),
    # Digits that always have one: many a handwritten 4 is open at the top, few 2s have a loop at the foot.
    "closed loop": (0, 6, 8, 9),
    # The foot of the 2, the crossbar of the 4, the top of the 5 and of the 7.
    "horizontal bar": (2, 4, 5, 7),
}
"""The digits that have each property; every digit has at least one, no two digits have the same ones."""


@dataclass(frozen=True)
class Digits:
    """Digits 0 ... 6 as a multi-label problem.

    Attributes:
        images: (n, 1, 8, 8) float32 in [-1, 1].
        digits: (n,) int64 in 0 ... 6, for judging what was drawn, never for training.
        labels: (n, 3) bool, the attributes of each digit.
    """

    images: np.ndarray
    digits: np.ndarray
    labels: np.ndarray


def load_digits() -> Digits:
    """The 1264 images of digits 0 ... 6 with the attributes of the 7-to-3 mapping."""
    from sklearn import datasets

    images, digits = datasets.load_digits(return_X_y=True)
    keep = digits < len(DIGIT_ATTRIBUTES)
    # 16 grey levels above 0: 0 becomes -1 and 16 becomes 1.
    images = (images[keep] / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8)
    digits = digits[keep].astype(np.int64)
    attributes = np.zeros((len(DIGIT_ATTRIBUTES), len(ATTRIBUTES)), dtype=bool)
    for digit, has in enumerate(DIGIT_ATTRIBUTES):
        attributes[digit, list(has)] = True
    return Digits(images, digits, attributes[digits])


def digit_attributes(
    *, images: bool = False, seed: int | np.random.Generator | None = 0, **simulation: Unpack[Simulation]
) -> Splits:
    """All 1,797 digits with the nine :data:`PROPERTIES`, a quarter of them test data, stratified by digit.

    Args:
        images: x (N, 1, 8, 8) in [-1, 1] instead of the pixels (N, 64) in [0, 1]; both float32.
        seed: seed of the simulated training labels; the split is always the same.
        simulation: see :class:`~spml_fast.data.base.Simulation`.
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    pixels, digits = datasets.load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).float() / 16  # grey levels 0 ... 16
    if images:
        x = (2 * x - 1).reshape(-1, 1, 8, 8)
    table = torch.tensor([[digit in has for has in PROPERTIES.values()] for digit in range(10)])
    labels = table[torch.from_numpy(digits)]
    train, test = train_test_split(np.arange(len(digits)), test_size=0.25, stratify=digits, random_state=0)
    names = tuple(PROPERTIES)
    return Splits(
        training_data(x[train], labels[train], names, seed, simulation),
        MultiLabelData(x[test], labels[test], names=names),
    )


def joint_class_name(has: tuple[int, ...], has_not: tuple[int, ...] = ()) -> str:
    """The name of a joint class: ``"A+C-B"`` for (0, 2) and not (1,)."""
    return "+".join(ATTRIBUTES[i] for i in has) + "".join(f"-{ATTRIBUTES[j]}" for j in has_not)
