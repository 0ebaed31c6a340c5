"""Files that are written whole or not at all, and read without executing code."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Writes a file that appears under its name whole or not at all.

    Args:
        write: writes the file to the path that it is called with, which lies beside ``path``.
    """
    path = Path(path)
    write(part_of(path))
    return take_name(path)


def part_of(path: Path) -> Path:
    """The name under which the file ``path`` is written before it is whole."""
    return path.with_name(f".{path.name}.part")


def take_name(path: Path) -> Path:
    """Gives the part file, once it is on the disk, its final name ``path``."""
    part = part_of(path)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    return path


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Writes nested dicts and lists of tensors and plain values to a file."""
    write_atomically(path, lambda part: torch.save(state, part))


def load_state(path: str | Path) -> dict[str, Any]:
    """The state that :func:`save_state` wrote, its tensors on the CPU.

    Raises:
        ValueError: the file holds something else, for example code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint of spml-fast: {error}") from error


def digest(tensors: Mapping[str, Any]) -> str:
    """A hash that tells data apart: of names, shapes, dtypes and values of tensors, arrays and CSR matrices.

    Other values are not read: they count by their length, where they have one.
    """
    found = hashlib.blake2b(digest_size=16)
    for name, value in tensors.items():
        found.update(f"{name}\0".encode())
        if isinstance(value, torch.Tensor | np.ndarray):
            found.update(f"{tuple(value.shape)} {value.dtype}".encode())
            if isinstance(value, torch.Tensor):
                value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            found.update(np.ascontiguousarray(value))
        elif hasattr(value, "indptr"):
            parts = {"indptr": value.indptr, "indices": value.indices, "data": value.data}
            found.update(f"{value.shape} {digest(parts)}".encode())
        elif hasattr(value, "__len__"):
            found.update(str(len(value)).encode())
    return found.hexdigest()
