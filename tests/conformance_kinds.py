"""The rows of the conformance matrix: one object for each kind of thing that a save must hold.

In: a folder for files that an object needs. Out: a `Case`, an object with calls that must give the
same before and after. Nothing here knows who writes or reads; `test_conformance.py` does.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from consumers import Ragged, Sparse

F = np.float32
X = np.float32([0.5, -2.0, 3.0])
X_SPEC = tf.TensorSpec([None], tf.float32, name="x")
WORDS = np.array([b"cat", b"dog", b"bird"], object)
WORD_SPEC = tf.TensorSpec([None], tf.string, name="words")


@dataclass(frozen=True)
class Call:
    """One call: of a function of the object, and what it is called on."""

    path: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """An object and how to look at it.

    Attributes:
        obj: to be saved.
        calls: to be made on the object and on what is loaded.
        inputs: of the signature `serving_default`, for the readers of graphs; None for a kind
            that has no signature.
        signatures: to be saved with it.
    """

    obj: Any
    calls: Sequence[Call] = ()
    inputs: Mapping[str, Any] | None = None
    signatures: Any = None


KINDS: dict[str, Callable[[Path], Case]] = {}


def kind(make: Callable[[Path], Case]) -> Callable[[Path], Case]:
    KINDS[make.__name__] = make
    return make


def with_function(obj: Any, function: Callable[..., Any], *specs: Any) -> Any:
    obj.f = tf.function(function, input_signature=specs)
    return obj


def called_on(obj: Any, **inputs: Any) -> Case:
    """A case whose only function `f` is its signature."""
    return Case(obj, [Call("f", (), inputs)], inputs)


def module(**attributes: Any) -> tf.Module:
    made = tf.Module()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


# -- tables and files -------------------------------------------------------------------------


def _lookup(table: Any) -> Case:
    obj = with_function(module(table=table), lambda words: {"y": table.lookup(words)}, WORD_SPEC)
    return called_on(obj, words=WORDS)


def _vocabulary(folder: Path, *words: str, name: str = "words.txt") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text("\n".join(words))
    return str(file)


@kind
def table_of_tensors(folder: Path) -> Case:
    filled = tf.lookup.KeyValueTensorInitializer(tf.constant(["cat", "dog"]), [1.5, 2.5])
    return _lookup(tf.lookup.StaticHashTable(filled, -1.0))


@kind
def table_of_a_file(folder: Path) -> Case:
    filled = tf.lookup.TextFileInitializer(
        _vocabulary(folder, "dog", "cat"),
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
    )
    return _lookup(tf.lookup.StaticHashTable(filled, -1))


@kind
def table_of_columns(folder: Path) -> Case:
    file = _vocabulary(folder, "dog\t7", "cat\t9", name="columns.tsv")
    filled = tf.lookup.TextFileInitializer(file, tf.string, 0, tf.int64, 1, delimiter="\t")
    return _lookup(tf.lookup.StaticHashTable(filled, -1))


@kind
def vocabulary_table(folder: Path) -> Case:
    filled = tf.lookup.TextFileInitializer(
        _vocabulary(folder, "dog", "cat"),
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
    )
    return _lookup(tf.lookup.StaticVocabularyTable(filled, num_oov_buckets=3))


@kind
def mutable_table(folder: Path) -> Case:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    table.insert(tf.constant(["cat", "dog"]), tf.constant([5, 6], tf.int64))
    return _lookup(table)


@kind
def dense_table(folder: Path) -> Case:
    table = tf.lookup.experimental.DenseHashTable(
        tf.string, tf.int64, -1, empty_key="", deleted_key="-"
    )
    table.insert(tf.constant(["cat", "dog"]), tf.constant([5, 6], tf.int64))
    return _lookup(table)


@kind
def table_under_two_names(folder: Path) -> Case:
    case = table_of_tensors(folder)
    case.obj.again = [case.obj.table]
    return case


@kind
def files_of_one_name(folder: Path) -> Case:
    paths = [_vocabulary(folder / name, name) for name in ("left", "right")]
    obj = module(assets=[tf.saved_model.Asset(path) for path in paths])
    left, right = obj.assets

    def read() -> Any:
        return {"y": tf.stack([tf.io.read_file(left), tf.io.read_file(right)])}

    return called_on(with_function(obj, read))


# -- captures ---------------------------------------------------------------------------------

_DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "bfloat16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip


def _of_every_dtype() -> dict[str, Any]:
    numbers = {name: tf.cast([0, 1, 3], name) for name in _DTYPES}
    return {**numbers, "string": tf.constant([b"a", b"\xff\0", b""])}


@kind
def variables_of_every_dtype(folder: Path) -> Case:
    values = _of_every_dtype()
    obj = module(**{f"v_{name}": tf.Variable(value) for name, value in values.items()})

    def read() -> Any:
        return {name: tf.identity(getattr(obj, f"v_{name}")) for name in values}

    return called_on(with_function(obj, read))


@kind
def constants_of_every_dtype(folder: Path) -> Case:
    values = _of_every_dtype()
    return called_on(
        with_function(module(), lambda: {k: tf.identity(v) for k, v in values.items()})
    )


@kind
def scalars_and_empty_values(folder: Path) -> Case:
    scalar, empty = tf.constant(2.0), tf.zeros([0, 3])
    obj = module(scalar=tf.Variable(3.0), empty=tf.Variable(tf.zeros([2, 0])))

    def read() -> Any:
        return {"a": scalar * obj.scalar, "b": empty + 1.0, "c": obj.empty + 1.0}

    return called_on(with_function(obj, read))


@kind
def variables_of_unknown_shape(folder: Path) -> Case:
    obj = module(
        some=tf.Variable([[1.0], [2.0]], shape=[None, 1]),
        any=tf.Variable([3.0], shape=tf.TensorShape(None)),
    )
    return called_on(with_function(obj, lambda: {"y": obj.some + obj.any}))


@kind
def variable_as_root(folder: Path) -> Case:
    return Case(tf.Variable([1.0, 2.0]), [Call("read_value")])


@kind
def checkpoint_as_root(folder: Path) -> Case:
    obj = tf.train.Checkpoint(v=tf.Variable(2.0), step=tf.Variable(3, dtype=tf.int64))
    return called_on(with_function(obj, lambda x: {"y": x * obj.v}, X_SPEC), x=X)


@kind
def random_generator(folder: Path) -> Case:
    obj = module(generator=tf.random.Generator.from_seed(3))
    return called_on(with_function(obj, lambda: {"y": obj.generator.normal([4])}))


class Remembering(tf.Module):
    """Stores its value in a form of its own."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.v = tf.Variable(0.0, name="kept")
        self.value = value

    def _serialize_to_tensors(self) -> Any:
        return {"doubled": self.v * 2.0 + self.value * 2.0}

    def _restore_from_tensors(self, restored: Any) -> Any:
        return self.v.assign(restored["doubled"] / 2.0)


