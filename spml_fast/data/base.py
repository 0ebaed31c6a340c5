"""What every loader returns: the splits of a multi-label data set, each with the labels that training may see.

:func:`check_training` and the functions below it check such data for everyone who trains on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..labels import check_observed, single_positives

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SPLITS = ("train", "test", "validation")


@dataclass(frozen=True, eq=False, repr=False)
class MultiLabelData:
    """One split of a multi-label data set.

    Arrays are taken as tensors, numbers as float32, other sparse formats as CSR.

    Attributes:
        x: features (N, D), a float32 tensor or a scipy CSR matrix, which stays sparse; or images, a tensor
            (N, C, H, W), float32, or a map-style ``Dataset`` that yields (C, H, W) float32 tensors.
        labels: full labels (N, L) bool, or None where nobody knows them.
        observed: what training may see: (N,) int64, the index of the one observed positive (-1: none), or (N, L)
            int8 with 1 observed positive, 0 unobserved, -1 observed negative. None: not meant for training.
        names: names of the L labels, each once; "0", "1", ... unless given.
        pseudo_labels: (N, L) in {-1, 0, 1}, another model's or annotator's guess, for GPR; 0 where there is none.
        empty_labels: what a training does with labels of which no training row was observed to be positive:
            "refuse" them, or "keep" them beside the others.

    Raises:
        ValueError, TypeError: parts that do not fit together or are of another kind.
    """

    x: Tensor | csr_matrix | Dataset
    labels: Tensor | None = None
    observed: Tensor | None = None
    names: Sequence[str] = field(default=())
    _: KW_ONLY
    pseudo_labels: Tensor | None = None
    empty_labels: str = "refuse"

    def __post_init__(self) -> None:
        if self.empty_labels not in ("refuse", "keep"):
            raise ValueError(f"empty_labels must be 'refuse' or 'keep', got {self.empty_labels!r}")
        object.__setattr__(self, "x", as_x(self.x))
        n = len(self)
        for name in ("labels", "observed", "pseudo_labels"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, Tensor | np.ndarray):
                raise TypeError(f"{name} must be a tensor or an array, got {type(value).__name__}")
            object.__setattr__(self, name, torch.as_tensor(value).detach().cpu())
            if len(value) != n:
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
        repeated = sorted(name for name, count in Counter(self.names).items() if count > 1)
        if repeated:
            raise ValueError(f"names of labels must differ; {repeated[0]!r} stands for several")

    def __len__(self) -> int:
        return self.x.shape[0] if hasattr(self.x, "shape") else len(self.x)

    def __repr__(self) -> str:
        x = type(self.x).__name__ + (f" {tuple(self.x.shape)}" if hasattr(self.x, "shape") else f" of {len(self)}")
        given = [name for name in ("labels", "observed") if getattr(self, name) is not None]
        return f"MultiLabelData({x}, {self.n_labels} labels, given: {', '.join(given) or 'neither'})"

    @property
    def n_labels(self) -> int:
        """Number of labels, L."""
        return len(self.names)

    def _count_labels(self) -> int | None:
        for value in (self.labels, self.observed):
            if value is not None and value.dim() == 2:
                return value.shape[1]
        return None


if TYPE_CHECKING:
    Features = Tensor | np.ndarray | csr_matrix | Dataset
    Split = MultiLabelData | tuple[Features, Tensor | np.ndarray]


def as_x(x: Any) -> Tensor | csr_matrix | Dataset:
    """Features or images in one of the forms that :class:`MultiLabelData` has.

    Raises:
        ValueError, TypeError: x can be brought into none of these forms.
    """
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "biuf":
            raise TypeError(f"x must hold real numbers, got an array of {x.dtype}")
        x = torch.from_numpy(x)
    if isinstance(x, Tensor):
        if x.is_complex():
            raise TypeError(f"x must hold real numbers, got {x.dtype}")
        if x.dim() < 2:
            raise ValueError(f"x must have shape (N, D) or (N, ...), got {tuple(x.shape)}")
        return x.detach().cpu().float()
    if hasattr(x, "tocsr"):
        if x.dtype.kind not in "biuf":
            raise TypeError(f"x must hold real numbers, got a matrix of {x.dtype}")
        x = x.tocsr()
        if x.dtype == np.float32 and x.has_canonical_format:
            return x
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
            x = x.astype(np.float32, copy=True)
        x.sum_duplicates()
        return x
    if isinstance(x, Dataset) or (hasattr(x, "__len__") and hasattr(x, "__getitem__") and not isinstance(x, list)):
        return x
    raise TypeError(f"x must be a tensor, an array, a scipy sparse matrix or a Dataset, got {type(x).__name__}")


class Splits(NamedTuple):
    """A data set as its distributors split it; ``validation`` is None where they made no such split."""

    train: MultiLabelData
    test: MultiLabelData | None = None
    validation: MultiLabelData | None = None


# ------------------------------------------------------------------------------------ simulation


class Simulation(TypedDict, total=False):
    """How a loader simulates training labels: keywords of :func:`spml_fast.labels.single_positives`."""

    positives: int
    negatives: int
    class_weight: np.ndarray | Tensor | None
    instance_weight: np.ndarray | Tensor | None


def training_data(
    x: Tensor | csr_matrix | Dataset,
    labels: Tensor,
    names: Sequence[str],
    seed: int | np.random.Generator | None,
    simulation: Simulation,
) -> MultiLabelData:
    """A training split with simulated observed labels; rows without a positive stay, with nothing observed."""
    observed = single_positives(labels, seed=seed, empty="keep", **simulation)
    return MultiLabelData(x, labels, observed, names)


def full_labels(values: np.ndarray | Tensor, where: str) -> Tensor:
    """Full labels (N, L) bool from a matrix of 0 and 1 in any dtype; errors say ``where`` it came from."""
    if isinstance(values, np.ndarray) and values.dtype.kind not in "biuf":
        raise ValueError(f"{where} must be numbers, got {values.dtype}")
    values = torch.as_tensor(values)
    if values.dim() != 2:
        raise ValueError(f"{where} must have shape (N, L), got {tuple(values.shape)}")
    wrong = ~((values == 0) | (values == 1))
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(f"{where} is {values[row, column].item()} at [{row}, {column}]; full labels are 0 or 1")
    return values.bool()


# ---------------------------------------------------------------------------------------- checks


def check_training(data: MultiLabelData) -> None:
    """Refuses data that no training can use: features that are not finite, observed labels absent or out of range.

    Whether rows or labels without an observation are refused, each training decides:
    :func:`check_rows_observed`, :func:`check_labels_observed`.

    Raises:
        ValueError, TypeError, IndexError: what is wrong, naming the first row.
    """
    if data.observed is None:
        raise ValueError(
            "the data have no observed labels; training needs them (spml_fast.labels.single_positives)"
        )
    if not data.n_labels:
        raise ValueError("the data do not say how many labels there are: give names, or labels of shape (N, L)")
    if not len(data):
        raise ValueError("the data have no rows")
    check_features(data.x)
    check_observed(data.observed, data.n_labels)


def check_features(x: Tensor | csr_matrix | Dataset) -> None:
    """Refuses features with NaN or inf. A ``Dataset`` is not read, which would load all of its instances.

    Raises:
        ValueError: naming the first row and column (of images: instance, channel, row and column).
    """
    if isinstance(x, Tensor):
        if bool(x.isfinite().all()):
            return
        wrong = (~x.isfinite()).nonzero()
        place = wrong[0].tolist()
        _refuse(len(wrong), place, x[tuple(place)].item())
    elif hasattr(x, "indptr"):  # CSR
        wrong = np.flatnonzero(~np.isfinite(x.data))
        if wrong.size:
            row = int(np.searchsorted(x.indptr, wrong[0], side="right")) - 1
            _refuse(wrong.size, [row, int(x.indices[wrong[0]])], x.data[wrong[0]])
    elif not isinstance(x, Dataset):
        raise TypeError(f"x must be a tensor, a scipy CSR matrix or a Dataset, got {type(x).__name__}")


def _refuse(count: int, place: list[int], value: float) -> None:
    where = f"row {place[0]}, column {place[1]}" if len(place) == 2 else f"x{place}"
    raise ValueError(f"x must be finite; {count} values are not, the first is {value} at {where}")


def check_rows_observed(observed: Tensor) -> None:
    """Refuses observed labels in which a row has no label.

    Raises:
        ValueError: how many rows, and the first.
    """
    nothing = observed == -1 if observed.dim() == 1 else ~observed.bool().any(dim=1)
    rows = nothing.nonzero().flatten()
    if len(rows):
        raise ValueError(f"{len(rows)} of {len(observed)} rows have no observed label, the first is row {rows[0]}")


def check_labels_observed(observed: Tensor, names: Sequence[str]) -> None:
    """Refuses labels that were never observed positive: nothing would teach a classifier what they are.

    Raises:
        ValueError: their names.
    """
    if observed.dim() == 1:
        seen = torch.bincount(observed[observed >= 0], minlength=len(names)) > 0
    else:
        seen = (observed == 1).any(dim=0)
    never = [names[j] for j in (~seen).nonzero().flatten().tolist()]
    if never:
        more = f" and {len(never) - 8} more" if len(never) > 8 else ""
        raise ValueError(
            f"{len(never)} of {len(names)} labels were never observed positive: {', '.join(never[:8])}{more}"
        )
