"""Files that survive a kill at any moment, and are read without executing code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """``write(part)`` writes a file beside ``path``, which then takes its name: whole or not at all."""
    path = Path(path)
    write(part_of(path))
    return take_name(path)


def part_of(path: Path) -> Path:
    """Where ``path`` is written before it takes its name."""
    return path.with_name(f".{path.name}.part")


def take_name(path: Path) -> Path:
    """Let what lies in the part file be ``path``."""
    part = part_of(path)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    return path


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Nested dicts and lists of tensors and plain values."""
    write_atomically(path, lambda part: torch.save(state, part))


def load_state(path: str | Path) -> dict[str, Any]:
    """What :func:`save_state` wrote; on the CPU.

    Raises:
        ValueError: the file holds something else, for example code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint of spml-fast: {error}") from error