@kind
def objects_that_serialize_themselves(folder: Path) -> Case:
    obj = module(held=Remembering(0.0))
    obj.held.v.assign(5.0)
    return called_on(with_function(obj, lambda x: {"y": x * obj.held.v}, X_SPEC), x=X)


class ThirdPartyTable(tf.saved_model.experimental.TrackableResource):
    """A resource that nobody but its class knows."""

    def __init__(self) -> None:
        super().__init__()
        self._name = "third_party"
        self._initialize()

    def _create_resource(self) -> Any:
        return tf.raw_ops.MutableHashTableV2(
            key_dtype=tf.string, value_dtype=tf.int64, shared_name=self._name
        )

    def _initialize(self) -> None:
        tf.raw_ops.LookupTableInsertV2(
            table_handle=self.resource_handle,
            keys=tf.constant(["cat", "dog"]),
            values=tf.constant([8, 9], tf.int64),
        )


@kind
def resources_of_third_parties(folder: Path) -> Case:
    obj = module(resource=ThirdPartyTable())

    def find(words: Any) -> Any:
        return {
            "y": tf.raw_ops.LookupTableFindV2(
                table_handle=obj.resource.resource_handle,
                keys=words,
                default_value=tf.constant(-1, tf.int64),
            )
        }

    return called_on(with_function(obj, find, WORD_SPEC), words=WORDS)


