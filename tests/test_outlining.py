"""Promises of `outlining`: what only a custom gradient's op needs goes with it, and nothing else.

The numbers are those of the live function, and so are the gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import artifacts
import numpy as np
import pytest
import tensorflow as tf
from consumer_gradients import gradients
from consumers import Consumers, assert_same

import keras_export as ke

X = np.float32([0.5, -2.0, 0.25])
SPEC = tf.TensorSpec([3], tf.float32, name="x")


@tf.custom_gradient
def bent(x: tf.Tensor) -> Any:
    """Its gradient is not the natural one, and reads the argument alone."""
    return tf.sin(tf.exp(x) * 0.5), lambda upstream: upstream * tf.cos(x) * 5.0


@tf.custom_gradient
def remembering(x: tf.Tensor) -> Any:
    middle = tf.exp(x)
    return tf.sin(middle), lambda upstream: upstream * middle * 5.0


@tf.custom_gradient
def two(x: tf.Tensor, y: tf.Tensor) -> Any:
    total = tf.exp(x) + y
    return (tf.sin(total), tf.cos(total)), lambda a, b: (a * 2.0 + b, b * x - y)


@tf.custom_gradient
def passing(x: tf.Tensor) -> Any:
    """A result is the argument itself."""
    return x, lambda upstream: upstream * 5.0


@tf.custom_gradient
def rolling(x: tf.Tensor) -> Any:
    return tf.exp(x + tf.random.uniform([3], 1.0, 1.00001)), lambda upstream: upstream * 5.0


def branching(x: tf.Tensor) -> Any:
    @tf.custom_gradient
    def inner(x: tf.Tensor) -> Any:
        y = tf.cond(x[0] > 0.0, lambda: tf.exp(x), lambda: tf.tanh(x))
        return tf.sin(y), lambda upstream: upstream * 5.0

    return inner(x)


@tf.custom_gradient
def outer(x: tf.Tensor) -> Any:
    return tf.exp(bent(tf.tanh(x))), lambda upstream: upstream * 5.0


def by(factor: float) -> Callable[[tf.Tensor], tf.Tensor]:
    @tf.custom_gradient
    def scaled(x: tf.Tensor) -> Any:
        return tf.exp(x) * factor, lambda upstream: upstream * 5.0

    return scaled


def returning(x: tf.Tensor) -> Any:
    middle: list[tf.Tensor] = []

    @tf.custom_gradient
    def inner(x: tf.Tensor) -> Any:
        middle.append(tf.exp(x))
        return tf.sin(middle[0]), lambda upstream: upstream * 5.0

    return inner(x), middle[0]


def elsewhere(x: tf.Tensor) -> Any:
    """What the op is computed from is needed by something else as well."""
    result, middle = returning(x)
    return result + middle * 0.25


FUNCTIONS: dict[str, Callable[[tf.Tensor], Any]] = {
    "alike": lambda x: bent(bent(tf.abs(x)) * 2.0),
    "remembering": lambda x: remembering(tf.abs(x)),
    "two": lambda x: two(tf.abs(x), tf.square(x)),
    "one_of_two": lambda x: two(tf.abs(x), tf.square(x))[1],
    "passing": lambda x: passing(tf.abs(x)) * 2.0,
    "branching": lambda x: branching(tf.abs(x)),
    "outer": lambda x: outer(tf.abs(x)),
    "factors": lambda x: by(2.0)(tf.abs(x)) + by(3.0)(tf.abs(x)),
    "elsewhere": lambda x: elsewhere(tf.abs(x)),
    "returning": lambda x: returning(tf.abs(x)),
    "rolling": lambda x: rolling(tf.abs(x)),
}


def module() -> tf.Module:
    made = tf.Module()
    for name, function in FUNCTIONS.items():
        setattr(made, name, tf.function(function, [SPEC], autograph=False))
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outlining")
    live = module()
    ke.save(live, folder / "1", signatures={name: getattr(live, name) for name in FUNCTIONS})
    again = tf.saved_model.load(str(folder / "1"))
    ke.save(again, folder / "2", signatures=dict(again.signatures))
    return folder


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("time", ["1", "2"], ids=["saved", "saved again"])
def test_numbers_and_gradients_are_those_of_the_live_function(
    name: str, time: str, saved: Path, consumers: Consumers
) -> None:
    x, live, rtol = tf.constant(X), getattr(module(), name), 1e-4 if name == "rolling" else 1e-6
    loaded = consumers.tf(saved / time)
    for ours, theirs in zip(
        tf.nest.flatten(loaded.call(name, X)), tf.nest.flatten(live(x)), strict=True
    ):
        assert_same(ours, theirs.numpy(), rtol=rtol)
    (expected,) = gradients(live, [x], [x], {})
    assert_same(loaded.gradient(name, X)[0], expected.numpy(), rtol=rtol)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sessions_compute_the_same(name: str, saved: Path, consumers: Consumers) -> None:
    live = [x.numpy() for x in tf.nest.flatten(getattr(module(), name)(tf.constant(X)))]
    served = consumers.cpp(saved / "1").signature(name, x=X)
    for ours, theirs in zip([served[key] for key in sorted(served)], live, strict=True):
        assert_same(ours, theirs, rtol=1e-4 if name == "rolling" else 1e-6)


def _around_and_inside(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """The ops of a saved function, and those of the functions with a gradient that it calls."""
    live = module()
    alone = tf.Module()
    alone.f = getattr(live, name)
    ke.save(alone, folder)
    around, inside = [], []
    for definition in artifacts.library(folder).values():
        ops = [node.op for node in definition.node_def]
        if "IdentityN" in ops:
            inside += ops
        elif "gradient" not in definition.signature.name:
            around += ops
    return around, inside


@pytest.mark.parametrize(
    ("name", "moved", "stays"),
    [
        ("alike", {"Exp", "Sin", "Mul"}, {"Abs"}),
        ("remembering", {"Sin"}, {"Exp", "Abs"}),
        ("two", {"Exp", "Sin", "Cos"}, {"Abs", "Square"}),
        ("passing", set(), {"Abs", "Mul"}),
        ("branching", {"Sin"}, {"If", "StatelessIf"}),
        ("factors", set(), {"Exp"}),
        ("elsewhere", {"Sin"}, {"Exp"}),
        ("returning", {"Sin"}, {"Exp"}),
        ("rolling", {"Exp", "AddV2"}, {"RandomUniform"}),
    ],
)
def test_what_only_the_op_needs_goes_with_it(
    name: str, moved: set[str], stays: set[str], tmp_path: Path
) -> None:
    around, inside = _around_and_inside(tmp_path / "m", name)
    assert moved <= set(inside)
    assert stays & set(around)
    assert not stays & set(inside)


def test_ops_alike_share_one_function(tmp_path: Path) -> None:
    around, inside = _around_and_inside(tmp_path / "m", "alike")
    assert (inside.count("IdentityN"), inside.count("Exp"), around.count("Exp")) == (1, 1, 0)


def test_saving_again_adds_no_function(saved: Path) -> None:
    counts = [
        sum("with_gradient" in name for name in artifacts.library(saved / time))
        for time in ("1", "2")
    ]
    assert counts[0] == counts[1] > 0
