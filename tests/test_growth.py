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

import keras_export as ke
from keras_export import functions, keras_models

SIZES = (10, 20, 40)


class Traced(keras.layers.Layer):
    """Notes each Python call of its forward pass."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__(name="traced")
        self.calls = calls

    def call(self, x: Any) -> Any:
        self.calls.append("call")
        return 2 * x


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
    """Counts the calls of a function of a module by their first argument's identity or text."""
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
    fetched = counting(monkeypatch, functions, "definition_of")
    ke.export(chain(5), tmp_path / "model")
    assert fetched
    assert set(fetched.values()) == {1}


def test_gradients_of_equal_layers_are_traced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = counting(monkeypatch, functions, "definition_of")
    ke.export(chain(5), tmp_path / "5")
    few = len(fetched)
    ke.export(chain(10), tmp_path / "10")
    assert len(fetched) == 2 * few


def test_forward_pass_is_traced_once_for_all_signatures(tmp_path: Path) -> None:
    calls: list[str] = []
    x = keras.Input((3,), name="x")
    model = keras.Model(x, Traced(calls)(x))
    calls.clear()
    exporter = ke.Exporter(model)
    report = exporter.write(tmp_path / "model")
    assert sorted(report.signatures) == ["serve", "serving_default"]
    assert calls == ["call"]


def test_second_write_neither_traces_nor_assembles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    x = keras.Input((3,), name="x")
    model = keras.Model(x, keras.layers.Dense(2, name="out")(Traced(calls)(x)))
    exporter = ke.Exporter(model)
    exporter.write(tmp_path / "first")
    calls.clear()
    traced = counting(monkeypatch, keras_models, "trace")
    fetched = counting(monkeypatch, functions, "definition_of")
    model.set_weights([np.full_like(value, 3.0) for value in model.get_weights()])
    report = exporter.write(tmp_path / "second")
    assert not calls
    assert not traced
    assert not fetched
    assert report.seconds["trace"] == report.seconds["assemble"] == 0.0
    first, second = (artifacts.files(tmp_path / name) for name in ("first", "second"))
    assert first["saved_model.pb"] == second["saved_model.pb"]
    assert first["variables/variables.data-00000-of-00001"] != (
        second["variables/variables.data-00000-of-00001"]
    )


def test_a_new_exporter_traces_again_and_once(tmp_path: Path) -> None:
    calls: list[str] = []
    x = keras.Input((3,), name="x")
    model = keras.Model(x, Traced(calls)(x))
    ke.Exporter(model).write(tmp_path / "first")
    calls.clear()
    ke.Exporter(model).write(tmp_path / "second")
    assert calls == ["call"]
