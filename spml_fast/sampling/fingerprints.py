"""What a checkpoint knows functions and options by: hashes of code and of the values that it works with."""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._checkpoint import digest

DEPTH = 4
"""How deep values are looked into: a function in a partial in an attribute of a callable object is three."""

VALUES = (bool, int, float, complex, str, bytes, type(None), range, torch.dtype, Path)
"""Types whose ``repr`` tells a value from another, and nothing else."""

DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")
"""Names of devices, of which each process may have its own."""


def of_model(model: object) -> str:
    """A name and a hash of the code of G or clf, and of the weights of a module.

    Numbers that a function holds are left out: they may count its calls, and what it returns tells them.
    """
    if isinstance(model, nn.Module):
        return f"{type(model).__name__} {digest(model.state_dict())}"
    while isinstance(model, functools.partial):
        model = model.func
    function = getattr(model, "__func__", model)
    if isinstance(function, FunctionType):
        return f"function {function.__qualname__} {_hash(_code(function.__code__))}"
    return getattr(model, "__qualname__", type(model).__qualname__)


def of_function(function: Callable[..., Any]) -> str:
    """A name and a hash of what a function does: its code, defaults and closure, arguments of a ``partial``,
    attributes of a callable object or of the owner of a method.

    Left out is what changes as it is called: generators, iterators and other objects of foreign types, variables
    and attributes that its own code assigns.
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"function {name} {_hash(repr(_inside(function, DEPTH)))}"


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _code(code: CodeType) -> str:
    """The instructions, names and constants, those of inner functions included; no places in a file."""
    constants = [_code(part) if isinstance(part, CodeType) else _constant(part) for part in code.co_consts]
    return repr((code.co_code, code.co_names, constants))


def _constant(value: object) -> str:
    if isinstance(value, frozenset):  # in an order of its own in every process
        return f"frozenset {sorted(map(_constant, value))}"
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else repr(value)


def _inside(value: object, depth: int) -> Any:
    """A value as one whose ``repr`` is the same wherever the same thing is done with it."""
    kind = type(value).__qualname__
    if isinstance(value, str) and DEVICE.fullmatch(value):
        return kind
    if isinstance(value, VALUES):
        return f"{kind} {value!r}"
    if isinstance(value, np.generic):
        return _inside(value.item(), depth)
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{tuple(value.shape)} {_array_digest(value)}"
    if depth == 0:
        return kind
    look = functools.partial(_inside, depth=depth - 1)
    if isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        held = _kept({name: _content(cell) for name, cell in cells}, [value.__code__])
        return [
            "function",
            _code(value.__code__),
            look(held),
            *map(look, (value.__defaults__, value.__kwdefaults__)),
        ]
    if isinstance(value, MethodType):
        return ["method", look(value.__func__), _object(value.__self__, look, value.__func__)]
    if isinstance(value, functools.partial):
        return ["partial", look(value.func), look(value.args), look(value.keywords)]
    if isinstance(value, BuiltinFunctionType | type):
        return value.__qualname__
    if isinstance(value, Mapping):
        return [kind, sorted((str(name), repr(look(part))) for name, part in value.items())]
    if isinstance(value, Set):
        return [kind, sorted(repr(look(part)) for part in value)]
    if isinstance(value, Sequence):
        return [kind, *map(look, value)]
    if callable(value) or dataclasses.is_dataclass(value) or isinstance(value, torch.distributions.Distribution):
        return _object(value, look)
    return kind


def _array_digest(value: Tensor | np.ndarray) -> str:
    try:
        return digest({"": value})
    except (
        RuntimeError,
        TypeError,
        ValueError,
    ):  # sparse tensors, arrays of objects and others without plain bytes
        return str(value.dtype)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty: of a variable that has no value yet
        return "empty"


def _object(value: object, look: Callable[[object], Any], called: object = None) -> list[Any]:
    """The class of an object, the function of it that is called, and its attributes."""
    kind = type(value)
    if isinstance(value, type):
        return [value.__qualname__]
    called = called or inspect.getattr_static(
        kind, "forward" if isinstance(value, nn.Module) else "__call__", None
    )
    codes = _codes(kind, called.__code__) if isinstance(called, FunctionType) else []
    attributes = dict(getattr(value, "__dict__", {}))
    attributes |= {name: getattr(value, name) for name in _slots(kind) if hasattr(value, name)}
    parts: list[Any] = [kind.__qualname__, *map(_code, codes)]
    if isinstance(value, nn.Module):
        parts.append(digest(value.state_dict()))
        attributes = {name: part for name, part in attributes.items() if name[0] != "_" and name != "training"}
    return [*parts, look(_kept(attributes, codes))]


def _slots(kind: type) -> list[str]:
    slots = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    return [name for names in slots for name in ((names,) if isinstance(names, str) else names)]


def _codes(kind: type, code: CodeType) -> list[CodeType]:
    """The code of a method and of the methods of its class that it names, and so on."""
    found, names = [code], list(code.co_names)
    while names:
        method = inspect.getattr_static(kind, names.pop(0), None)
        if isinstance(method, FunctionType) and method.__code__ not in found:
            found.append(method.__code__)
            names += method.__code__.co_names
    return found


def _kept(values: dict[str, Any], codes: list[CodeType]) -> dict[str, Any]:
    """The variables or attributes that these codes do not change."""
    assigned, worked_in = _changed(codes)
    values = {name: part for name, part in values.items() if name not in assigned}
    return {name: part for name, part in values.items() if name not in worked_in or isinstance(part, VALUES)}


def _changed(codes: list[CodeType]) -> tuple[set[str], set[str]]:
    """Names of variables and attributes that are assigned, and of those whose value is changed in place."""
    assigned, worked_in = set(), set()
    codes = list(codes)
    while codes:
        code = codes.pop()
        codes += [part for part in code.co_consts if isinstance(part, CodeType)]
        steps = list(dis.get_instructions(code))
        for i, step in enumerate(steps[:-1]):
            if step.opname in ("STORE_DEREF", "STORE_ATTR"):
                assigned.add(step.argval)
            elif step.opname in ("LOAD_DEREF", "LOAD_ATTR"):
                then = steps[i + 1]
                method = then.opname in ("LOAD_METHOD", "LOAD_ATTR") and _works_in_place(str(then.argval))
                out = isinstance(then.argval, tuple) and then.argval[-1:] == ("out",)
                indexed = next((s for s in steps[i + 1 :] if not s.opname.startswith(("LOAD_", "BUILD_"))), then)
                if method or out or (indexed is not then and indexed.opname in ITEM_IS_SET):
                    worked_in.add(step.argval)
    return assigned, worked_in


ITEM_IS_SET = ("STORE_SUBSCR", "STORE_SLICE", "COPY")
"""Instructions that follow a value and its index where the item is set, or changed by ``+=``."""


def _works_in_place(method: str) -> bool:
    return method in IN_PLACE or (method.endswith("_") and not method.endswith("__"))


IN_PLACE = ("add", "append", "appendleft", "clear", "extend", "insert", "pop", "popleft", "setdefault", "update")
"""Methods of lists, dicts, sets and queues; those of tensors end in an underscore."""
