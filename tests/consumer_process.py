"""The process in which tests read artifacts: as users do, without keras_export and the live model.

In: requests on a pipe (see `consumers.py`). Out: for each request one reply, a value made of numpy
arrays and plain containers or the error that a user would see. Importing TensorFlow takes seconds,
so that one process serves many requests; an artifact stays loaded until its handle is released.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import itertools
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import consumer_values as wire
import numpy as np
import tensorflow as tf
from consumer_gradients import gradients, second_gradients

# Arrays travel pickled, and NumPy 2 names the places of its functions anew.
_OLD_NUMPY = np.__version__.startswith("1.")
if _OLD_NUMPY:
    for _name in ("", ".multiarray", ".numeric"):
        sys.modules[f"numpy._core{_name}"] = importlib.import_module(f"numpy.core{_name}")
# Protocol 5 of NumPy 1 is one that NumPy 2 warns of.
_PROTOCOL = 4 if _OLD_NUMPY else pickle.HIGHEST_PROTOCOL


class _NoKerasExport:
    """Makes `import keras_export` fail: an artifact that needs it is broken."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "keras_export":
            raise ImportError("Cannot import keras_export where artifacts are read.")


class TensorFlowReader:
    """`tf.saved_model.load`."""

    def __init__(self, export_dir: str, tags: Sequence[str] | None) -> None:
        self._loaded = tf.saved_model.load(export_dir, tags=tags)

    def signatures(self) -> dict[str, dict[str, dict[str, wire.Spec]]]:
        return {
            key: {
                "inputs": _specs(function.structured_input_signature[1]),
                "outputs": _specs(function.structured_outputs),
            }
            for key, function in self._loaded.signatures.items()
        }

    def signature(self, key: str, inputs: dict[str, Any]) -> Any:
        return wire.to_wire(self._loaded.signatures[key](**wire.from_wire(inputs)))

    def call(self, path: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        function = self._at(path)
        return wire.to_wire(function(*wire.from_wire(args), **wire.from_wire(kwargs)))

    def attribute(self, path: str) -> Any:
        return wire.to_wire(self._at(path))

    def attributes(self, path: str) -> list[str]:
        return [name for name in dir(self._at(path)) if not name.startswith("_")]

    def variables(self) -> dict[str, wire.Variable]:
        return {path: wire.variable(path, value) for path, value in self._variables()}

    def assign(self, path: str, value: np.ndarray) -> None:
        self._at(path).assign(value)

    def gradient(self, path: str, wrt: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        args, kwargs = wire.from_wire(args), wire.from_wire(kwargs)
        sources = {
            "inputs": dict(itertools.chain(enumerate(args), kwargs.items())),
            "variables": {name: v for name, v in self._variables() if v.trainable},
        }[wrt]
        # Not by tf.nest: it sorts keys, and positions don't compare with names.
        names = list(sources)
        values = gradients(self._at(path), [sources[name] for name in names], args, kwargs)
        return {name: wire.to_wire(value) for name, value in zip(names, values, strict=True)}

    def second_gradient(self, path: str, x: np.ndarray) -> Any:
        return wire.to_wire(second_gradients(self._at(path), wire.from_wire(x)))

    def save(self, export_dir: str) -> None:
        tf.saved_model.save(self._loaded, export_dir)

    def _at(self, path: str) -> Any:
        found = self._loaded
        for step in filter(None, path.split(".")):
            found = _child(found, step)
        return found

    def _variables(self) -> Iterator[tuple[str, Any]]:
        """All tracked variables, each once, by the shortest path from the loaded object."""
        seen, queue = {id(self._loaded)}, [("", self._loaded)]
        while queue:
            path, node = queue.pop(0)
            if isinstance(node, tf.Variable):
                yield path, node
            for name, child in tf.train.TrackableView.children(node).items():
                if id(child) not in seen:
                    seen.add(id(child))
                    queue.append((f"{path}.{name}" if path else name, child))


class V1Reader:
    """`tf.compat.v1.saved_model.load` into a session."""

    def __init__(self, export_dir: str, tags: Sequence[str]) -> None:
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            self._meta_graph = _v1_load(self._session, tags, export_dir)
        except Exception:
            self._session.close()
            raise

    def signatures(self) -> dict[str, dict[str, dict[str, wire.Spec]]]:
        return _signature_specs(self._meta_graph.signature_def)

    def signature(self, key: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        signature = self._meta_graph.signature_def[key]
        feeds = _with_defaults(signature, inputs)
        unknown = set(feeds) ^ set(signature.inputs)
        if unknown:
            raise KeyError(f"Cannot run {key!r}: missing or unknown inputs {sorted(unknown)}.")
        fetches = {name: info.name for name, info in signature.outputs.items()}
        outputs = self._session.run(
            fetches, {signature.inputs[name].name: value for name, value in feeds.items()}
        )
        return {name: _v1_array(value) for name, value in outputs.items()}

    def save(self, prefix: str) -> str:
        with self._session.graph.as_default():
            saver = tf.compat.v1.train.Saver(saver_def=self._meta_graph.saver_def)
            return saver.save(self._session, prefix, write_meta_graph=False, write_state=False)

    def save_model(self, export_dir: str) -> None:
        with self._session.graph.as_default():
            builder = tf.compat.v1.saved_model.Builder(export_dir)
            signatures = {k: v for k, v in self._meta_graph.signature_def.items() if k[:2] != "__"}
            (init,) = tf.compat.v1.get_collection("saved_model_main_op")
            # The builder makes it again, and refuses to have two.
            self._session.graph.clear_collection("saved_model_main_op")
            builder.add_meta_graph_and_variables(
                self._session,
                ["serve"],
                signatures,
                main_op=init,
                saver=tf.compat.v1.train.Saver(saver_def=self._meta_graph.saver_def),
            )
            builder.save()

    def close(self) -> None:
        self._session.close()


class CppReader:
    """The C++ loader, through the C API."""

    def __init__(self, export_dir: str, tags: Sequence[str]) -> None:
        self._session = _cpp_loader().Session(export_dir, tags)

    def signatures(self) -> dict[str, dict[str, dict[str, wire.Spec]]]:
        return _signature_specs(self._session.signatures)

    def signature(self, key: str, inputs: dict[str, Any]) -> dict[str, Any]:
        if key in self._session.signatures:
            inputs = _with_defaults(self._session.signatures[key], inputs)
        return {x: wire.to_wire(value) for x, value in self._session.run(key, inputs).items()}

    def close(self) -> None:
        self._session.close()


@functools.cache
def _cpp_loader() -> Any:
    """By its path: importing keras_export is refused here, and this file of it stands alone."""
    path = Path(__file__).resolve().parent.parent / "keras_export" / "cpp_loader.py"
    spec = importlib.util.spec_from_file_location("cpp_loader", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LayerReader:
    """`keras.layers.TFSMLayer`."""

    def __init__(self, export_dir: str, call_endpoint: str, trainable: bool) -> None:
        import keras

        self._layer = keras.layers.TFSMLayer(
            export_dir, call_endpoint=call_endpoint, trainable=trainable
        )

    def call(self, inputs: Any, kwargs: dict[str, Any]) -> Any:
        return wire.to_wire(self._layer(wire.from_wire(inputs), **wire.from_wire(kwargs)))

    def weights(self) -> dict[str, int]:
        layer = self._layer
        return {"trainable": len(layer.trainable_weights), "all": len(layer.weights)}

    def fine_tune(self, inputs: Any, targets: Any, learning_rate: float) -> dict[str, Any]:
        inputs, targets = wire.from_wire(inputs), wire.from_wire(targets)
        weights = [_tf_variable(weight) for weight in self._layer.trainable_weights]
        with tf.GradientTape() as tape:
            before = _mean_squared_error(self._layer(inputs, training=True), targets)
        slopes = tape.gradient(before, weights)
        for weight, slope in zip(weights, slopes, strict=True):
            if slope is not None:
                weight.assign_sub(learning_rate * tf.convert_to_tensor(slope))
        after = _mean_squared_error(self._layer(inputs), targets)
        return {
            "before": float(before),
            "after": float(after),
            "trainable": len(weights),
            "updated": sum(slope is not None for slope in slopes),
        }


def list_variables(path: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in tf.train.list_variables(path)}


def checkpoint_values(path: str) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(path)
    return {key: np.asarray(reader.get_tensor(key)) for key in reader.get_variable_to_shape_map()}


def fingerprint(export_dir: str) -> dict[str, Any]:
    found = tf.saved_model.experimental.read_fingerprint(export_dir)
    return {
        "saved_model_checksum": found.saved_model_checksum,
        "graph_def_program_hash": found.graph_def_program_hash,
        "signature_def_hash": found.signature_def_hash,
        "saved_object_graph_hash": found.saved_object_graph_hash,
        "checkpoint_hash": found.checkpoint_hash,
        "version": found.version.producer,
    }


def saved_model_cli(*arguments: str) -> str:
    """Runs `saved_model_cli` here, because a process of its own takes seconds to start."""
    from tensorflow.python.tools import saved_model_cli as cli

    output, errors = io.StringIO(), io.StringIO()
    command, sys.argv = sys.argv, ["saved_model_cli", *arguments]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            cli.main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"saved_model_cli ended: {end.code} {errors.getvalue()}") from end
    finally:
        sys.argv = command
    return output.getvalue()


READERS: dict[str, Callable[..., Any]] = {
    "tf": TensorFlowReader,
    "v1": V1Reader,
    "cpp": CppReader,
    "tfsm": LayerReader,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "checkpoint_values": checkpoint_values,
    "fingerprint": fingerprint,
    "list_variables": list_variables,
    "saved_model_cli": saved_model_cli,
}


class Server:
    """Answers requests; what they open stays open until it is released."""

    def __init__(self) -> None:
        self._open: dict[int, Any] = {}
        self._handles = itertools.count(1)

    def answer(self, verb: str, target: Any, *rest: Any) -> Any:
        if verb == "open":
            handle = next(self._handles)
            self._open[handle] = READERS[target](*rest)
            return handle
        if verb == "use":
            method, *arguments = rest
            return getattr(self._open[target], method)(*arguments)
        return FUNCTIONS[target](*rest)

    def release(self, handles: Sequence[int]) -> None:
        for handle in handles:
            close = getattr(self._open.pop(handle), "close", None)
            if close is not None:
                close()


def reply_to(server: Server, request: bytes) -> bytes:
    """One request, one reply: `(True, value)` or `(False, kind, message, traceback)`."""
    released, arguments = pickle.loads(request)
    try:
        server.release(released)
        return pickle.dumps((True, server.answer(*arguments)), _PROTOCOL)
    except Exception as error:
        failure = (False, type(error).__name__, str(error), traceback.format_exc())
        return pickle.dumps(failure)


def main(descriptor: int) -> None:
    sys.meta_path.insert(0, _NoKerasExport())
    connection, server = Connection(descriptor), Server()
    # The tests' process gone is the normal end.
    with contextlib.suppress(EOFError):
        while True:
            connection.send_bytes(reply_to(server, connection.recv_bytes()))


def _child(parent: Any, step: str) -> Any:
    if hasattr(parent, step):
        return getattr(parent, step)
    if isinstance(parent, Mapping) or hasattr(parent, "keys"):
        return parent[step]
    if step.isdigit() and hasattr(parent, "__getitem__"):
        return parent[int(step)]
    raise AttributeError(f"Cannot find {step!r} in {type(parent).__name__}: {dir(parent)}")


def _specs(tensors: Mapping[str, Any]) -> dict[str, wire.Spec]:
    return {name: wire.spec(tensor) for name, tensor in tensors.items()}


def _signature_specs(signatures: Mapping[str, Any]) -> dict[str, dict[str, dict[str, wire.Spec]]]:
    return {
        key: {"inputs": _infos(signature.inputs), "outputs": _infos(signature.outputs)}
        for key, signature in signatures.items()
        if not key.startswith("__")  # the initialisation op is no signature to call
    }


def _infos(infos: Mapping[str, Any]) -> dict[str, wire.Spec]:
    return {name: wire.spec(_spec_of(info)) for name, info in infos.items()}


def _spec_of(info: Any) -> tf.TensorSpec:
    """Of a composite tensor, the dtype of its values and no shape."""
    if info.HasField("composite_tensor"):
        return tf.TensorSpec(None, tf.as_dtype(info.composite_tensor.components[0].dtype))
    return tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.as_dtype(info.dtype))


def _with_defaults(signature: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Adds the defaults of inputs that were left out, as TensorFlow Serving does."""
    described = getattr(signature, "defaults", {})  # none before TensorFlow 2.14
    defaults = {name: tf.make_ndarray(proto) for name, proto in described.items()}
    return {**defaults, **inputs}


def _v1_load(session: Any, tags: Sequence[str], export_dir: str) -> Any:
    with session.graph.as_default():
        return tf.compat.v1.saved_model.load(session, list(tags), export_dir)


def _v1_array(value: Any) -> np.ndarray:
    return np.array(value, dtype=object) if isinstance(value, bytes) else np.asarray(value)


def _tf_variable(weight: Any) -> tf.Variable:
    """The variable in a layer's weight, which in Keras 3.4 is that variable itself."""
    return weight if isinstance(weight, tf.Variable) else weight.value


def _mean_squared_error(outputs: Any, targets: Any) -> tf.Tensor:
    pairs = zip(tf.nest.flatten(outputs), tf.nest.flatten(targets), strict=True)
    return tf.add_n([tf.reduce_mean((tf.cast(y, tf.float32) - t) ** 2) for y, t in pairs])


if __name__ == "__main__":
    main(int(sys.argv[1]))
