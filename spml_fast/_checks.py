"""Checks of what users pass, that both wings make."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


def count(value: object, name: str, *, least: int = 1, most: int = 2**62) -> int:
    """``value`` as an int between ``least`` and ``most``.

    Raises:
        TypeError, ValueError: it is no integer (bool is none), or out of that range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be between {least} and {most}, got {value}")
    return int(value)


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
