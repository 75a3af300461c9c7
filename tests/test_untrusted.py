"""What looks through files of strangers survives whatever is in them."""

from __future__ import annotations

import ast
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
from attacks import innocent

import keras_export as ke

_REPOSITORY = Path(ke.__file__).parent.parent
_SCRIPT = Path(__file__).with_name("fuzz_process.py")
_MOST_BYTES = 512 << 20
_SECONDS = 300  # it takes one, if it ends


def fuzzed(folder: Path, count: int) -> dict[str, int]:
    for ending in ("keras", "h5", "weights.h5"):
        innocent(folder / f"innocent.{ending}")
    # It neither crashes nor hangs, or its exit code would tell.
    found = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(_SCRIPT), str(folder), str(count),
         str(_MOST_BYTES)],
        capture_output=True, text=True, cwd=_REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(_REPOSITORY), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-4000:]
    outcomes: dict[str, int] = ast.literal_eval(found.stdout)
    return outcomes


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    outcomes = fuzzed(tmp_path, 500)
    assert sum(outcomes.values()) >= 450
    assert outcomes["DamagedFileError"] > 100 and outcomes["read"] > 10


@pytest.mark.soak
def test_twenty_thousand_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    assert sum(fuzzed(tmp_path, 20_000).values()) >= 19_000


def test_a_tree_that_leads_back_to_itself_is_not_followed_for_ever(tmp_path: Path) -> None:
    # A mutated file that the fuzzing found.
    packed = Path(__file__).parent / "data" / "looping.h5.xz"
    path = tmp_path / "looping.h5"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    code = "import sys\nfrom keras_export import untrusted\nuntrusted.open_source(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(path), str(tmp_path)]
    found = subprocess.run(
        command, capture_output=True, text=True, cwd=_REPOSITORY, timeout=_SECONDS
    )
    assert "DamagedFileError" in found.stderr


def test_files_are_looked_through_without_tensorflow_and_keras(tmp_path: Path) -> None:
    code = (
        "import sys, tempfile\n"
        "from keras_export import untrusted\n"
        "print(untrusted.open_source(sys.argv[1], tempfile.mkdtemp()).kind)\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    for ending, kind in (("keras", "archive"), ("h5", "model"), ("weights.h5", "weights")):
        path = innocent(tmp_path / f"model.{ending}")
        found = subprocess.run([sys.executable, "-c", code, str(path)], check=True, text=True,
                               capture_output=True, cwd=_REPOSITORY)  # fmt: skip
        assert found.stdout.strip() == kind
