"""Work that goes on beside training, one task after the other.

In: tasks, on the thread that trains. Out: their effects, from one thread of their own. The
invariant: a task that was handed over is done, also when the program ends before anybody waits,
and never more wait than was agreed.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable


class Worker:
    """Does tasks in the order in which they come.

    Its thread lives as long as there is something to do. Python waits for it at the end of the
    program, since it is not a daemon.

    Args:
        max_pending: how many tasks may wait or be under way.
    """

    def __init__(self, max_pending: int) -> None:
        self._max_pending = max_pending
        self._changed = threading.Condition()
        self._tasks: collections.deque[Callable[[], None]] = collections.deque()

    @property
    def is_busy(self) -> bool:
        """Whether one more task would have to wait for its place."""
        with self._changed:
            return len(self._tasks) >= self._max_pending

    def wait_for_place(self) -> None:
        """Returns when one more task may come."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._tasks) < self._max_pending)

    def wait(self) -> None:
        """Returns when all tasks are done."""
        with self._changed:
            self._changed.wait_for(lambda: not self._tasks)

    def submit(self, task: Callable[[], None]) -> None:
        """Hands a task over; whoever submits waits for its place before.

        Args:
            task: keeps its errors for itself.
        """
        with self._changed:
            self._tasks.append(task)
            is_first = len(self._tasks) == 1
        if is_first:
            threading.Thread(target=self._work, name="keras_export", daemon=False).start()

    def _work(self) -> None:
        more = True
        while more:
            try:
                self._tasks[0]()
            finally:
                with self._changed:
                    self._tasks.popleft()
                    more = bool(self._tasks)
                    self._changed.notify_all()
