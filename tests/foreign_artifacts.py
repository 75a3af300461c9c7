"""Artifacts that TensorFlow and Keras write, of every sort; also a script for other releases.

`python foreign_artifacts.py FOLDER` writes each `WRITERS` entry into a folder of its own with the
TensorFlow that runs it, 2.12 or newer, and keras_export has no part in it.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_v1 = tf.compat.v1
_ROW = tf.TensorSpec([None, 3], tf.float32, name="x")
_WORDS = tf.TensorSpec([None], tf.string, name="x")
_LAYERS = keras.layers


def _on(device: str, call: Callable[[], Any]) -> Any:
    with tf.device(device):
        return call()


def _apart(x: Any, **attributes: Any) -> Any:
    inner = tf.function(
        lambda y: _on("/gpu:0", lambda: tf.nn.relu(y)), experimental_attributes=attributes
    )
    return inner(x) * 2.0


def _by_dataset(x: Any) -> Any:
    numbers = tf.data.Dataset.range(3).map(lambda i: _on("/gpu:0", lambda: i + 1))
    return x + tf.cast(numbers.reduce(tf.constant(0, tf.int64), tf.add), tf.float32)


def _rnn(x: Any) -> Any:
    """An op that has no kernel for a CPU."""
    state = tf.zeros((1, 1, 3))
    return tf.raw_ops.CudnnRNN(
        input=x[None, :1], input_h=state, input_c=state, params=tf.zeros(200), is_training=False
    ).output


def _uselessly(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def function(x: Any) -> Any:
        call(x)
        return x + 1.0

    return function


def _lost(x: Any) -> Any:
    return tf.raw_ops.PyFuncStateless(input=[x], token="of another process", Tout=[tf.float32])[0]


def _by_int16(x: Any) -> Any:
    return tf.raw_ops.GatherV2(params=x, indices=tf.zeros([1], tf.int16), axis=0)


def _cast_by(name: str) -> Callable[[Any], Any]:
    dtype = getattr(tf.dtypes.experimental, name, None) or tf.as_dtype(name)
    return lambda x: tf.cast(tf.cast(x, dtype), tf.float32)


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda x: tf.nn.softmax(x),
    "new_attributes": lambda x: tf.math.top_k(tf.matmul(x, x, transpose_b=True), 1).values,
    "on_gpu": lambda x: _on("/gpu:0", lambda: tf.nn.relu(x)),
    "on_second_cpu": lambda x: _on("/cpu:1", lambda: tf.nn.relu(x)),
    "on_gpu_in_a_branch": lambda x: tf.cond(
        tf.reduce_sum(x) > 0, lambda: _on("/gpu:0", lambda: x + 1.0), lambda: x
    ),
    "on_gpu_in_a_loop": lambda x: tf.map_fn(lambda row: _on("/gpu:0", lambda: row + 1.0), x),
    "on_gpu_in_a_dataset": _by_dataset,
    "on_another_machine": lambda x: _on("/job:worker/task:0/cpu:0", lambda: tf.nn.relu(x)),
    "on_localhost": lambda x: _on("/job:localhost/task:0/cpu:0", lambda: tf.nn.relu(x)),
    "gpu_kernel": _rnn,
    "gpu_kernel_in_a_branch": lambda x: tf.cond(
        tf.reduce_sum(x) < 0, lambda: _rnn(x)[0], lambda: x
    ),
    "gpu_kernel_uselessly": _uselessly(_rnn),
    "lost_python": _lost,
    "lost_python_uselessly": _uselessly(_lost),
    "int16_uselessly": _uselessly(_by_int16),
    "cast_by_float8": _cast_by("float8_e5m2"),
    "cast_by_uint64": _cast_by("uint64"),
    "random": lambda x: x + tf.random.normal(tf.shape(x)),
}
if hasattr(tf.dtypes.experimental, "int4"):
    _FUNCTIONS["cast_by_int4"] = _cast_by("int4")
    _FUNCTIONS["cast_by_int4_and_int8"] = lambda x: _cast_by("int4")(tf.cast(x, tf.int8))


if int(tf.__version__.split(".")[1]) > 12:
    _FUNCTIONS["on_gpu_apart"] = lambda x: _apart(x, _noinline=True)


def _module(call: Callable[[Any], Any]) -> Callable[[str], None]:
    def write(folder: str) -> None:
        module = tf.Module()
        module.scale = tf.Variable(2.0)
        module.served = tf.function(lambda x: call(x * module.scale), input_signature=[_ROW])
        tf.saved_model.save(module, folder, signatures=module.served)

    return write


def _table(make: Callable[[], Any]) -> Callable[[str], None]:
    def write(folder: str) -> None:
        module = tf.Module()
        module.table = make()
        module.served = tf.function(lambda x: module.table.lookup(x), input_signature=[_WORDS])
        tf.saved_model.save(module, folder, signatures=module.served)

    return write


def _static() -> Any:
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1]), -1)


def _mutable() -> Any:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    table.insert(["a"], [1])
    return table


def _of_v1(build: Callable[[Any, Any], tuple[Any, Any]], **options: Any) -> Callable[[str], None]:
    """`build` takes a session and the input, and gives the output and the init op."""

    def write(folder: str) -> None:
        graph = tf.Graph()
        with graph.as_default(), _v1.Session(graph=graph) as session:
            x = _v1.placeholder(options.get("dtype", tf.float32), [None, *options.get("row", [3])])
            y, main_op = build(session, x)
            if _v1.global_variables():
                session.run(_v1.global_variables_initializer())
            signature = _v1.saved_model.predict_signature_def({"x": x}, {"y": y})
            builder = _v1.saved_model.Builder(folder)
            tags = options.get("tags", ["serve"])
            if options.get("trained"):
                builder.add_meta_graph_and_variables(session, ["train"], {})
                builder.add_meta_graph(tags, {"serving_default": signature}, main_op=main_op)
            else:
                builder.add_meta_graph_and_variables(
                    session, tags, {"serving_default": signature}, main_op=main_op
                )
            with contextlib.redirect_stdout(io.StringIO()):
                builder.save()

    return write


def _weight(name: str, **options: Any) -> Any:
    return _v1.get_variable(name, initializer=tf.ones((3, 2)), **options)


def _looked_up(x: Any, initialized: bool) -> tuple[Any, Any]:
    table = _static()
    return table.lookup(x), _v1.tables_initializer() if initialized else None


def _trained(x: Any) -> Any:
    y = x @ _weight("w")
    _v1.train.AdamOptimizer().minimize(tf.reduce_mean(y))
    return y


def _v1_uselessly(call: Callable[[Any], Any]) -> Callable[[Any, Any], tuple[Any, Any]]:
    return lambda session, x: (_uselessly(call)(x), None)


_LOCAL = {"collections": ["local_variables"]}
_WRITTEN_BY_V1: dict[str, Callable[[str], None]] = {
    "v1_references": _of_v1(lambda s, x: (x @ _weight("w", use_resource=False), None)),
    "v1_resources": _of_v1(lambda s, x: (x @ _weight("w", use_resource=True), None)),
    "v1_training": _of_v1(lambda s, x: (_trained(x), None)),
    "v1_forgotten_variable": _of_v1(
        lambda s, x: (x @ (_weight("w") + _weight("u", collections=["own"])), None)
    ),
    "v1_local_variable": _of_v1(
        lambda s, x: (
            x @ (_weight("w") + _weight("u", **_LOCAL)),
            _v1.local_variables_initializer(),
        )
    ),
    "v1_table": _of_v1(lambda s, x: _looked_up(x, True), dtype=tf.string, row=[]),
    "v1_empty_table": _of_v1(lambda s, x: _looked_up(x, False), dtype=tf.string, row=[]),
    "v1_tag_gpu": _of_v1(lambda s, x: (x + 1.0, None), tags=["serve", "gpu"]),
    "v1_tag_train": _of_v1(lambda s, x: (x + 1.0, None), tags=["train"]),
    "v1_on_gpu": _of_v1(lambda s, x: (_on("/gpu:0", lambda: tf.nn.relu(x)), None)),
    "v1_on_gpu_uselessly": _of_v1(_v1_uselessly(lambda x: _on("/gpu:0", lambda: tf.nn.relu(x)))),
    "v1_on_another_machine": _of_v1(
        lambda s, x: (_on("/job:worker/task:0/cpu:0", lambda: tf.nn.relu(x)), None)
    ),
    "v1_gpu_kernel_uselessly": _of_v1(_v1_uselessly(_rnn)),
    "v1_lost_python_uselessly": _of_v1(_v1_uselessly(_lost)),
}


def _model(*layers: Any, row: tuple[int, ...] = (3,), dtype: str = "float32") -> Any:
    return keras.Sequential([keras.Input(row, dtype=dtype, name="x"), *layers])


def _text() -> Any:
    text = _LAYERS.TextVectorization(output_sequence_length=3)
    text.adapt(["a b", "b"])
    return _model(text, row=(1,), dtype="string")


_MODELS: dict[str, Callable[[], Any]] = {
    "dense": lambda: _model(_LAYERS.Dense(2, "relu")),
    "lstm": lambda: _model(_LAYERS.LSTM(2), row=(4, 3)),
    "images": lambda: _model(
        _LAYERS.Conv2D(2, 3), _LAYERS.BatchNormalization(), _LAYERS.Flatten(), row=(5, 5, 3)
    ),
    "text": _text,
}


def _saved(make: Callable[[], Any]) -> Callable[[str], None]:
    return lambda folder: tf.saved_model.save(make(), folder)


def _exported(make: Callable[[], Any]) -> Callable[[str], None]:
    def write(folder: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            make().export(folder)

    return write


WRITERS: dict[str, Callable[[str], None]] = {
    **{name: _module(call) for name, call in _FUNCTIONS.items()},
    "static_table": _table(_static),
    "mutable_table": _table(_mutable),
    **_WRITTEN_BY_V1,
    **{f"saved_{name}": _saved(make) for name, make in _MODELS.items()},
}
if hasattr(keras.Model, "export"):  # since 2.13
    WRITERS |= {f"exported_{name}": _exported(make) for name, make in _MODELS.items()}


def misjudged(folders: list[Path], release: str, readers: Any) -> list[str]:
    """Where `keras_export.check` says another thing of a release than its readers do."""
    import keras_export as ke

    wrong = []
    for folder in folders:
        said = list(ke.check(folder).loadable[release])
        loads = (("python", readers.tf), ("c++", readers.cpp))
        does = [reader for reader, load in loads if _works(load, folder)]
        if said != does:
            wrong.append(f"{folder.name}: check says {said}, it is {does}")
    return wrong


def _works(load: Callable[[Path], Any], folder: Path) -> bool:
    """Whether a reader loads an artifact and runs each signature."""
    from consumers import ConsumerError

    try:
        loaded = load(folder)
        for key, signature in loaded.signatures().items():
            inputs = {name: _some(spec) for name, spec in signature["inputs"].items()}
            loaded.signature(key, **inputs)
    except ConsumerError:
        return False
    return True


def _some(spec: Any) -> Any:
    shape = [1 if size is None else size for size in spec.shape]
    return np.full(shape, b"a", object) if spec.dtype == "string" else np.ones(shape, spec.dtype)


def write_all(root: Path) -> list[Path]:
    """Writes each artifact into a folder of its name and gives the folders."""
    for name, write in WRITERS.items():
        write(str(root / name))
    return [root / name for name in WRITERS]


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
