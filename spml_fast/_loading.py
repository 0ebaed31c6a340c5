"""Models that a command line names: a callable that makes a module, and a file of weights for it.

Weights are read without executing code. The callable is the user's own code, which is imported and called.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ._processes import local_rank

STATE_NAMES = ("g_ema", "G_ema", "ema", "state_dict", "model_state_dict", "generator", "model")
"""Names under which checkpoints hold a state dict, the one that is taken first."""


@dataclass(frozen=True)
class ModelSpec:
    """A model as a command line or a ``sampler.json`` names it.

    Attributes:
        callable: "package.module:callable" or "path/to/file.py:callable", which is called with ``arguments`` and
            returns the model; or names a module (``nn.Module``) that is there already.
        arguments: keyword arguments of the callable.
        weights: safetensors, or what ``torch.save`` wrote of a state dict, loaded strictly; None for none.
    """

    callable: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None

    def load(self, what: str) -> Callable[..., Any]:
        """The model, a module in eval mode on the CPU; ``what`` it is to be, for messages.

        Raises:
            ValueError: in one line, what cannot be imported, called or loaded.
        """
        model = resolve(self.callable, what)
        if not isinstance(model, nn.Module):
            try:
                model = model(**self.arguments)
            except Exception as error:
                given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
                raise ValueError(f"{what} {self.callable}({given}) failed: {one_line(error)}") from error
        elif self.arguments:
            raise ValueError(f"{what} {self.callable} is a module already: it takes no arguments")
        if isinstance(model, nn.Module):
            if self.weights is not None:
                fit_weights(model, self.weights, f"{what} {self.callable}")
            return model.cpu().eval()
        if not callable(model):
            raise ValueError(f"{what} {self.callable} returned a {type(model).__name__}, which cannot be called")
        if self.weights is not None:
            raise ValueError(
                f"{what} {self.callable} returned a {type(model).__name__}, which is no torch.nn.Module: "
                f"the weights {self.weights} cannot be loaded"
            )
        return model


def resolve(spec: str, what: str) -> Any:
    """The object that "package.module:callable" or "path/to/file.py:callable" names.

    Modules in the current directory can be imported, and those beside a file.

    Raises:
        ValueError: in one line, why it cannot be imported, or that it is not there or cannot be called.
    """
    module_name, _, name = spec.rpartition(":")
    if not module_name or not name:
        raise ValueError(f"{what} must be package.module:callable or path/to/file.py:callable, got {spec!r}")
    try:
        found: Any = _import_file(Path(module_name)) if module_name.endswith(".py") else _import(module_name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what} {spec!r} cannot be imported: {one_line(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{what} {spec!r}: there is no {name} in {module_name}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{what} {spec!r} is a {type(found).__name__}, which cannot be called")
    return found


def portable(spec: str) -> str:
    """The spec as it can be found again from another directory: the path of a file absolute."""
    module_name, _, name = spec.rpartition(":")
    return f"{Path(module_name).resolve()}:{name}" if module_name.endswith(".py") else spec


def _import(name: str) -> ModuleType:
    _importable(os.getcwd())  # a console script looks in its own folder instead
    importlib.invalidate_caches()
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    _importable(os.getcwd())
    _importable(str(path.parent))
    name = str(path)  # its stem could be the name of another module
    if name not in sys.modules:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _importable(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)


# --------------------------------------------------------------------------------------- weights


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, without the prefix "module." that DataParallel leaves.

    Args:
        path: safetensors, or what ``torch.save`` wrote of a state dict or of a dict that holds one under one of
            :data:`STATE_NAMES`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else; nothing of it was executed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} do not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # of many kinds: what the file holds is anybody's guess
        text = one_line((str(error).strip().splitlines() or [type(error).__name__])[0])
        hint = "; of a whole module, save its state_dict()" if "weights_only" in str(error).lower() else ""
        raise ValueError(f"{path} cannot be read as weights alone: {text}{hint}") from error
    while isinstance(state, Mapping) and not _is_state(state):
        name = next((name for name in STATE_NAMES if isinstance(state.get(name), Mapping)), None)
        if name is None:
            break
        state = state[name]
    if not isinstance(state, Mapping) or not _is_state(state):
        inside = f" with {', '.join(map(str, list(state)[:8]))}" if isinstance(state, Mapping) else ""
        raise ValueError(f"{path} holds a {type(state).__name__}{inside}; expected a state dict, name -> tensor")
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return dict(state)


def _is_state(state: Mapping) -> bool:
    return len(state) > 0 and all(isinstance(tensor, Tensor) for tensor in state.values())


def fit_weights(module: nn.Module, path: str | Path, what: str) -> None:
    """Loads the weights in a file into a module, strictly.

    Raises:
        ValueError: in one line, what does not fit.
    """
    state = load_weights(path)
    try:
        told = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        raise ValueError(f"{path} does not fit {what}: {one_line(str(error).partition(':')[2])}") from error
    own = module.state_dict()
    # Of tensors that share their memory, save_model of safetensors keeps one.
    kept = {own[name].data_ptr() for name in state if name in own}
    missing = [name for name in told.missing_keys if own[name].data_ptr() not in kept]
    wrong = [
        f"{len(names)} {kind} ({textwrap.shorten(', '.join(names), 120, placeholder=' …')})"
        for kind, names in (("missing", missing), ("not known", told.unexpected_keys))
        if names
    ]
    if wrong:
        raise ValueError(f"{path} does not fit {what}: of its tensors {' and '.join(wrong)}")


# --------------------------------------------------------------------------------- the command line


def one_line(error: object, longest: int = 300) -> str:
    """An error, or a text, as one line: the type too, where the message alone does not say what is wrong."""
    text = str(error)
    if isinstance(error, BaseException) and not isinstance(error, ValueError | OSError | ImportError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return textwrap.shorten(text, longest, placeholder=" …")


def parse_arguments(texts: Sequence[str], flag: str) -> dict[str, Any]:
    """Keyword arguments from KEY=VALUE, the value in JSON, or a string as it stands.

    Raises:
        ValueError: a text that is not KEY=VALUE.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"{flag} {text}: expected KEY=VALUE")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def checked_device(name: str) -> torch.device:
    """The device of that name; "cuda" is the one of this process, where torchrun started several.

    Raises:
        ValueError: there is no such device.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {one_line(str(error))}") from error
    return torch.device(f"cuda:{local_rank()}" if name == "cuda" else name)


def writable_folder(path: str | Path) -> Path:
    """The folder, made if missing.

    Raises:
        OSError: nothing can be written there.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"nothing can be written into {path}")
    return path
