"""A server warms a model up with requests that the model answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers

import keras_export as ke
from keras_export import protos

_FILE = Path("assets.extra") / "tf_serving_warmup_requests"


def two_inputs() -> keras.Model:
    image = keras.Input((4, 4, 3), name="image", dtype="float32")
    word = keras.Input((2,), name="word", dtype="int32")
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    embedded = keras.layers.Flatten()(keras.layers.Embedding(5, 2)(word))
    joined = keras.layers.Concatenate()([pooled, embedded])
    return keras.Model([image, word], keras.layers.Dense(2, name="class")(joined))


def words() -> keras.Model:
    text = keras.layers.TextVectorization(10, vocabulary=["a", "b"], output_sequence_length=3)
    return keras.Sequential([keras.Input((), dtype="string", name="text"), text])


def requests(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """What the file holds, read by TensorFlow's own reader of records."""
    found = []
    for record in tf.data.TFRecordDataset(str(folder / _FILE)).as_numpy_iterator():
        call = protos.PredictionLog.FromString(record).predict_log.request
        inputs = {}
        for entry in call.inputs:
            proto = tf.make_tensor_proto(0)
            proto.ParseFromString(entry.value)
            inputs[entry.key] = tf.make_ndarray(proto)
        found.append((call.model_spec.signature_name, inputs))
    return found


def test_each_request_of_the_file_runs_on_its_signature(
    tmp_path: Path, consumers: Consumers
) -> None:
    batch = {"image": np.ones((2, 4, 4, 3)), "word": [[1, 2], [3, 4]]}
    ke.export(two_inputs(), tmp_path / "given", warmup=batch)
    ke.export(two_inputs(), tmp_path / "generated", warmup=[True, 3])
    ke.export(words(), tmp_path / "text", warmup={"text": ["a b", "c"]})
    sizes = {"given": [2, 2], "generated": [1, 1, 3, 3], "text": [2, 2]}
    for name, expected in sizes.items():
        found = requests(tmp_path / name)
        assert sorted({key for key, _ in found}) == ["serve", "serving_default"]
        assert [len(next(iter(inputs.values()))) for _, inputs in found] == expected
        for key, inputs in found:
            assert consumers.cpp(tmp_path / name).signature(key, **inputs)
    (_, inputs), _ = requests(tmp_path / "given")
    assert inputs["image"].dtype == "float32" and inputs["word"].dtype == "int32"
    np.testing.assert_array_equal(inputs["word"], [[1, 2], [3, 4]])
    assert requests(tmp_path / "text")[0][1]["text"].tolist() == [b"a b", b"c"]


def test_nothing_is_written_unless_it_is_wanted(tmp_path: Path) -> None:
    exporter = ke.Exporter(words())
    exporter.write(tmp_path / "plain")
    assert not (tmp_path / "plain" / _FILE.parent).exists()
    exporter.write(tmp_path / "warm", warmup=True)
    assert len(requests(tmp_path / "warm")) == 2
    exporter.write(tmp_path / "warm")  # it is ours: it goes with the export that had it
    assert not (tmp_path / "warm" / _FILE).exists()


def test_an_exporter_warms_up_what_each_write_does_not_set_itself(tmp_path: Path) -> None:
    exporter = ke.Exporter(words(), warmup=2)
    exporter.write(tmp_path / "all")
    exporter.write(tmp_path / "one", warmup={"serve": 1})
    exporter.write(tmp_path / "none", warmup=False)
    assert [len(x["text"]) for _, x in requests(tmp_path / "all")] == [2, 2]
    assert [key for key, _ in requests(tmp_path / "one")] == ["serve"]
    assert not (tmp_path / "none" / _FILE).exists()


