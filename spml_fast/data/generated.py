"""Random data of any size."""

from __future__ import annotations

import math
from typing import Unpack

import numpy as np
import torch

from .base import MultiLabelData, Simulation, Splits, training_data


def synthetic(
    n_train: int = 5717,
    n_test: int = 1000,
    n_features: int = 2048,
    n_labels: int = 20,
    positives_per_row: float = 1.5,
    *,
    seed: int = 0,
    **simulation: Unpack[Simulation],
) -> Splits:
    """Standard normal features, labelled by a random linear teacher: the labels that it scores highest in a row.

    The defaults have the size of PASCAL VOC 2012 with the features of a ResNet-50.

    Args:
        n_train, n_test, n_features, n_labels: numbers of rows, features and labels.
        positives_per_row: positives of a row on average, 1 to ``n_labels``; rows have it rounded down or up.
        seed: seed of everything: teacher, features, labels and what is observed of them.
        simulation: see :class:`~spml_fast.data.base.Simulation`.

    Raises:
        ValueError: a size below 1 (``n_test``: below 0), ``positives_per_row`` out of range.
    """
    sizes = {"n_train": n_train, "n_test": n_test, "n_features": n_features, "n_labels": n_labels}
    for name, value in sizes.items():
        if value < (name != "n_test"):
            raise ValueError(f"{name} must be at least {int(name != 'n_test')}, got {value}")
    if not 1 <= positives_per_row <= n_labels:
        raise ValueError(f"positives_per_row must lie between 1 and {n_labels}, got {positives_per_row}")
    rng = np.random.default_rng(seed)
    teacher = rng.standard_normal((n_features, n_labels), dtype=np.float32)
    x = rng.standard_normal((n_train + n_test, n_features), dtype=np.float32)
    rank = (-x @ teacher).argsort(axis=1, kind="stable").argsort(axis=1)
    least = math.floor(positives_per_row)
    counts = least + (rng.random((len(x), 1)) < positives_per_row - least)
    x, labels = torch.from_numpy(x), torch.from_numpy(rank < counts)
    names = tuple(map(str, range(n_labels)))
    return Splits(
        training_data(x[:n_train], labels[:n_train], names, rng, simulation),
        MultiLabelData(x[n_train:], labels[n_train:], names=names),
    )
