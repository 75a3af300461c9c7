"""Attacks by what an HDF5 file may hold.

In: an empty folder. Out: a hostile `.h5` or `.keras` file. The invariant: each is an innocent file
but for one thing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import keras_export as ke
from attacks.kinds import archive, attack, innocent, members_of

_KERNEL = "model_weights/first/sequential/first/kernel"


def _model(folder: Path, change: Callable[[Any], None]) -> Path:
    path = innocent(folder / "model.h5")
    with h5py.File(path, "a") as file:
        change(file)
    return path


def _kernel(file: Any) -> str:
    """The path of the first layer's kernel."""
    found: list[str] = []
    file.visit(lambda name: found.append(name) if name.endswith("first/kernel") else None)
    return found[0]


def _replace_kernel(folder: Path, put: Callable[[Any, str], None]) -> Path:
    def change(file: Any) -> None:
        name = _kernel(file)
        del file[name]
        put(file, name)

    return _model(folder, change)


@attack("first/kernel' is an external link to '/etc/other.h5'")
def external_link(folder: Path) -> Path:  # CVE-2026-1669
    return _replace_kernel(
        folder, lambda file, name: file.__setitem__(name, h5py.ExternalLink("/etc/other.h5", "/x"))
    )


@attack("first/kernel' is a soft link")
def soft_link(folder: Path) -> Path:
    return _replace_kernel(
        folder, lambda file, name: file.__setitem__(name, h5py.SoftLink("/elsewhere"))
    )


@attack("'model_weights' is a soft link")
def soft_link_to_all_weights(folder: Path) -> Path:
    def change(file: Any) -> None:
        file.move("model_weights", "other")
        file["model_weights"] = h5py.SoftLink("/other")

    return _model(folder, change)


@attack("first/kernel' keeps its data in other files")
def external_storage(folder: Path) -> Path:
    def put(file: Any, name: str) -> None:
        file.create_dataset(name, (3, 2), "f4", external=[("/etc/passwd", 0, 24)])

    return _replace_kernel(folder, put)


@attack("first/kernel' is a view on other datasets")
def virtual_dataset(folder: Path) -> Path:
    def put(file: Any, name: str) -> None:
        layout = h5py.VirtualLayout((3, 2), "f4")
        layout[:] = h5py.VirtualSource("/etc/other.h5", "x", (3, 2))
        file.create_virtual_dataset(name, layout)

    return _replace_kernel(folder, put)


@attack("first/kernel' says that it has the shape (1000000000, 1000000)")
def shape_bomb(folder: Path) -> Path:  # CVE-2026-0897
    def put(file: Any, name: str) -> None:
        file.create_dataset(name, (10**9, 10**6), "f4", chunks=(1024, 1024))

    return _replace_kernel(folder, put)


@attack("its arrays say that they have")
def many_small_shape_bombs(folder: Path) -> Path:
    def change(file: Any) -> None:
        for number in range(200):
            file.create_dataset(f"bombs/{number}", (10**6,), "f4", chunks=(1024,))

    return _model(folder, change)


@attack("first/kernel' says that it has the shape (100000000,)")
def compressed_bomb(folder: Path) -> Path:
    def put(file: Any, name: str) -> None:
        data = file.create_dataset(name, (10**8,), "f4", chunks=(10**7,), compression="gzip")
        data[: 10**7] = 0

    return _replace_kernel(folder, put)


@attack("first/kernel' says that it has the shape (3, 2)")
def chunk_bomb(folder: Path) -> Path:
    def put(file: Any, name: str) -> None:
        file.create_dataset(name, (3, 2), "f4", maxshape=(None, None), chunks=(30_000, 30_000))

    return _replace_kernel(folder, put)


@attack("first/kernel' holds references")
def references(folder: Path) -> Path:
    def put(file: Any, name: str) -> None:
        file.create_dataset(name, (1,), h5py.ref_dtype)[0] = file.ref

    return _replace_kernel(folder, put)


@attack("'model_weights/first/again' is a group that has another path")
def cyclic_groups(folder: Path) -> Path:
    return _model(folder, lambda file: file["model_weights/first"].__setitem__("again", file))


@attack("is one of too many")
def groups_without_end(folder: Path) -> Path:
    def change(file: Any) -> None:
        group = file["model_weights/first"]
        for _ in range(500):
            group = group.create_group("a")

    return _model(folder, change)


@attack("member 'model_weights/..' leaves its folder")
def group_named_as_the_folder_above(folder: Path) -> Path:
    def change(file: Any) -> None:
        h5py.h5g.create(file["model_weights"].id, b"..")

    return _model(folder, change)


@attack("layer '../../outside' leaves its folder")
def layer_name_that_leaves_the_folder(folder: Path) -> Path:  # CVE-2026-12479
    def change(file: Any) -> None:
        file["model_weights"].attrs["layer_names"] = [b"x", b"../../outside", b"y"]

    return _model(folder, change)


@attack("layer_names", ke.DamagedFileError)
def layer_names_that_are_a_matrix(folder: Path) -> Path:
    def change(file: Any) -> None:
        file["model_weights"].attrs["layer_names"] = np.zeros((3, 3))

    return _model(folder, change)


@attack("'model_weights'", ke.DamagedFileError)
def four_thousand_names_that_are_one_long_text(folder: Path) -> Path:
    text = 1 << 20

    def change(file: Any) -> None:
        names = ["x" * text, *["y"] * 3999]
        file["model_weights"].attrs.create("layer_names", names, dtype=h5py.string_dtype())

    path = _model(folder, change)
    content = bytearray(path.read_bytes())
    # Each name is its length, and the address of the text. In memory every one gets a copy.
    length, short = (re.escape(struct.pack("<I", x)) for x in (text, 1))
    pattern = re.compile(length + b".{12}" + short + b".{12}" + short, re.DOTALL)
    found = pattern.search(content)
    assert found is not None
    place = found.start()
    long = content[place : place + 16]
    content[place : place + 16 * 4000] = long * 4000
    path.write_bytes(content)
    return path


@attack("model_config", ke.DamagedFileError)
def configuration_that_is_a_number(folder: Path) -> Path:
    return _model(folder, lambda file: file.attrs.__setitem__("model_config", 5))


@attack("model.weights.h5")
def external_link_in_an_archive(folder: Path) -> Path:
    weights = innocent(folder / "model.weights.h5")
    with h5py.File(weights, "a") as file:
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = h5py.ExternalLink("/etc/other.h5", "/x")
    path = innocent(folder / "model.keras")
    archive(path, {**members_of(path), "model.weights.h5": weights.read_bytes()})
    weights.unlink()
    return path


@attack("measurements", ke.DamagedFileError)
def hdf5_of_something_else(folder: Path) -> Path:
    with h5py.File(folder / "model.h5", "w") as file:
        file["measurements"] = np.zeros(3)
    return folder / "model.h5"