@kind
def datasets_that_a_function_iterates(folder: Path) -> Case:
    obj = module(dataset=tf.data.Dataset.range(5).map(lambda i: i * i))

    def total() -> Any:
        return {"y": obj.dataset.reduce(tf.constant(0, tf.int64), lambda a, b: a + b)}

    return called_on(with_function(obj, total))


# -- functions --------------------------------------------------------------------------------

Point = collections.namedtuple("Point", ["x", "y"])


class Interval(tf.experimental.ExtensionType):
    """A type that its author makes of two tensors."""

    __name__ = "keras_export_tests.Interval"

    low: tf.Tensor
    high: tf.Tensor


@kind
def methods(folder: Path) -> Case:
    class Scale(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by = tf.Variable(3.0)

        @tf.function(input_signature=[X_SPEC])
        def f(self, x: Any) -> Any:
            return {"y": x * self.by}

        @tf.function(input_signature=[X_SPEC])
        def __call__(self, x: Any) -> Any:
            return self.f(x)["y"] - 1.0

    obj = Scale()
    return Case(obj, [Call("f", [X]), Call("__call__", [X])], {"x": X}, obj.f)


@tf.function(input_signature=[X_SPEC])
def _free_function(x: Any) -> Any:
    return {"y": x + 4.0}


@kind
def free_functions(folder: Path) -> Case:
    return called_on(module(f=_free_function), x=X)


@kind
def partial_functions(folder: Path) -> Case:
    def scaled(x: Any, by: Any, plus: Any = 0.0) -> Any:
        return {"y": x * by + plus}

    partial = functools.partial(scaled, by=2.0, plus=1.0)
    obj = module(f=tf.function(partial))
    return Case(
        obj,
        [Call("f", [X])],
        {"x": X},
        obj.f.get_concrete_function(X_SPEC),
    )


@kind
def arguments_by_keyword_and_default(folder: Path) -> Case:
    @tf.function
    def f(x: Any, y: Any = 2.0, *, z: Any = 1.0) -> Any:
        return {"y": x * y - z}

    obj = module(f=f)
    calls = [
        Call("f", [X]),
        Call("f", [X, X]),
        Call("f", [X], {"z": X}),
        Call("f", (), {"y": X, "x": X}),
    ]
    for call in calls:
        f(*map(tf.constant, call.args), **{k: tf.constant(v) for k, v in call.kwargs.items()})
    return Case(obj, calls, {"x": X}, f.get_concrete_function(X_SPEC))


@kind
def none_and_python_values(folder: Path) -> Case:
    @tf.function
    def f(x: Any, mode: Any = None, training: bool = False) -> Any:
        return {"y": {None: x, "twice": x * 2.0, 3: x * 3.0}[mode] * (-1.0 if training else 1.0)}

    calls = [
        Call("f", [X]),
        Call("f", [X, None]),
        Call("f", [X, "twice"]),
        Call("f", [X, 3, True]),
        Call("f", [X], {"training": True}),
    ]
    for call in calls:
        f(tf.constant(X), *call.args[1:], **call.kwargs)
    return Case(module(f=f), calls, {"x": X}, f.get_concrete_function(tf.constant(X)))


@kind
def nested_arguments(folder: Path) -> Case:
    @tf.function
    def f(tree: Any) -> Any:
        return [tree["a"][0], {"sum": tree["a"][1][0] + tree["b"]["c"], "none": None}]

    tree = {"a": (X, [X]), "b": {"c": F(1)}}
    f(tf.nest.map_structure(tf.constant, tree))
    return Case(module(f=f), [Call("f", [tree])])


@kind
def named_tuples(folder: Path) -> Case:
    spec = Point(tf.TensorSpec([None], name="left"), tf.TensorSpec([None], name="right"))
    obj = with_function(module(), lambda point: Point(point.y, point.x * 2.0), spec)
    return Case(obj, (), {"left": X, "right": X + 1})


@kind
def ragged_tensors(folder: Path) -> Case:
    spec = tf.RaggedTensorSpec([None, None], tf.float32)
    rows = Ragged(F([1, 2, 3]), np.int64([0, 1, 3]))
    obj = with_function(module(), lambda x: {"y": (x * 2.0).to_tensor()}, spec)
    obj.ragged = tf.function(lambda x: x + 1.0, input_signature=[spec])
    inputs = {"x": rows.values, "x_1": rows.row_splits}
    return Case(obj, [Call("f", [rows]), Call("ragged", [rows])], inputs, obj.f)


@kind
def sparse_tensors(folder: Path) -> Case:
    spec = tf.SparseTensorSpec([None, None], tf.float32)
    x = Sparse(np.int64([[0, 1]]), F([5]), np.int64([1, 3]))
    obj = with_function(module(), lambda x: {"y": tf.sparse.to_dense(x) * 2.0}, spec)
    inputs = {"x": x.indices, "x_1": x.values, "x_2": x.dense_shape}
    return Case(obj, [Call("f", [x])], inputs)


@kind
def indexed_slices(folder: Path) -> Case:
    def f(values: Any, indices: Any) -> Any:
        slices = tf.IndexedSlices(values, indices, tf.constant([4], tf.int64))
        return {"y": tf.convert_to_tensor(slices) * 2.0}

    obj = with_function(module(), f, tf.TensorSpec([None]), tf.TensorSpec([None], tf.int64))
    return called_on(obj, values=X, indices=np.int64([3, 0, 1]))


@kind
def extension_types(folder: Path) -> Case:
    inner = tf.function(lambda interval: Interval(-interval.high, -interval.low))

    def f(x: Any) -> Any:
        turned = inner(Interval(x, x + 1.0))
        return {"y": turned.low - 2.0 * turned.high}

    return called_on(with_function(module(inner=inner), f, X_SPEC), x=X)


@kind
def neither_arguments_nor_results(folder: Path) -> Case:
    obj = module(v=tf.Variable(1.0))

    @tf.function(input_signature=[])
    def step() -> None:
        obj.v.assign_add(2.0)

    obj.step = step
    obj.read = tf.function(lambda: {"y": obj.v + 0.0}, input_signature=[])
    return Case(obj, [Call("read"), Call("step"), Call("read")], {}, obj.read)


@kind
def functions_that_assign(folder: Path) -> Case:
    obj = module(v=tf.Variable(1.0))
    obj = with_function(obj, lambda x: {"y": obj.v.assign_add(tf.reduce_sum(x)) * 2.0}, X_SPEC)
    return called_on(obj, x=X)


@kind
def control_flow(folder: Path) -> Case:
    obj = module(v=tf.Variable(2.0))

    @tf.function(input_signature=[X_SPEC, tf.TensorSpec([], tf.int32, name="n")])
    def f(x: Any, n: Any) -> Any:
        total = x
        for i in tf.range(n):
            if i % 2 == 0:
                total += obj.v
            else:
                total = tf.where(total > 0, total * obj.v, total)
        array = tf.TensorArray(tf.float32, size=n).unstack(tf.range(tf.cast(n, tf.float32)))
        return {
            "total": total,
            "switch": tf.switch_case(n % 3, [lambda: x, lambda: -x, lambda: x * obj.v]),
            "mapped": tf.map_fn(lambda y: y * y, x),
            "scanned": tf.scan(lambda a, y: a + y, x),
            "array": array.stack(),
            "nested": tf.while_loop(
                lambda i, y: i < n,
                lambda i, y: (i + 1, tf.cond(i > 1, lambda: y * 2.0, lambda: y + obj.v)),
                (tf.constant(0), x),
            )[1],
        }

    obj.f = f
    return called_on(obj, x=X, n=np.int32(4))


@kind
def functions_that_call_exported_ones(folder: Path) -> Case:
    obj = module(v=tf.Variable(2.0))
    obj.inner = tf.function(lambda x: x * obj.v, input_signature=[X_SPEC])
    obj.outer = tf.function(
        lambda x: {"y": obj.inner(obj.inner(x)) + obj.inner(x)}, input_signature=[X_SPEC]
    )
    return Case(obj, [Call("inner", [X]), Call("outer", [X])], {"x": X}, obj.outer)


@kind
def concrete_functions_under_several_names(folder: Path) -> Case:
    obj = module(v=tf.Variable(2.0))
    concrete = tf.function(lambda x: {"y": x * obj.v}).get_concrete_function(X_SPEC)
    obj.first, obj.second, obj.listed = concrete, concrete, [concrete]
    calls = [Call(path, (), {"x": X}) for path in ("first", "second", "listed.0")]
    return Case(obj, calls, {"x": X}, {"serving_default": concrete, "other": concrete})


@kind
def functions_never_traced(folder: Path) -> Case:
    obj = module(untraced=tf.function(lambda x: x))
    return called_on(with_function(obj, lambda x: {"y": x + 1.0}, X_SPEC), x=X)


@kind
def compiled_functions(folder: Path) -> Case:
    obj = module(v=tf.Variable(2.0))
    obj.f = tf.function(lambda x: {"y": x * obj.v}, input_signature=[X_SPEC], jit_compile=True)
    return called_on(obj, x=X)


@kind
def relaxed_shapes(folder: Path) -> Case:
    f = tf.function(lambda x: {"y": x * 2.0}, reduce_retracing=True)
    calls = [Call("f", [np.ones([n], "float32")]) for n in (2, 3, 4)]
    for call in calls:
        f(tf.constant(call.args[0]))
    return Case(module(f=f), [*calls, Call("f", [X])])


@kind
def tensor_defaults(folder: Path) -> Case:
    @tf.function(input_signature=[X_SPEC, tf.TensorSpec([], name="by")])
    def f(x: Any, by: Any = tf.constant(3.0)) -> Any:  # noqa: B008
        return {"y": x * by}

    return Case(module(f=f), [Call("f", [X]), Call("f", [X, F(2)])], {"x": X, "by": F(2)})


@kind
def linear_operators(folder: Path) -> Case:
    matrix = tf.linalg.LinearOperatorFullMatrix(tf.Variable([[2.0, 1.0], [1.0, 3.0]]))
    diagonal = tf.linalg.LinearOperatorDiag([1.0, 2.0])
    obj = module(matrix=matrix, product=tf.linalg.LinearOperatorKronecker([matrix, diagonal]))
    apply = tf.function(lambda operator, x: operator.matvec(x))

    def f(x: Any) -> Any:
        return {"y": apply(obj.matrix, x) + apply(diagonal, x), "det": obj.product.determinant()}

    return called_on(with_function(obj, f, tf.TensorSpec([2], name="x")), x=X[:2])


@kind
def structured_tensors(folder: Path) -> Case:
    structured = tf.experimental.StructuredTensor
    inner = tf.function(lambda rows: rows.field_value("b") * 2)

    def f(x: Any) -> Any:
        return {"y": inner(structured.from_fields({"b": x}, shape=[None]))}

    return called_on(with_function(module(inner=inner), f, X_SPEC), x=X)


@kind
def optionals_and_datasets_as_arguments(folder: Path) -> Case:
    total = tf.function(lambda dataset: dataset.reduce(0.0, lambda a, b: a + b))
    wrapped = tf.function(lambda x: tf.experimental.Optional.from_value(x))

    def f(x: Any) -> Any:
        dataset = tf.data.Dataset.from_tensor_slices(x)
        return {"y": total(dataset) * wrapped(x).get_value()}

    return called_on(with_function(module(total=total, wrapped=wrapped), f, X_SPEC), x=X)


@kind
def variables_as_arguments(folder: Path) -> Case:
    obj = module(v=tf.Variable(2.0), scale=tf.function(lambda v, x: v * x))
    f = lambda x: {"y": obj.scale(obj.v, x)}  # noqa: E731
    return called_on(with_function(obj, f, X_SPEC), x=X)


@kind
def python_functions(folder: Path) -> Case:
    def f(x: Any) -> Any:
        return {"y": tf.ensure_shape(tf.py_function(lambda y: y * 2.0, [x], tf.float32), [3])}

    return called_on(with_function(module(), f, tf.TensorSpec([3], name="x")), x=X)


# -- gradients --------------------------------------------------------------------------------


@kind
def custom_gradients(folder: Path) -> Case:
    @tf.custom_gradient
    def straight(x: Any) -> Any:
        return tf.sign(x), lambda upstream: upstream * 3.0

    obj = module(v=tf.Variable([1.0, 2.0, 3.0]))

    @tf.function(input_signature=[tf.TensorSpec([3], name="x")])
    def f(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = straight(x * obj.v)
        return {"y": y, "slope": tape.gradient(y, x)}

    obj.f = f
    return called_on(obj, x=X)


# -- containers -------------------------------------------------------------------------------


class Slotted(tf.Module):
    """Has a slot beside its dict."""

    __slots__ = ("hidden",)

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 3
        self.v = tf.Variable(2.0)


class Raising(tf.Module):
    """Has a property that only its author may read."""

    @property
    def private(self) -> Any:
        raise RuntimeError("not for you")


class ChildrenOfItsOwn(tf.Module):
    """Says itself what its children are."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = tf.Variable(1.0)
        object.__setattr__(self, "extra", tf.Variable(2.0))

    def _trackable_children(self, save_type: Any = "checkpoint", **kwargs: Any) -> Any:
        children = super()._trackable_children(save_type, **kwargs)
        return {**children, "renamed": self.extra}


@kind
def lists_tuples_and_dicts(folder: Path) -> Case:
    obj = module(
        items=[tf.Variable(1.0), None, 3, "text", [tf.Variable(2.0)]],
        pair=Point(tf.Variable(3.0), (tf.Variable(4.0), 5)),
        table={"a": tf.Variable(5.0), "plain": 7, "deep": {"b": [tf.Variable(6.0)]}},
    )

    def total(x: Any) -> Any:
        held = [obj.items[0], obj.items[4][0], obj.pair.x, obj.pair.y[0], obj.table["a"]]
        return {"y": x * tf.add_n([*held, obj.table["deep"]["b"][0]])}

    return called_on(with_function(obj, total, X_SPEC), x=X)


@kind
def circles(folder: Path) -> Case:
    obj = module(v=tf.Variable(2.0), other=tf.Module())
    obj.other.back, obj.myself, obj.listed = obj, obj, [obj.other]
    obj.other.f = tf.function(lambda x: x + obj.v, input_signature=[X_SPEC])
    case = called_on(with_function(obj, lambda x: {"y": obj.other.f(x)}, X_SPEC), x=X)
    return Case(obj, [*case.calls, Call("other.back.myself.listed.0.f", [X])], case.inputs)


@kind
def one_object_under_several_names(folder: Path) -> Case:
    shared = module(v=tf.Variable(2.0))
    obj = module(first=shared, second=[shared], third={"v": shared.v})
    return called_on(with_function(obj, lambda x: {"y": x * obj.third["v"]}, X_SPEC), x=X)


@kind
def slots_and_properties_that_raise(folder: Path) -> Case:
    obj = module(slotted=Slotted(), raising=Raising())
    return called_on(with_function(obj, lambda x: {"y": x * obj.slotted.v}, X_SPEC), x=X)


@kind
def children_of_its_own(folder: Path) -> Case:
    obj = module(inner=ChildrenOfItsOwn())
    f = lambda x: {"y": x * obj.inner.extra + obj.inner.shown}  # noqa: E731
    return called_on(with_function(obj, f, X_SPEC), x=X)


@kind
def legacy_optimizers(folder: Path) -> Case:
    obj = module(v=tf.Variable(2.0), optimizer=tf.compat.v1.train.AdamOptimizer(0.1))
    obj.optimizer.minimize(lambda: obj.v**2)
    return called_on(with_function(obj, lambda x: {"y": x * obj.v}, X_SPEC), x=X)
