"""The 7-to-3 digits: seven digits stand for the seven non-empty joint classes of three attributes.

The mapping is that of CIFAR-7to3, over the 8x8 digits that scikit-learn ships, so it needs no
download. Digit 0 has attribute A only, 1 has A and B, ..., 6 has all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ATTRIBUTES = ("A", "B", "C")
"""Names of the three attributes; an attribute's class index is its place here."""

DIGIT_ATTRIBUTES = ((0,), (0, 1), (1,), (1, 2), (2,), (0, 2), (0, 1, 2))
"""The attributes that digit d has, as class indices, for d = 0 ... 6."""

JOINT_CLASSES = tuple((has, tuple(j for j in range(len(ATTRIBUTES)) if j not in has)) for has in DIGIT_ATTRIBUTES)
"""The joint class (I, J) that digit d stands for: every attribute in I, none in J."""


@dataclass(frozen=True)
class Digits:
    """Digits 0 ... 6 as a multi-label problem.

    Attributes:
        images: (n, 1, 8, 8) float32 in [-1, 1].
        digits: (n,) int64 in 0 ... 6. Full knowledge: only for judging what was drawn.
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


def joint_class_name(has: tuple[int, ...], has_not: tuple[int, ...] = ()) -> str:
    """``joint_class_name((0, 2), (1,))`` is ``"A+C-B"``."""
    return "+".join(ATTRIBUTES[i] for i in has) + "".join(f"-{ATTRIBUTES[j]}" for j in has_not)


def attribute_indices(names: Sequence[str]) -> tuple[int, ...]:
    """Class indices of attribute names; ``ValueError`` for a name that is none."""
    for name in names:
        if name not in ATTRIBUTES:
            raise ValueError(f"{name!r} is not an attribute of the digits; they are {', '.join(ATTRIBUTES)}")
    return tuple(ATTRIBUTES.index(name) for name in names)


def single_positives(labels_matrix: np.ndarray, seed: int | np.random.Generator | None = None) -> np.ndarray:
    """Keep one positive per row, drawn uniformly among the row's positives.

    Args:
        labels_matrix: (N, L), nonzero where the attribute is present.
        seed: an integer, or a ``numpy.random.Generator`` to draw from.

    Returns:
        (N,) int64, the class index of the one positive that stays observed.

    Raises:
        ValueError: if the matrix is not two-dimensional or a row has no positive.
    """
    positive = np.asarray(labels_matrix) != 0
    if positive.ndim != 2:
        raise ValueError(f"labels_matrix must have shape (N, L), got {positive.shape}")
    without = np.flatnonzero(~positive.any(axis=1))
    if without.size:
        raise ValueError(
            f"every row of labels_matrix needs a positive; {without.size} have none, the first is row {without[0]}"
        )
    rng = np.random.default_rng(seed)
    # The largest of independent uniform keys sits on each positive with the same probability.
    keys = np.where(positive, rng.random(positive.shape), -1.0)
    return keys.argmax(axis=1).astype(np.int64)
