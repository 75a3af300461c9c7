"""Looks through mutated files until something else happens than that they are read or refused.

In: a folder with innocent files, how many mutations, the most bytes of memory. Out: exit code 0,
and on stdout how many files were refused. The invariant: the file that is looked through is on
disk, so that one that kills this process can be found.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from peak_memory import peak_bytes

from keras_export import untrusted
from keras_export.errors import ExportError

_MAX_SECONDS = 20


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    """Files that differ from an innocent one at a few places."""
    place = st.integers(0, len(content) - 1)
    some = st.binary(min_size=1, max_size=16)
    extreme = st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\x80", b"\x01\0\0\0"])
    patches = st.lists(st.tuples(place, some | extreme), min_size=1, max_size=6)
    patched = patches.map(lambda found: _patched(content, found))
    cut = place.map(lambda end: content[:end])
    moved = st.tuples(place, place, st.integers(1, 4096)).map(
        lambda x: content[: x[0]] + content[x[1] : x[1] + x[2]] + content[x[0] :]
    )
    return st.one_of(patched, patched, moved, cut)


def _patched(content: bytes, patches: list[tuple[int, bytes]]) -> bytes:
    result = bytearray(content)
    for place, patch in patches:
        result[place : place + len(patch)] = patch
    return bytes(result)


def main(folder: Path, count: int, most_bytes: int) -> None:
    """Runs them all."""
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    contents = [path.read_bytes() for path in sorted(folder.glob("innocent.*"))]
    path, place = folder / "mutated", folder / "place"
    outcomes: Counter[str] = Counter()

    @seed(2026)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.one_of([mutations(content) for content in contents]))
    def look(content: bytes) -> None:
        path.write_bytes(content)
        place.mkdir()
        # Kills the process, wherever it hangs: seconds of its own, other processes' don't count.
        signal.setitimer(signal.ITIMER_PROF, _MAX_SECONDS)
        try:
            untrusted.open_source(os.fspath(path), os.fspath(place))
            outcomes["read"] += 1
        except ExportError as error:
            assert os.fspath(path) in str(error), error
            outcomes[type(error).__name__] += 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            shutil.rmtree(place)
        assert sorted(folder.iterdir()) == before

    path.touch()
    before = sorted(folder.iterdir())
    look()
    assert peak_bytes() < most_bytes, peak_bytes()
    print(dict(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
