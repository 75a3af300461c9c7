"""What `check` says of older TensorFlow releases is what they do, asked one by one.

`pytest -m network tests/test_older_releases.py`; `KERAS_EXPORT_ALL_RELEASES=1` asks all.
"""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import test_compatibility as graphs
import test_zoo as zoo
from consumers import ConsumerCrash, ConsumerError, Consumers, assert_same
from foreign_artifacts import misjudged
from older_releases import ASKED, python_of
from zoo import KINDS

import keras_export as ke

pytestmark = pytest.mark.network

_KEY = "serving_default"

# NumPy had no such dtype when these releases were made: the tests cannot feed it.
_UNFEEDABLE = {"bfloat16": ("2.12", "2.13"), "mixed_bfloat16": ("2.12", "2.13")}

# Each release has its own order of additions; half precision shows it.
_TOLERANCES = {"mixed_float16": 2e-2}
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Artifact:
    """An export with what it must give; without `expected`, whatever it gives."""

    name: str
    folder: Path
    inputs: dict[str, Any]
    expected: list[dict[str, Any]] | None


class Tables(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mutable = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)
        self.dense = tf.lookup.experimental.DenseHashTable(tf.int64, tf.int64, -1, -2, -3)
        for table in (self.mutable, self.dense):
            table.insert(tf.constant([1], tf.int64), tf.constant([7], tf.int64))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="x")])
    def served(self, x: Any) -> Any:
        return self.mutable.lookup(x) * 10 + self.dense.lookup(x)


