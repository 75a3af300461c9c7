"""Hostile files are refused before anything of them is made, and leave nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import h5py
import keras
import pytest
from attacks import ATTACKS, canary, innocent
from attacks.configurations import _first, _lambda
from attacks.kinds import archive, members_of, with_config

import keras_export as ke


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_attack_is_refused_by_name_and_leaves_nothing(
    name: str, tmp_path: Path, temporary: Path
) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    path = ATTACKS[name].make(hostile)
    before = path.read_bytes()
    with pytest.raises(ATTACKS[name].error) as refusal:
        ke.convert(path, tmp_path / "out" / "model")
    message = str(refusal.value)
    assert ATTACKS[name].names in message
    assert str(path) in message
    assert not canary(hostile).exists()
    assert list(hostile.iterdir()) == [path]
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [hostile, temporary]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("ending", ["keras", "h5", "weights.h5"])
def test_a_file_cut_off_anywhere_is_damaged(ending: str, tmp_path: Path, temporary: Path) -> None:
    content = innocent(tmp_path / f"whole.{ending}").read_bytes()
    path = tmp_path / f"cut.{ending}"
    for number in range(50):
        path.write_bytes(content[: len(content) * number // 50])
        with pytest.raises(ke.DamagedFileError, match=path.name):
            ke.convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("what", ["a symbolic link", "a device or a pipe"])
def test_a_folder_holds_only_what_an_archive_can(
    what: str, tmp_path: Path, temporary: Path
) -> None:
    folder = tmp_path / "folder"
    with zipfile.ZipFile(innocent(tmp_path / "model.keras")) as file:
        file.extractall(folder)
    (folder / "assets").mkdir()
    if what == "a symbolic link":
        (folder / "assets" / "vocabulary.txt").symlink_to("/etc/passwd")
    else:
        os.mkfifo(folder / "assets" / "vocabulary.txt")
    with pytest.raises(ke.UnsafeFileError, match=rf"member 'assets/vocabulary\.txt' is {what}"):
        ke.convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists() and list(temporary.iterdir()) == []


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.h5")
    with pytest.raises(ke.ExportError, match=r"model\.h5: expected a file, received a device"):
        ke.convert(tmp_path / "model.h5", tmp_path / "out")


def test_modules_beside_the_file_are_not_imported(tmp_path: Path) -> None:
    # Libraries try optional modules by name; `python -m` would find these here first.
    innocent(tmp_path / "model.keras")
    for name in ("torch", "jax", "tensorflow", "h5py", "tf_keras", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(canary(tmp_path))!r}, 'w')")
    # Of `-c` the first entry is the current folder; of the program, its own.
    code = "import sys; del sys.path[0]; from keras_export import cli; sys.exit(cli.main())"
    environment = {**os.environ, "PYTHONPATH": str(Path(ke.__file__).parent.parent)}
    command = [sys.executable, "-c", code, "convert", "model.keras", "out"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "out").is_dir() and not canary(tmp_path).exists()


def test_all_reasons_are_given_at_once(tmp_path: Path) -> None:
    def change(config: dict) -> None:
        config["config"]["layers"].append(_lambda(tmp_path))
        _first(config)["registered_name"] = "sly>Gadget"
        config["config"]["name"] = "../model"

    with pytest.raises(ke.UnsafeFileError) as refusal:
        ke.convert(with_config(tmp_path, change), tmp_path / "out")
    for reason in ("layer 'sly' (__lambda__) is Python byte code", "'sly>Gadget'", "leaves its"):
        assert reason in str(refusal.value)


def test_no_class_is_made_before_the_whole_file_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ATTACKS["lambda_with_byte_code"].make(tmp_path)
    monkeypatch.setattr(keras.layers.Layer, "__init__", lambda *_, **__: pytest.fail("made"))
    with pytest.raises(ke.UnsafeFileError):
        ke.convert(path, tmp_path / "out")


def test_what_is_trusted_explicitly_may_run_its_code(tmp_path: Path) -> None:
    x = keras.Input((2,), name="x")
    model = keras.Model(x, keras.layers.Lambda(lambda t: 3 * t, name="y")(x))
    model.save(tmp_path / "model.keras")
    with pytest.raises(ke.UnsafeFileError, match="layer 'y'"):
        ke.convert(tmp_path / "model.keras", tmp_path / "out")
    report = ke.convert(tmp_path / "model.keras", tmp_path / "out", safe_mode=False)
    assert list(report.signatures["serve"].outputs) == ["y"]


def test_weights_of_zeros_and_a_large_innocent_file_pass(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(1000, "relu", False)])
    model.layers[0].kernel.assign(keras.ops.zeros((1000, 1000)))
    model.save(tmp_path / "model.keras")
    packed = tmp_path / "packed.keras"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members_of(tmp_path / "model.keras").items():
            file.writestr(name, content)
    assert packed.stat().st_size < 100_000
    assert ke.convert(packed, tmp_path / "out").signatures


def test_members_that_nobody_knows_are_not_unpacked(tmp_path: Path, temporary: Path) -> None:
    path = innocent(tmp_path / "model.keras")
    archive(path, {**members_of(path), "notes/readme.txt": b"hello"})
    assert ke.convert(path, tmp_path / "out").signatures


def test_an_archive_is_told_by_its_content(tmp_path: Path) -> None:
    archive_as_h5 = innocent(tmp_path / "model.keras").rename(tmp_path / "model.h5")
    assert ke.convert(archive_as_h5, tmp_path / "first").signatures
    h5_as_archive = tmp_path / "other.keras"
    innocent(tmp_path / "other.h5").rename(h5_as_archive)
    with h5py.File(h5_as_archive) as file:
        assert "model_config" in file.attrs
    assert ke.convert(h5_as_archive, tmp_path / "second").signatures
