"""The command ``spml-fast ratio``: D_v and D_r from a generator, a folder of images and a CSV of single labels."""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ._loading import ModelSpec, one_line, portable, writable_folder
from .sample_folder import SamplerSpec, probe, write_json
from .training.density_ratio import DensityRatio, DensityRatioClassifier, build_classifier, train_density_ratio
from .training.options import DensityRatioFit, Heads
from .training.trunks import make_trunk

COLUMNS = ("file", "label")
MODES = {1: "L", 3: "RGB"}
"""Pillow's modes by the number of channels."""
WEIGHT = {"gamma": 0.5, "gamma_J": 1.0}
"""The official settings: a margin against noise in D_r."""


@dataclass(frozen=True)
class LabelTable:
    """Image files with one label each.

    Attributes:
        files: paths of the images, all of which exist.
        labels: (N,) int64, index of the class of each.
        classes: names of the classes.
    """

    files: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]


def read_labels(table: str | Path, images: str | Path, classes: Sequence[str] | None = None) -> LabelTable:
    """A CSV with the columns ``file``, relative to ``images``, and ``label``; others are not read.

    Args:
        classes: names of all classes, in order; a label is one of them or an index. By default the classes are
            the labels that there are, sorted; or, where all are integers, 0 to the largest.

    Raises:
        FileNotFoundError: the CSV or a file that it names does not exist.
        ValueError: in one line, which line has no label, an unknown one or a file that has one already, or which
            class has too few images.
    """
    table, images = Path(table), Path(images)
    if not images.is_dir():
        raise FileNotFoundError(f"--images {images} is no folder")
    files: dict[Path, int] = {}
    texts = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, skipinitialspace=True)
            header = reader.fieldnames or []
            lacking = [name for name in COLUMNS if name not in header]
            if lacking:
                raise ValueError(f"{table} has no column {lacking[0]!r}; its header is {','.join(header)!r}")
            for row in reader:
                where = f"{table}, line {reader.line_num}"
                name, text = ((row[column] or "").strip() for column in COLUMNS)
                file = images / name
                if not name or not text:
                    raise ValueError(f"{where}: the {'label' if name else 'file'} is empty")
                if file in files:
                    raise ValueError(f"{where}: {name} has a label already, in line {files[file]}")
                if not file.is_file():
                    raise FileNotFoundError(f"{where}: {file} does not exist")
                if classes is not None and _index(text, classes) is None:
                    raise ValueError(f"{where}: {text!r} is not a class; they are {', '.join(classes)}")
                files[file] = reader.line_num
                texts.append(text)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} is no CSV: {one_line(error)}") from error
    if not texts:
        raise ValueError(f"{table} has a header, but names no image")
    if classes is None and all(text.isdecimal() for text in texts):
        classes = [str(i) for i in range(max(map(int, texts)) + 1)]
    classes = sorted(set(texts)) if classes is None else classes
    labels = torch.tensor([_index(text, classes) for text in texts])
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if len(classes) < 2:
        raise ValueError(f"{table} has one label alone, {classes[0]!r}; there must be two classes at least")
    if min(counts) < 2:
        few = counts.index(min(counts))
        raise ValueError(
            f"{table}: class {classes[few]!r} has {counts[few]} image{'' if counts[few] == 1 else 's'}; "
            "every class needs two, one to train on and one held out"
        )
    return LabelTable(tuple(files), labels, tuple(classes))


def _index(text: str, classes: Sequence[str]) -> int | None:
    if text in classes:
        return list(classes).index(text)
    return int(text) if text.isdecimal() and int(text) < len(classes) else None


class ScaledImages(Dataset):
    """Images with their labels, in the size, channels and range of what a generator makes; bytes in memory.

    Every image is resized, whatever its proportions.

    Args:
        shape: (channels, height, width), of one channel or three.

    Raises:
        ValueError: a file that is no image.
    """

    def __init__(self, table: LabelTable, shape: tuple[int, ...], value_range: tuple[float, float]) -> None:
        from PIL import Image

        channels, height, width = shape
        self.labels, (self.low, self.high) = table.labels, value_range
        self.pixels = torch.empty(len(table.files), *shape, dtype=torch.uint8)
        for pixels, file in zip(self.pixels, table.files, strict=True):
            try:
                with Image.open(file) as image:
                    image = image.convert(MODES[channels])
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"{file} cannot be read as an image: {one_line(error)}") from error
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            pixels.copy_(torch.from_numpy(np.array(image).reshape(height, width, channels)).permute(2, 0, 1))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pixels[index] * ((self.high - self.low) / 255) + self.low, self.labels[index]


@dataclass(frozen=True)
class Augment:
    """What is done to a batch in training, real and generated images alike.

    Attributes:
        noise: standard deviation of Gaussian noise on the pixels, a share of their range. It hides from D_v what
            tells all generated images from real ones, such as 256 levels or blur: more of it, smaller weights.
        flip: flip half of the images from left to right.
        value_range: values of black and white.

    Raises:
        ValueError: negative noise.
    """

    noise: float = 0.1
    flip: bool = False
    value_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must not be negative, got {self.noise:g}")

    def __call__(self, x: Tensor) -> Tensor:
        if self.flip:
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
        low, high = self.value_range
        return x + self.noise * (high - low) * torch.randn_like(x)


# ------------------------------------------------------------------------------------ the networks