class NewAttributes(tf.Module):
    """Ops that got attributes since 2.12, all with the values that they had before."""

    @tf.function(input_signature=[tf.TensorSpec([None, 3, 3], tf.float32, name="x")])
    def served(self, x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            squares = tf.matmul(x, x)
        slopes = tape.gradient(squares, x)
        rows = tf.map_fn(lambda row: row + 1.0, slopes)
        return tf.gather_nd(tf.math.top_k(rows, 2).values, [[0, 0]])


class Raw(tf.Module):
    """One op, called as it is."""

    def __init__(self, dtype: Any, call: Any) -> None:
        super().__init__()
        spec = tf.TensorSpec([None], dtype, name="x")
        self.served = tf.function(call, input_signature=[spec])


def _items(x: Any) -> Any:
    items = tf.raw_ops.TensorListFromTensor(tensor=x, element_shape=tf.constant([], tf.int64))
    return tf.raw_ops.TensorListGetItem(
        input_handle=items,
        index=0,
        element_shape=tf.constant([], tf.int64),
        element_dtype=x.dtype,
    )


def _raw() -> dict[str, Raw]:
    def number(x: Any) -> Any:
        return tf.reduce_sum(tf.cast(x, tf.float32))

    return {
        "top_k_of_int64": Raw(
            tf.float32, lambda x: tf.raw_ops.TopKV2(input=x, k=1, index_type=tf.int64).indices
        ),
        "top_k": Raw(tf.float32, lambda x: tf.raw_ops.TopKV2(input=x, k=1).indices),
        "item_by_int64": Raw(tf.float32, _items),
        "gather_by_int16": Raw(
            tf.float32, lambda x: tf.gather(x, tf.constant([0], tf.int16, shape=[1]))
        ),
        "fft": Raw(tf.float32, lambda x: number(tf.abs(tf.signal.fftnd(tf.cast(x, tf.complex64))))),
        "float8": Raw(
            tf.float32,
            lambda x: tf.cast(tf.cast(x, tf.dtypes.experimental.float8_e4m3fn), tf.float32),
        ),
        "int4": Raw(
            tf.float32, lambda x: tf.cast(tf.cast(x, tf.dtypes.experimental.int4), tf.float32)
        ),
        "ignored_index": Raw(
            tf.float32,
            lambda x: tf.raw_ops.GatherNd(params=x, indices=[[0]], bad_indices_policy="IGNORE"),
        ),
    }


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    root = tmp_path_factory.mktemp("artifacts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [*_of_the_zoo(root), *_of_modules(root), *_changed(root)]


def _of_the_zoo(root: Path) -> Iterator[Artifact]:
    for kind in KINDS.values():
        if kind.available:
            made = zoo.export(kind, root / kind.name)
            expected = zoo.live_results(kind, made)
            yield Artifact(kind.name, root / kind.name, zoo.named_inputs(kind), expected)


def _of_modules(root: Path) -> Iterator[Artifact]:
    modules = {
        "tables": (Tables(), np.array([1, 2])),
        "new_attributes": (NewAttributes(), np.random.rand(2, 3, 3).astype("float32")),
        **{name: (module, np.ones(3, "float32")) for name, module in _raw().items()},
    }
    for name, (module, x) in modules.items():
        ke.save(module, root / name, signatures=module.served)
        tf.saved_model.save(module, str(root / f"{name}_of_tensorflow"), signatures=module.served)
        try:
            expected = [{"output_0": module.served(x).numpy()}]
        except tf.errors.OpError:  # kernels for GPUs only, or none for these dtypes
            expected = None
        for folder in (root / name, root / f"{name}_of_tensorflow"):
            yield Artifact(folder.name, folder, {"x": x}, expected)


def _changed(root: Path) -> Iterator[Artifact]:
    module = graphs.Module()
    ke.save(module, root / "base", signatures=module.served)
    (root / "base" / "fingerprint.pb").unlink()
    for name, change in graphs.CHANGES.items():
        folder = graphs.changed(root / "base", root / f"changed_{name}", change)
        yield Artifact(f"changed_{name}", folder, {"x": np.ones((1, 3), "float32")}, None)


@pytest.mark.parametrize("release", ASKED)
def test_the_verdict_on_each_artifact_is_what_the_release_does(
    release: str, artifacts: list[Artifact]
) -> None:
    wrong, judged = [], 0
    with Consumers(python=python_of(release)) as readers:
        for artifact in artifacts:
            if release in _UNFEEDABLE.get(artifact.name, ()):
                continue
            said = list(ke.check(artifact.folder).loadable[release])
            does = [
                reader
                for reader, load in (("python", readers.tf), ("c++", readers.cpp))
                if _works(load, artifact)
            ]
            judged += 1
            if said != does:
                wrong.append(f"{artifact.name}: check says {said}, it is {does}")
    assert wrong == [] and judged > 100


def _works(load: Any, artifact: Artifact) -> bool:
    """Whether a reader loads and runs it; other numbers than the live ones fail the test."""
    try:
        loaded = load(artifact.folder)
        for expected in artifact.expected or [None]:
            found = loaded.signature(_KEY, **artifact.inputs)
            if expected is not None:
                tolerance = _TOLERANCES.get(artifact.name, _TOLERANCE)
                assert_same(found, expected, rtol=tolerance, atol=tolerance)
    except (ConsumerError, ConsumerCrash):
        return False
    return True


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """What each release writes itself."""
    script = str(Path(__file__).with_name("foreign_artifacts.py"))
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    found = {}
    for release in ASKED:
        root = tmp_path_factory.mktemp("foreign")
        command = [python_of(release), script, str(root)]
        subprocess.run(command, env=quiet, capture_output=True, check=True)
        found[release] = sorted(root.iterdir())
    return found


@pytest.mark.parametrize("release", ASKED)
def test_the_verdict_on_what_other_releases_wrote_is_what_loading_does(
    release: str, foreign: dict[str, list[Path]]
) -> None:
    with Consumers(python=python_of(release)) as readers:
        wrong = {name: misjudged(folders, release, readers) for name, folders in foreign.items()}
    assert not any(wrong.values()), wrong
    assert min(map(len, foreign.values())) > 40


@pytest.mark.parametrize("name", ["new_attributes", "top_k", "text_vectorization", "tables"])
def test_what_the_newest_exports_the_oldest_loads(name: str, artifacts: list[Artifact]) -> None:
    artifact = next(x for x in artifacts if x.name == name)
    assert ke.check(artifact.folder).oldest == "2.12"
    with Consumers(python=python_of("2.12")) as readers:
        assert _works(readers.tf, artifact) and _works(readers.cpp, artifact)
