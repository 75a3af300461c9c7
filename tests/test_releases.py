"""What is said about a TensorFlow release is what that release says about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import op_history
import pytest
import tensorflow as tf

import keras_export
from keras_export import protos, releases

_FILE = Path(keras_export.__file__).parent / "data" / "op_history.json.xz"
_HERE = ".".join(tf.__version__.split(".")[:2])


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    target = tmp_path_factory.mktemp("facts") / "facts.json"
    op_history.dump(str(target))
    return json.loads(target.read_text())


def test_the_releases_are_known_from_2_12_to_2_21() -> None:
    assert list(releases.known()) == [f"2.{minor}" for minor in range(12, 22)]


def test_the_file_is_small_and_made_of_what_it_holds() -> None:
    content = _FILE.read_bytes()
    assert len(content) < 150_000
    assert op_history.packed(op_history.unpacked(_FILE)) == content


def test_the_running_release_is_known_as_it_is(facts: dict[str, Any]) -> None:
    known = op_history.unpacked(_FILE)[_HERE]
    assert {k: v for k, v in known.items() if k not in ("ops", "tensorflow")} == {
        k: v for k, v in facts.items() if k not in ("ops", "tensorflow")
    }
    # A wheel with GPU support may have a few ops more, such as those of TensorRT.
    here = {name: op for name, op in facts["ops"].items() if name in known["ops"]}
    assert _public(known["ops"]) == _public(here)


def test_an_op_is_what_the_registry_says(facts: dict[str, Any]) -> None:
    op = releases.known()[_HERE].ops["MatMul"]
    assert list(op.inputs) == ["T", "T"] and list(op.outputs) == ["T"]
    default = protos.Attr.FromString(op.attributes["transpose_a"].default or b"")
    assert default.WhichOneof("value") == "b" and default.b is False
    assert op.attributes["T"].default is None
    names = [protos.dtype_name(number) for number in op.attributes["T"].allowed or ()]
    assert "float32" in names and "string" not in names
    assert not op.stateful and releases.known()[_HERE].ops["VarHandleOp"].stateful


def test_a_release_that_changed_nothing_is_not_stored_twice(facts: dict[str, Any]) -> None:
    small = {**facts, "ops": {"A": {"in": ["1"]}, "B": {"in": ["2"]}}}
    other = {**facts, "tensorflow": "2.99.1", "ops": {"A": {"in": ["1"]}, "C": {}}}
    content = op_history.packed({"2.98": {**small, "tensorflow": "2.98.0"}, "2.99": other})
    import lzma

    assert json.loads(lzma.decompress(content))["ops"] == {
        "A": [[0, {"in": ["1"]}]],
        "B": [[0, {"in": ["2"]}], [1, None]],
        "C": [[1, {}]],
    }


def _public(ops: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on the hardware that a wheel is made for."""
    return {
        name: {k: v for k, v in op.items() if k != "gpu"}
        for name, op in ops.items()
        if not name.startswith("_")
    }
