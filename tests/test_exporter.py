"""Promises of `exporter`: from a live object to an artifact that every reader loads."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumer_gradients import gradients
from consumers import ConsumerError, Consumers, Spec, assert_same
from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

import keras_export as ke
from keras_export.errors import (
    ArgumentError,
    ExportError,
    GraphModeError,
    InsideFunctionError,
    NotTrackableError,
    ReservedNameError,
    SignatureError,
    TargetError,
    UninitializedError,
    UnsupportedError,
    UntrackedCaptureError,
)

VALUES = ".ATTRIBUTES/VARIABLE_VALUE"
FILES = [
    "assets/",
    "fingerprint.pb",
    "saved_model.pb",
    "variables/variables.data-00000-of-00001",
    "variables/variables.index",
]


class Adder(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32)])
    def add(self, x: tf.Tensor) -> tf.Tensor:
        return x + x


class Scale(tf.Module):
    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = tf.Variable(factor, name="factor")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def scale(self, x: tf.Tensor) -> tf.Tensor:
        return self.factor * x


class Numbers(keras.Model):
    """A model on numbers that is served on text."""

    def __init__(self) -> None:
        super().__init__(name="numbers")
        self.dense = keras.layers.Dense(2, name="dense")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.dense(x)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        digits = tf.strings.split(text, ",").to_tensor(shape=[None, 3])
        return {"scores": self(tf.strings.to_number(digits))}


class Traced(keras.Model):
    """A model whose `call` is a `tf.function`."""

    def __init__(self) -> None:
        super().__init__(name="traced")
        self.dense = keras.layers.Dense(2, name="dense")

    @tf.function
    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.dense(x)


def x_to_out() -> keras.Model:
    x = keras.Input((4,), name="x")
    return keras.Model(x, keras.layers.Dense(5, name="out")(x), name="x_to_out")


def classifier() -> keras.Model:
    """Has most of what a small trained model has: normalization, dropout, two dense layers."""
    image = keras.Input((6, 6, 1), name="image")
    h = keras.layers.Conv2D(3, 3, activation="silu", name="conv")(image)
    h = keras.layers.BatchNormalization(name="norm")(h)
    h = keras.layers.Flatten(name="flat")(h)
    h = keras.layers.Dropout(0.5, name="dropout")(h)
    label = keras.layers.Dense(3, "softmax", name="label")(h)
    return keras.Model(image, label, name="classifier")


def trained_classifier() -> keras.Model:
    model = classifier()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images(8), np.arange(8) % 3, batch_size=4, verbose=0)
    return model


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=[count, 6, 6, 1]).astype("float32")


def refused(error: type[Exception], words: str, folder: Path, call: Any) -> Exception:
    """Checks that a call raises and that the folder is as it was."""
    before = artifacts.files(folder)
    with pytest.raises(error, match=re.escape(words)) as caught:
        call()
    assert artifacts.files(folder) == before
    assert isinstance(caught.value, ExportError)
    return caught.value


# -- the seed examples ----------------------------------------------------------------------------


def test_the_adder_is_servable_with_the_input_x(tmp_path: Path, consumers: Consumers) -> None:
    report = ke.save(Adder(), tmp_path)
    result = consumers.everywhere(tmp_path, "serving_default", x=np.float32([1, 2]))
    assert_same(result, {"output_0": np.float32([2, 4])})
    assert_same(consumers.tf(tmp_path).call("add", np.float32(3)), np.float32(6))
    ((key, signature),) = report.signatures.items()
    assert (key, str(signature)) == (
        "serving_default",
        "(x: float32[...]) -> (output_0: float32[...])",
    )


@pytest.mark.parametrize("called", [False, True], ids=["new", "called before"])
@pytest.mark.parametrize("passed", [False, True], ids=["found", "passed"])
def test_a_decorated_serve_on_strings_is_the_signature(
    tmp_path: Path, consumers: Consumers, passed: bool, called: bool
) -> None:
    model = Numbers()
    if called:
        model(np.ones([1, 3], "float32"))
    report = ke.save(model, tmp_path, signatures=model.serve if passed else None)
    expected = {"scores": model(np.float32([[1, 2, 3], [4, 5, 6]])).numpy()}
    text = np.array([b"1,2,3", b"4,5,6"], object)
    assert_same(consumers.everywhere(tmp_path, "serving_default", text=text), expected)
    assert_same(consumers.tf(tmp_path).call("serve", text), expected)
    assert str(report.signatures["serving_default"]) == (
        "(text: string[?]) -> (scores: float32[?, 2])"
    )


def test_a_concrete_call_is_served_by_the_name_of_its_spec(
    tmp_path: Path, consumers: Consumers
) -> None:
    m = Traced()
    ke.save(m, tmp_path, m.call.get_concrete_function(tf.TensorSpec([None, 3], tf.float32, "inp")))
    x = np.float32([[1, 2, 3]])
    result = consumers.everywhere(tmp_path, "serving_default", inp=x)
    assert_same(result, {"output_0": m(x).numpy()})
    signature = consumers.cpp(tmp_path).signatures()["serving_default"]
    assert signature["inputs"] == {"inp": Spec((None, 3), "float32")}


@pytest.mark.parametrize("write", [ke.save, ke.export])
def test_a_functional_model_takes_x_and_returns_out(
    tmp_path: Path, consumers: Consumers, write: Any
) -> None:
    model = x_to_out()
    report = write(model, tmp_path)
    x = np.random.normal(size=[3, 4]).astype("float32")
    for key in report.signatures:
        assert_same(consumers.everywhere(tmp_path, key, x=x), {"out": model(x).numpy()})
    for artifact in (consumers.tf(tmp_path), consumers.v1(tmp_path), consumers.cpp(tmp_path)):
        assert artifact.signatures()["serving_default"] == {
            "inputs": {"x": Spec((None, 4), "float32")},
            "outputs": {"out": Spec((None, 5), "float32")},
        }


def test_an_alias_covers_every_trace_of_a_function_that_is_only_called(
    tmp_path: Path, consumers: Consumers
) -> None:
    @tf.function
    def double(x: tf.Tensor) -> tf.Tensor:
        return x + x

    class Caller(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
        def f(self, x: tf.Tensor) -> tf.Tensor:
            return double(x) + tf.cast(double(tf.cast(x, tf.int32)), tf.float32)

    options = ke.SaveOptions(function_aliases={"fast_double": double})
    ke.save(Caller(), tmp_path, options=options)
    aliases = artifacts.meta_graph(tmp_path).meta_info_def.function_aliases
    called = {
        node.attr["f"].func.name
        for node in artifacts.nodes(tmp_path)
        if "double" in node.attr["f"].func.name
    }
    assert len(called) == 2
    assert dict(aliases) == dict.fromkeys(called, "fast_double")
    result = consumers.everywhere(tmp_path, "serving_default", x=np.float32(2.5))
    assert_same(result, {"output_0": np.float32(9)})


def test_two_aliases_for_one_function_are_refused(tmp_path: Path) -> None:
    adder = Adder()
    options = ke.SaveOptions(function_aliases={"a": adder.add, "b": adder.add})
    words = "the function aliases 'a' and 'b' mean the same function"
    refused(ArgumentError, words, tmp_path, lambda: ke.save(adder, tmp_path, options=options))


# -- the training checkpoint ----------------------------------------------------------------------


class Tree(tf.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.kernel = tf.Variable([value, value])
        self.parts = [tf.Variable(value), {"a.b": tf.Variable(-value), "c/d": Scale(value)}]


def two_roots(value: float) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(scale=Scale(value), step=tf.Variable(int(value)))


def functional(value: float) -> keras.Model:
    model = x_to_out()
    model.compile("adam", "mse")
    model.fit(np.full([2, 4], value), np.ones([2, 5]), verbose=0)
    return model


def values_of(obj: Any, prefix: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(tf.train.Checkpoint(obj).write(prefix))
    shapes = reader.get_variable_to_shape_map()
    return {k: reader.get_tensor(k) for k in shapes if k != "_CHECKPOINTABLE_OBJECT_GRAPH"}


@pytest.mark.parametrize("make", [Tree, two_roots, functional])
def test_save_stores_what_a_training_checkpoint_would(
    tmp_path: Path, consumers: Consumers, make: Any
) -> None:
    saved = make(3.0)
    ke.save(saved, tmp_path / "artifact")
    stored = consumers.checkpoint(tmp_path / "artifact")
    assert_same(stored.values(), values_of(saved, tmp_path / "checkpoint"))
    assert stored.has_object_graph()


@pytest.mark.parametrize("make", [Tree, functional])
def test_a_training_checkpoint_restores_from_the_variables_of_an_artifact(
    tmp_path: Path, make: Any
) -> None:
    saved, fresh = make(3.0), make(7.0)
    ke.save(saved, tmp_path / "artifact")
    prefix = str(tmp_path / "artifact/variables/variables")
    tf.train.Checkpoint(fresh).restore(prefix)
    restored, expected = values_of(fresh, tmp_path / "fresh"), values_of(saved, tmp_path / "saved")
    assert_same({key: restored[key] for key in expected}, expected)
    # `restore` adds a save counter, which only `Checkpoint.save` stores; `read` does not.
    status = tf.train.Checkpoint(fresh).read(prefix)
    status.assert_consumed()
    status.assert_existing_objects_matched()


def test_a_checkpoint_object_restores_from_its_own_artifact(tmp_path: Path) -> None:
    saved, fresh = two_roots(3.0), two_roots(7.0)
    ke.save(saved, tmp_path)
    status = fresh.restore(str(tmp_path / "variables/variables"))
    status.assert_consumed()
    status.assert_existing_objects_matched()
    assert (float(fresh.scale.factor), int(fresh.step)) == (3.0, 3)


def test_export_stores_a_model_without_its_optimizer(tmp_path: Path, consumers: Consumers) -> None:
    saved, fresh = functional(3.0), x_to_out()
    expected = values_of(saved, tmp_path / "checkpoint")
    ke.export(saved, tmp_path / "artifact")
    assert any(key.startswith("optimizer/") for key in expected)
    without = {k: v for k, v in expected.items() if "optimizer" not in k}
    assert_same(consumers.checkpoint(tmp_path / "artifact").values(), without)
    status = tf.train.Checkpoint(fresh).read(str(tmp_path / "artifact/variables/variables"))
    status.assert_consumed()
    status.assert_existing_objects_matched()
    for ours, theirs in zip(fresh.weights, saved.weights, strict=True):
        assert_same(ours.numpy(), theirs.numpy())


def test_export_stores_the_optimizer_when_asked(tmp_path: Path, consumers: Consumers) -> None:
    saved = functional(3.0)
    ke.export(saved, tmp_path / "artifact", include_optimizer=True)
    expected = values_of(saved, tmp_path / "checkpoint")
    assert_same(consumers.checkpoint(tmp_path / "artifact").values(), expected)


def test_a_model_is_restored_from_its_export_with_its_statistics(tmp_path: Path) -> None:
    saved, fresh = trained_classifier(), classifier()
    ke.export(saved, tmp_path)
    status = tf.train.Checkpoint(fresh).read(str(tmp_path / "variables/variables"))
    status.assert_existing_objects_matched()
    for ours, theirs in zip(fresh.weights, saved.weights, strict=True):
        assert_same(ours.numpy(), theirs.numpy())


def test_a_variable_reached_by_two_paths_is_stored_once(
    tmp_path: Path, consumers: Consumers
) -> None:
    module = Tree(1.0)
    module.again = module.kernel
    module.parts.append(module.kernel)
    ke.save(module, tmp_path)
    values = consumers.checkpoint(tmp_path).values()
    assert sorted(values) == [
        f"kernel/{VALUES}",
        f"parts/0/{VALUES}",
        f"parts/1/a..b/{VALUES}",
        f"parts/1/c.Sd/factor/{VALUES}",
    ]
    loaded = consumers.tf(tmp_path)
    loaded.assign("again", [5.0, 6.0])
    for path in ("kernel", "parts.2"):
        assert_same(loaded.attribute(path).value, np.float32([5, 6]))


def test_a_keras_variable_shared_by_two_layers_is_stored_once(
    tmp_path: Path, consumers: Consumers
) -> None:
    class Unembed(keras.layers.Layer):
        def __init__(self, embedding: keras.layers.Embedding) -> None:
            super().__init__(name="unembed")
            self.tied = embedding.embeddings

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return keras.ops.matmul(x, keras.ops.transpose(self.tied))

    tokens = keras.Input((None,), dtype="int32", name="tokens")
    embedding = keras.layers.Embedding(50, 4, name="embed")
    embedding.build()
    model = keras.Model(tokens, Unembed(embedding)(embedding(tokens)), name="tied")
    ids = np.int32([[1, 2, 49]])
    for write in (ke.save, ke.export):
        export_dir = tmp_path / write.__name__
        write(model, export_dir)
        shapes = consumers.checkpoint(export_dir).shapes()
        assert list(shapes.values()) == [(50, 4)]
        data = export_dir / "variables/variables.data-00000-of-00001"
        assert 50 * 4 * 4 <= data.stat().st_size < 2 * 50 * 4 * 4 + 2000
        assert artifacts.ops(export_dir).count("VarHandleOp") == 1
        result = consumers.everywhere(export_dir, "serving_default", tokens=ids)
        assert_same(result, {"unembed": model(ids).numpy()})


def test_a_keras_variable_in_a_plain_module_is_served(tmp_path: Path, consumers: Consumers) -> None:
    class Holder(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = keras.Variable([1.0, 2.0], name="weight")
            self.layer = keras.layers.Dense(2, name="dense")
            self.layer.build((None, 2))

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
        def f(self, x: tf.Tensor) -> tf.Tensor:
            return self.layer(x * self.weight)

    holder, x = Holder(), np.float32([[3, 4]])
    ke.save(holder, tmp_path)
    result = consumers.everywhere(tmp_path, "serving_default", x=x)
    assert_same(result, {"output_0": holder.f(x).numpy()})
    assert len(consumers.checkpoint(tmp_path).values()) == 3


# -- Keras in the graph world ---------------------------------------------------------------------


@pytest.mark.parametrize("write", [ke.save, ke.export])
def test_keras_models_run_in_the_v1_and_cpp_loaders(
    tmp_path: Path, consumers: Consumers, write: Any
) -> None:
    model, x = trained_classifier(), images(3)
    write(model, tmp_path)
    result = consumers.everywhere(tmp_path, "serving_default", image=x)
    assert_same(result, {"label": model(x, training=False).numpy()}, rtol=1e-5)


def test_keras_models_of_tensorflow_run_in_neither(tmp_path: Path, consumers: Consumers) -> None:
    """The reason for this project. If TensorFlow mends it, this says so."""
    model = x_to_out()
    tf.saved_model.save(model, tmp_path)
    for artifact in (consumers.v1(tmp_path), consumers.cpp(tmp_path)):
        (name,) = artifact.signatures()["serving_default"]["inputs"]
        with pytest.raises(ConsumerError, match="Could not find variable"):
            artifact.signature("serving_default", **{name: np.ones([1, 4], "float32")})


def test_the_loaded_model_has_its_endpoint_and_its_lists_of_variables(
    tmp_path: Path, consumers: Consumers
) -> None:
    model, x = trained_classifier(), images(2)
    ke.export(model, tmp_path)
    loaded = consumers.tf(tmp_path)
    expected = model(x, training=False).numpy()
    assert_same(loaded.call("serve", x), expected, rtol=1e-5)
    assert list(loaded.signatures()) == ["serve", "serving_default"]
    for name in ("variables", "trainable_variables", "non_trainable_variables"):
        live = getattr(model, name)
        stored = loaded.attribute(name)
        assert [v.shape for v in stored] == [tuple(v.shape) for v in live]
        for ours, theirs in zip(stored, live, strict=True):
            assert_same(ours.value, theirs.numpy())
    layer = consumers.tfsm(tmp_path)
    assert_same(layer(x), expected, rtol=1e-5)
    assert layer.weights()["trainable"] == len(model.trainable_variables)
    tuned = layer.fine_tune(x, np.eye(3, dtype="float32")[:2])
    assert tuned["after"] < tuned["before"]
    assert tuned["updated"] == tuned["trainable"]


# -- gradients ------------------------------------------------------------------------------------


@tf.custom_gradient
def straight_through(x: tf.Tensor) -> Any:
    """The natural gradient of `sign` is zero; this one is three times the clipped one."""

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return 3.0 * upstream * tf.cast(tf.abs(x) < 1.0, tf.float32)

    return tf.sign(x), gradient


class Straight(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable([[0.5, -2.0], [0.25, 4.0]])

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
    def f(self, x: tf.Tensor) -> tf.Tensor:
        return straight_through(x @ self.kernel) * 2.0


def test_a_straight_through_estimator_keeps_its_gradient(
    tmp_path: Path, consumers: Consumers
) -> None:
    module, x = Straight(), np.float32([[0.5, 0.25], [1, -1]])
    ke.save(module, tmp_path)
    loaded = consumers.tf(tmp_path)
    by_input = gradients(module.f, [tf.constant(x)], [tf.constant(x)], {})
    (live,) = gradients(module.f, [tensor := tf.constant(x)], [tensor], {})
    (kernel,) = gradients(module.f, [module.kernel], [tf.constant(x)], {})
    assert by_input == [None]
    assert np.any(live.numpy())
    for path in ("f", "signatures.serving_default"):
        argument = {"x": x} if path.startswith("signatures") else {}
        args = () if argument else (x,)
        found = loaded.gradient(path, *args, **argument)
        assert_same(found["x" if argument else 0], live.numpy())
        found = loaded.gradient(path, *args, wrt="variables", **argument)
        assert_same(found, {"kernel": kernel.numpy()})


@pytest.mark.parametrize("write", [ke.save, ke.export])
def test_a_silu_model_keeps_its_gradients(tmp_path: Path, consumers: Consumers, write: Any) -> None:
    model, x = trained_classifier(), images(3)
    write(model, tmp_path)

    def infer(image: tf.Tensor) -> tf.Tensor:
        return model(image, training=False)

    tensor = tf.constant(x)
    (expected,) = gradients(infer, [tensor], [tensor], {})
    slopes = gradients(infer, [v.value for v in model.trainable_variables], [tensor], {})
    loaded = consumers.tf(tmp_path)
    found = loaded.gradient("signatures.serving_default", image=x)
    assert_same(found["image"], expected.numpy(), rtol=1e-4, atol=1e-6)
    by_path = loaded.gradient("signatures.serving_default", image=x, wrt="variables")
    paths = [variable.path for variable in model.trainable_variables]
    by_name = {path: slope.numpy() for path, slope in zip(paths, slopes, strict=True)}
    names = {path: variable.name.split(":")[0] for path, variable in loaded.variables().items()}
    ours = {names[path]: slope for path, slope in by_path.items()}
    assert_same(ours, by_name, rtol=1e-4, atol=1e-6)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [3, "model", [1, 2], np.ones(3), lambda x: x, object])
def test_what_is_not_trackable_is_refused(tmp_path: Path, thing: Any) -> None:
    words = (
        "Cannot export: expected a trackable: a tf.Module, tf.train.Checkpoint, Keras layer or "
        f"model, received obj={thing!r} ({type(thing).__name__}). Hold it as an attribute of a "
        "tf.Module: `m = tf.Module(); m.x = ...`."
    )
    error = refused(NotTrackableError, words, tmp_path, lambda: ke.save(thing, tmp_path / "a"))
    assert isinstance(error, ValueError)


def test_an_object_with_signatures_of_its_own_is_refused(tmp_path: Path) -> None:
    adder = Adder()
    adder.signatures = tf.Module()
    words = "Cannot export obj.signatures (Module): the name `signatures` is reserved"
    refused(ReservedNameError, words, tmp_path, lambda: ke.save(adder, tmp_path / "a"))
    adder.signatures = ["plain"]
    refused(ReservedNameError, "`del obj.signatures`", tmp_path, lambda: ke.save(adder, tmp_path))
    fine = Adder()
    fine.signatures = None
    ke.save(fine, tmp_path / "a")


def test_a_method_called_signatures_is_no_reserved_attribute(tmp_path: Path) -> None:
    class Fine(Adder):
        def signatures(self) -> str:
            return "plain method"

    assert list(ke.save(Fine(), tmp_path).signatures) == ["serving_default"]


def test_a_loaded_model_can_be_saved_again(tmp_path: Path, consumers: Consumers) -> None:
    ke.save(Scale(3.0), tmp_path / "first")
    loaded = tf.saved_model.load(str(tmp_path / "first"))
    ke.save(loaded, tmp_path / "second", signatures=loaded.signatures)
    ke.save(loaded, tmp_path / "third")
    x = np.float32([1, 2])
    result = consumers.everywhere(tmp_path / "second", "serving_default", x=x)
    assert_same(result, {"output_0": 3 * x})
    assert_same(consumers.tf(tmp_path / "third").call("scale", x), 3 * x)


def test_a_call_from_inside_a_tf_function_is_refused(tmp_path: Path) -> None:
    adder = Adder()

    @tf.function
    def trace() -> None:
        ke.save(adder, tmp_path / "a")

    error = refused(InsideFunctionError, "Cannot export from inside a tf.function", tmp_path, trace)
    assert isinstance(error, AssertionError)


def test_graph_mode_is_refused(tmp_path: Path) -> None:
    adder = Adder()

    def in_a_graph() -> None:
        with tf.Graph().as_default():
            ke.save(adder, tmp_path / "a")

    refused(GraphModeError, "Cannot export without eager execution", tmp_path, in_a_graph)


def test_a_signature_that_no_artifact_can_hold_is_refused_first(tmp_path: Path) -> None:
    """To open a session, as the error for graph mode says, would not help."""

    def in_a_graph() -> None:
        with tf.Graph().as_default():
            signature = tf.function(lambda x: x).get_concrete_function(tf.TensorSpec([], name="x"))
            signature.graph.mark_as_unsaveable("it is for one replica")
            ke.save(tf.Module(), tmp_path / "a", signatures={"serve": signature})

    words = "Cannot export the signature 'serve': it is for one replica"
    error = refused(UnsupportedError, words, tmp_path, in_a_graph)
    assert isinstance(error, ValueError)


def test_values_of_a_stateless_scope_are_refused_and_an_empty_scope_changes_nothing(
    tmp_path: Path, consumers: Consumers
) -> None:
    x = keras.Input((2,), name="x")
    model = keras.Model(x, keras.layers.Dense(1, name="y")(x))
    values = [(variable, np.zeros(variable.shape, "f4")) for variable in model.variables]

    def in_a_scope() -> None:
        with keras.StatelessScope(values):
            ke.export(model, tmp_path / "a")

    refused(UnsupportedError, "Cannot export inside a keras.StatelessScope", tmp_path, in_a_scope)
    with keras.StatelessScope():
        ke.export(model, tmp_path / "b")
    value = np.ones([1, 2], "f4")
    assert_same(consumers.everywhere(tmp_path / "b", x=value), {"y": model(value).numpy()})


def test_several_tensors_through_one_argument_need_names(
    tmp_path: Path, consumers: Consumers
) -> None:
    class Sum(tf.Module):
        @tf.function
        def f(self, xs: Any) -> tf.Tensor:
            return xs[0] - xs[1]

    module, spec = Sum(), tf.TensorSpec([None], tf.float32)
    unnamed = module.f.get_concrete_function((spec, spec))
    words = (
        "Cannot export the signature 'serving_default': expected one tensor per argument, or a "
        "name for each tensor, received 2 tensors through the argument 'xs' of"
    )
    error = refused(
        SignatureError, words, tmp_path, lambda: ke.save(module, tmp_path / "a", unnamed)
    )
    assert "Name each of them: tf.TensorSpec([None], tf.float32, name=...)," in str(error)
    specs = tuple(tf.TensorSpec([None], tf.float32, name) for name in ("left", "right"))
    ke.save(module, tmp_path / "a", module.f.get_concrete_function(specs))
    result = consumers.everywhere(tmp_path / "a", left=np.float32([5]), right=np.float32([3]))
    assert_same(result, {"output_0": np.float32([2])})


@pytest.mark.parametrize("found", [False, True], ids=["passed", "found"])
def test_an_untracked_variable_is_refused_with_its_mend(tmp_path: Path, found: bool) -> None:
    hidden = tf.Variable([1.0, 2.0], name="hidden")

    class Forgetful(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, name="x")])
        def f(self, x: tf.Tensor) -> tf.Tensor:
            return x * hidden

    module = Forgetful()
    signatures = None if found else {"multiply": module.f}
    words = (
        "it uses the variable 'hidden' (shape (2,), float32), which obj does not track, so the "
        "artifact would lack it. Assign it to an attribute of obj or of an object that obj holds, "
        "for instance `obj.hidden = ...`, before exporting."
    )
    error = refused(
        UntrackedCaptureError, words, tmp_path, lambda: ke.save(module, tmp_path / "a", signatures)
    )
    assert "the function obj.f" in str(error)
    assert isinstance(error, AssertionError) and isinstance(error, KeyError)
    module.hidden = hidden
    ke.save(module, tmp_path / "a", signatures)


def test_an_untracked_variable_of_a_lone_signature_is_refused(tmp_path: Path) -> None:
    hidden = tf.Variable(1.0, name="outer/hidden")

    @tf.function(input_signature=[])
    def read() -> tf.Tensor:
        return hidden + 1.0

    words = "Cannot export the signature 'serving_default': it uses the variable 'outer/hidden'"
    refused(
        UntrackedCaptureError, words, tmp_path, lambda: ke.save(tf.Module(), tmp_path / "a", read)
    )


def test_an_untracked_table_is_refused(tmp_path: Path) -> None:
    initializer = tf.lookup.KeyValueTensorInitializer(["a"], [1])
    table = tf.lookup.StaticHashTable(initializer, -1)

    class Forgetful(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
        def f(self, words: tf.Tensor) -> tf.Tensor:
            return table.lookup(words)

    words = "it uses the StaticHashTable"
    refused(UntrackedCaptureError, words, tmp_path, lambda: ke.save(Forgetful(), tmp_path / "a"))


@pytest.mark.parametrize("write", [ke.export, ke.Exporter])
def test_an_unbuilt_model_is_refused(tmp_path: Path, write: Any) -> None:
    sequential = keras.Sequential([keras.layers.Dense(2)], name="unbuilt")
    arguments = (tmp_path / "a",) if write is ke.export else ()
    words = "Cannot export the model 'unbuilt': expected a model that is built"
    error = refused(ArgumentError, words, tmp_path, lambda: write(sequential, *arguments))
    assert "`model.build((None, 32))`" in str(error)
    words = "Cannot export the model 'traced': expected a model that was called"
    error = refused(ArgumentError, words, tmp_path, lambda: write(Traced(), *arguments))
    assert "input_signature=[tf.TensorSpec([None, 32], tf.float32, name='x')]" in str(error)


@pytest.mark.parametrize("write", [ke.save, ke.export])
def test_a_file_at_the_target_or_above_it_is_refused(tmp_path: Path, write: Any) -> None:
    (tmp_path / "file").write_text("mine")
    model = x_to_out()
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        words = f"received a file at {tmp_path / 'file'}. Move the file, or export elsewhere."
        error = refused(TargetError, words, tmp_path, lambda t=target: write(model, t))
        assert isinstance(error, OSError)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unwritable_directory_is_refused(tmp_path: Path) -> None:
    """In a process without root's rights, for root may write everywhere."""
    locked = tmp_path / "locked"
    locked.mkdir()
    adder = Adder()
    exporter = ke.Exporter(adder)
    locked.chmod(0o500)
    child = os.fork()
    if child == 0:
        code = 9
        try:
            if os.geteuid() == 0:
                tmp_path.chmod(0o755)
                os.setgid(65534)
                os.setuid(65534)
            exporter.write(locked / "a")
        except TargetError as error:
            code = 0 if "Permission denied" in str(error) else 8
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    locked.chmod(0o700)
    assert os.waitstatus_to_exitcode(status) == 0
    assert list(locked.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"options": {"function_aliases": {}}}, "options of type tf.saved_model.SaveOptions"),
        ({"signatures": 3}, "received signatures=3 (int)"),
        ({"signatures": lambda x: x}, "It is a plain Python callable: decorate it with"),
        ({"signatures": {1: None}}, "keys of type str, received key=1 (int)"),
    ],
)
def test_wrong_arguments_leave_no_file(tmp_path: Path, wrong: Any, words: str) -> None:
    refused(ExportError, words, tmp_path, lambda: ke.save(Adder(), tmp_path / "a", **wrong))


