"""Long runs that a kill does not end: what their chains came to is written now and then, and picked up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._checkpoint import digest, exclusive, load_state, save_state
from .._checks import shown
from .._models import seeded
from . import fingerprints
from .kernels import Kernel
from .models import Models
from .processes import FailedProcessError, Processes
from .proposals import LatentMixture, Mixture
from .results import warn

VERSION = 3

PROBE = "outputs"
"""Key of what G and clf return for fixed latents, which is compared with a tolerance."""

PROBE_LATENTS = 4
PROBE_SEED = 0x5EED


def identity(value: object) -> Any:
    """A plain value that tells one argument from another: for tensors and functions, a hash of what is in them."""
    if isinstance(value, LatentMixture):
        return f"mixture {value.prior_share} {digest(dict(w=value.weights, m=value.means, s=value.scales))}"
    if isinstance(value, Kernel):
        named = [part.name for part in fields(value)] if is_dataclass(value) else list(vars(value))
        options = {name: identity(getattr(value, name)) for name in named}
        return {"name": value.name, "class": type(value).__qualname__} | options
    if isinstance(value, Mixture):
        return {"mixture": asdict(value)}
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{tuple(value.shape)} {digest({'': torch.as_tensor(value)})}"
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): identity(item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [identity(item) for item in value]
    if callable(value):
        return fingerprints.of_function(value)
    text = repr(value)
    return f"{type(value).__name__} {'' if ' at 0x' in text else text}".strip()


def outputs_of(models: Models, labels: Sequence[int | None]) -> list[float]:
    """What G and clf return for a few fixed latents, as numbers: it tells apart models that no hash can.

    torch's generators are seeded for it and left as they were. A stochastic G with its own tells nothing.
    """
    found = _outputs_of(models, labels)
    if models.stochastic and not _alike(found, _outputs_of(models, labels)):
        return []
    return found


def _outputs_of(models: Models, labels: Sequence[int | None]) -> list[float]:
    found: list[Tensor] = []
    with torch.no_grad(), seeded(PROBE_SEED, models.device):
        for label in dict.fromkeys(labels):
            x, output = models.given(label).classify(models.trial_normals(PROBE_LATENTS, PROBE_SEED))
            rows = x.reshape(len(x), -1).double()
            parts = (rows.mean(1), rows.square().mean(1), *(part for part in output if part is not None))
            found += [part.double().flatten().clamp(-1e30, 1e30).cpu() for part in parts]
    return torch.cat(found).tolist()


class Checkpoint:
    """One file with the chains of all processes, so that any number of processes can go on from it."""

    def __init__(self, path: Path, call: dict[str, Any], every: float, processes: Processes, saved: Any) -> None:
        self.path = path
        self.every = every
        self.processes = processes
        self.call = call if saved is None else saved["call"]
        self.parts: dict[str, Any] = {} if saved is None else saved["parts"]
        self.last = time.monotonic()

    @property
    def seed(self) -> int:
        return self.call["seed"]

    def due(self) -> bool:
        """Whether it is time to write again; the first process's clock decides."""
        return self.processes.rank == 0 and time.monotonic() - self.last >= self.every

    def taken(self, part: str) -> Any:
        """A part of the file, None if it has none; the first process alone keeps it."""
        return self.parts.get(part) if self.processes.rank == 0 else self.parts.pop(part, None)

    def save(self, part: str, state: Any) -> None:
        """Replaces one part of the file. If it cannot be written, a warning says so, and the next time may do."""
        self.last = time.monotonic()
        if self.processes.rank != 0:
            return
        self.parts[part] = state
        try:
            self.write()
        except (OSError, RuntimeError) as error:
            warn(f"checkpoint {self.path} could not be written: {error}; the run goes on without it")

    def write(self) -> None:
        save_state(self.path, {"s2m_sampling": VERSION, "call": self.call, "parts": self.parts})


@contextmanager
def opened(
    path: str | Path,
    call: dict[str, Any],
    outputs: Callable[[], list[float]],
    seed: Callable[[], int],
    every: float,
    processes: Processes,
) -> Iterator[Checkpoint]:
    """The checkpoint at ``path``, read if it is there, for this run alone.

    Args:
        call: what tells the call; ``call["seed"]`` is None for a run without a seed of its own, which goes on with
            that of the file.
        outputs: the :func:`outputs_of` G and clf, called in the first process, once all else fits.
        seed: called for a new run.

    Raises:
        ValueError: it is of another call, in use by another run, or no checkpoint of sampling.
    """
    path = Path(path)
    lock = ExitStack()

    def begin() -> dict[str, Any] | None:
        if not path.exists() and not path.parent.is_dir():
            raise FileNotFoundError(f"checkpoint={str(path)!r}: there is no folder {path.parent}")
        lock.enter_context(exclusive(path))
        saved = _read(path, call) if path.exists() else None
        call[PROBE] = outputs()
        if saved is not None and not _alike(saved["call"][PROBE], call[PROBE]):
            raise ValueError(
                f"{path} is of a run with another G or clf: they return other values for the same latents; "
                "give another file or delete this one"
            )
        return saved

    with lock:
        saved = processes.from_first(begin)
        found = Checkpoint(path, call, every, processes, saved)
        if saved is None:
            found.call = {**call, "seed": seed()}
            processes.from_first(found.write)  # where nothing can be written is better known now
        try:
            yield found
        except (TypeError, ValueError, FailedProcessError):  # the call may be wrong, and the file holds no more
            if saved is None and not found.parts and processes.rank == 0:
                path.unlink(missing_ok=True)
            raise


def _read(path: Path, call: dict[str, Any]) -> dict[str, Any]:
    saved = load_state(path)
    if not isinstance(saved, dict) or not {"call", "parts"} <= set(saved) or saved.get("s2m_sampling") != VERSION:
        raise ValueError(f"{path} is not a checkpoint of S2M sampling, or one of another version")
    for name, value in call.items():
        before = saved["call"].get(name)
        if before != value and not (name == "seed" and value is None):
            raise ValueError(
                f"{path} is of a run with {name}={shown(before)}, not {shown(value)}; give another file or delete "
                "this one"
            )
    return saved


def _alike(before: list[float], now: list[float]) -> bool:
    """Whether two probes are the same within the rounding of two machines."""
    return len(before) == len(now) and bool(np.allclose(before, now, rtol=1e-3, atol=1e-4))
