"""Names of other libraries that mean something else for a while.

In: changes, each of a holder, a name in it and a value. Out: a scope in which they are made. The
invariant: however many scopes are open, in whichever threads, a name has its own value again when
the last one that changed it has ended. The first value stands for all scopes: it must itself ask
whom it is called by.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

_LOCK = threading.Lock()

# What is changed for the scopes that are open: the holder, how to undo it, how many need it.
_CHANGED: dict[tuple[int, str], tuple[Any, Any, int]] = {}


@contextlib.contextmanager
def substituted(changes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """While it lasts, each `name` of a `holder` is the value that is given for it.

    Args:
        changes: `(holder, name, value)`; a holder is a module, a class or an object, and has the
            name itself.
    """
    made: list[tuple[Any, str]] = []
    try:
        for holder, name, value in changes:
            _change(holder, name, value)
            made.append((holder, name))
        yield
    finally:
        for holder, name in made:
            _undo(holder, name)


def is_substituted(holder: Any, name: str) -> bool:
    """Whether a scope that is open has changed the name."""
    return (id(holder), name) in _CHANGED


def _change(holder: Any, name: str, value: Any) -> None:
    with _LOCK:
        _, original, users = _CHANGED.get((id(holder), name), (holder, vars(holder)[name], 0))
        _CHANGED[id(holder), name] = (holder, original, users + 1)
        if users == 0:
            _put(holder, name, value)


def _undo(holder: Any, name: str) -> None:
    with _LOCK:
        _, original, users = _CHANGED.pop((id(holder), name))
        if users > 1:
            _CHANGED[id(holder), name] = (holder, original, users - 1)
        else:
            _put(holder, name, original)


def _put(holder: Any, name: str, value: Any) -> None:
    if isinstance(holder, type):
        setattr(holder, name, value)
    else:
        # A layer tracks what is set as its attribute.
        vars(holder)[name] = value
