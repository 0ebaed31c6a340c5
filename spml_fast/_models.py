"""Modules inside the models that users pass, and how they are borrowed for a run and given back as they were."""

from __future__ import annotations

import itertools
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SEARCH_DEPTH = 5
"""Functions in functions, objects in objects, that are looked into for modules."""


MOST_ITEMS = 1000
"""Items of a list or a dict that are looked into."""

NOT_LOOKED_INTO = (type, types.ModuleType, Tensor, np.ndarray, str, bytes, int, float, complex, type(None))


def unwrapped(model: Any) -> Any:
    """What ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` or ``partial`` was put around."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if inner is None and isinstance(model, partial):
            inner = model.func
        if inner is None:
            return model
        model = inner


def modules_in(*models: object) -> list[nn.Module]:
    """The modules that models consist of: they themselves, or those inside functions, partials and objects.

    A function is searched through what it closes over, its defaults and the global names that it uses; a bound
    method and a callable object through the attributes of its object.
    """
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()

    def visit(value: Any, depth: int) -> None:
        if isinstance(value, NOT_LOOKED_INTO) or id(value) in seen or depth > SEARCH_DEPTH:
            return
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found[id(value)] = value
        for part in _inside(value):
            visit(part, depth + 1)

    for model in models:
        visit(model, 0)
    return list(found.values())


def _inside(value: Any) -> list[Any]:
    """What a value may hold modules in, beside those that a module knows of itself."""
    if isinstance(value, torch.jit.ScriptModule):
        return []
    if isinstance(value, nn.Module):
        own = (part for module in value.modules() for name, part in vars(module).items() if name[:1] != "_")
        return [part for part in own if not isinstance(part, nn.Module)]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(itertools.islice(value, MOST_ITEMS))
    if isinstance(value, Mapping):
        return list(itertools.islice(value.values(), MOST_ITEMS))
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        if (value.__module__ or "").split(".")[0] in ("torch", "spml_fast"):
            return []
        parts = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        for cell in value.__closure__ or ():
            try:
                parts.append(cell.cell_contents)
            except ValueError:  # empty: not assigned yet
                continue
        names = _global_names(value.__code__)
        return parts + [value.__globals__[name] for name in names if name in value.__globals__]
    if hasattr(value, "__dict__") and not isinstance(value, types.BuiltinFunctionType):
        return [*vars(value).values(), getattr(type(value), "__call__", None)]  # noqa: B004
    return []


def _global_names(code: types.CodeType) -> set[str]:
    """Names that a function and the functions inside it use."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def compiled_in(*models: object) -> bool:
    """Whether ``torch.compile`` is anywhere in models: what watches calls would be compiled, too, or refused."""
    modules = (module for root in modules_in(*models) for module in root.modules())
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in modules
    )


def first_tensor(*models: object) -> Tensor | None:
    """A floating-point parameter or buffer of the first module that has one."""
    for module in modules_in(*models):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return tensor
    return None


DRAWING = threading.RLock()
"""Held while torch's global generator is drawn from or set back, or two threads could get the same numbers."""


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators of the CPU and of ``device``, and gives them their states back; no others."""
    cuda = device.type == "cuda"
    with DRAWING, torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def dtypes_in(model: object) -> list[torch.dtype]:
    """The floating-point dtypes of the modules that a model consists of, the likeliest first."""
    tensors = (first_tensor(module) for module in modules_in(model))
    return list(dict.fromkeys(tensor.dtype for tensor in tensors if tensor is not None))


_lock = threading.Lock()

_in_use: dict[nn.Module, tuple[int, bool]] = {}
"""Modules in eval mode: by how many threads or calls, and the mode that each had before."""

_reordered: dict[Tensor, tuple[int, Tensor, tuple[int, int]]] = {}
"""Weights in another memory format: by how many threads or calls, the data before, and :func:`_content`."""


def _content(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor gets other data, and when it is written to."""
    return tensor.data_ptr(), tensor._version


@contextmanager
def eval_mode(*models: object) -> Iterator[None]:
    """Puts the modules of models into eval mode; the last user of a module gives it its own mode back."""
    modules = {module for root in modules_in(*models) for module in root.modules()}
    modules = {module for module in modules if hasattr(module, "training")}  # frozen by torch.jit, they have none
    with _lock:
        for module in modules:
            users, mode = _in_use.get(module, (0, module.training))
            _in_use[module] = users + 1, mode
            module.training = False
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                users, mode = _in_use.pop(module)
                if users > 1:
                    _in_use[module] = users - 1, mode
                else:
                    module.training = mode


@contextmanager
def channels_last(*models: object) -> Iterator[None]:
    """Puts the weights of convolutions into channels-last format; the last user gives each its own data back."""
    tensors = {
        tensor
        for root in modules_in(*models)
        for tensor in (*root.parameters(), *root.buffers())
        if tensor.ndim == 4 and type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and not tensor.is_inference()
    }
    with _lock, torch.inference_mode(False):
        for tensor in tensors:
            if tensor in _reordered:
                users, data, content = _reordered[tensor]
                _reordered[tensor] = users + 1, data, content
            else:
                data = tensor.data
                tensor.data = data.contiguous(memory_format=torch.channels_last)
                _reordered[tensor] = 1, data, _content(tensor)
    try:
        yield
    finally:
        with _lock:
            for tensor in tensors:
                users, data, (address, version) = _reordered.pop(tensor)
                if users > 1:
                    _reordered[tensor] = users - 1, data, (address, version)
                elif tensor.data_ptr() == address:  # or somebody gave it other data meanwhile
                    if tensor._version != version:  # somebody wrote to it
                        data.copy_(tensor.data)
                    tensor.data = data


@contextmanager
def called_in_training(found: list[str]) -> Iterator[None]:
    """Collects the classes of modules that this thread calls in training mode, which they leave meanwhile."""
    left: list[nn.Module] = []
    thread = threading.get_ident()

    def note(module: nn.Module, _: Any) -> None:
        if threading.get_ident() != thread or isinstance(module, torch.jit.ScriptModule):
            return
        if module.training:
            module.training = False
            left.append(module)
            found.append(type(module).__name__)

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()
        for module in left:
            module.training = True


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


Model = Callable[..., Any]
"""A module, or anything else that can be called."""
