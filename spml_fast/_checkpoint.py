"""Files that are written whole or not at all, and read without executing code."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
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
    try:
        write(part_of(path))
        return take_name(path)
    except BaseException:
        part_of(path).unlink(missing_ok=True)
        raise


def part_of(path: Path) -> Path:
    """The name under which this thread writes the file ``path`` before it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")


def take_name(path: Path) -> Path:
    """Gives the part file, once it is on the disk, its final name ``path``."""
    part = part_of(path)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    return path


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Writes nested dicts and lists of tensors and plain values to a file.

    Numbers of NumPy are written as Python's: others could not be read without executing code.
    """
    write_atomically(path, lambda part: torch.save(_plain(state), part))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def load_state(path: str | Path) -> dict[str, Any]:
    """The state that :func:`save_state` wrote, its tensors on the CPU.

    Raises:
        ValueError: the file holds something else, for example code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint of spml-fast: {error}") from error


@contextlib.contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Keeps other runs from using a file or a folder the same way; the lock ends with the process at the latest.

    Parts of the file, or of all files in the folder, that processes were killed over are removed.

    Raises:
        ValueError: another run holds it.
    """
    path = Path(path)
    folder, name = (path, ".+") if path.is_dir() else (path.parent, re.escape(path.name))
    lock = folder / (".lock" if path.is_dir() else f".{path.name}.lock")
    while True:
        file = os.open(lock, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise ValueError(f"{path} is in use by another run, which is not over") from None
        if lock.exists() and os.path.samestat(os.fstat(file), os.stat(lock)):
            break
        os.close(file)  # the run before removed it between the two calls
    try:
        left = re.compile(rf"\.{name}\.\d+-\d+\.part")
        for part in folder.iterdir():
            if left.fullmatch(part.name):
                part.unlink(missing_ok=True)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)


def digest(tensors: Mapping[str, Any]) -> str:
    """A hash that tells data apart: of names, shapes, dtypes and values of tensors, arrays and CSR matrices.

    Strings and numbers count by their value; anything else is not read and counts by its length, if it has one.
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
        elif isinstance(value, str | bytes | int | float | None):
            found.update(repr(value).encode())
        elif hasattr(value, "__len__"):
            found.update(str(len(value)).encode())
    return found.hexdigest()
