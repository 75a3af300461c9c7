"""Promises of `gradients`: a custom gradient is after load what it was before.

Each gradient here differs from the natural one, so that a lost one shows.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumer_gradients import gradients
from consumers import ConsumerError, Consumers, assert_same

import keras_export as ke
from keras_export.errors import GradientError, UntrackedCaptureError

SPEC = tf.TensorSpec([3], tf.float32, name="x")
X = np.float32([0.5, -2.0, 0.25])
SCALE = tf.constant([1.0, 2.0, 3.0])


@tf.custom_gradient
def straight(x: tf.Tensor) -> Any:
    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return 3.0 * upstream * tf.cast(tf.abs(x) < 3.5, x.dtype)

    return tf.sign(x) + x * 0.5, gradient


@tf.custom_gradient
def scaled(x: tf.Tensor) -> Any:
    """Its gradient captures an eager tensor and two tensors of the forward pass."""
    middle = tf.exp(x)
    return middle, lambda upstream: upstream * middle * SCALE - x


@tf.custom_gradient
def two_by_two(x: tf.Tensor, y: tf.Tensor) -> Any:
    def gradient(for_sum: tf.Tensor, for_product: tf.Tensor) -> Any:
        return for_sum * 2.0 + for_product, for_product * x - for_sum

    return (x + y, x * y), gradient


@tf.custom_gradient
def counted(x: tf.Tensor, n: tf.Tensor) -> Any:
    """One argument is an integer: its gradient is None."""
    return x * tf.cast(n, x.dtype), lambda upstream: (upstream * 7.0, None)


def through(weight: tf.Variable) -> Any:
    """A custom gradient that also gives one for a variable."""

    @tf.custom_gradient
    def multiply(x: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor, variables: Any = None) -> Any:
            return upstream * weight, [tf.reduce_sum(upstream) * 5.0 + tf.zeros([3])]

        return x * weight, gradient

    return multiply


@tf.custom_gradient
def twice_custom(x: tf.Tensor) -> Any:
    """A gradient with a custom gradient of its own."""

    @tf.custom_gradient
    def first(upstream: tf.Tensor, x: tf.Tensor) -> Any:
        return upstream * 5.0 * x, lambda second: (second * 11.0, second * 13.0)

    return x * x, lambda upstream: first(upstream, x)


class Estimators(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([1.0, 2.0, 3.0])

    @tf.function(input_signature=[SPEC])
    def plain(self, x: tf.Tensor) -> tf.Tensor:
        return straight(x * self.w)

    @tf.function(input_signature=[SPEC])
    def twice(self, x: tf.Tensor) -> tf.Tensor:
        return straight(straight(x) * self.w)

    @tf.function(input_signature=[SPEC])
    def captures(self, x: tf.Tensor) -> tf.Tensor:
        return scaled(x) * self.w

    @tf.function(input_signature=[SPEC])
    def several(self, x: tf.Tensor) -> Any:
        total, product = two_by_two(x, self.w)
        return {"total": total, "product": product}

    @tf.function(input_signature=[SPEC])
    def integer(self, x: tf.Tensor) -> tf.Tensor:
        return counted(x * self.w, tf.constant(2))

    @tf.function(input_signature=[SPEC])
    def variable(self, x: tf.Tensor) -> tf.Tensor:
        return through(self.w)(x)

    @tf.function
    def inner(self, x: tf.Tensor) -> tf.Tensor:
        return straight(x * self.w)

    @tf.function(input_signature=[SPEC])
    def nested(self, x: tf.Tensor) -> tf.Tensor:
        return self.inner(x) + self.inner(x * 0.5)

    @tf.function(input_signature=[SPEC])
    def branch(self, x: tf.Tensor) -> tf.Tensor:
        """Its gradients read what the branches compute: what they take is out of their reach."""
        positive = tf.reduce_sum(x) > 0
        return tf.cond(positive, lambda: straight(x * self.w), lambda: straight(x * 2.0) * self.w)

    @tf.function(input_signature=[SPEC])
    def loop(self, x: tf.Tensor) -> tf.Tensor:
        for _ in tf.range(2):
            x = straight(x * self.w)
        return x

    @tf.function(input_signature=[SPEC])
    def silu(self, x: tf.Tensor) -> tf.Tensor:
        return keras.ops.silu(x * self.w)


NAMES = [
    "plain", "twice", "captures", "several", "integer", "variable", "inner", "nested", "silu",
]  # fmt: skip


@pytest.fixture(scope="module")
def live() -> Estimators:
    module = Estimators()
    module.inner(tf.constant(X))
    return module


@pytest.fixture(scope="module")
def loaded(live: Estimators, tmp_path_factory: pytest.TempPathFactory, consumers: Consumers) -> Any:
    export_dir = tmp_path_factory.mktemp("gradients")
    ke.save(live, export_dir)
    return consumers.tf(export_dir)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("values", [X, -X], ids=["x", "minus x"])
def test_a_gradient_after_load_equals_the_one_before(
    live: Estimators, loaded: Any, name: str, values: np.ndarray
) -> None:
    x, function = tf.constant(values), getattr(live, name)
    by_input, by_variable = gradients(function, [x, live.w], [x], {})
    assert np.any(by_input.numpy())
    assert_same(loaded.gradient(name, values)[0], by_input.numpy())
    found = loaded.gradient(name, values, wrt="variables")["w"]
    expected = None if by_variable is None else tf.convert_to_tensor(by_variable).numpy()
    assert (found is None) == (expected is None)
    if expected is not None:
        assert_same(found, expected)


@pytest.mark.parametrize("name", ["branch", "loop"])
def test_a_gradient_in_a_branch_or_loop_survives(live: Estimators, loaded: Any, name: str) -> None:
    """TensorFlow's own artifacts fail: the loader finds what the gradient reads out of scope."""
    x = tf.constant(X)
    assert_same(loaded.call(name, X), getattr(live, name)(x).numpy())
    expected, by_variable = gradients(getattr(live, name), [x, live.w], [x], {})
    assert_same(loaded.gradient(name, X)[0], expected.numpy())
    assert_same(loaded.gradient(name, X, wrt="variables")["w"], by_variable.numpy())


