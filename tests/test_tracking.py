"""Promises of `tracking`: what a trackable holds, each thing once, under a checkpoint's names."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import artifacts
import keras
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers, assert_same

import keras_export as ke
from keras_export import checkpoint_keys, keras_objects, tracking
from keras_export.errors import UninitializedError, UnsupportedError

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"

Pair = collections.namedtuple("Pair", ["left", "right"])


class Leaf(tf.Module):
    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.v = tf.Variable(value)

    @tf.function(input_signature=[])
    def read(self) -> tf.Tensor:
        return self.v + 0.0


def keys(obj: Any) -> list[str]:
    """The checkpoint keys by our walk."""
    tracked = tracking.track(obj)
    return sorted(
        (node.slot_key or checkpoint_keys.object_key(node.path)) + VALUE
        for node in tracked.of_kind("variable")
    )


def keys_of_tensorflow(obj: Any, folder: Path) -> list[str]:
    path = tf.train.Checkpoint(obj).write(folder / "checkpoint")
    return sorted(
        name for name, _ in tf.train.list_variables(path) if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    )


def containers() -> tf.Module:
    module = tf.Module()
    module.items = [tf.Variable(0.0), [Leaf(1.0), tf.Variable(2.0)], {"k": tf.Variable(3.0)}]
    module.by_name = {"plain": Leaf(4.0), "a.b": tf.Variable(5.0), "c/d": [tf.Variable(6.0)]}
    module.pair = Pair(tf.Variable(7.0), (tf.Variable(8.0), 3, "text"))
    module.not_tracked = {3, "set"}
    return module


def shared() -> tf.Module:
    module = tf.Module()
    module.first = Leaf()
    module.second = [module.first, module.first.v]
    return module


def circle() -> tf.Module:
    first, second = Leaf(1.0), Leaf(2.0)
    first.other, second.other, first.myself = second, first, first
    return first


def odd_names() -> tf.Module:
    module = tf.Module()
    for name in ("a.b", "c/d", ".ATTRIBUTES", "e..f", "g h", "ü", "_private", "0"):
        setattr(module, name, tf.Variable(1.0))
    return module


def layers_in_containers() -> keras.Model:
    class Blocks(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="blocks")
            self.blocks = [keras.layers.Dense(2), [keras.layers.Dense(2)]]
            self.heads = {"one": keras.layers.Dense(1), "two": keras.layers.Dense(1)}
            self.offset = self.add_weight(shape=(2,), name="offset")

        def call(self, x: tf.Tensor) -> Any:
            x = self.blocks[1][0](self.blocks[0](x)) + self.offset
            return {name: head(x) for name, head in self.heads.items()}

    model = Blocks()
    model(np.ones([1, 2], "float32"))
    return model


def nested_models() -> keras.Model:
    x = keras.Input((2,), name="x")
    inner = keras.Model(x, keras.layers.Dense(2)(x), name="inner")
    y = keras.Input((2,), name="y")
    z = keras.layers.LSTM(2)(keras.layers.Reshape((1, 2))(inner(y)))
    model = keras.Model(y, keras.layers.Dense(1)(keras.layers.Dropout(0.5)(z)), name="outer")
    model.compile("adam", "mse")
    model.fit(np.ones([2, 2]), np.ones([2, 1]), verbose=0)
    return model


def legacy_optimizer() -> tf.Module:
    module = tf.Module()
    module.model = Leaf(2.0)
    module.optimizer = tf.compat.v1.train.AdamOptimizer(0.1)
    module.optimizer.minimize(lambda: module.model.v**2)
    return module


@pytest.mark.parametrize(
    "make",
    [containers, shared, circle, odd_names, nested_models, legacy_optimizer],
)
def test_variables_have_the_keys_of_a_training_checkpoint(tmp_path: Path, make: Any) -> None:
    obj = make()
    expected = keys_of_tensorflow(obj, tmp_path)
    ours = keys(obj)
    assert [key for key in ours if not key.startswith("variables/")] == expected
    assert expected


def test_layers_in_lists_and_dicts_are_stored_though_a_checkpoint_leaves_them_out(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = layers_in_containers()
    beyond = set(keys(model)) - set(keys_of_tensorflow(model, tmp_path))
    assert f"heads/two/_kernel{VALUE}" in beyond
    ke.save(model, tmp_path / "a")
    shapes = consumers.checkpoint(tmp_path / "a").shapes()
    assert len(shapes) == len(model.variables) == 9
    x = np.float32([[1, 2]])
    result = consumers.everywhere(tmp_path / "a", x=x)
    assert_same(result, {k: v.numpy() for k, v in model(x).items()}, rtol=1e-5)


def test_slot_variables_are_restored(tmp_path: Path) -> None:
    saved, fresh = legacy_optimizer(), legacy_optimizer()
    saved.optimizer.minimize(lambda: saved.model.v**2)
    ke.save(saved, tmp_path)
    tf.train.Checkpoint(fresh).restore(str(tmp_path / "variables/variables"))
    for name in ("m", "v"):
        ours = fresh.optimizer.get_slot(fresh.model.v, name)
        assert float(ours) == float(saved.optimizer.get_slot(saved.model.v, name)) != 0


def test_a_variable_that_is_also_a_slot_is_refused(tmp_path: Path) -> None:
    module = legacy_optimizer()
    module.taken = module.optimizer.get_slot(module.model.v, "m")
    with pytest.raises(UnsupportedError, match=re.escape("obj.taken: expected a slot variable")):
        ke.save(module, tmp_path)


def test_containers_load_as_containers(tmp_path: Path, consumers: Consumers) -> None:
    ke.save(containers(), tmp_path)
    loaded = consumers.tf(tmp_path)
    paths = {"items.0": 0, "items.1.0.v": 1, "items.1.1": 2, "items.2.k": 3, "by_name.plain.v": 4}
    for path, value in paths.items():
        assert_same(loaded.attribute(path).value, np.float32(value))
    assert_same(loaded.call("items.1.0.read"), np.float32(1))
    assert_same(loaded.call("by_name.plain.read"), np.float32(4))
    assert sorted(float(x.value) for x in loaded.variables().values()) == list(range(9))


def test_empty_containers_are_there_after_load(tmp_path: Path) -> None:
    """A loaded object may be added to, under names of whatever kind."""
    module = tf.Module()
    module._seen, module._by_name, module.items = [], {}, []
    module.layer = keras.layers.Dense(1)
    module.layer.build([None, 2])
    ke.save(module, tmp_path)
    loaded = tf.saved_model.load(str(tmp_path))
    loaded._seen.append(tf.Variable(1.0))
    loaded._by_name["a"] = tf.Variable(2.0)
    assert (len(loaded._seen), len(loaded._by_name), len(loaded.items)) == (1, 1, 0)
    # Those that Keras keeps for itself would make up half of an artifact's objects.
    children = artifacts.object_at(tmp_path, "layer").children
    assert [x.local_name for x in children if x.local_name.startswith("_")] == ["_kernel"]


def test_a_circle_loads_as_a_circle(tmp_path: Path, consumers: Consumers) -> None:
    ke.save(circle(), tmp_path)
    loaded = consumers.tf(tmp_path)
    assert_same(loaded.call("other.other.myself.other.read"), np.float32(2))
    assert len(loaded.variables()) == 2


def test_one_object_under_two_names_is_one_node_and_one_loaded_object(
    tmp_path: Path, consumers: Consumers
) -> None:
    tracked = tracking.track(module := shared())
    assert [node.path for node in tracked.of_kind("variable")] == [("first", "v")]
    assert tracked.find(module.first.v) is tracked.find(module.second[1])
    ke.save(module, tmp_path)
    loaded = consumers.tf(tmp_path)
    loaded.assign("second.1", 9.0)
    assert_same(loaded.call("first.read"), np.float32(9))


class Conditional(tf.Module):
    """Lists what was never assigned to it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [tf.Variable(1.0)]

    @property
    def _checkpoint_dependencies(self) -> list[Any]:
        return [tf.__internal__.tracking.TrackableReference("shown", self.hidden[0])]


def patched() -> tf.Module:
    module = tf.Module()
    module.v = tf.Variable(1.0)
    module._trackable_children = lambda *_, **__: {"other": tf.Variable(2.0)}
    return module


@pytest.mark.parametrize(
    "made", [containers, nested_models, shared, circle, Conditional, patched, tf.Module]
)
def test_children_are_those_that_tensorflow_lists(made: Callable[[], Any]) -> None:
    listing = tracking.Listing()
    for obj in listing.descendants(made()):
        listed = tf.train.TrackableView.children(obj)
        ours = listing.children(obj)
        assert list(ours) == list(listed)
        assert [type(x) for x in ours.values()] == [type(x) for x in listed.values()]


def test_the_nodes_of_a_checkpoint_come_first(tmp_path: Path) -> None:
    tracked = tracking.track(nested_models())
    inside = [node.in_checkpoint for node in tracked.nodes]
    assert inside == sorted(inside, reverse=True)
    assert tracked.root is tracked.nodes[0]
    assert not any(node.in_checkpoint for node in tracked.of_kind("function", "concrete_function"))


def test_a_keras_variable_stands_for_the_variable_inside_it() -> None:
    variable = keras.Variable([1.0], name="weight")
    module = tf.Module()
    module.weight = variable
    tracked = tracking.track(module)
    (node,) = tracked.of_kind("variable")
    assert (node.obj, node.keras_variable) == (variable.value, variable)
    assert tracked.find(variable) is node is tracked.find(variable.value)


def test_a_layer_that_is_not_built_yet_holds_nothing(tmp_path: Path) -> None:
    module = tf.Module()
    module.layer = keras.layers.Dense(2)
    assert keys(module) == []
    ke.save(module, tmp_path)


def test_a_keras_variable_without_a_value_is_refused_with_its_path() -> None:
    module = tf.Module()
    with keras.StatelessScope():
        module.weight = keras.Variable(lambda shape, dtype: tf.zeros(shape), shape=(2,), name="w")
        # At its end the scope gives the variable its value.
        with pytest.raises(UninitializedError) as error:
            tracking.track(module)
    words = (
        "Cannot export obj.weight: expected a variable with a value, received variable='w' without "
        "one. Build the model first: call it once, or `model.build(input_shape)`."
    )
    assert str(error.value) == words


def test_a_path_reads_as_python() -> None:
    assert tracking.path_text(("layers", "0", "kernel"), "model") == "model.layers[0].kernel"
    assert tracking.path_text(()) == "obj"


def test_what_is_excluded_is_left_out_with_all_below_it() -> None:
    model = nested_models()
    tracked = tracking.track(model, exclude=keras_objects.is_keras_optimizer)
    assert {node.path[0] for node in tracked.nodes if node.path} >= {"_operations"}
    assert not any("optimizer" in node.path for node in tracked.nodes)
    assert tracked.find(model.optimizer) is None
    assert tracked.find(model.optimizer.variables[2]) is None


def test_a_changed_list_or_dict_is_refused_with_its_path(tmp_path: Path) -> None:
    by_number, deleted = tf.Module(), tf.Module()
    by_number.inner = tf.Module()
    by_number.inner.table = {1: tf.Variable(1.0)}
    deleted.items = [tf.Variable(1.0), tf.Variable(2.0)]
    del deleted.items[0]
    for module, path in ((by_number, "obj.inner.table"), (deleted, "obj.items")):
        with pytest.raises(UnsupportedError, match=re.escape(f"Cannot export {path} (")):
            ke.save(module, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_the_step_functions_of_a_compiled_model_are_no_part_of_it(
    tmp_path: Path, consumers: Consumers
) -> None:
    model = nested_models()
    model.predict(np.ones([1, 2]), verbose=0)
    model.evaluate(np.ones([2, 2]), np.ones([2, 1]), verbose=0)
    ke.save(model, tmp_path)
    assert not [name for name in artifacts.library(tmp_path) if "step" in name or "train" in name]
    assert not {"train_function", "predict_function"} & set(consumers.tf(tmp_path).attributes())
    assert model.train_function is not None


def test_the_walk_leaves_the_live_model_as_it_is(tmp_path: Path) -> None:
    model = nested_models()
    before = (dict(vars(model)), [v.numpy() for v in model.variables], model.predict_function)
    ke.save(model, tmp_path)
    assert vars(model).keys() == before[0].keys()
    assert model.predict_function is before[2]
    for variable, value in zip(model.variables, before[1], strict=True):
        assert_same(variable.numpy(), value)
    model.fit(np.ones([2, 2]), np.ones([2, 1]), verbose=0)


def test_a_layer_in_a_list_keeps_its_functions(tmp_path: Path, consumers: Consumers) -> None:
    class Doubling(keras.layers.Layer):
        @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
        def double(self, x: tf.Tensor) -> tf.Tensor:
            return x * 2.0

    class Holder(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [Doubling(), {"deep": Doubling()}]

    ke.save(Holder(), tmp_path)
    loaded = consumers.tf(tmp_path)
    for path in ("parts.0.double", "parts.1.deep.double"):
        assert_same(loaded.call(path, np.float32(2)), np.float32(4))


def test_functions_and_values_held_by_a_layer_without_call_are_found(
    tmp_path: Path, consumers: Consumers
) -> None:
    layer = keras.layers.Dense(1, name="dense")
    layer.build((None, 2))
    ke.save(layer, tmp_path)
    assert sorted(consumers.checkpoint(tmp_path).values()) == keys_of_tensorflow(layer, tmp_path)
