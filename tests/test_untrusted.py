"""What looks through files of strangers survives whatever is in them."""

from __future__ import annotations

import ast
import lzma
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from attacks import innocent
from attacks.kinds import archive, members_of

import keras_export as ke
from keras_export import quarantine, untrusted

_REPOSITORY = Path(ke.__file__).parent.parent
_SCRIPT = Path(__file__).with_name("fuzz_process.py")
_MOST_BYTES = 512 << 20


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


def unpacked(name: str, folder: Path) -> Path:
    """A file of `data` that the fuzzing found."""
    packed = Path(__file__).parent / "data" / f"{name}.xz"
    path = folder / name
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return path


def test_a_tree_that_leads_back_to_itself_is_not_followed_for_ever(tmp_path: Path) -> None:
    path = unpacked("looping.h5", tmp_path)
    with pytest.raises(ke.DamagedFileError, match=r"looping\.h5: Unable"):
        ke.convert(path, tmp_path / "out")


@pytest.mark.parametrize("in_archive", [False, True])
def test_a_file_that_the_library_reads_for_ever_is_refused(
    in_archive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "_SECONDS", 1.0)
    path = named = unpacked("hanging.h5", tmp_path)
    if in_archive:
        path = innocent(tmp_path / "model.keras")
        archive(path, {**members_of(path), "model.weights.h5": named.read_bytes()})
    words = rf"{path.name}: the HDF5 library did not come to its end in 1 s .* Get it again"
    with pytest.raises(ke.DamagedFileError, match=words):
        ke.convert(path, tmp_path / "out")
    with pytest.raises(ke.DamagedFileError, match=words):
        untrusted.open_source(str(path), tempfile.mkdtemp(dir=tmp_path), safe_mode=False)
    assert not (tmp_path / "out").exists()


def test_a_file_on_which_the_library_crashes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ends the process as a crash would.
    (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = innocent(tmp_path / "model.h5")
    with pytest.raises(ke.DamagedFileError, match=r"model\.h5: the HDF5 .* crashed .*\(SIGSEGV\)"):
        ke.convert(path, tmp_path / "out")


def test_a_python_that_does_not_start_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = innocent(tmp_path / "model.h5")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    with pytest.raises(ke.DamagedFileError, match=r"nowhere' cannot be started .* with a Python"):
        ke.convert(path, tmp_path / "out")
    (tmp_path / "h5py.py").write_text("raise ImportError('no h5py')\n")
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ke.DamagedFileError, match="exit code 1: ImportError: no h5py"):
        ke.convert(path, tmp_path / "out")


@pytest.mark.parametrize("scattered", [False, True])
def test_a_whole_file_passes_whatever_its_layout(scattered: bool, tmp_path: Path) -> None:
    path = innocent(tmp_path / "model.h5")
    with h5py.File(path, "a", libver="latest") as file:
        more = file.create_group("optimizer_weights/more", track_order=True)
        for number in range(20):
            more.attrs[f"attribute {number}"] = number
        kind = {"chunks": (7, 3), "compression": "gzip"} if scattered else {}
        more.create_dataset("array", data=np.ones((40, 30), "f4"), **kind)
        more.create_dataset("texts", data=["a", "b"], dtype=h5py.string_dtype())
    assert ke.convert(path, tmp_path / "out").signatures


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
