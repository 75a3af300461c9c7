"""Files that the Kerases of ten years wrote give what these computed.

`tests/data/*.tar.xz` hold models with inputs and outputs, as `old/keras_1.py` and `old/keras_2.py`
wrote them with the Keras that the name says.
"""

from __future__ import annotations

import functools
import json
import lzma
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from consumers import Consumers, assert_same

import keras_export as ke

_DATA = Path(__file__).with_name("data")

# What the file does not say, or says otherwise than that Keras computed it.
_LOST = {
    # That it is causal is not in the file.
    "causal_attention": ("tensorflow-2.10", "tensorflow-2.13", "tensorflow-2.15"),
    # Its input is not.
    "sequential_with_an_input_layer": (
        "keras-2.2.4",
        "keras-2.3.1",
        "tensorflow-1.13",
        "tensorflow-1.15",
    ),
    # It has the version of TensorFlow 2.1, which resizes otherwise.
    "depthwise": ("tensorflow-1.13",),
}
# Half precision, and functions that TensorFlow approximates otherwise since.
_TOLERANCES = {"mixed_precision": 2e-2}
_TOLERANCE = 1e-5

# One file of each kind for the suite, from ever another Keras; the soak takes them all.
_STEP = 7


def half(x: Any) -> Any:
    return x / 2.0


def doubled(x: Any) -> Any:
    return x * 2.0


def scaled(x: Any, by: float = 1.0) -> Any:
    return x * by


def spread(x: Any) -> Any:
    mean = keras.ops.mean(x, axis=-1, keepdims=True)
    return keras.ops.concatenate([x - mean, x + mean], axis=-1)


class Own(keras.layers.Layer):
    """What `old/keras_2.py` has under this name."""

    def __init__(self, factor: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x: Any) -> Any:
        return x * self.scale * self.factor


CUSTOM = {"relu6": keras.ops.relu6, "halving": half, "twice": doubled, "scaling": scaled,
          "spreading": spread, "Own": Own}  # fmt: skip


@functools.cache
def files() -> dict[str, tuple[Path, str]]:
    """`keras-2.2.4/mlp.h5` -> the archive that holds it, and its name there."""
    found = {}
    for archive in sorted(_DATA.glob("*.tar.xz")):
        version = archive.name.removesuffix(".tar.xz")
        with tarfile.open(archive) as content:
            for name in sorted(content.getnames()):
                stem, ending = Path(name).stem, Path(name).suffix
                if ending in (".h5", ".keras") and version not in _LOST.get(stem, ()):
                    found[f"{version}/{name}"] = (archive, name)
    return found


def sampled() -> list[str]:
    """Each kind of model once, each Keras about as often."""
    of_kind: dict[str, list[str]] = {}
    for name in files():
        of_kind.setdefault(Path(name).stem, []).append(name)
    return [several[i * _STEP % len(several)] for i, several in enumerate(of_kind.values())]


def unpacked(name: str, folder: Path) -> tuple[Path, dict[str, Any], list[Any]]:
    """The file, the inputs by name, the outputs in order."""
    archive, member = files()[name]
    arrays = f"{Path(member).stem}.npz"
    with tarfile.open(archive) as content:
        content.extractall(folder, [content.getmember(x) for x in (member, arrays)], filter="data")
    with np.load(folder / arrays) as found:
        values = dict(found)
    given = {re.sub(r"\W", "_", k[2:]): x for k, x in values.items() if k.startswith("x:")}
    return folder / member, given, [values[k] for k in sorted(values) if k.startswith("y:")]


def names_of_outputs(path: Path, outputs: list[str]) -> list[str]:
    """The names in the order of the file."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))["config"]
    else:
        with h5py.File(path) as file:
            config = json.loads(file.attrs["model_config"])["config"]
    if isinstance(config, list) or not isinstance(config.get("output_layers"), list):
        return sorted(outputs)
    layers = [re.sub(r"\W", "_", end[0]) for end in config["output_layers"]]
    found: list[str] = []
    for layer in layers:
        number, name = 0, layer
        while name in found or (number and name in layers):
            number, name = number + 1, f"{layer}_{number + 1}"
        found.append(name)
    return found


def computes_what_it_did(name: str, folder: Path, consumers: Consumers) -> None:
    path, given, expected = unpacked(name, folder)
    report = ke.convert(path, folder / "out", custom_objects=CUSTOM)
    signature = report.signatures["serve"]
    # The inputs of a Sequential have no names in the file.
    names = dict(zip(sorted(signature.inputs), sorted(given), strict=True))
    if set(given) == set(signature.inputs):
        names = {name: name for name in given}
    inputs = {
        key: given[names[key]].astype(spec.dtype.as_numpy_dtype)
        for key, spec in signature.inputs.items()
    }
    found = consumers.cpp(folder / "out").signature("serve", **inputs)
    outputs = names_of_outputs(path, list(found))
    assert sorted(outputs) == sorted(found) and len(outputs) == len(expected)
    tolerance = _TOLERANCES.get(Path(name).stem, _TOLERANCE)
    for key, value in zip(outputs, expected, strict=True):
        actual = found[key]
        if value.dtype.kind in "SO":
            assert actual.tolist() == value.tolist()
            continue
        assert actual.shape == value.shape, key
        scale = max(1.0, float(np.abs(value).max(initial=0)))
        assert_same(actual.astype("f8"), value.astype("f8"), 0.0, tolerance * scale)


@pytest.mark.parametrize("name", sampled())
def test_an_old_file_computes_what_it_did(name: str, tmp_path: Path, consumers: Consumers) -> None:
    computes_what_it_did(name, tmp_path, consumers)


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(files()))
def test_every_old_file_computes_what_it_did(
    name: str, tmp_path: Path, consumers: Consumers
) -> None:
    computes_what_it_did(name, tmp_path, consumers)


@pytest.mark.parametrize("version", ["2.13", "2.15"])
def test_layers_for_cudnn_are_the_same_from_an_archive(
    version: str, tmp_path: Path, consumers: Consumers
) -> None:
    # Only a GPU could tell what they gave.
    given = np.random.default_rng(4).uniform(-1, 1, (2, 5, 3)).astype("float32")
    found = []
    for ending in ("h5", "keras"):
        path = tmp_path / f"cudnn_layers-{version}.{ending}"
        path.write_bytes(lzma.decompress((_DATA / f"{path.name}.xz").read_bytes()))
        ke.convert(path, tmp_path / ending)
        found.append(consumers.cpp(tmp_path / ending).signature("serve", x=given))
    assert_same(found[1], found[0])


def test_the_files_are_of_ten_kerases() -> None:
    assert len({name.partition("/")[0] for name in files()}) >= 10
    assert len(files()) > 400
