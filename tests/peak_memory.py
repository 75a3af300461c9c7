"""How much memory this process has had at most.

In: nothing. Out: bytes. The invariant: what a parent process had before it started this one does
not count, as it does in `getrusage`.
"""

from __future__ import annotations

import re
from pathlib import Path


def peak_bytes() -> int:
    """The largest resident set of this program."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10
