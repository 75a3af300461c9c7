"""Promises of `functions`: every trace is callable after load as it was before."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import artifacts
import numpy as np
import pytest
import tensorflow as tf
from consumers import ConsumerError, Consumers, Named, Ragged, Sparse, assert_same

import keras_export as ke
from keras_export import functions
from keras_export.errors import UnsupportedError, UntrackedCaptureError

Point = collections.namedtuple("Point", ["x", "y"])

BIG = np.arange(1000, dtype="float32")


@tf.function
def add_one(x: tf.Tensor) -> tf.Tensor:
    return x + 1


class Zoo(tf.Module):
    """Every kind of function, each traced as often as it is called here."""

    def __init__(self) -> None:
        super().__init__()
        self.v = tf.Variable(10.0)
        self.count = tf.Variable(0)
        self.constant = tf.constant(BIG)
        one, two = tf.constant(1.0), tf.constant(2.0)
        self.defaults(one)
        self.defaults(one, two)
        self.defaults(one, scale=two)
        self.flags(one, training=True)
        self.flags(one, training=False)
        self.modes(one, "up")
        self.modes(one, mode="down")
        self.keyword_only(x=one, y=two)
        self.many(one, two, one, z=two, w=one)
        self.nested({"a": (one, [two]), "b": {"c": one}})
        self.point(Point(one, two))
        self.ragged(tf.ragged.constant([[1], [2, 3]]))
        self.sparse(tf.sparse.from_dense([[0.0, 1.0]]))
        self.several(tf.constant([1]))
        self.several(tf.constant([1.0]))
        self.several(tf.constant([b"a"]))
        self.loop(tf.constant(3))
        self.branch(one)
        self.calls(one)
        self.slices(one)
        self.optional(None)
        self.optional(one)
        self.returns_nothing(one)
        self.reads_constant(tf.constant(3))
        self.reads_constant_too(tf.constant(3))

    @tf.function
    def defaults(self, x: tf.Tensor, scale: Any = 3.0) -> tf.Tensor:
        return x * scale

    @tf.function
    def flags(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return -x if training else x

    @tf.function
    def modes(self, x: tf.Tensor, mode: str) -> tf.Tensor:
        return {"up": x + 1, "down": x - 1}[mode]

    @tf.function
    def keyword_only(self, *, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return x - y

    @tf.function
    def many(self, *xs: tf.Tensor, **more: tf.Tensor) -> Any:
        return tf.add_n(xs), {k: v * 2 for k, v in more.items()}

    @tf.function
    def nested(self, tree: Any) -> Any:
        return [tree["a"][0], {"sum": tree["a"][1][0] + tree["b"]["c"], "none": None}]

    @tf.function
    def point(self, point: Point) -> Point:
        return Point(point.y, point.x)

    @tf.function
    def ragged(self, rows: tf.RaggedTensor) -> tf.RaggedTensor:
        return rows + 1

    @tf.function
    def sparse(self, x: tf.SparseTensor) -> tf.SparseTensor:
        return tf.sparse.map_values(tf.negative, x)

    @tf.function
    def several(self, x: tf.Tensor) -> tf.Tensor:
        return tf.concat([x, x], 0)

    @tf.function
    def loop(self, n: tf.Tensor) -> tf.Tensor:
        total = self.v + 0.0
        for i in tf.range(n):
            if i % 2 == 0:
                total += self.v
            else:
                total = add_one(total)
        return total

    @tf.function
    def branch(self, x: tf.Tensor) -> tf.Tensor:
        return tf.cond(x > 0, lambda: x * self.v, lambda: x - self.v)

    @tf.function
    def calls(self, x: tf.Tensor) -> tf.Tensor:
        return add_one(add_one(self.flags(x, training=True)))

    @tf.function
    def slices(self, x: tf.Tensor) -> Any:
        return tf.map_fn(lambda i: x * tf.cast(i, tf.float32), tf.range(3), tf.float32)

    @tf.function
    def optional(self, x: Any) -> tf.Tensor:
        return tf.constant(-1.0) if x is None else x

    @tf.function(input_signature=[])
    def no_input(self) -> tf.Tensor:
        return self.v * 2.0

    @tf.function
    def returns_nothing(self, x: tf.Tensor) -> None:
        self.v.assign(x + 9.0)

    @tf.function(input_signature=[])
    def neither(self) -> None:
        self.count.assign_add(1)

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.int32)])
    def signed(self, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return a - b

    @tf.function
    def reads_constant(self, i: tf.Tensor) -> tf.Tensor:
        return self.constant[i]

    @tf.function
    def reads_constant_too(self, i: tf.Tensor) -> tf.Tensor:
        return self.constant[i] * 2

    @tf.function
    def never_traced(self, x: tf.Tensor) -> tf.Tensor:
        return x


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return Zoo()


@pytest.fixture(scope="module")
def saved(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    export_dir = tmp_path_factory.mktemp("zoo")
    ke.save(zoo, export_dir)
    return export_dir


@pytest.fixture(scope="module")
def loaded(saved: Path, consumers: Consumers) -> Any:
    return consumers.tf(saved)


F = np.float32


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("defaults", (F(5),), {}),
        ("defaults", (F(5), F(7)), {}),
        ("defaults", (F(5),), {"scale": F(7)}),
        ("flags", (F(5),), {}),
        ("flags", (F(5), True), {}),
        ("flags", (F(5),), {"training": True}),
        ("flags", (F(5),), {"training": False}),
        ("modes", (F(5), "up"), {}),
        ("modes", (F(5),), {"mode": "down"}),
        ("keyword_only", (), {"x": F(5), "y": F(7)}),
        ("several", (np.int32([3]),), {}),
        ("several", (np.float32([3]),), {}),
        ("several", (np.array([b"z"], object),), {}),
        ("loop", (np.int32(3),), {}),
        ("branch", (F(2),), {}),
        ("branch", (F(-2),), {}),
        ("calls", (F(2),), {}),
        ("slices", (F(2),), {}),
        ("optional", (None,), {}),
        ("optional", (F(2),), {}),
        ("no_input", (), {}),
        ("signed", (np.int32(7), np.int32(5)), {}),
        ("signed", (np.int32(7),), {"b": np.int32(5)}),
        ("signed", (), {"b": np.int32(5), "a": np.int32(7)}),
        ("reads_constant", (np.int32(7),), {}),
        ("reads_constant_too", (np.int32(7),), {}),
    ],
)
def test_a_function_is_called_after_load_as_before(
    zoo: Zoo, loaded: Any, name: str, args: Any, kwargs: Any
) -> None:
    arrays = [tf.constant(x) if isinstance(x, (np.ndarray, np.generic)) else x for x in args]
    named = {
        k: tf.constant(x) if isinstance(x, (np.ndarray, np.generic)) else x
        for k, x in kwargs.items()
    }
    expected = getattr(zoo, name)(*arrays, **named).numpy()
    assert_same(loaded.call(name, *args, **kwargs), expected)


def test_variable_arguments_come_back(loaded: Any) -> None:
    total, more = loaded.call("many", F(1), F(2), F(3), z=F(4), w=F(5))
    assert_same(total, F(6))
    assert_same(more, {"w": F(10), "z": F(8)})


def test_nested_arguments_and_results_keep_their_structure(loaded: Any) -> None:
    result = loaded.call("nested", {"a": (F(1), [F(2)]), "b": {"c": F(3)}})
    assert_same(result[0], F(1))
    assert_same(result[1]["sum"], F(5))
    assert result[1]["none"] is None
    point = loaded.call("point", Named("Point", {"x": F(1), "y": F(2)}))
    assert (point.type_name, point.fields) == ("Point", {"x": F(2), "y": F(1)})


def test_composite_tensors_go_in_and_come_out(loaded: Any) -> None:
    rows = loaded.call("ragged", Ragged(np.int32([1, 2, 3]), np.int64([0, 1, 3])))
    assert rows.to_list() == [[2], [3, 4]]
    sparse = loaded.call("sparse", Sparse(np.int64([[0, 1]]), F([2]), np.int64([1, 2])))
    assert_same(sparse.values, F([-2]))


def test_a_function_without_results_has_its_effect(saved: Path, consumers: Consumers) -> None:
    loaded = consumers.tf(saved)
    assert loaded.call("returns_nothing", F(1)) is None
    assert_same(loaded.call("no_input"), F(20))
    for _ in range(2):
        assert loaded.call("neither") is None
    assert_same(loaded.attribute("count").value, np.int32(2))


def test_what_was_never_traced_says_so(loaded: Any) -> None:
    with pytest.raises(ConsumerError, match=r"no concrete functions|Found zero restored functions"):
        loaded.call("never_traced", F(1))


def test_a_trace_that_was_not_made_is_refused_by_the_reader(loaded: Any) -> None:
    with pytest.raises(ConsumerError, match="Could not find matching concrete function"):
        loaded.call("several", np.float64([1]))


def test_an_eager_tensor_that_two_functions_capture_is_stored_once(saved: Path) -> None:
    large = [
        node
        for node in artifacts.nodes(saved)
        if node.op == "Const" and len(node.attr["value"].tensor.tensor_content) == BIG.nbytes
    ]
    assert len(large) == 1


def test_a_function_that_several_call_is_stored_once(saved: Path) -> None:
    names = [name for name in artifacts.library(saved) if "add_one" in name]
    assert len(names) == 1


def test_an_export_leaves_the_live_functions_as_they_are(tmp_path: Path, zoo: Zoo) -> None:
    concrete = zoo.loop.get_concrete_function(tf.constant(3))
    before = (concrete.function_def.SerializeToString(deterministic=True), concrete.name)
    library = concrete.graph.as_graph_def().SerializeToString(deterministic=True)
    expected = concrete(tf.constant(5)).numpy()
    ke.save(zoo, tmp_path)
    assert (concrete.function_def.SerializeToString(deterministic=True), concrete.name) == before
    assert concrete.graph.as_graph_def().SerializeToString(deterministic=True) == library
    assert_same(concrete(tf.constant(5)).numpy(), expected)


def test_a_second_export_traces_nothing(tmp_path: Path) -> None:
    traces = []

    class Counted(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
        def f(self, x: tf.Tensor) -> tf.Tensor:
            traces.append("f")
            return self.g(x)

        @tf.function
        def g(self, x: tf.Tensor) -> tf.Tensor:
            traces.append("g")
            return x

    module = Counted()
    module.f(tf.constant(1.0))
    module.g(tf.constant(1.0))
    ke.save(module, tmp_path)
    before = list(traces)
    assert before.count("f") == 1
    ke.save(module, tmp_path, signatures=module.f)
    assert traces == before


def test_a_function_that_creates_its_variable_is_exported_with_it(
    tmp_path: Path, consumers: Consumers
) -> None:
    class Lazy(tf.Module):
        v = None

        @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, name="x")])
        def f(self, x: tf.Tensor) -> tf.Tensor:
            if self.v is None:
                self.v = tf.Variable([1.0, 2.0])
            return self.v * x

    ke.save(Lazy(), tmp_path)
    result = consumers.everywhere(tmp_path, x=F([3, 4]))
    assert_same(result, {"output_0": F([3, 8])})


def test_a_concrete_function_as_attribute_is_callable(tmp_path: Path, consumers: Consumers) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x, y: x - y).get_concrete_function(
        tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.float32)
    )
    ke.save(module, tmp_path)
    loaded = consumers.tf(tmp_path)
    assert_same(loaded.call("f", F(5), F(3)), F(2))
    assert_same(loaded.call("f", x=F(5), y=F(3)), F(2))


def test_one_function_may_have_several_names(tmp_path: Path, consumers: Consumers) -> None:
    module = tf.Module()
    module.alias = add_one
    module.inner = tf.Module()
    module.inner.again = add_one
    add_one(tf.constant(1.0))
    ke.save(module, tmp_path)
    for path in ("alias", "inner.again"):
        assert_same(consumers.tf(tmp_path).call(path, F(1)), F(2))


def test_a_function_that_cannot_be_saved_says_why(tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x: x).get_concrete_function(tf.TensorSpec([], tf.float32))
    module.f.graph.mark_as_unsaveable("it holds a secret")
    words = "Cannot export the function obj.f: it holds a secret"
    with pytest.raises(UnsupportedError, match=re.escape(words)):
        ke.save(module, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def _of_a_queue() -> Any:
    queue = tf.queue.FIFOQueue(3, [tf.float32])
    return tf.function(lambda: queue.size(), input_signature=[])


def _of_an_iterator() -> Any:
    iterator = iter(tf.data.Dataset.range(3))
    return tf.function(lambda: next(iterator), input_signature=[])


@pytest.mark.parametrize(
    ("make", "what"), [(_of_a_queue, "a queue"), (_of_an_iterator, "an iterator over a dataset")]
)
def test_what_lives_as_long_as_its_process_is_refused_by_name(
    tmp_path: Path, make: Any, what: str
) -> None:
    module = tf.Module()
    module.f = make()
    words = (
        f"Cannot export the function obj.f: it uses {what}, which a SavedModel cannot hold. "
        "Pass what it takes from there as an argument."
    )
    with pytest.raises(UntrackedCaptureError, match=re.escape(words)):
        ke.save(module, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_function_that_calls_python_is_a_note_of_the_report(tmp_path: Path) -> None:
    module = tf.Module()
    spec = [tf.TensorSpec([])]
    module.f = tf.function(
        lambda x: tf.numpy_function(lambda y: y, [x], tf.float32), input_signature=spec
    )
    (note,) = ke.save(module, tmp_path).notes
    assert note.startswith("works in this process alone: ")
    assert "calls Python code (PyFunc)" in note


def test_a_tensor_of_another_trace_is_refused(tmp_path: Path) -> None:
    found = []

    @tf.function
    def outer(x: tf.Tensor) -> tf.Tensor:
        inner = tf.function(lambda: x + 1.0)
        found.append(inner.get_concrete_function())
        return inner()

    outer(tf.constant(1.0))
    module = tf.Module()
    module.f = found[0]
    words = "which has no value. Pass it as an argument."
    with pytest.raises(UnsupportedError, match=re.escape(words)):
        ke.save(module, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [
        np.zeros([100, 100], "float32"),
        np.full([7], -0.0, "float32"),
        np.array([0.0, -0.0], "float32"),
        np.full([5], np.nan),
        np.array([b"same", b"same"], object),
        np.array([], "float32"),
        np.array(5, "int64"),
        np.ones([3], bool),
        np.full([4], 1 + 2j),
    ],
    ids=str,
)
def test_a_constant_keeps_its_bits(value: np.ndarray) -> None:
    proto = functions.constant_proto(functions.constant_of(tf.constant(value), "f"))
    back = tf.make_ndarray(proto)
    assert back.dtype == value.dtype and back.shape == value.shape
    assert back.tobytes() == value.tobytes() or back.tolist() == value.tolist() != []
    if value.dtype.kind == "f":
        assert np.signbit(back).tolist() == np.signbit(value).tolist()


def test_equal_elements_of_a_constant_are_stored_once() -> None:
    proto = functions.constant_proto(functions.constant_of(tf.zeros([1000, 1000]), "f"))
    assert proto.ByteSize() < 100


def test_control_flow_runs_in_the_graph_readers(
    saved: Path, tmp_path: Path, zoo: Zoo, consumers: Consumers
) -> None:
    specs = {"loop": tf.TensorSpec([], tf.int32, name="x"),
             "branch": tf.TensorSpec([], tf.float32, name="x"),
             "slices": tf.TensorSpec([], tf.float32, name="x")}  # fmt: skip
    signatures = {k: getattr(zoo, k).get_concrete_function(s) for k, s in specs.items()}
    ke.save(zoo, tmp_path, signatures)
    zoo.v.assign(10.0)
    for key, spec in specs.items():
        x = np.array(3, spec.dtype.as_numpy_dtype)
        expected = {"output_0": getattr(zoo, key)(tf.constant(x)).numpy()}
        assert_same(consumers.everywhere(tmp_path, key, x=x), expected)


def test_a_cached_variable_is_read_and_not_frozen(tmp_path: Path, consumers: Consumers) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        module = tf.Module()
        module.v = tf.compat.v1.Variable(
            2.0, caching_device=lambda op: op.device, use_resource=True, name="cached"
        )
        session.run(module.v.initializer)
        module.f = tf.function(lambda: {"y": module.v * 3.0}, input_signature=[])
        ke.save(module, tmp_path / "a", signatures=module.f)
    loaded = consumers.tf(tmp_path / "a")
    assert_same(loaded.signature("serving_default"), {"y": np.float32(6.0)})
    loaded.assign("v", np.float32(5.0))
    assert_same(loaded.signature("serving_default"), {"y": np.float32(15.0)})
    assert_same(consumers.cpp(tmp_path / "a").signature("serving_default"), {"y": np.float32(6.0)})
