"""Images that stay on disk until they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet, with which pretrained networks expect their input normalised."""


class ImageFiles(Dataset):
    """Image files as (3, size, size) float32 tensors, normalised with the mean and deviation of ImageNet.

    Every image is resized to size x size, whatever its proportions, as the papers do. The data set can be
    pickled, which the workers of a ``DataLoader`` need.

    Args:
        files: paths of the images.
        size: side of the images in pixels; 448 in the papers.
        augment: random flips from left to right and, where torchvision is installed, random crops from an eighth
            more. Draws from torch's generator, which ``DataLoader`` seeds for each worker.

    Raises:
        FileNotFoundError: when made, how many files are missing and the first.
        ValueError: when indexed, a file that is no image.
    """

    def __init__(self, files: Sequence[str | Path], size: int = 224, *, augment: bool = False) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size must be a positive integer, got {size!r}")
        self.files = tuple(map(str, files))
        self.size = size
        self.augment = augment
        missing = _missing(self.files)
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.files)} images do not exist, the first is {missing[0]}"
            )
        self.transform = _transform(size, augment)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        from PIL import Image

        file = self.files[index]
        try:
            with Image.open(file) as image:
                image = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{file} cannot be decoded: {error}") from error
        return self.transform(image)

    def __repr__(self) -> str:
        return f"ImageFiles({len(self)} files, size={self.size}, augment={self.augment})"


def _missing(files: Sequence[str]) -> list[str]:
    """Files that do not exist. Each folder is listed once: file by file takes minutes on a network drive."""
    missing = []
    for folder, group in groupby(sorted(files, key=os.path.dirname), key=os.path.dirname):
        try:
            there = set(os.listdir(folder or "."))
        except (FileNotFoundError, NotADirectoryError):
            there = set()
        missing.extend(file for file in group if os.path.basename(file) not in there)
    return missing


def _transform(size: int, augment: bool) -> Callable[[Any], Tensor]:
    # Without augmentation Pillow alone does what torchvision would do with its help.
    if not augment:
        return Resize(size)
    try:
        from torchvision.transforms import v2
    except ImportError:
        return Resize(size, flip=True)
    larger = round(size * 9 / 8)
    return v2.Compose(
        [
            v2.Resize((larger, larger)),
            v2.RandomCrop(size),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.ToPureTensor(),
            v2.Normalize(MEAN, STD),
        ]
    )


class Resize:
    """A transform that resizes, flips half of the images if asked to, and normalises."""

    def __init__(self, size: int, *, flip: bool = False) -> None:
        self.size = size
        self.flip = flip

    def __call__(self, image: Any) -> Tensor:
        from PIL.Image import Resampling

        pixels = np.array(image.resize((self.size, self.size), Resampling.BILINEAR))
        x = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)
        x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        return x.flip(2) if self.flip and bool(torch.rand(()) < 0.5) else x
