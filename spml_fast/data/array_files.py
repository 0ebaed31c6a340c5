"""Data sets in NumPy's own files: the convention of the single-positive literature, and anyone's features."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
import torch
from torch import Tensor

from ..labels import check_observed
from .base import SPLITS, MultiLabelData, Simulation, Splits, full_labels, training_data
from .images import ImageFiles

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def formatted(
    folder: str | Path,
    *,
    features: str | None = None,
    images: str | Path | None = None,
    names: Sequence[str] = (),
    size: int = 224,
    augment: bool = False,
    seed: int | np.random.Generator | None = 0,
    **simulation: Unpack[Simulation],
) -> Splits:
    """Data in the files of Cole et al. (CVPR 2021), a convention that most later papers share.

    ``formatted_{train,val}_labels.npy`` (N, L), ``formatted_{train,val}_images.npy`` (N,) file names,
    ``formatted_train_labels_obs.npy`` (N, L) with 1, 0 and -1, and ``{train,val}_features_<name>.npy`` (N, D).
    Their ``val`` is what papers test on, and is ``test`` here; the validation split is for training to hold out.
    Without ``labels_obs`` the observed labels are simulated, and rows without a positive are kept with nothing
    observed.

    Args:
        folder: folder with these files.
        features: name of the features, "imagenet_resnet50" in their repository; default: the only ones there.
        images: folder that the file names are relative to; reads images instead of features.
        names: names of the labels.
        size, augment: see :class:`~spml_fast.data.images.ImageFiles`; test images are never augmented.
        seed: seed of the simulated training labels.
        simulation: see :class:`~spml_fast.data.base.Simulation`.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: a file that is not as described, naming it.
    """
    folder = Path(folder)
    if features is not None and images is not None:
        raise ValueError(f"give features ({features!r}) or images ({str(images)!r}), not both")
    labels, x = {}, {}
    for split in ("train", "val"):
        path = folder / f"formatted_{split}_labels.npy"
        labels[split] = full_labels(_load(path), str(path))
        if images is None:
            path = _features_file(folder, split, features)
            x[split] = _features(_load(path), path)
        else:
            path = folder / f"formatted_{split}_images.npy"
            x[split] = ImageFiles(_image_names(path, Path(images)), size, augment=augment and split == "train")
        _check_rows(path, len(x[split]), f"formatted_{split}_labels.npy", len(labels[split]))
    path = folder / "formatted_train_labels_obs.npy"
    observed = None
    if path.is_file():
        observed = _load(path)
        _check_rows(path, len(observed), "formatted_train_labels.npy", len(labels["train"]))
    others = sorted(file.name for file in folder.glob("formatted_train_*_labels_obs.npy"))
    if observed is None and others:
        raise FileNotFoundError(f"{path} does not exist, but {', '.join(others)}: rename the one that is meant")
    train = _training(x["train"], labels["train"], observed, names, seed, simulation, str(path))
    return Splits(train, MultiLabelData(x["val"], labels["val"], names=names))


def arrays(
    path: str | Path, *, seed: int | np.random.Generator | None = 0, **simulation: Unpack[Simulation]
) -> Splits:
    """Your own features and labels, from an .npz file or a folder of .npy files.

    For each split, ``train``, ``test`` and ``validation``, of which only ``train`` must be there:

    * ``x_<split>``: features (N, D) or images (N, C, H, W), any real dtype, read as float32;
    * ``labels_<split>``: full labels (N, L), 0 or 1. ``labels_train`` may be left out if there is
    * ``observed_train``: (N,) integers, the index of the one observed positive (-1: none), or (N, L) with 1, 0 and
      -1. Left out, it is simulated from ``labels_train``; rows without a positive keep nothing observed.

    ``names`` (L,) are the names of the labels. Sparse features are files ``x_<split>.npz``, as written by
    ``scipy.sparse.save_npz``, in the folder (beside the .npz file).

    Args:
        path: the .npz file, or the folder.
        seed: seed of the simulated training labels.
        simulation: see :class:`~spml_fast.data.base.Simulation`.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: an array that is missing or not as described, naming it.
    """
    path = Path(path)
    given = _read(path)
    names = given.get("names", np.array([]))
    if names.ndim != 1:
        raise ValueError(f"{path}: names must have shape (L,), got {names.shape}")
    names = tuple(map(str, names.tolist()))
    splits = {}
    for split in SPLITS:
        x, labels, observed = (given.get(f"{key}_{split}") for key in ("x", "labels", "observed"))
        if split != "train":
            if x is None and labels is None:
                continue
            observed = None
        if x is None or (labels is None and observed is None):
            wanted = f"x_{split} and labels_{split}" + (" or observed_train" if split == "train" else "")
            raise ValueError(f"{path} has {', '.join(sorted(given)) or 'no arrays'}; expected {wanted}")
        x = _features(x, f"{path}: x_{split}")
        for key, value in (("labels", labels), ("observed", observed)):
            if value is not None:
                _check_rows(f"{path}: x_{split}", x.shape[0], f"{key}_{split}", len(value))
        if labels is not None:
            labels = full_labels(labels, f"{path}: labels_{split}")
        splits[split] = x, labels, observed
    names = names or _numbered(path, splits)
    for split, (x, labels, observed) in splits.items():
        if labels is not None and labels.shape[1] != len(names):
            raise ValueError(f"{path}: labels_{split} has {labels.shape[1]} labels, expected {len(names)}")
        if split == "train":
            where = f"{path}: observed_train"
            splits[split] = _training(x, labels, observed, names, seed, simulation, where)
        else:
            splits[split] = MultiLabelData(x, labels, names=names)
    return Splits(**splits)


def _read(path: Path) -> dict[str, np.ndarray | csr_matrix]:
    """The arrays that have one of the known names, by name."""
    keys = {f"{key}_{split}" for key in ("x", "labels", "observed") for split in SPLITS} | {"names"}
    if path.is_dir():
        folder, given = path, {key: _load(path / f"{key}.npy") for key in keys if (path / f"{key}.npy").is_file()}
    else:
        content = _load(path)
        if not isinstance(content, Mapping):
            raise ValueError(f"{path} is one array; expected an .npz file or a folder of arrays")
        folder, given = path.parent, {key: content[key] for key in keys & content.keys()}
    for split in SPLITS:
        key, file = f"x_{split}", folder / f"x_{split}.npz"
        if key not in given and file.is_file() and file != path:
            given[key] = _load_sparse(file)
    return given


def _numbered(path: Path, splits: Mapping[str, tuple]) -> tuple[str, ...]:
    """Names "0", "1", ... for the columns of the label matrices."""
    for _, labels, observed in splits.values():
        for matrix in (labels, observed):
            if matrix is not None and matrix.ndim == 2:
                return tuple(map(str, range(matrix.shape[1])))
    raise ValueError(f"{path} does not say how many labels there are: add names, or labels_test of shape (N, L)")


def _training(
    x: Tensor | csr_matrix | ImageFiles,
    labels: Tensor | None,
    observed: np.ndarray | None,
    names: Sequence[str],
    seed: int | np.random.Generator | None,
    simulation: Simulation,
    where: str,
) -> MultiLabelData:
    if observed is None:
        return training_data(x, labels, names, seed, simulation)
    if simulation:
        raise ValueError(f"{where} is given, nothing is simulated: {', '.join(simulation)} would have no effect")
    if observed.dtype.kind not in "biuf":
        raise ValueError(f"{where} must be numbers, got {observed.dtype}")
    observed = torch.as_tensor(observed)
    if observed.dim() == 1 and not (observed.is_floating_point() or observed.dtype == torch.bool):
        observed = observed.long()
    n_labels = len(names) if labels is None else labels.shape[1]
    try:
        check_observed(observed, n_labels)
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{where}: {error}") from error
    observed = _index_form(observed)
    if labels is not None:
        _check_agreement(observed, labels, where)
    return MultiLabelData(x, labels, observed, names)


def _index_form(observed: Tensor) -> Tensor:
    """Observed labels as (N,) int64 if no row has a negative or a second positive, as (N, L) int8 otherwise."""
    if observed.dim() == 1:
        return observed
    observed = observed.to(torch.int8)
    if bool((observed < 0).any()) or bool((observed.sum(dim=1, dtype=torch.int64) > 1).any()):
        return observed
    return torch.where(observed.any(dim=1), observed.argmax(dim=1), -1)


def _check_agreement(observed: Tensor, labels: Tensor, where: str) -> None:
    if observed.dim() == 1:
        seen = observed >= 0
        wrong = seen & ~labels.gather(1, observed.clamp(min=0)[:, None])[:, 0]
        places = [(row, int(observed[row])) for row in wrong.nonzero().flatten()[:1].tolist()]
    else:
        wrong = ((observed == 1) & ~labels) | ((observed == -1) & labels)
        places = wrong.nonzero()[:1].tolist()
    for row, column in places:
        raise ValueError(
            f"{where} contradicts the full labels in {int(wrong.sum())} places, the first is row {row}, "
            f"label {column}"
        )


def _features_file(folder: Path, split: str, features: str | None) -> Path:
    if features is not None:
        return folder / f"{split}_features_{features}.npy"
    found = sorted(folder.glob(f"{split}_features_*.npy"))
    if not found:
        raise FileNotFoundError(f"{folder / f'{split}_features_*.npy'} does not exist; give images to do without")
    if len(found) > 1:
        prefix = f"{split}_features_"
        there = ", ".join(repr(file.stem.removeprefix(prefix)) for file in found)
        raise ValueError(f"{folder} has more than one kind of features: give one of {there} as features")
    return found[0]


def _image_names(path: Path, images: Path) -> list[Path]:
    names = _load(path)
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(f"{path} must be (N,) file names, got {names.dtype} of shape {names.shape}")
    return [images / name for name in names.tolist()]


def _features(values: np.ndarray | csr_matrix, where: str | Path) -> Tensor | csr_matrix:
    """Features as float32, whatever the dtype was."""
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{where} must be real numbers, got {values.dtype}")
    if not isinstance(values, np.ndarray):
        return values.astype(np.float32)
    if values.ndim not in (2, 4):
        raise ValueError(f"{where} must have shape (N, D) or (N, C, H, W), got {values.shape}")
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _check_rows(where: str | Path, rows: int, other: str, expected: int) -> None:
    if rows != expected:
        raise ValueError(f"{where} has {rows} rows, {other} has {expected}")


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of an .npy file, the arrays of an .npz file; nothing is unpickled."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return dict(content)
    except (ValueError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not an array in NumPy's format: {error}") from error


def _load_sparse(path: Path) -> csr_matrix:
    from scipy.sparse import csr_matrix, load_npz

    try:
        return csr_matrix(load_npz(path))
    except (ValueError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a sparse matrix as scipy.sparse.save_npz writes it: {error}") from error
