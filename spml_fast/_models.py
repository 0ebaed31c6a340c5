"""The user's generator and classifier, brought to one calling convention."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

OUTPUT_NAMES = ("class_logits", "fake_class_logits", "validity_logit")


class ClassifierOutput(NamedTuple):
    class_logits: Tensor
    """(B, N) logits of D_r."""
    fake_class_logits: Tensor | None
    """(B, N) logits of D_f."""
    validity_logit: Tensor
    """(B,) logit of D_v."""


def parse_classifier_output(output: object, n_rows: int) -> ClassifierOutput:
    """Reads what ``clf(x)`` returned for ``n_rows`` proposals.

    ``(class_logits, validity_logit)``, ``(class_logits, fake_class_logits or None, validity_logit)`` or a mapping
    with those names; ``ValueError`` or ``TypeError`` otherwise.
    """
    if isinstance(output, Mapping):
        missing = {"class_logits", "validity_logit"} - set(output)
        unknown = set(output) - set(OUTPUT_NAMES)
        if missing or unknown:
            raise ValueError(
                f"clf returned a mapping with keys {sorted(map(str, output))}; expected class_logits, "
                "validity_logit and, for class-conditional proposals, fake_class_logits"
            )
        parts = [output.get(name) for name in OUTPUT_NAMES]
    elif isinstance(output, (tuple, list)) and len(output) in (2, 3):
        parts = [output[0], None, output[1]] if len(output) == 2 else list(output)
    else:
        got = f"{len(output)} outputs" if isinstance(output, (tuple, list)) else type(output).__name__
        raise ValueError(
            f"clf returned {got}; expected (class_logits, validity_logit), "
            "(class_logits, fake_class_logits or None, validity_logit), or a dict with those names"
        )
    class_logits = _floating(parts[0], "class_logits")
    fake = None if parts[1] is None else _floating(parts[1], "fake_class_logits")
    validity = _floating(parts[2], "validity_logit")
    if class_logits.ndim != 2 or class_logits.shape[0] != n_rows or class_logits.shape[1] < 1:
        raise ValueError(f"clf: class_logits must have shape ({n_rows}, classes), got {tuple(class_logits.shape)}")
    if fake is not None and fake.shape != class_logits.shape:
        raise ValueError(
            f"clf: fake_class_logits must have the shape of class_logits, {tuple(class_logits.shape)}, "
            f"got {tuple(fake.shape)}"
        )
    if validity.shape not in ((n_rows,), (n_rows, 1)):
        raise ValueError(
            f"clf: validity_logit must have shape ({n_rows},) or ({n_rows}, 1), got {tuple(validity.shape)}"
        )
    dtype = torch.promote_types(class_logits.dtype, validity.dtype)
    if fake is not None:
        fake = fake.to(dtype)
    return ClassifierOutput(class_logits.to(dtype), fake, validity.reshape(n_rows).to(dtype))


def _floating(part: object, name: str) -> Tensor:
    if not isinstance(part, Tensor):
        raise TypeError(f"clf: {name} must be a tensor, got {type(part).__name__}")
    if not part.is_floating_point():
        raise TypeError(f"clf: {name} must be floating point, got {part.dtype}")
    return part


def takes_label(G: Callable) -> bool:
    """Whether ``G`` requires a second positional argument, the class label."""
    try:
        parameters = inspect.signature(G.forward if isinstance(G, nn.Module) else G).parameters
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters.values() if p.kind in positional and p.default is inspect.Parameter.empty]
    return len(required) >= 2


def latent_shape(G: object, z_dim: int | Sequence[int] | None) -> tuple[int, ...]:
    """The shape of one latent, from ``z_dim`` or else ``G.z_dim``."""
    z_dim = getattr(G, "z_dim", None) if z_dim is None else z_dim
    if z_dim is None:
        raise ValueError(
            f"the latent size of {type(G).__name__} is not known: it has no attribute z_dim, "
            "so pass z_dim=... (an int or a shape)"
        )
    shape = tuple(z_dim) if isinstance(z_dim, Sequence) else (z_dim,)
    if not shape or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        raise ValueError(f"z_dim must be a positive int or a shape of them, got {z_dim!r}")
    return shape


def first_tensor(*models: object) -> Tensor | None:
    """A floating-point parameter or buffer of the first module that has one."""
    for model in models:
        if isinstance(model, nn.Module):
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    return tensor
    return None


_in_use: dict[nn.Module, tuple[int, bool]] = {}
"""Modules in eval mode: by how many threads or calls, and the mode that each had before."""

_in_use_lock = threading.Lock()


@contextmanager
def eval_mode(*models: object) -> Iterator[None]:
    """Puts modules into eval mode; the last user of a module gives it its own mode back."""
    modules = {module for model in models if isinstance(model, nn.Module) for module in model.modules()}
    with _in_use_lock:
        for module in modules:
            users, mode = _in_use.get(module, (0, module.training))
            _in_use[module] = users + 1, mode
            module.training = False
    try:
        yield
    finally:
        with _in_use_lock:
            for module in modules:
                users, mode = _in_use.pop(module)
                if users > 1:
                    _in_use[module] = users - 1, mode
                else:
                    module.training = mode


class Stopwatch:
    """Adds up the time of a ``with`` block; on CUDA by events, read once at the end, so nothing waits."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self._cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self._events.append((start, end))
        else:
            self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._start

    def seconds(self) -> float:
        """Waits for the device."""
        for start, end in self._events:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds
