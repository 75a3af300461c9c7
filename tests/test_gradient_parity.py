"""Ten models with custom gradients: first and second derivatives after load are those before.

Each gradient lies about its function or cannot be derived from it, so that a lost one shows. The
models are saved as one object and read in one fresh process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from consumer_gradients import gradients, second_gradients
from consumers import ConsumerError, Consumers, assert_same

import keras_export as ke

X = np.float32([[0.5, -2.0, 0.25], [1.5, 0.75, -0.5]])
SPEC = tf.TensorSpec([None, 3], tf.float32, name="x")

MODELS: dict[str, Callable[[], Any]] = {}


def model(make: Callable[[], Any]) -> Callable[[], Any]:
    MODELS[make.__name__] = make
    return make


def dense(units: int = 3, **options: Any) -> keras.layers.Layer:
    return keras.layers.Dense(units, bias_initializer="ones", **options)


@model
def silu_network() -> Any:
    layers = [dense(4, activation="silu", name=f"silu_{i}") for i in range(3)]
    return keras.Sequential([keras.Input((3,)), *layers, dense(1, activation="swish")])


@model
def attention_with_silu() -> Any:
    x = keras.Input((3,), name="x")
    tokens = keras.layers.Reshape((3, 2))(dense(6, activation="silu")(x))
    mixed = keras.layers.MultiHeadAttention(2, 4)(tokens, tokens)
    mixed = keras.layers.LayerNormalization()(keras.layers.Add()([mixed, tokens]))
    return keras.Model(x, dense(1, activation="silu")(keras.layers.Flatten()(mixed)))


class Straight(keras.layers.Layer):
    """Rounds, and passes the gradient on as if it did not."""

    def call(self, x: Any) -> Any:
        @tf.custom_gradient
        def rounded(x: Any) -> Any:
            return tf.round(x), lambda upstream: upstream * tf.cast(tf.abs(x) < 9.0, x.dtype)

        return rounded(x)


@model
def quantized_aware() -> Any:
    return keras.Sequential([keras.Input((3,)), dense(4), Straight(), dense(2, activation="tanh")])


@model
def adversarial() -> Any:
    """Turns the gradient around, as domain adaptation does."""

    @tf.custom_gradient
    def reversed_gradient(x: Any) -> Any:
        return tf.identity(x), lambda upstream: -0.3 * upstream

    features = dense(4, activation="tanh")
    head = dense(2, activation="sigmoid")
    return keras.Sequential(
        [keras.Input((3,)), features, keras.layers.Lambda(reversed_gradient), head]
    )


class Recomputing(tf.Module):
    """Forgets what is between, and computes it again for the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([[0.5], [1.0], [-0.25]])
        self.block = tf.recompute_grad(lambda x: tf.tanh(tf.matmul(tf.sin(x), self.w)))

    def __call__(self, x: Any) -> Any:
        return self.block(x) * 2.0


@model
def recomputed() -> Any:
    return Recomputing()


class Clipped(tf.Module):
    """Clips the gradient on its way back, by a variable."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([2.0, -1.0, 3.0])
        self.limit = tf.Variable(0.7, trainable=False)

    def __call__(self, x: Any) -> Any:
        @tf.custom_gradient
        def clipped(x: Any) -> Any:
            def gradient(upstream: Any) -> Any:
                return tf.clip_by_value(upstream, -self.limit, self.limit)

            return tf.identity(x), gradient

        return tf.exp(clipped(x * self.w) * 0.5)


@model
def clipped() -> Any:
    return Clipped()


@tf.custom_gradient
def log1pexp(x: Any) -> Any:
    """The example of TensorFlow's page: the natural gradient is not a number for large values."""
    e = tf.exp(x)
    return tf.math.log(1.0 + e), lambda upstream: upstream * (1.0 - 1.0 / (1.0 + e))


