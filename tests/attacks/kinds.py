"""What an attack is, and the innocent files that attacks are made of.

In: functions that make hostile files. Out: `ATTACKS` by name. The invariant: an attack that
succeeds writes the canary, or something beside the target, or hangs, or dies.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

import keras_export as ke


@dataclass(frozen=True)
class Attack:
    """A hostile file.

    Attributes:
        make: writes it into a folder and returns its path.
        names: what the refusal must name: the layer or the member.
        error: what it must be.
    """

    make: Callable[[Path], Path]
    names: str
    error: type[Exception] = ke.UnsafeFileError


ATTACKS: dict[str, Attack] = {}


def attack(names: str, error: type[Exception] = ke.UnsafeFileError) -> Callable[[Any], Any]:
    def put(make: Any) -> Any:
        assert make.__name__ not in ATTACKS
        ATTACKS[make.__name__] = Attack(make, names, error)
        return make

    return put


def canary(folder: Path) -> Path:
    """What code from a file creates if it runs."""
    return folder / "canary"


def innocent(path: Path) -> Path:
    """A small model in the format of the path's ending."""
    path.write_bytes(_innocent(".".join(path.name.split(".")[1:])))
    return path


@functools.cache
def _innocent(ending: str) -> bytes:
    keras.utils.clear_session(free_memory=False)
    model = keras.Sequential(
        [keras.Input((3,), name="x"), keras.layers.Dense(2, name="first"),
         keras.layers.Dense(1, name="y")]
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model.{ending}")
        model.save_weights(path) if ending == "weights.h5" else model.save(path)
        return path.read_bytes()


def members_of(path: Path) -> dict[str, bytes]:
    """The members of an archive."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive(path: Path, members: dict[str, bytes]) -> Path:
    """Writes an archive of members, as Keras does."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def with_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """An innocent archive whose configuration was changed."""
    path = innocent(folder / "model.keras")
    members = members_of(path)
    config = json.loads(members["config.json"])
    changed = change(config)
    config = config if changed is None else changed
    return archive(path, {**members, "config.json": json.dumps(config).encode()})


def shell(folder: Path) -> str:
    """A command that leaves the canary."""
    return f"touch {os.fspath(canary(folder))}"
