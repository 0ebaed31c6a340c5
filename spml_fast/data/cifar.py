"""CIFAR-10 with attributes: each of the ten classes has some of them, and several classes share each.

Source of the images: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009 and
of CIFAR-7to3: Cho et al., "Mining Multi-Label Samples from Single Positive Labels", NeurIPS 2022.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from .base import MultiLabelData, Simulation, Splits, training_data

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SEVEN_TO_THREE = {
    "A": ("airplane", "automobile", "dog", "frog"),
    "B": ("automobile", "bird", "cat", "frog"),
    "C": ("cat", "deer", "dog", "frog"),
}
"""Seven classes stand for the seven non-empty joint classes of three attributes."""

_MEMBER = re.compile(r"(?:^|/)(train|test)/([^/]+)/([^/]+\.(?:jpe?g|png))$", re.IGNORECASE)


def cifar10(
    path: str | Path,
    mapping: str | Mapping[str, Sequence[str]] = "7to3",
    *,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int | np.random.Generator | None = 0,
    **simulation: Unpack[Simulation],
) -> Splits:
    """CIFAR-10 as image files: x (N, 3, 32, 32) float32 in [-1, 1], in the order of class and file name.

    Classes without an attribute are kept without a positive, and in training with nothing observed; leave them out
    by ``classes``.

    Args:
        path: a folder or a tar file, compressed or not, of ``{train,test}/<class>/*`` in JPEG or PNG. A tar file
            is read as it is, nothing is unpacked to disk.
        mapping: the classes that have each attribute, by attribute; or "7to3".
        classes: classes to read; default: all ten.
        limit: at most so many images per class and split, the first ones by file name.
        seed: seed of the simulated training labels.
        simulation: see :class:`~spml_fast.data.base.Simulation`.

    Raises:
        FileNotFoundError: no such path, or no image of a class.
        ValueError: an unknown class or mapping; a file that is not an image of 32 x 32, naming it.
    """
    attributes = _attributes(mapping)
    classes = CLASSES if classes is None else _known(classes, "classes")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    images, owners = _read(Path(path), classes, limit)
    table = torch.tensor([[name in has for has in attributes.values()] for name in classes], dtype=torch.bool)
    names = tuple(attributes)
    train = training_data(images["train"], table[owners["train"]], names, seed, simulation)
    return Splits(train, MultiLabelData(images["test"], table[owners["test"]], names=names))


def cifar_7to3(
    path: str | Path,
    limit: int | None = None,
    *,
    seed: int | np.random.Generator | None = 0,
    **simulation: Unpack[Simulation],
) -> Splits:
    """CIFAR-7to3: the seven classes that stand for the non-empty joint classes of A, B, C; see :func:`cifar10`."""
    mapped = [name for name in CLASSES if any(name in has for has in SEVEN_TO_THREE.values())]
    return cifar10(path, "7to3", classes=mapped, limit=limit, seed=seed, **simulation)


def _attributes(mapping: str | Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    if isinstance(mapping, Mapping):
        if not mapping:
            raise ValueError("mapping has no attributes")
        return {str(name): _known(has, f"attribute {name!r}") for name, has in mapping.items()}
    if mapping != "7to3":
        raise ValueError(f'mapping must be "7to3" or a dictionary, attribute -> classes, got {mapping!r}')
    return SEVEN_TO_THREE


def _known(classes: Sequence[str], where: str) -> list[str]:
    classes = [classes] if isinstance(classes, str) else list(dict.fromkeys(classes))
    if not classes:
        raise ValueError(f"{where}: no classes given")
    for name in classes:
        if name not in CLASSES:
            raise ValueError(f"{where}: {name!r} is not a class of CIFAR-10; they are {', '.join(CLASSES)}")
    return classes


def _read(path: Path, classes: Sequence[str], limit: int | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Images (N, 3, 32, 32) by split, and (N,) int64, the place of each image's class in ``classes``."""
    if path.is_dir():
        kept = _choose(path, _folder_files(path), classes, limit)
    elif path.is_file():
        try:
            kept = _choose(path, _tar_files(path), classes, limit)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole tar file: {error}") from error
    else:
        raise FileNotFoundError(f"{path} does not exist; expected a folder or a tar file")
    images, owners = {}, {}
    for split in ("train", "test"):
        own = {owner: kept[split, owner] for owner in classes}
        files = [(name, content) for found in own.values() for name, content in sorted(found.items())]
        images[split] = _decode(path, files)
        counts = torch.tensor([len(found) for found in own.values()])
        owners[split] = torch.arange(len(classes)).repeat_interleave(counts)
    return images, owners


def _folder_files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The files of a folder, by name, and how to read each; only two levels of folders are looked at."""
    for file in sorted(path.glob("*/*/*")):
        if file.is_file():
            yield file.relative_to(path).as_posix(), file.read_bytes


def _tar_files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The files of a tar file, in its own order: a compressed one cannot be read back and forth."""
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isfile():
                yield member.name, lambda member=member: archive.extractfile(member).read()


def _choose(
    path: Path,
    files: Iterator[tuple[str, Callable[[], bytes]]],
    classes: Sequence[str],
    limit: int | None,
) -> dict[tuple[str, str], dict[str, bytes]]:
    """The contents of the first ``limit`` files by name, for each (split, class); in one pass, in any order."""
    kept = {(split, owner): {} for split in ("train", "test") for owner in classes}
    last = {}
    for name, read in files:
        match = _MEMBER.search(name)
        if match is None:
            continue
        split, owner, _ = match.groups()
        if owner not in CLASSES:
            raise ValueError(
                f"{path}: {name}: {owner!r} is not a class of CIFAR-10; they are {', '.join(CLASSES)}"
            )
        own = kept.get((split, owner))
        if own is None or (limit is not None and len(own) >= limit and name > last[split, owner]):
            continue
        own[name] = read()
        if limit is not None:
            if len(own) > limit:
                del own[max(own)]
            last[split, owner] = max(own)
    for (split, owner), own in kept.items():
        if not own:
            raise FileNotFoundError(f"{path} has no images {split}/{owner}/*.jpg or *.png")
    return kept


def _decode(path: Path, files: Sequence[tuple[str, bytes]]) -> Tensor:
    """Decoded images (N, 3, 32, 32) float32 in [-1, 1]."""
    from PIL import Image

    pixels = torch.empty(len(files), 32, 32, 3, dtype=torch.uint8)
    rows = pixels.numpy()
    for row, (name, content) in enumerate(files):
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.size != (32, 32):
                    raise ValueError(f"it has {image.width} x {image.height} pixels, expected 32 x 32")
                rows[row] = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: {name} cannot be used: {error}") from error
    x = torch.empty(len(files), 3, 32, 32)
    return x.copy_(pixels.permute(0, 3, 1, 2)).div_(127.5).sub_(1)