def test_equal_requests_are_equal_bytes(tmp_path: Path) -> None:
    model = two_inputs()
    for name in ("a", "b"):
        ke.export(model, tmp_path / name, warmup=True)
    first, second = ((tmp_path / name / _FILE).read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize(
    ("warmup", "message"),
    [
        ({"picture": 1}, "expected the inputs of a signature .serve: image, word; .*'picture'"),
        (np.ones((1, 2)), "received one array"),
        ({"image": np.ones((1, 4, 4, 3)), "word": [["a", "b"]]}, "expected int32, received word"),
        (
            {"image": np.ones((1, 4, 4, 3)), "word": np.array([[0.5, 1]])},
            "expected int32, received word=float64",
        ),
        (
            {"image": np.ones((1, 4, 4, 3)), "word": [[0.5, 1]]},
            "expected values that int32 can have, received word=float64",
        ),
        (
            {"image": np.ones((1, 4, 4, 3)), "word": [[2**40, 1]]},
            "expected values that int32 can have, received word=int64",
        ),
        (
            {"image": np.ones((1, 4, 4)), "word": [[1, 2]]},
            "'image' of 'serve': expected the .* A list stands for several requests",
        ),
        (0, "expected a batch size from 1 on, received 0"),
        (10**8, "'serve': expected 2146435072 bytes at most, received 19200000000 bytes"),
        ([1] * 501, "expected 1000 at most"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    warmup: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        ke.export(two_inputs(), tmp_path / "out", warmup=warmup)
    assert list(tmp_path.iterdir()) == []


def test_a_request_that_the_model_fails_on_is_refused(tmp_path: Path) -> None:
    # Python's own checks pass; the index is out of the embedding's range.
    batch = {"image": np.ones((1, 4, 4, 3)), "word": [[1, 77]]}
    with pytest.raises(ValueError, match=r"'serve' with image=.*the model fails on it"):
        ke.export(two_inputs(), tmp_path / "out", warmup=batch)
    assert list(tmp_path.iterdir()) == []


_DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int64", "uint64", "float16"]
_DTYPES += ["bfloat16", "float32", "float64", "complex64", "complex128", "string"]


class Every(tf.Module):
    """A signature with an input of each dtype, one of a scalar, and one without inputs."""

    def __init__(self) -> None:
        super().__init__()
        specs = [tf.TensorSpec([None, 2], dtype, name=f"a_{dtype}") for dtype in _DTYPES]
        scalar = tf.TensorSpec([], tf.string, name="scalar")
        self.every = tf.function(self._every, input_signature=[*specs, scalar])
        self.nothing = tf.function(lambda: {"y": tf.constant(1)}, input_signature=[])

    def _every(self, *tensors: Any) -> Any:
        return {f"output_{index}": tf.identity(x) for index, x in enumerate(tensors)}


def test_each_dtype_a_scalar_and_no_input_travel(tmp_path: Path, consumers: Consumers) -> None:
    module = Every()
    signatures = {"every": module.every, "nothing": module.nothing}
    ke.Exporter(module, signatures=signatures, warmup=[1, {"every": 3}]).write(tmp_path)
    found = requests(tmp_path)
    assert [key for key, _ in found] == ["every", "nothing", "every"]
    assert [len(inputs["a_int8"]) for key, inputs in found if key == "every"] == [1, 3]
    for key, inputs in found:
        assert consumers.cpp(tmp_path).signature(key, **inputs)
        if key == "every":
            dtypes = {name: tf.as_dtype(x.dtype).name for name, x in inputs.items()}
            assert dtypes == {**{f"a_{x}": x for x in _DTYPES}, "scalar": "string"}


class WithDefault(tf.Module):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="x"),
            tf.TensorSpec([1], tf.float32, name="y"),
        ]
    )
    def add(self, x: Any, y: Any = tf.constant([10.0])) -> Any:  # noqa: B008
        return x + y


def test_an_input_that_is_left_out_has_its_default(tmp_path: Path) -> None:
    for name, warmup in {"made": True, "given": {"x": [1.0]}, "one": np.array([1.0])}.items():
        ke.Exporter(WithDefault(), warmup=warmup).write(tmp_path / name)
        ((_, inputs),) = requests(tmp_path / name)
        assert inputs["y"].tolist() == [10.0] and inputs["x"].shape == (1,)
    ke.Exporter(WithDefault(), warmup={"x": [1.0], "y": [2.0]}).write(tmp_path / "both")
    assert requests(tmp_path / "both")[0][1]["y"].tolist() == [2.0]


def test_text_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'serve' with text=object.* the model fails on it"):
        ke.export(words(), tmp_path / "out", warmup=np.array([None], object))
    assert list(tmp_path.iterdir()) == []


class Double(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def double(self, x: Any) -> Any:
        return 2.0 * x


def test_what_is_no_model_is_warmed_up_too(tmp_path: Path) -> None:
    ke.Exporter(Double(), warmup={"x": [1.0, 2.0]}).write(tmp_path)
    ((key, inputs),) = requests(tmp_path)
    assert key == "serving_default" and inputs["x"].tolist() == [1.0, 2.0]


@pytest.mark.network
def test_tensorflow_servings_own_messages_read_the_file(tmp_path: Path) -> None:
    logs = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    batch = {"image": np.ones((2, 4, 4, 3), "float32"), "word": np.array([[1, 2], [3, 4]], "int32")}
    report = ke.export(two_inputs(), tmp_path, warmup=batch)
    loaded = tf.saved_model.load(report.export_dir)
    keys = []
    for record in tf.data.TFRecordDataset(str(tmp_path / _FILE)).as_numpy_iterator():
        log = logs.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        call = log.predict_log.request
        inputs = {name: tf.make_ndarray(proto) for name, proto in call.inputs.items()}
        keys.append(call.model_spec.signature_name)
        for name, value in inputs.items():
            np.testing.assert_array_equal(value, batch[name])
        assert loaded.signatures[keys[-1]](**{k: tf.constant(v) for k, v in inputs.items()})
    assert keys == ["serve", "serving_default"]