def test_what_is_for_models_is_refused_for_others(tmp_path: Path) -> None:
    words = "expected a Keras layer or model for output_names, received obj="
    call = lambda: ke.export(Adder(), tmp_path / "a", output_names=["y"])  # noqa: E731
    refused(ArgumentError, words, tmp_path, call)


def test_an_uninitialized_variable_is_refused_by_name(tmp_path: Path) -> None:
    module = tf.Module()
    module.v = UninitializedVariable(shape=[2], dtype=tf.float32, name="late")
    words = "Cannot export obj.v: expected a variable with a value, received variable='late:0'"
    refused(UninitializedError, words, tmp_path, lambda: ke.save(module, tmp_path / "a"))


# -- files ----------------------------------------------------------------------------------------


def test_an_artifact_holds_exactly_the_files_of_tensorflow(tmp_path: Path) -> None:
    report = ke.save(Scale(), tmp_path / "a")
    found = artifacts.files(tmp_path / "a")
    assert sorted(found) == FILES
    assert report.bytes_written == sum(map(len, found.values()))
    assert report.export_dir == str(tmp_path / "a")
    assert list(report.seconds) == ["trace", "assemble", "write", "publish"]
    assert [x.name for x in tmp_path.iterdir()] == ["a"]


def test_an_old_artifact_is_replaced(tmp_path: Path, consumers: Consumers) -> None:
    ke.save(Scale(2.0), tmp_path)
    ke.save(Scale(5.0), tmp_path)
    result = consumers.everywhere(tmp_path, x=np.float32([1]))
    assert_same(result, {"output_0": np.float32([5])})
    assert sorted(artifacts.files(tmp_path)) == FILES


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path, consumers: Consumers) -> None:
    for name, factor in (("a", 2.0), ("same", 2.0), ("other", 3.0)):
        ke.save(Scale(factor), tmp_path / name)
    a, same, other = (consumers.fingerprint(tmp_path / name) for name in ("a", "same", "other"))
    assert a == same
    assert a["checkpoint_hash"] != other["checkpoint_hash"]
    assert a["saved_model_checksum"] == other["saved_model_checksum"]
    tool = "The given SavedModel SignatureDef contains the following input(s):"
    assert tool in consumers.cli(
        tmp_path / "a", "show", "--tag_set", "serve", "--signature_def", "serving_default"
    )


