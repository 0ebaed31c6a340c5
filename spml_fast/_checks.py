"""Checks of what users pass, that both wings make."""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

F = TypeVar("F", bound=Callable[..., Any])


def count(value: object, name: str, *, least: int = 1, most: int = 2**62) -> int:
    """``value`` as an int between ``least`` and ``most``.

    Raises:
        TypeError, ValueError: it is no integer (bool is none), or out of that range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be between {least} and {most}, got {value}")
    return int(value)


def keep_count(options: object, name: str, **bounds: int) -> None:
    """Checks a count among the fields of frozen options, and keeps it as an int: NumPy's integers overflow."""
    object.__setattr__(options, name, count(getattr(options, name), name, **bounds))


def shown(value: object) -> str:
    """``repr(value)`` in one short line: for tensors and arrays their shape, of long lists the beginning."""
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim > 0:
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = " ".join(_short.repr(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


LONGEST = 120

_short = reprlib.Repr()
_short.maxlist = _short.maxtuple = _short.maxdict = 8
_short.maxstring = _short.maxother = 100


def renamed(**now: str) -> Callable[[F], F]:
    """A decorator of a function whose keywords had other names: passing an old one says the new spelling.

    >>> @renamed(tol="method=spml_fast.IMH(tol=...)")
    ... def sample(n_steps, method="imh"): ...
    """

    def decorate(function: F) -> F:
        what = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            for name in kwargs:
                if name in now:
                    raise TypeError(f"{what} no longer has the argument {name!r}; write {now[name]}")
            return function(*args, **kwargs)

        return checked  # type: ignore[return-value]

    return decorate
