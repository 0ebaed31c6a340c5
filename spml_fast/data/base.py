"""What every loader returns: the splits of a multi-label data set, each with the labels that training may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class MultiLabelData:
    """One split of a multi-label data set.

    Attributes:
        x: features (N, D), a float32 tensor or a scipy CSR matrix, which stays sparse; or images, a tensor
            (N, C, H, W), float32, or a map-style ``Dataset`` that yields (C, H, W) float32 tensors.
        labels: full labels (N, L) bool, or None where nobody knows them.
        observed: what training may see: (N,) int64, the index of the one observed positive (-1: none), or (N, L)
            int8 with 1 observed positive, 0 unobserved, -1 observed negative. None: not meant for training.
        names: of the L labels; "0", "1", ... unless given.
    """

    x: Tensor | csr_matrix | Dataset
    labels: Tensor | None = None
    observed: Tensor | None = None
    names: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        n = len(self)
        for name in ("labels", "observed"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"{name} has {len(value)} rows, x has {n}")
        if self.labels is not None and (self.labels.dim() != 2 or self.labels.dtype != torch.bool):
            raise ValueError(
                f"labels must be (N, L) bool, got {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        n_labels = self._count_labels()
        if not self.names and n_labels is not None:
            object.__setattr__(self, "names", tuple(map(str, range(n_labels))))
        if n_labels is not None and len(self.names) != n_labels:
            raise ValueError(f"there are {n_labels} labels and {len(self.names)} names")

    def __len__(self) -> int:
        return self.x.shape[0] if hasattr(self.x, "shape") else len(self.x)

    @property
    def n_labels(self) -> int:
        """L."""
        return len(self.names)

    def _count_labels(self) -> int | None:
        for value in (self.labels, self.observed):
            if value is not None and value.dim() == 2:
                return value.shape[1]
        return None


class Splits(NamedTuple):
    """A data set as its distributors split it; ``validation`` where they made one."""

    train: MultiLabelData
    test: MultiLabelData | None = None
    validation: MultiLabelData | None = None
