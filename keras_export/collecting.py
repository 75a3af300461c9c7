"""Keeps Python's cycle collector away while a graph grows.

In: work that grows a graph. Out: the same, in less time: the collector would visit all of a growing
graph again and again, and a trace makes no garbage worth collecting while it lasts. The invariant:
afterwards it is on if it was on before, whichever thread ends last.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator


class _Collector:
    """Python's cycle collector; several threads may want it away at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pauses = 0
        self._was_enabled = True

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is collected in this context, nor in those that overlap with it."""
        with self._lock:
            if self._pauses == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                if self._pauses == 0 and self._was_enabled:
                    gc.enable()


_COLLECTOR = _Collector()

paused = _COLLECTOR.paused
