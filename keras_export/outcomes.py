"""What came of exports that another thread wrote, told on the thread that trains.

In: errors and lines to print, from any thread. Out: the same as an exception, a warning or a
printed line, where the user expects them. The invariant: no error is lost. What nobody asked for
any more becomes a warning when its callback, or the program, ends.
"""

from __future__ import annotations

import collections
import contextlib
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from keras_export.errors import CheckpointError, ExportError, TargetError, failure


class FailedExportWarning(UserWarning):
    """An export failed and training went on, or nobody was left to raise the error to."""


class Outcomes:
    """Collects what happens in one thread and tells it in another.

    Args:
        on_error: `"raise"` raises the first error, `"warn"` warns once of errors in a row that are
            alike.
    """

    def __init__(self, on_error: str) -> None:
        self._raises = on_error == "raise"
        self._lines: collections.deque[str] = collections.deque()
        self._errors: collections.deque[Exception | None] = collections.deque()
        self._last_kind: Any = None
        # As text: an error holds the frames that it came through, and they the callback.
        self._untold: collections.deque[str] = collections.deque()
        weakref.finalize(self, _tell_what_is_left, self._untold)

    def add_line(self, line: str) -> None:
        """Takes a line to print."""
        self._lines.append(line)

    def add_success(self) -> None:
        """Ends a row of errors that are alike."""
        self._errors.append(None)

    def add_error(self, error: BaseException, path: str) -> None:
        """Takes what an export to `path` raised."""
        named = _naming(error, path)
        self._untold.append(str(named))
        self._errors.append(named)

    def tell(self, *, in_progress: bool = False) -> None:
        """Prints the lines, and raises or warns of the errors.

        Args:
            in_progress: a progress bar has not ended its line.

        Raises:
            ExportError: the first error, which names the path; the others stay for later.
        """
        while self._lines:
            _print(self._lines.popleft(), in_progress)
        while self._errors:
            self._tell_error(self._errors.popleft())

    @contextlib.contextmanager
    def of_a_failure(self) -> Iterator[None]:
        """Warns of an error of the body, if that is how errors are told."""
        try:
            yield
        except Exception as error:
            if self._raises:
                raise
            self._warn(error)

    def _tell_error(self, error: Exception | None) -> None:
        if error is None:
            self._last_kind = None
            return
        self._untold.popleft()
        if self._raises:
            raise error
        self._warn(error)

    def _warn(self, error: Exception) -> None:
        kind = (type(error), type(error.__cause__), getattr(error, "errno", None))
        if kind != self._last_kind:
            self._last_kind = kind
            warnings.warn(f"Training goes on. {error}", FailedExportWarning, stacklevel=4)


def _naming(error: BaseException, path: str) -> Exception:
    """The error, if it names the path; else one that does."""
    if isinstance(error, TargetError) or (isinstance(error, ExportError) and path in str(error)):
        return error
    received = f"{type(error).__name__}: {error}".rstrip(": ")
    return CheckpointError(failure(f"export to {path}", "no error on the way", received), error)


def _tell_what_is_left(errors: collections.deque[str]) -> None:
    for error in errors:
        warnings.warn(f"Nobody waited for this export. {error}", FailedExportWarning, stacklevel=2)


def _print(line: str, in_progress: bool) -> None:
    start = "\n" if in_progress else ""
    console = Console(soft_wrap=True)
    if console.is_terminal:
        console.print(Text(start + line, style="green"))
    else:
        print(start + line, flush=True)