def classifier(
    shape: Sequence[int], n_classes: int, trunk: str | None = None, conditional: bool = False
) -> DensityRatioClassifier:
    """The classifier of ``spml-fast ratio``, untrained: the callable that its ``sampler.json`` names.

    Args:
        shape: (channels, height, width) of the images.
        trunk: what linear heads stand on, a name of :func:`~spml_fast.training.trunks.make_trunk`; by default each
            head is a network of its own.
        conditional: with D_f.
    """
    heads = make_heads(shape, n_classes, trunk, conditional)
    with torch.random.fork_rng():
        return build_classifier(torch.zeros(1, *shape), heads, n_classes, conditional)


def make_heads(shape: Sequence[int], n_classes: int, trunk: str | None, conditional: bool) -> Heads:
    """A trunk, or a network for each head: generated images never run out, labels do, so D_v can learn longer."""
    if trunk is not None:
        return Heads(make_trunk({"name": trunk, "channels": shape[0]} if trunk == "small_cnn" else trunk))
    outputs = {"D_v": 1, "D_r": n_classes} | ({"D_f": n_classes} if conditional else {})
    return Heads(**{name: image_network(shape, n) for name, n in outputs.items()})


def image_network(shape: Sequence[int], outputs: int, width: int = 32, widest: int = 256) -> nn.Sequential:
    """A small convolutional network, (B, *shape) -> (B, outputs), that halves images until a side is 4 or less."""
    channels, *sides = shape
    layers: list[nn.Module] = []
    kernel, stride = 3, 1
    while True:
        layers += [
            nn.Conv2d(channels, width, kernel, stride=stride, padding=1, bias=False),
            nn.GroupNorm(8, width),
            nn.ReLU(),
        ]
        channels = width
        if min(sides) <= 4:
            break
        kernel, stride, width = 4, 2, min(2 * width, widest)
        sides = [side // 2 for side in sides]
    features = channels * math.prod(sides)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(features, outputs))


# -------------------------------------------------------------------------------------- the command


def train_ratio(
    generator: ModelSpec,
    table: LabelTable,
    out: str | Path,
    *,
    fit: DensityRatioFit | None = None,
    trunk: str | None = None,
    augment: Augment | None = None,
    value_range: tuple[float, float] | None = None,
    z_dim: int | Sequence[int] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> DensityRatio:
    """Trains the classifiers, prints their report and writes a folder that ``spml-fast sample`` reads.

    Args:
        generator: makes images of one channel or three.
        table: the images and their labels.
        out: folder for ``sampler.json``, ``generator.safetensors``, ``classifier.safetensors`` and ``ratio.json``,
            the report.
        fit: how they are trained, but for ``augment``.
        trunk: see :func:`classifier`.
        augment: noise and flips; its range is that of the images.
        value_range, z_dim: see :class:`SamplerSpec`.
        seed: of the networks, the split, the batches and the latents.

    Raises:
        ValueError, OSError: in one line, whatever does not fit; before anything is trained.
    """
    import lightning  # noqa: F401  now rather than after the images were read
    import safetensors  # noqa: F401
    import sklearn  # noqa: F401
    import torchmetrics  # noqa: F401

    out = writable_folder(out)
    G = generator.load("generator")
    probed = probe(G, z_dim)
    shape = probed.shape
    if len(shape) != 3 or shape[0] not in MODES:
        raise ValueError(f"the generator makes {shape}, not images (1 or 3, height, width)")
    said = "taken to be in" if value_range is None else "in"
    value_range = probed.value_range() if value_range is None else value_range
    arguments = {"shape": list(shape), "n_classes": len(table.classes)}
    if trunk is not None:
        arguments["trunk"] = portable(trunk)
    if probed.conditional:
        arguments["conditional"] = True
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = _checked_heads(shape, len(table.classes), trunk, probed.conditional)
    print(f"generator: images {shape}, pixels {said} [{value_range[0]:g}, {value_range[1]:g}]", flush=True)
    print(f"images: {len(table.files)}, one label each of {', '.join(table.classes)}", flush=True)
    data = ScaledImages(table, shape, value_range)
    augment = replace(augment or Augment(), value_range=value_range)
    ratio = train_density_ratio(
        G,
        data,
        heads=heads,
        fit=replace(fit or DensityRatioFit(), augment=augment),
        n_classes=len(table.classes),
        z_dim=z_dim,
        seed=seed,
        progress=progress,
    )
    spec = SamplerSpec(
        generator,
        ModelSpec(f"{__name__}:{classifier.__name__}", arguments),
        classes=table.classes,
        weight=WEIGHT,
        z_dim=z_dim,
        value_range=value_range,
    )
    spec.save(out, G, ratio.clf)
    counts = torch.bincount(table.labels, minlength=len(table.classes)).tolist()
    report = {**asdict(ratio.report), "images": dict(zip(table.classes, counts, strict=True)), "seed": seed}
    write_json(out / "ratio.json", report)
    print(f"\n{ratio.report}\n\nwritten to {out}/")
    return ratio


def _checked_heads(shape: tuple[int, ...], n_classes: int, trunk: str | None, conditional: bool) -> Heads:
    """The heads; raises ValueError where a trunk cannot be made or does not take the images."""
    try:
        heads = make_heads(shape, n_classes, trunk, conditional)
        if trunk is None:
            return heads
        with torch.no_grad():
            features = copy.deepcopy(heads.trunk).eval()(torch.zeros(2, *shape))
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"trunk {trunk!r} failed for images {(2, *shape)}: {one_line(error)}") from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"trunk {trunk!r} must map images {(2, *shape)} to features (2, F), got {got}")
    return heads
