"""PASCAL VOC 2012 and MS-COCO 2014 as distributed, with the labels that their annotated objects give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from .base import MultiLabelData, Simulation, Splits, training_data
from .images import ImageFiles

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on


def voc2012(
    root: str | Path,
    *,
    difficult: bool = False,
    size: int = 224,
    augment: bool = False,
    seed: int | np.random.Generator | None = 0,
    **simulation: Unpack[Simulation],
) -> Splits:
    """PASCAL VOC 2012: 5,717 training images, and as test data the 5,823 of ``val``, as in the papers.

    A training image without a positive is kept with nothing observed.

    Args:
        root: ``VOCdevkit/VOC2012`` or a folder above it, with ``Annotations``, ``ImageSets/Main``, ``JPEGImages``.
        difficult: whether an object marked as difficult makes its class positive. In the challenge's own lists and
            in the papers it does not.
        size, augment: see :class:`~spml_fast.data.images.ImageFiles`; test images are never augmented.
        seed: seed of the simulated training labels.
        simulation: see :class:`~spml_fast.data.base.Simulation`.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: an annotation that is not as described, naming the file.
    """
    root = _voc_root(Path(root))
    train, test = (_voc_split(root, split, difficult) for split in ("train", "val"))
    return _splits(train, test, VOC_CLASSES, size, augment, seed, simulation)


def _voc_root(root: Path) -> Path:
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "Annotations").is_dir():
            return folder
    raise FileNotFoundError(
        f"{root / 'Annotations'} does not exist; expected VOCdevkit/VOC2012 or a folder above it, got {root}"
    )


def _voc_split(root: Path, split: str, difficult: bool) -> tuple[list[Path], Tensor]:
    listing = root / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        raise FileNotFoundError(f"{listing} does not exist")
    images = listing.read_text().split()
    labels = torch.zeros(len(images), len(VOC_CLASSES), dtype=torch.bool)
    for row, image in enumerate(images):
        labels[row, _voc_objects(root / "Annotations" / f"{image}.xml", difficult)] = True
    return [root / "JPEGImages" / f"{image}.jpg" for image in images], labels


def _voc_objects(path: Path, difficult: bool) -> list[int]:
    """Class indices of the objects in one image."""
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not XML: {error}") from error
    # The parts of a person have names inside <object> as well; only a name right under it is the object's.
    names = [o.findtext("name", "").strip() for o in objects if difficult or o.findtext("difficult", "0") != "1"]
    for name in names:
        if name not in VOC_CLASSES:
            raise ValueError(f"{path}: {name!r} is not one of the {len(VOC_CLASSES)} classes of PASCAL VOC")
    return [VOC_CLASSES.index(name) for name in names]


def coco2014(
    root: str | Path,
    *,
    size: int = 224,
    augment: bool = False,
    seed: int | np.random.Generator | None = 0,
    **simulation: Unpack[Simulation],
) -> Splits:
    """MS-COCO 2014: 82,783 training images, and as test data the 40,504 of ``val``, as in the papers.

    80 classes in the order of their category id; an image has those of its annotations, crowds included. Images
    are in the order of their id. Those without annotations, which papers leave out, are kept: without a positive,
    and in training with nothing observed.

    Args:
        root: folder with ``annotations/instances_{train,val}2014.json``, ``train2014`` and ``val2014``.
        size, augment: see :class:`~spml_fast.data.images.ImageFiles`; test images are never augmented.
        seed: seed of the simulated training labels.
        simulation: see :class:`~spml_fast.data.base.Simulation`.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: annotations that are not as described, naming the file.
    """
    root = Path(root)
    (train, names), (test, test_names) = (_coco_split(root, split) for split in ("train2014", "val2014"))
    if names != test_names:
        raise ValueError(f"{root}: train2014 and val2014 do not have the same categories")
    return _splits(train, test, names, size, augment, seed, simulation)


def _coco_split(root: Path, split: str) -> tuple[tuple[list[Path], Tensor], list[str]]:
    path = root / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with path.open("rb") as file:
            content = json.load(file, object_hook=_without_outlines)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        images = sorted(content["images"], key=lambda image: image["id"])
        column = {category["id"]: j for j, category in enumerate(categories)}
        row = {image["id"]: i for i, image in enumerate(images)}
        labels = torch.zeros(len(images), len(categories), dtype=torch.bool)
        places = [(row[a["image_id"]], column[a["category_id"]]) for a in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not as COCO writes it, it lacks {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if places:
        labels[tuple(torch.tensor(places).T)] = True
    return ([root / split / image["file_name"] for image in images], labels), [c["name"] for c in categories]


def _without_outlines(value: dict[str, Any]) -> dict[str, Any]:
    """Drops the outlines of objects while a file is read: they are nearly all of it and would take gigabytes."""
    value.pop("segmentation", None)
    return value


def _splits(
    train: tuple[list[Path], Tensor],
    test: tuple[list[Path], Tensor],
    names: Sequence[str],
    size: int,
    augment: bool,
    seed: int | np.random.Generator | None,
    simulation: Simulation,
) -> Splits:
    return Splits(
        training_data(ImageFiles(train[0], size, augment=augment), train[1], names, seed, simulation),
        MultiLabelData(ImageFiles(test[0], size), test[1], names=names),
    )
