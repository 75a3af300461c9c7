"""Keeps Python from collecting everything while a graph grows.

In: work that grows a graph. Out: the same, in less time: a full collection would visit all of a
growing graph again and again, and everything else that the process holds. What is young is
collected as ever, which costs little and gives back memory that is in the cache still. The
invariant: afterwards the thresholds are what they were before, whichever thread ends last.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_NEVER = 2**31 - 1


class _Collector:
    """Python's cycle collector; several threads may want it to be brief at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = gc.get_threshold()

    @contextlib.contextmanager
    def young_only(self) -> Iterator[None]:
        """Nothing old is collected in this context, nor in those that overlap with it."""
        with self._lock:
            if self._users == 0:
                self._before = gc.get_threshold()
                gc.set_threshold(*self._before[:2], _NEVER)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    gc.set_threshold(*self._before)


_COLLECTOR = _Collector()

young_only = _COLLECTOR.young_only
