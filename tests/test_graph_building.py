"""Promises of `graph_building`: the graph is TensorFlow's, whoever makes the ops."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from zoo import KINDS, Kind

import keras_export as ke
from keras_export import forward_traces, graph_building
from keras_export import tf_internals as tfi

# Of each family of the zoo something; the soak takes all.
SAMPLE = [
    "control_flow",
    "custom_gradient",
    "diffusion_unet",
    "functional_several_outputs_of_one_layer",
    "image_bytes",
    "layer_never_called",
    "masked_embedding",
    "mixed_float16",
    "quantized_dense",
    "ragged",
    "sparse",
    "stateful_bidirectional_gru",
    "text_vectorization",
    "transformer_backbone",
    "wavenet",
]


def as_always(graph: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def kinds() -> list[Any]:
    return [
        pytest.param(kind, marks=() if kind.name in SAMPLE else pytest.mark.soak, id=kind.name)
        for kind in KINDS.values()
        if kind.available
    ]


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.filterwarnings("ignore")
def test_a_model_gives_the_bytes_that_it_gives_with_tensorflows_steps(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What only orders reads is looked for by TensorFlow's steps, and is of no use.
    monkeypatch.setattr(graph_building._Builder, "end", lambda self: None)
    made = kind.make()
    options = {} if kind.input_signature is None else {"input_signature": kind.input_signature}
    ke.export(made, tmp_path / "quick", **options)
    monkeypatch.setattr(forward_traces, "quick_building", as_always)
    ke.export(made, tmp_path / "slow", **options)
    found = [(tmp_path / x / "saved_model.pb").read_bytes() for x in ("quick", "slow")]
    assert found[0] == found[1]


# -- any ops --------------------------------------------------------------------------------------


def grown(
    program: Callable[[list[Any]], Any], building: Callable[[Any], Any]
) -> tuple[list[Any], str]:
    """The nodes that a program makes of three arguments, and what it raises."""
    graph = tfi.FuncGraph("f")
    raised = ""
    with graph.as_default():
        arguments = [
            tf.compat.v1.placeholder(tf.float32, [None, 4], name="x"),
            tf.compat.v1.placeholder(tf.float32, [2, 4], name="y"),
            tf.compat.v1.placeholder(tf.int32, [2, 4], name="z"),
        ]
        try:
            with building(graph):
                program(arguments)
        except Exception as error:
            raised = f"{type(error).__name__}: {error}"
    return nodes_of(graph), raised


def nodes_of(graph: Any) -> list[Any]:
    """All of each node but what counts the process: what is captured, and custom gradients."""
    captured = {x.op.name: f"captured_{index}" for index, x in enumerate(graph.internal_captures)}
    found = []
    for node in graph.as_graph_def(add_shapes=True).node:
        attributes = {
            name: _COUNTED.sub(b"", value.SerializeToString(deterministic=True))
            for name, value in node.attr.items()
            if name != "_user_specified_name"
        }
        inputs = [captured.get(x, x) for x in node.input]
        found.append((captured.get(node.name, node.name), node.op, inputs, node.device, attributes))
    return found


_COUNTED = re.compile(rb"(?<=CustomGradient-)\d+")

_CAPTURED = re.compile(r"(?<=[(, /])\d+(?=[,)])")

_OPERANDS = [2, 0.0, -0.0, True, [1.0, 2.0, 3.0, 4.0], np.float32(3), np.arange(4), "text"]


@tf.custom_gradient
def straight(x: Any) -> Any:
    return tf.round(x), lambda upstream: upstream


@tf.function(input_signature=[tf.TensorSpec([None, 4])])
def called(x: Any) -> Any:
    return tf.nn.softplus(x)


# What a step makes of two values.
STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: tf.add(x, y),
    "operator": lambda x, y: x * y,
    "reversed operator": lambda x, y: 2 - x,
    "comparison": lambda x, y: tf.less(x, y),
    "matmul": lambda x, y: tf.matmul(x, y, transpose_b=True),
    "product": lambda x, y: tf.einsum("ab,ab->a", x, y),
    "numbers": lambda x, y: tf.raw_ops.LeakyRelu(features=x, alpha=-0.0),
    "other numbers": lambda x, y: tf.raw_ops.LeakyRelu(features=x, alpha=0.0),
    "to integers": lambda x, y: tf.cast(x, tf.int64),
    "to floats": lambda x, y: tf.cast(x, "float32"),
    "shape": lambda x, y: tf.shape(x),
    "reshape": lambda x, y: tf.reshape(x, [-1, 2]),
    "reshape by long": lambda x, y: tf.reshape(x, np.array([-1], np.int64)),
    "reshape by tensor": lambda x, y: tf.reshape(x, tf.shape(y)),
    "mean": lambda x, y: tf.reduce_mean(x, axis=-1, keepdims=True),
    "sum": lambda x, y: tf.reduce_sum(x, axis=[0]),
    "transpose": lambda x, y: tf.transpose(x),
    "slice": lambda x, y: x[:, 1:3],
    "split": lambda x, y: tf.split(x, 2, axis=1)[1],
    "concat": lambda x, y: tf.concat([x, y, x], axis=0),
    "stack": lambda x, y: tf.stack([x, y]),
    "sum of many": lambda x, y: tf.add_n([x, y]),
    "pad": lambda x, y: tf.pad(x, [[0, 1], [0, 0]]),
    "gather": lambda x, y: tf.gather(x, [0, 1], axis=1),
    "select": lambda x, y: tf.where(x > 0, x, y),
    "random": lambda x, y: x + tf.random.uniform([4], seed=1),
    "custom gradient": lambda x, y: straight(x),
    "call": lambda x, y: called(x),
    "name": lambda x, y: tf.identity(x, name="given"),
    "bad name": lambda x, y: tf.identity(x, name="no name!"),
    "wrong dtype": lambda x, y: tf.raw_ops.AddV2(x=x, y=tf.constant(1, tf.int64)),
    "wrong shape": lambda x, y: tf.matmul(x, tf.zeros([3, 3])),
    "wrong value": lambda x, y: tf.raw_ops.AddV2(x=x, y=object),
    "wrong keyword": lambda x, y: tfi.op_def_library._apply_op_helper("Relu", features=x, speed=2),
    "wrong attribute": lambda x, y: tf.raw_ops.Softmax(logits=tf.cast(x, tf.int32)),
}

# Where a step can be made.
SCOPES: dict[str, Callable[[Any], Any]] = {
    "none": lambda x: contextlib.nullcontext(),
    "name": lambda x: tf.name_scope("scope"),
    "device": lambda x: tf.device("/device:CPU:0"),
    "order": lambda x: tf.control_dependencies([x]),
    "no order": lambda x: tf.control_dependencies(None),
    "place": lambda x: tf.compat.v1.colocate_with(x),
    "attribute": lambda x: tf.xla.experimental.jit_scope(),
    "gradient": lambda x: x.graph.gradient_override_map({"Relu": "Other", "Mul": "Another"}),
}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(STEPS)),
            st.sampled_from(sorted(SCOPES)),
            st.integers(0, 30),
            st.integers(0, 30),
        ),
        min_size=1,
        max_size=25,
    )
)
def test_any_ops_are_those_that_tensorflow_makes(steps: list[tuple[str, str, int, int]]) -> None:
    others = [
        tf.Variable([1.0, 2.0, 3.0, 4.0]),
        tf.constant(np.ones((2, 4), "float32")),
        tf.zeros([40, 40]),
        *_OPERANDS,
    ]
    told: list[str] = []
    of_no_use: list[int] = []

    def program(arguments: list[Any]) -> None:
        pool = [*arguments, *others]
        graph = arguments[0].graph
        told.clear()
        of_no_use.clear()
        for name, scope, one, other in [*steps, *steps]:  # learned, and then known
            first = graph.num_operations()
            with SCOPES[scope](arguments[0]):
                try:
                    pool.append(STEPS[name](pool[one % len(pool)], pool[other % len(pool)]))
                except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
                    told.append(f"{type(error).__name__}: {_CAPTURED.sub('', str(error))}")
                    of_no_use.extend(range(first, graph.num_operations()))

    def made(building: Callable[[Any], Any]) -> tuple[list[Any], list[str], str]:
        nodes, raised = grown(program, building)
        return [x for i, x in enumerate(nodes) if i not in of_no_use], [*told], raised

    assert made(graph_building.quick_building) == made(as_always)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_each_step_gives_the_same_where_it_is_learned_and_where_it_is_known(name: str) -> None:
    variable = tf.Variable(np.ones((2, 4), "float32"))

    def program(arguments: list[Any]) -> None:
        for x in (arguments[0], arguments[1], variable, arguments[0], variable):
            for y in (arguments[1], variable):
                STEPS[name](x, y)

    assert grown(program, graph_building.quick_building) == grown(program, as_always)


def test_most_ops_are_not_made_by_tensorflows_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    original = tfi.op_def_library._apply_op_helper

    def counted(op_type: str, name: Any = None, **keywords: Any) -> Any:
        made.append(op_type)
        return original(op_type, name, **keywords)

    monkeypatch.setattr(tfi.op_def_library, "_apply_op_helper", counted)
    x = inputs = keras.Input((4,))
    for _ in range(20):
        x = keras.layers.Dense(4, "relu")(x)
    model = keras.Model(inputs, x)
    made.clear()
    ke.Exporter(model)
    assert made.count("MatMul") == made.count("ReadVariableOp") == made.count("Relu") == 1


# -- what is around it ----------------------------------------------------------------------------


def test_a_graph_is_as_it_was_afterwards_also_after_an_error() -> None:
    graph = tfi.FuncGraph("f")
    before = tfi.op_def_library._apply_op_helper
    with pytest.raises(ZeroDivisionError), graph_building.quick_building(graph):
        assert tfi.op_def_library._apply_op_helper is not before
        assert graph.capture.__func__ is not tfi.FuncGraph.capture
        _ = 1 / 0
    assert tfi.op_def_library._apply_op_helper is before
    assert graph.capture.__func__ is tfi.FuncGraph.capture
    assert graph._create_op_internal.__func__ is tfi.FuncGraph._create_op_internal


def test_other_graphs_grow_as_ever_meanwhile() -> None:
    grew: list[Any] = []

    def grow() -> None:
        grew.append(grown(lambda x: tf.nn.relu(x[0]) + 1.0, as_always))

    expected = grown(lambda x: tf.nn.relu(x[0]) + 1.0, as_always)
    graph = tfi.FuncGraph("f")
    with graph.as_default(), graph_building.quick_building(graph):
        x = tf.nn.relu(tf.compat.v1.placeholder(tf.float32, [4]))
        other = threading.Thread(target=grow)
        other.start()
        other.join()
        grow()
        assert [x.op.type for x in [x]] == ["Relu"]
    assert grew == [expected, expected]
    assert graph.num_operations() == 2


def test_who_observes_ops_sees_each(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def observed(op_type: str, *args: Any, **kwargs: Any) -> None:
        seen.append(op_type)

    callbacks = pytest.importorskip("tensorflow.python.framework.op_callbacks")
    callbacks.add_op_callback(observed)
    try:
        grown(lambda x: [tf.nn.relu(x[0]) for _ in range(5)], graph_building.quick_building)
    finally:
        callbacks.remove_op_callback(observed)
    assert seen.count("Relu") == 5


class Counting(keras.layers.Layer):
    """Reads its variable, changes it, and reads it again."""

    def build(self, shape: Any) -> None:
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x: Any) -> Any:
        before = self.count + 0.0
        self.count.assign_add(1.0)
        return x + before + 10.0 * self.count


def test_what_is_written_and_read_keeps_its_order(tmp_path: Path) -> None:
    x = keras.Input((1,), name="x")
    ke.export(keras.Model(x, Counting(name="y")(x)), tmp_path)
    served = tf.saved_model.load(tmp_path).signatures["serving_default"]
    value = tf.zeros([1, 1])
    found = [float(served(x=value)["y"][0, 0]) for _ in range(3)]
    assert found == [10.0, 21.0, 32.0]


class Descending(keras.layers.Layer):
    """Goes down the gradient of what it computes, by its input and by its variable."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(2,), initializer="ones", name="scale")
        self.constant = tf.constant([3.0, 5.0])
        self.large = tf.random.uniform([200, 2], seed=1)

    def call(self, x: Any) -> Any:
        for _ in range(2):
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(x)
                tape.watch(self.constant)
                tape.watch(self.large)
                scaled = tf.reduce_sum(self.scale**2 * x**3) * tf.reduce_sum(self.constant**2)
                loss = scaled * tf.reduce_sum(self.large**2)
            sources = [x, self.scale.value, self.constant, self.large]
            by_input, by_variable, *others = tape.gradient(loss, sources)
            x = x - 1e-6 * by_input + 1e-6 * by_variable
            x += sum(1e-7 * tf.reduce_sum(other, axis=0) for other in (others[0][None], others[1]))
        return x


def test_a_layer_that_asks_for_gradients_gets_those_of_the_live_call(tmp_path: Path) -> None:
    x = keras.Input((2,), name="x")
    model = keras.Model(x, Descending(name="y")(x))
    ke.export(model, tmp_path)
    value = tf.constant([[0.5, 2.0], [1.0, -1.0]])
    served = tf.saved_model.load(tmp_path).signatures["serving_default"](x=value)["y"]
    expected = model(value)
    assert np.abs(expected - value).min() > 1e-3
    np.testing.assert_allclose(served, expected, rtol=1e-6)


def test_debug_information_has_the_lines_of_a_model_too(tmp_path: Path) -> None:
    options = ke.SaveOptions(save_debug_info=True)
    model = keras.Sequential([keras.Input((2,), name="x"), keras.layers.Dense(1, name="y")])
    ke.export(model, tmp_path, options=options)
    content = (tmp_path / "debug" / "saved_model_debug_info.pb").read_bytes()
    assert b"dense.py" in content