class Stable(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([20.0, 1.0, 1.0])

    def __call__(self, x: Any) -> Any:
        return log1pexp(x * self.w)


@model
def numerically_stable() -> Any:
    return Stable()


@tf.custom_gradient
def cube(x: Any) -> Any:
    """Its gradient has a gradient of its own, which is not the natural one either."""

    @tf.custom_gradient
    def first(upstream: Any, x: Any) -> Any:
        def second(above: Any) -> Any:
            return above * 3.0 * x * x, above * upstream * 7.0 * x

        return upstream * 3.0 * x * x, second

    return x * x * x, lambda upstream: first(upstream, x)


class Nested(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([1.0, 0.5, 2.0])

    def __call__(self, x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = cube(x * self.w)
        return tape.gradient(y, x)


@model
def nested() -> Any:
    return Nested()


class OfVariables(tf.Module):
    """The gradient of the variable inside is given by hand, too."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([1.0, 2.0, -1.0])

    def __call__(self, x: Any) -> Any:
        @tf.custom_gradient
        def multiply(x: Any) -> Any:
            def gradient(upstream: Any, variables: Any = None) -> Any:
                return upstream * self.w * 2.0, [tf.reduce_sum(upstream * x, 0) * 5.0]

            return x * self.w, gradient

        return tf.tanh(multiply(x))


@model
def of_variables() -> Any:
    return OfVariables()


class SeveralResults(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([1.0, 2.0, -1.0])

    def __call__(self, x: Any) -> Any:
        @tf.custom_gradient
        def sum_and_product(x: Any, y: Any) -> Any:
            def gradient(for_sum: Any, for_product: Any) -> Any:
                return for_sum * 2.0 + for_product * y, for_product * x - for_sum

            return (x + y, x * y), gradient

        total, product = sum_and_product(tf.sin(x), x * self.w)
        return {"total": total, "product": tf.cos(product)}


@model
def several_results() -> Any:
    return SeveralResults()


class All(tf.Module):
    """All models, each with a function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.models = {}
        for name, make in MODELS.items():
            held = make()
            self.models[name] = held
            setattr(self, f"f_{name}", _function_of(held))


def _function_of(held: Any) -> Any:
    return tf.function(lambda x: held(x), input_signature=[SPEC])


@pytest.fixture(scope="module")
def live() -> All:
    keras.utils.set_random_seed(4)
    return All()


@pytest.fixture(scope="module")
def loaded(live: All, tmp_path_factory: pytest.TempPathFactory, consumers: Consumers) -> Any:
    export_dir = tmp_path_factory.mktemp("parity")
    ke.save(live, export_dir)
    return consumers.tf(export_dir)


def test_there_are_ten_models() -> None:
    assert len(MODELS) == 10


@pytest.mark.parametrize("name", MODELS)
def test_first_derivatives_after_load_are_those_before(live: All, loaded: Any, name: str) -> None:
    function, x = getattr(live, f"f_{name}"), tf.constant(X)
    held = [v for v in _variables(live.models[name]) if v.trainable]
    (by_input, *by_variable) = gradients(function, [x, *held], [x], {})
    assert np.isfinite(by_input).all() and np.any(by_input)
    assert_same(loaded.gradient(f"f_{name}", X)[0], by_input.numpy(), rtol=1e-4)
    found = loaded.gradient(f"f_{name}", X, wrt="variables")
    got = [value for value in found.values() if value is not None]
    expected = [tf.convert_to_tensor(value).numpy() for value in by_variable if value is not None]
    assert expected
    assert_same(_sorted(got), _sorted(expected), rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_second_derivatives_after_load_are_those_before(live: All, loaded: Any, name: str) -> None:
    try:
        expected = second_gradients(getattr(live, f"f_{name}"), tf.constant(X))
    except (NotImplementedError, TypeError):  # TensorFlow itself has none for these two
        assert name in ("recomputed", "nested")
        with pytest.raises(ConsumerError):
            loaded.second_gradient(f"f_{name}", X)
        return
    assert np.isfinite(expected).all() and np.any(expected)
    assert_same(loaded.second_gradient(f"f_{name}", X), expected.numpy(), rtol=1e-3, atol=1e-4)


def test_without_custom_gradients_a_derivative_is_an_error_and_never_a_wrong_one(
    live: All, tmp_path: Path, consumers: Consumers
) -> None:
    ke.save(live, tmp_path, options=ke.SaveOptions(experimental_custom_gradients=False))
    loaded = consumers.tf(tmp_path)
    for name in MODELS:
        assert_same(loaded.call(f"f_{name}", X), getattr(live, f"f_{name}")(tf.constant(X)))
        with pytest.raises(ConsumerError, match="No gradient defined for operation") as error:
            loaded.gradient(f"f_{name}", X)
        assert error.value.kind == "LookupError"


def _variables(held: Any) -> list[tf.Variable]:
    found = held.trainable_variables
    return [v if isinstance(v, tf.Variable) else v.value for v in found]


def _sorted(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return sorted(arrays, key=lambda a: (a.shape, float(np.abs(a).sum())))
