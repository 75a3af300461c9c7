"""Export work grows linearly with a model, and is done once. Counted, not timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
from tensorflow.python.eager import context

import keras_export as ke
from keras_export import forward_traces, functions, gradients

SIZES = (10, 20, 40)


class Traced(keras.layers.Layer):
    """Tells of each Python call of its forward pass."""

    def __init__(self, on_call: Callable[[], None]) -> None:
        super().__init__(name="traced")
        self.on_call = on_call

    def call(self, x: Any) -> Any:
        self.on_call()
        return 2 * x


class Calls:
    """Counts calls of a layer. Not a list: Keras would track a copy of it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def chain(size: int) -> keras.Model:
    """Blocks of a dense layer and an activation with a gradient of its own."""
    x = inputs = keras.Input((4,), name="x")
    for index in range(size):
        x = keras.layers.Dense(4, name=f"dense{index}")(x)
        x = keras.layers.Activation("silu", name=f"silu{index}")(x)
    return keras.Model(inputs, x, name="chain")


def wide(size: int) -> keras.Model:
    """Branches side by side."""
    inputs = keras.Input((4,), name="x")
    branches = [keras.layers.Dense(4, "silu", name=f"dense{i}")(inputs) for i in range(size)]
    return keras.Model(inputs, keras.layers.Add(name="sum")(branches), name="wide")


def in_functions(folder: Path) -> int:
    return sum(len(function.node_def) for function in artifacts.library(folder).values())


def in_main_graph(folder: Path) -> int:
    return len(artifacts.meta_graph(folder).graph_def.node)


def of_functions(folder: Path) -> int:
    return len(artifacts.library(folder))


def of_objects(folder: Path) -> int:
    return len(artifacts.meta_graph(folder).object_graph_def.nodes)


def counting(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Counter[Any]:
    """Counts the calls of a function by their first argument's text, else by its type."""
    counts: Counter[Any] = Counter()
    original = getattr(module, name)

    def counted(first: Any, *rest: Any, **keywords: Any) -> Any:
        counts[first if isinstance(first, str) else type(first).__name__] += 1
        return original(first, *rest, **keywords)

    monkeypatch.setattr(module, name, counted)
    return counts


@pytest.mark.parametrize("count", [in_functions, in_main_graph, of_functions, of_objects])
@pytest.mark.parametrize("build", [chain, wide])
def test_each_layer_adds_the_same_number_of_things(
    build: Callable[[int], keras.Model], count: Callable[[Path], int], tmp_path: Path
) -> None:
    counts = []
    for size in SIZES:
        ke.export(build(size), tmp_path / str(size))
        counts.append(count(tmp_path / str(size)))
    small, medium, large = counts
    assert large - medium == 2 * (medium - small)


@pytest.mark.parametrize("build", [chain, wide])
def test_saved_model_grows_by_the_same_bytes_for_each_layer(
    build: Callable[[int], keras.Model], tmp_path: Path
) -> None:
    bytes_of = {}
    for size in SIZES:
        ke.export(build(size), tmp_path / str(size))
        bytes_of[size] = len(artifacts.files(tmp_path / str(size))["saved_model.pb"])
    small, medium, large = (bytes_of[size] for size in SIZES)
    # Numbers in names and lengths get a digit longer now and then.
    assert large - medium <= 2.1 * (medium - small)


def test_each_function_definition_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = counting(monkeypatch, context.context(), "get_function_def")
    ke.export(chain(5), tmp_path / "model")
    del fetched["bytes"]  # TensorFlow, while it traces, asks for names as bytes
    assert len(fetched) == 2  # the forward pass, and the gradient that all activations share
    assert set(fetched.values()) == {1}


def test_gradients_of_equal_layers_are_traced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = counting(monkeypatch, gradients, "_trace")
    ke.export(chain(10), tmp_path / "model")
    assert traced.total() == 1
    graph_def = artifacts.meta_graph(tmp_path / "model").graph_def
    assert len(graph_def.library.registered_gradients) == 1


def test_forward_pass_is_traced_once_for_all_signatures(tmp_path: Path) -> None:
    calls = Calls()
    x = keras.Input((3,), name="x")
    model = keras.Model(x, Traced(calls)(x))
    calls.count = 0
    exporter = ke.Exporter(model)
    report = exporter.write(tmp_path / "model")
    assert sorted(report.signatures) == ["serve", "serving_default"]
    assert calls.count == 1


def test_second_write_neither_traces_nor_assembles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls()
    x = keras.Input((3,), name="x")
    model = keras.Model(x, keras.layers.Dense(2, name="out")(Traced(calls)(x)))
    exporter = ke.Exporter(model)
    exporter.write(tmp_path / "first")
    calls.count = 0
    traced = counting(monkeypatch, forward_traces, "trace")
    fetched = counting(monkeypatch, functions, "definition_of")
    model.set_weights([np.full_like(value, 3.0) for value in model.get_weights()])
    report = exporter.write(tmp_path / "second")
    assert calls.count == 0
    assert not traced
    assert not fetched
    assert report.seconds["trace"] == report.seconds["assemble"] == 0.0
    first, second = (artifacts.files(tmp_path / name) for name in ("first", "second"))
    assert first["saved_model.pb"] == second["saved_model.pb"]
    assert (
        first["variables/variables.data-00000-of-00001"]
        != (second["variables/variables.data-00000-of-00001"])
    )


def test_a_new_exporter_traces_again_and_once(tmp_path: Path) -> None:
    calls = Calls()
    x = keras.Input((3,), name="x")
    model = keras.Model(x, Traced(calls)(x))
    ke.Exporter(model).write(tmp_path / "first")
    calls.count = 0
    ke.Exporter(model).write(tmp_path / "second")
    assert calls.count == 1
