"""Keywords of earlier versions: each raises a TypeError that says the new spelling."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def renamed(what: str, spellings: dict[str, str]) -> Callable[[Function], Function]:
    """Decorator for a function that has lost keywords.

    Args:
        what: the function, as the message calls it.
        spellings: the new spelling of each keyword that there was.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for name in kwargs:
                if name in spellings:
                    raise TypeError(f"{what} no longer has the argument {name!r}; write {spellings[name]}")
            return function(*args, **kwargs)

        return call

    return decorate