# -- exporting again ------------------------------------------------------------------------------


def test_an_exporter_writes_the_values_of_each_moment(tmp_path: Path, consumers: Consumers) -> None:
    module, x = Scale(2.0), np.float32([1, 2])
    exporter = ke.Exporter(module)
    first = exporter.write(tmp_path / "1")
    module.factor.assign(7.0)
    second = exporter.write(tmp_path / "2")
    for name, factor in (("1", 2), ("2", 7)):
        result = consumers.everywhere(tmp_path / name, x=x)
        assert_same(result, {"output_0": factor * x})
    assert first.seconds["trace"] + first.seconds["assemble"] > 0
    assert (second.seconds["trace"], second.seconds["assemble"]) == (0.0, 0.0)
    assert (tmp_path / "1/saved_model.pb").read_bytes() == (
        tmp_path / "2/saved_model.pb"
    ).read_bytes()


def test_a_refused_write_leaves_the_exporter_usable(tmp_path: Path) -> None:
    exporter = ke.Exporter(Scale())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TargetError):
        exporter.write(tmp_path / "file")
    exporter.write(tmp_path / "a")
    assert sorted(artifacts.files(tmp_path / "a")) == FILES


def trainee(kind: str, jit: bool) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A compiled model whose every variable changes with a training step."""
    rng = np.random.default_rng(1)
    y = rng.normal(size=[16, 2]).astype("float32")
    if kind == "embedding":
        x = rng.integers(0, 20, size=[16, 3]).astype("int32")
        layers = [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(20, 4, name="embed"),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    else:
        x = rng.normal(size=[16, 5]).astype("float32")
        norm = [keras.layers.BatchNormalization()] if kind == "norm" else []
        layers = [keras.Input((5,)), keras.layers.Dense(4), *norm, keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=jit)
    model.train_on_batch(x, y)
    return model, x, y


@pytest.mark.parametrize("jit", [False, True], ids=["eager kernels", "jit"])
@pytest.mark.parametrize("kind", ["dense", "embedding", "norm"])
def test_a_snapshot_keeps_the_values_of_its_moment_while_training_goes_on(
    tmp_path: Path, kind: str, jit: bool
) -> None:
    model, x, y = trainee(kind, jit)
    exporter = ke.Exporter(model, include_optimizer=True)
    moments = []
    for _ in range(3):
        copies = [np.array(v.numpy(), copy=True) for v in model.variables]
        moments.append((exporter.snapshot(), copies))
        model.train_on_batch(x, y)
    for number, (snapshot, copies) in enumerate(moments):
        snapshot.write(tmp_path / str(number))
        loaded = tf.saved_model.load(str(tmp_path / str(number)))
        stored = [v.numpy() for v in loaded.variables]
        for ours, theirs in zip(stored, copies, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    first, last = moments[0][1], moments[-1][1]
    assert all(np.any(a != b) for a, b in zip(first, last, strict=True) if a.dtype.kind == "f")


@pytest.mark.parametrize("change", ["assign", "assign_add", "scatter_update", "gather"])
def test_a_snapshot_is_not_changed_through_the_variable(tmp_path: Path, change: str) -> None:
    module = tf.Module()
    module.v = tf.Variable(tf.ones([1000, 4]))
    exporter = ke.Exporter(module)
    before = exporter.snapshot()
    if change == "gather":
        tf.gather(module.v, [1, 2])
        module.v.assign_sub(tf.ones([1000, 4]))
    elif change == "scatter_update":
        module.v.scatter_update(tf.IndexedSlices(tf.zeros([1, 4]), tf.constant([3])))
    else:
        getattr(module.v, change)(tf.fill([1000, 4], 9.0))
    between = exporter.snapshot()
    expected = module.v.numpy().copy()
    module.v.scatter_add(tf.IndexedSlices(tf.ones([1, 4]), tf.constant([5])))
    before.write(tmp_path / "before")
    between.write(tmp_path / "between")
    for name, value in (("before", np.ones([1000, 4], "float32")), ("between", expected)):
        reader = tf.train.load_checkpoint(str(tmp_path / name / "variables/variables"))
        assert_same(reader.get_tensor(f"v/{VALUES}"), value)


def test_a_snapshot_can_be_written_from_another_thread(
    tmp_path: Path, consumers: Consumers
) -> None:
    model, x, y = trainee("norm", jit=False)
    exporter = ke.Exporter(model)
    snapshot, expected = exporter.snapshot(), model(x, training=False).numpy()
    reports: list[ke.ExportReport] = []
    thread = threading.Thread(target=lambda: reports.append(snapshot.write(tmp_path)))
    thread.start()
    while thread.is_alive():
        model.train_on_batch(x, y)
    thread.join()
    (report,) = reports
    ((name, _),) = report.signatures["serve"].inputs.items()
    ((output, _),) = report.signatures["serve"].outputs.items()
    result = consumers.cpp(tmp_path).signature("serve", **{name: x})
    assert_same(result[output], expected, rtol=1e-5, atol=1e-6)


def test_an_exclusive_write_refuses_a_target_that_exists(tmp_path: Path) -> None:
    snapshot = ke.Exporter(Scale()).snapshot()
    snapshot.write(tmp_path / "a", exclusive=True)
    words = f"Cannot export to {tmp_path / 'a'}: expected "
    refused(TargetError, words, tmp_path, lambda: snapshot.write(tmp_path / "a", exclusive=True))


def test_a_layer_that_is_added_is_traced_anew(tmp_path: Path, consumers: Consumers) -> None:
    model = keras.Sequential(
        [keras.Input((3,), name="x"), keras.layers.Dense(2, name="two")], name="growing"
    )
    x = np.float32([[1, 2, 3]])
    exporter = ke.Exporter(model)
    exporter.write(tmp_path / "1")
    model.add(keras.layers.Dense(4, name="four"))
    report = exporter.write(tmp_path / "2")
    assert report.seconds["trace"] > 0
    result = consumers.everywhere(tmp_path / "2", "serve", x=x)
    assert_same(result, {"four": model(x).numpy()}, rtol=1e-5)


def test_lora_that_is_enabled_is_traced_anew(tmp_path: Path, consumers: Consumers) -> None:
    model, x = x_to_out(), np.ones([1, 4], "float32")
    exporter = ke.Exporter(model)
    exporter.write(tmp_path / "1")
    model.get_layer("out").enable_lora(2)
    model.get_layer("out").lora_kernel_b.assign(np.ones([2, 5]))
    exporter.write(tmp_path / "2")
    result = consumers.everywhere(tmp_path / "2", "serve", x=x)
    assert_same(result, {"out": model(x).numpy()}, rtol=1e-5)


def test_a_variable_that_a_module_replaces_is_noticed(tmp_path: Path, consumers: Consumers) -> None:
    class Parts(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [tf.Variable(1.0)]

    module = Parts()
    exporter = ke.Exporter(module)
    exporter.write(tmp_path / "1")
    module.parts.append(tf.Variable(2.0))
    exporter.write(tmp_path / "2")
    assert sorted(consumers.checkpoint(tmp_path / "2").values()) == [
        f"parts/0/{VALUES}",
        f"parts/1/{VALUES}",
    ]


def test_a_python_attribute_needs_retrace(tmp_path: Path, consumers: Consumers) -> None:
    class Powered(keras.layers.Layer):
        power = 2

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return x**self.power

    x = keras.Input((1,), name="x")
    layer = Powered(name="y")
    exporter = ke.Exporter(keras.Model(x, layer(x)))
    layer.power = 3
    exporter.write(tmp_path / "stale")
    exporter.retrace()
    exporter.write(tmp_path / "fresh")
    value = np.float32([[2]])
    for name, expected in (("stale", 4), ("fresh", 8)):
        result = consumers.cpp(tmp_path / name).signature("serve", x=value)
        assert_same(result, {"y": np.float32([[expected]])})


def test_an_exporter_that_is_dropped_keeps_nothing_alive(tmp_path: Path) -> None:
    module = Scale()
    exporter = ke.Exporter(module)
    report = exporter.write(tmp_path)
    dead = weakref.ref(module.factor)
    del exporter, module
    gc.collect()
    assert dead() is None
    assert report.signatures


# -- sameness -------------------------------------------------------------------------------------

_WRITER = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, keras, tensorflow as tf
import test_exporter as models
import keras_export as ke

folder, work = sys.argv[1], int(sys.argv[2])
for number in range(work):
    # Moves every counter of the process: function names, layer names, op names, gradients.
    ke.save(models.Straight(), os.path.join(folder, f"ignored-{number}"))
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "silu")])(np.ones([1, 2]))
keras.utils.clear_session()
keras.utils.set_random_seed(1)
for name, make, write in models.SAME:
    write(make(), os.path.join(folder, name))
"""

SAME = [
    ("module", Straight, ke.save),
    ("tree", lambda: Tree(1.0), ke.save),
    ("saved", classifier, ke.save),
    ("exported", classifier, ke.export),
    ("numbers", Numbers, ke.save),
]


@pytest.mark.parametrize(("name", "make", "write"), SAME, ids=[x[0] for x in SAME])
def test_two_exports_in_one_process_are_the_same_bytes(
    tmp_path: Path, name: str, make: Any, write: Any
) -> None:
    obj = make()
    for number in range(4):  # hash maps of protobuf come in another order now and then
        write(obj, tmp_path / str(number))
    first, *others = (artifacts.files(tmp_path / str(number)) for number in range(4))
    for other in others:
        assert [name for name in FILES if other[name] != first[name]] == []


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    processes = []
    for name, seed in (("a", "1"), ("b", "77")):
        (tmp_path / name).mkdir()
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
        }
        work = "0" if name == "a" else "2"
        arguments = [sys.executable, "-c", _WRITER, str(tmp_path / name), work]
        processes.append(subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE))
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    for name, _, _ in SAME:
        first, second = (artifacts.files(tmp_path / x / name) for x in ("a", "b"))
        assert [k for k in FILES if first[k] != second[k]] == [], name
