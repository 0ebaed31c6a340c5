"""Long runs that a kill does not end: what their chains came to is written now and then, and picked up again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._checkpoint import load_state, save_state
from .mixture import LatentMixture
from .processes import Processes

VERSION = 1


def describe(value: object) -> Any:
    """A plain value that tells one argument from another: for models and tensors, a hash of their bytes."""
    if isinstance(value, nn.Module):
        return f"{type(value).__name__} {_hash(value.state_dict())}"
    if isinstance(value, LatentMixture):
        return f"mixture {value.prior_share} {_hash(dict(w=value.weights, m=value.means, s=value.scales))}"
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{tuple(value.shape)} {_hash({'': torch.as_tensor(value)})}"
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): describe(item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [describe(item) for item in value]
    return f"{type(value).__name__} {getattr(value, '__qualname__', '')}".strip()


def _hash(tensors: Mapping[str, object]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        found.update(name.encode())
        if isinstance(tensor, Tensor):
            found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


class Checkpoint:
    """One file with the chains of all processes, so that any number of processes can go on from it."""

    def __init__(
        self, path: str | Path, call: dict[str, Any], seed: int, every: float, processes: Processes
    ) -> None:
        """Reads ``path`` if it is there; a run without a seed of its own goes on with that of the file.

        Raises:
            ValueError: it is of another call, or no checkpoint of sampling.
        """
        self.path = Path(path)
        self.every = every
        self.processes = processes
        saved = processes.from_first(lambda: self._read(call))
        self.call = {**call, "seed": seed} if saved is None else saved["call"]
        self.seed: int = self.call["seed"]
        self.parts: dict[str, Any] = {} if saved is None else saved["parts"]
        if saved is None:  # where nothing can be written is better known now
            self.write()
        self.last = time.monotonic()

    def _read(self, call: dict[str, Any]) -> dict[str, Any] | None:
        if not self.path.exists():
            if not self.path.parent.is_dir():
                raise FileNotFoundError(f"checkpoint={str(self.path)!r}: there is no folder {self.path.parent}")
            return None
        saved = load_state(self.path)
        if (
            not isinstance(saved, dict)
            or not {"call", "parts"} <= set(saved)
            or saved.get("s2m_sampling") != VERSION
        ):
            raise ValueError(f"{self.path} is not a checkpoint of S2M sampling, or one of another version")
        for name, value in call.items():
            before = saved["call"].get(name)
            if before != value and not (name == "seed" and value is None):
                raise ValueError(
                    f"{self.path} is of a run with {name}={before!r}, not {value!r}; give another file or "
                    "delete this one"
                )
        return saved

    def due(self) -> bool:
        """Whether it is time to write again; the first process's clock decides."""
        return self.processes.rank == 0 and time.monotonic() - self.last >= self.every

    def save(self, part: str, state: Any) -> None:
        """Replaces one part of the file."""
        self.parts[part] = state
        self.write()
        self.last = time.monotonic()

    def write(self) -> None:
        if self.processes.rank == 0:
            save_state(self.path, {"s2m_sampling": VERSION, "call": self.call, "parts": self.parts})
