"""Models that export themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, assert_same

import keras_export as ke
from keras_export import recorded_calls


class TwoTowers(ke.Model):
    """Takes an integer and a float, and an argument that nobody passes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = keras.layers.Embedding(10, 3)
        self.dense = keras.layers.Dense(3)

    def call(self, ids: Any, features: Any, scale: Any = None, training: bool = False) -> Any:
        return {"score": self.embed(ids) + self.dense(features)}


class Plain(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, counts: Any) -> Any:
        return self.dense(tf.cast(counts, tf.float32))


def functional(cls: type = ke.Model) -> Any:
    x = keras.Input((4,), name="x")
    return cls(x, keras.layers.Dense(5, name="out")(x))


def spec(signature: ke.Signature, name: str) -> tuple[list[int | None], str]:
    found = signature.inputs[name]
    return found.shape.as_list(), found.dtype.name


def test_a_functional_model_keeps_its_names_and_runs_everywhere(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = functional()
    report = model.export(tmp_path / "a")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    assert_same(consumers.everywhere(tmp_path / "a", "serve", x=x), {"out": np.asarray(model(x))})
    assert str(report.signatures["serve"]) == "(x: float32[?, 4]) -> (out: float32[?, 5])"


def test_a_functional_model_is_of_both_kinds() -> None:
    model = functional()
    assert isinstance(model, ke.Model) and isinstance(model, keras.Model)


def test_recorded_calls_give_every_argument_with_its_true_dtype_and_a_free_batch(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = TwoTowers()
    ids, features = np.array([1, 2], "int32"), np.ones((2, 7), "float32")
    model(ids, features)
    model(np.array([1, 2, 3], "int32"), features=np.ones((3, 7), "float32"))
    signature = model.export(tmp_path / "a").signatures["serve"]
    assert sorted(signature.inputs) == ["features", "ids"]
    assert spec(signature, "ids") == ([None], "int32")
    assert spec(signature, "features") == ([None, 7], "float32")
    expected = np.asarray(model(ids, features)["score"])
    found = consumers.everywhere(tmp_path / "a", "serve", ids=ids, features=features)
    assert_same(found, {"score": expected})
    assert_same(consumers.tf(tmp_path / "a").call("serve", ids, features), {"score": expected})


def test_sizes_that_differ_between_calls_become_free(tmp_path: Path) -> None:
    class Mean(ke.ExportMixin, keras.Model):
        def call(self, x: Any) -> Any:
            return tf.reduce_mean(x, axis=1)

    model = Mean()
    model(tf.ones((2, 5)))
    model(tf.ones((2, 9)))
    assert spec(model.export(tmp_path / "a").signatures["serve"], "x") == ([None, None], "float32")


def test_with_export_gives_a_model_that_exists_an_export_and_records_its_calls(
    tmp_path: Path,
) -> None:
    model = Plain()
    assert ke.with_export(model) is model and type(model) is Plain
    model(tf.zeros((2, 6), tf.int64))
    report = model.export(tmp_path / "a")
    assert spec(report.signatures["serve"], "counts") == ([None, 6], "int64")
    assert report.notes == []


def test_with_export_refuses_what_is_no_model() -> None:
    with pytest.raises(TypeError, match="a Keras model or layer"):
        ke.with_export(tf.Module())


@pytest.mark.parametrize("step", ["predict", "fit"])
def test_a_compiled_step_tells_the_dtype_of_a_model_that_did_not_record(
    step: str, tmp_path: Path
) -> None:
    model = Plain()
    model.compile("sgd", "mse")
    x, y = np.zeros((2, 6), "int64"), np.zeros((2, 3), "float32")
    model.predict(x, verbose=0) if step == "predict" else model.fit(x, y, verbose=0)
    report = ke.export(model, tmp_path / "a")
    assert spec(report.signatures["serve"], "counts") == ([None, 6], "int64")


def test_where_only_shapes_are_known_the_report_says_that_the_dtype_is_assumed(
    tmp_path: Path,
) -> None:
    model = Plain()
    model(np.zeros((2, 6), "int64"))
    report = ke.export(model, tmp_path / "a")
    assert spec(report.signatures["serve"], "counts") == ([None, 6], "float32")
    assert any(note.startswith("dtype assumed: ") for note in report.notes)


def test_our_own_trace_is_no_recorded_call(tmp_path: Path) -> None:
    model = Plain()
    ke.with_export(model)
    model(tf.zeros((2, 6), tf.int64))
    model.export(tmp_path / "a", input_signature=[tf.TensorSpec([None, 6], tf.float32)])
    report = model.export(tmp_path / "b")
    assert spec(report.signatures["serve"], "counts") == ([None, 6], "int64")


def test_stop_recording_leaves_the_model_as_it_was() -> None:
    model = Plain()
    before = dict(vars(model))
    recorded_calls.start_recording(model)
    recorded_calls.stop_recording(model)
    assert vars(model).keys() == before.keys()


def test_a_subclass_built_from_tensors_leaves_the_classes_above_it_alone(tmp_path: Path) -> None:
    class Built(ke.Model):
        def __init__(self) -> None:
            x = keras.Input((4,), name="x")
            super().__init__(x, keras.layers.Dense(2, name="y")(x))

    bases = ke.Model.__bases__
    assert sorted(Built().export(tmp_path / "a").signatures["serve"].outputs) == ["y"]
    assert ke.Model.__bases__ == bases
    model = TwoTowers()
    model(np.array([1]), np.ones((1, 7), "float32"))
    assert sorted(model.export(tmp_path / "b").signatures["serve"].outputs) == ["score"]


def test_a_plain_class_with_the_mixin_works_first_functional_then_subclassed(
    tmp_path: Path,
) -> None:
    class Built(ke.ExportMixin, keras.Model):
        def __init__(self) -> None:
            x = keras.Input((4,), name="x")
            super().__init__(x, keras.layers.Dense(2, name="y")(x))

    class Called(ke.ExportMixin, keras.Model):
        def call(self, a: Any) -> Any:
            return a * 2

    assert sorted(Built().export(tmp_path / "a").signatures["serve"].outputs) == ["y"]
    model = Called()
    model(tf.ones((1, 2)))
    assert sorted(model.export(tmp_path / "b").signatures["serve"].inputs) == ["a"]


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_a_saved_keras_file_comes_back_with_its_export(kind: str, tmp_path: Path) -> None:
    layers = [keras.Input((4,), name="x"), keras.layers.Dense(5, name="out")]
    model = functional() if kind == "functional" else ke.Sequential(layers)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    signature = loaded.export(tmp_path / "a").signatures["serve"]
    assert str(signature) == "(x: float32[?, 4]) -> (out: float32[?, 5])"


def test_verbose_prints_the_report_and_nothing_else_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = functional()
    model.export(tmp_path / "a")
    assert capsys.readouterr().out == ""
    report = model.export(tmp_path / "a", verbose=True)
    assert capsys.readouterr().out == f"{report}\n"


@pytest.mark.parametrize("given", ["class", "instance"])
def test_other_formats_go_to_keras(given: str, tmp_path: Path, monkeypatch: Any) -> None:
    asked: dict[str, Any] = {}

    def fake(self: Any, filepath: Any, **kwargs: Any) -> None:
        asked.update(kwargs, filepath=filepath)

    monkeypatch.setattr(keras.Model, "export", fake)
    model = functional() if given == "class" else ke.with_export(functional(keras.Model))
    assert model.export("there", format="onnx", opset_version=18) is None
    assert asked["format"] == "onnx" and asked["opset_version"] == 18
    assert asked["filepath"] == "there" and not list(tmp_path.iterdir())
