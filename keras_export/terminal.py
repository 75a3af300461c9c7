"""What a command prints: in colour and with bars on a terminal, as plain text elsewhere.

In: reports, which print as text by themselves. Out: lines on stdout, and progress on stderr. The
invariant: what is not a terminal gets the text of the report alone, and `NO_COLOR` is heeded.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Progress = Callable[[str, int, int], None]

_STYLES = {
    "problem:": "red",
    "note:": "yellow",
    "signature": "cyan",
    "variable": "magenta",
    "layer": "green",
}
_WIDE = 400


def tell(report: Any, quiet: bool = False) -> None:
    """Prints a report.

    Args:
        report: prints as text; its first line is the verdict.
        quiet: print nothing.
    """
    if quiet:
        return
    if not sys.stdout.isatty():
        print(report)
        return
    from rich.text import Text

    head, *lines = str(report).splitlines()
    console = _console()
    console.print(Text(head, style="bold"), soft_wrap=True)
    for line in lines:
        first = line.split(maxsplit=1)[0] if line.strip() else ""
        console.print(Text(line, style=_STYLES.get(first, "")), soft_wrap=True)


def tell_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: aligned, and on a terminal with rules."""
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    table = Table(pad_edge=terminal) if terminal else Table(box=None, pad_edge=False)
    for place, title in enumerate(head):
        table.add_column(title, justify="left" if place < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # What is piped on must not be cut at the width of nobody's screen.
    console = _console() if terminal else Console(width=_WIDE, color_system=None)
    console.print(table)


@contextlib.contextmanager
def watched(quiet: bool = False, in_bytes: bool = False) -> Iterator[Progress | None]:
    """Yields what long work may call; None where nobody is looking at stderr.

    Args:
        quiet: show nothing.
        in_bytes: what is counted are bytes: they are shown beside the bar.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns: tuple[Any, ...] = Bars.get_default_columns()
    if in_bytes:
        columns = (*columns[:2], DownloadColumn(binary_units=False), TransferSpeedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total or None)

        yield advance


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)