def test_a_gradient_of_a_gradient_survives(tmp_path: Path, consumers: Consumers) -> None:
    class Second(tf.Module):
        @tf.function(input_signature=[SPEC])
        def forward(self, x: tf.Tensor) -> tf.Tensor:
            return twice_custom(x)

        @tf.function(input_signature=[SPEC])
        def slope(self, x: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = twice_custom(x)
            return tape.gradient(y, x)

    module = Second()
    ke.save(module, tmp_path)
    loaded = consumers.tf(tmp_path)
    for name in ("forward", "slope"):
        x = tf.constant(X)
        (expected,) = gradients(getattr(module, name), [x], [x], {})
        assert_same(loaded.gradient(name, X)[0], expected.numpy())


def test_the_gradient_of_a_signature_survives(tmp_path: Path, consumers: Consumers) -> None:
    module = Estimators()
    ke.save(module, tmp_path, signatures={"a": module.plain, "b": module.captures})
    loaded, x = consumers.tf(tmp_path), tf.constant(X)
    for key, function in (("a", module.plain), ("b", module.captures)):
        (expected,) = gradients(function, [x], [x], {})
        assert_same(loaded.gradient(f"signatures.{key}", x=X)["x"], expected.numpy())


def test_every_mark_has_one_registered_gradient(tmp_path: Path) -> None:
    ke.save(Estimators(), tmp_path)
    library = artifacts.library(tmp_path)
    registered = artifacts.meta_graph(tmp_path).graph_def.library.registered_gradients
    by_type = {entry.registered_op_type: entry.gradient_func for entry in registered}
    marks = [
        node.attr["_gradient_op_type"].s.decode()
        for function in library.values()
        for node in function.node_def
        if "_gradient_op_type" in node.attr and node.op == "IdentityN"
    ]
    assert sorted(marks) == sorted(by_type)
    assert len(set(by_type.values())) == len(by_type)
    assert set(by_type.values()) <= set(library)


def test_a_silu_model_is_fine_tuned_as_a_layer(tmp_path: Path, consumers: Consumers) -> None:
    x = keras.Input((3,), name="x")
    h = keras.layers.Dense(4, "silu", name="one")(x)
    h = keras.layers.Dense(4, keras.activations.gelu, name="two")(h)
    h = keras.layers.Activation("relu6", name="three")(h)
    model = keras.Model(x, keras.layers.Dense(1, "silu", name="y")(h))
    ke.export(model, tmp_path)
    layer = consumers.tfsm(tmp_path)
    inputs = np.random.normal(size=[4, 3]).astype("float32")
    result = layer.fine_tune(inputs, np.ones([4, 1], "float32"))
    assert result["updated"] == result["trainable"] == 6
    assert result["after"] < result["before"]


def test_without_custom_gradients_the_forward_pass_still_runs(
    tmp_path: Path, consumers: Consumers
) -> None:
    module = Estimators()
    ke.save(module, tmp_path, options=ke.SaveOptions(experimental_custom_gradients=False))
    loaded = consumers.tf(tmp_path)
    assert_same(loaded.call("plain", X), module.plain(tf.constant(X)).numpy())
    assert not artifacts.meta_graph(tmp_path).graph_def.library.registered_gradients
    # Silently the natural gradient would be a wrong one.
    with pytest.raises(ConsumerError, match="No gradient defined for operation"):
        loaded.gradient("plain", X)


def test_a_gradient_that_fails_is_refused_with_its_reason(tmp_path: Path) -> None:
    @tf.custom_gradient
    def broken(x: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            raise RuntimeError("no gradient today")

        return x * 2.0, gradient

    module = tf.Module()
    module.f = tf.function(broken, input_signature=[SPEC])
    words = (
        "failed with RuntimeError: no gradient today. Mend the gradient, or export with "
        "experimental_custom_gradients=False."
    )
    with pytest.raises(GradientError, match=re.escape(words)) as error:
        ke.save(module, tmp_path / "a")
    assert "Cannot export the custom gradient of 'IdentityN' in " in str(error.value)
    assert list(tmp_path.iterdir()) == []
    ke.save(module, tmp_path / "a", options=ke.SaveOptions(experimental_custom_gradients=False))


def test_a_gradient_that_reads_an_untracked_variable_is_refused(tmp_path: Path) -> None:
    hidden = tf.Variable(2.0, name="hidden")

    @tf.custom_gradient
    def leaning(x: tf.Tensor) -> Any:
        return tf.identity(x), lambda upstream: upstream * hidden

    module = tf.Module()
    module.f = tf.function(leaning, input_signature=[SPEC])
    with pytest.raises(UntrackedCaptureError, match="uses the variable 'hidden'"):
        ke.save(module, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    module.hidden = hidden
    ke.save(module, tmp_path / "a")


def test_an_artifact_that_is_saved_again_keeps_its_gradients(
    tmp_path: Path, consumers: Consumers
) -> None:
    module = Estimators()
    ke.save(module, tmp_path / "first")
    again = tf.saved_model.load(str(tmp_path / "first"))
    ke.save(again, tmp_path / "second")
    x = tf.constant(X)
    for name in ("plain", "captures", "nested"):
        (expected,) = gradients(getattr(module, name), [x], [x], {})
        found = consumers.tf(tmp_path / "second").gradient(name, X)[0]
        assert_same(found, expected.numpy())
