"""Reads an artifact back: what it takes, gives and holds.

In: the directory of a SavedModel, whoever wrote it. Out: a `SavedModelInfo`. The invariant: the
artifact is parsed and not loaded; nothing of it runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_export import attributes
from keras_export import tf_internals as tfi
from keras_export.errors import ArgumentError, DamagedFileError, failure
from keras_export.reports import Signature, format_size
from keras_export.signatures import INIT_OP_KEY

_OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"


@dataclass(frozen=True)
class SavedModelInfo:
    """What a SavedModel is.

    Attributes:
        export_dir: where it is.
        tags: of its first MetaGraph.
        signatures: how to call it, by key.
        variables: `{checkpoint key: (shape, dtype name, bytes)}`.
        ops: `{op: number of nodes}`, functions included.
        functions: how many functions its library has.
        assets: names of its files.
        producer: the TensorFlow release that wrote it.
        graph_bytes: size of `saved_model.pb`.
        fingerprint: the hashes in `fingerprint.pb`; empty without that file.
    """

    export_dir: str
    tags: tuple[str, ...]
    signatures: Mapping[str, Signature]
    variables: Mapping[str, tuple[tuple[int, ...], str, int]]
    ops: Mapping[str, int]
    functions: int
    assets: tuple[str, ...]
    producer: str
    graph_bytes: int
    fingerprint: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON can hold."""
        return {
            "export_dir": self.export_dir,
            "tags": list(self.tags),
            "signatures": {
                key: {"inputs": _plain(x.inputs), "outputs": _plain(x.outputs)}
                for key, x in self.signatures.items()
            },
            "variables": {
                key: {"shape": list(shape), "dtype": dtype, "bytes": size}
                for key, (shape, dtype, size) in self.variables.items()
            },
            "ops": dict(self.ops),
            "functions": self.functions,
            "assets": list(self.assets),
            "producer": self.producer,
            "graph_bytes": self.graph_bytes,
            "fingerprint": dict(self.fingerprint),
        }

    def __str__(self) -> str:
        stored = sum(size for _, _, size in self.variables.values())
        lines = [f"{self.export_dir}: written by TensorFlow {self.producer}"]
        lines += [f"  tags: {', '.join(self.tags)}"]
        lines += [f"  {key}{signature}" for key, signature in self.signatures.items()]
        lines += [f"  {len(self.variables)} variables, {format_size(stored)}"]
        lines += [
            f"  {sum(self.ops.values())} nodes of {len(self.ops)} ops in {self.functions} "
            f"functions, {format_size(self.graph_bytes)}"
        ]
        lines += [f"  asset: {name}" for name in self.assets]
        return "\n".join(lines)


def inspect(export_dir: str | os.PathLike[str]) -> SavedModelInfo:
    """Reads what a SavedModel is, without loading it.

    Args:
        export_dir: a directory that TensorFlow, Keras or keras_export wrote.

    Raises:
        ArgumentError: there is no `saved_model.pb`.
        DamagedFileError: a file of it cannot be read.

    Example:
        >>> import tempfile, keras, keras_export as ke
        >>> model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1, name="y")])
        >>> path = ke.export(model, tempfile.mkdtemp()).export_dir
        >>> print(ke.inspect(path).signatures["serve"])
        (x: float32[?, 3]) -> (y: float32[?, 1])
    """
    path = os.fspath(export_dir)
    meta_graph, size = _read_graph(path)
    info = meta_graph.meta_info_def
    return SavedModelInfo(
        path,
        tuple(info.tags),
        {
            key: Signature(_specs(proto.inputs), _specs(proto.outputs))
            for key, proto in sorted(meta_graph.signature_def.items())
            if key != INIT_OP_KEY
        },
        _variables(path),
        dict(attributes.ops_of(meta_graph.graph_def)),
        len(meta_graph.graph_def.library.function),
        tuple(sorted({asset.filename for asset in meta_graph.asset_file_def})),
        info.tensorflow_version,
        size,
        _fingerprint(path),
    )


def _read_graph(path: str) -> tuple[Any, int]:
    file = tf.io.gfile.join(path, "saved_model.pb")
    if not tf.io.gfile.exists(file):
        raise ArgumentError(
            failure(
                f"inspect {path}", "the directory of a SavedModel", "one without saved_model.pb"
            )
        )
    content = _bytes_of(file)
    try:
        return tfi.saved_model_pb2.SavedModel.FromString(content).meta_graphs[0], len(content)
    except (tfi.DecodeError, IndexError) as error:
        raise DamagedFileError(
            f"Cannot read {file}: it is damaged or no SavedModel. Export the model again."
        ) from error


def _bytes_of(file: str) -> bytes:
    with tf.io.gfile.GFile(file, "rb") as stream:
        content: bytes = stream.read()
        return content


def _specs(infos: Any) -> dict[str, Any]:
    return {name: _spec(name, info) for name, info in sorted(infos.items())}


def _spec(name: str, info: Any) -> Any:
    if info.WhichOneof("encoding") != "composite_tensor":
        return tf.TensorSpec(tf.TensorShape(info.tensor_shape), info.dtype, name)
    proto = info.composite_tensor.type_spec
    state = list(proto.type_state.tuple_value.values)
    if len(state) < 2 or not state[0].HasField("tensor_shape_value"):
        return tf.TensorSpec(None, tf.variant, name)  # a type of the author's own
    shape, dtype = tf.TensorShape(state[0].tensor_shape_value), state[1].tensor_dtype_value
    if proto.type_spec_class == type(proto).RAGGED_TENSOR_SPEC:
        return tf.RaggedTensorSpec(shape, dtype, state[2].int64_value, state[3].tensor_dtype_value)
    return tf.TensorSpec(shape, dtype, name)


def _plain(specs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {
            "shape": spec.shape.as_list() if spec.shape.rank is not None else None,
            "dtype": spec.dtype.name,
        }
        for name, spec in specs.items()
    }


def _variables(path: str) -> dict[str, tuple[tuple[int, ...], str, int]]:
    prefix = tf.io.gfile.join(path, "variables", "variables")
    if not tf.io.gfile.exists(f"{prefix}.index"):
        return {}
    try:
        reader = tf.train.load_checkpoint(prefix)
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise DamagedFileError(
            f"Cannot read {prefix}.index: {error}. Export the model again."
        ) from error
    dtypes = reader.get_variable_to_dtype_map()
    return {
        key: (tuple(shape), dtypes[key].name, dtypes[key].size * _count(shape))
        for key, shape in sorted(reader.get_variable_to_shape_map().items())
        if key != _OBJECT_GRAPH_KEY
    }


def _count(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _fingerprint(path: str) -> dict[str, str]:
    file = tf.io.gfile.join(path, "fingerprint.pb")
    if not tf.io.gfile.exists(file):
        return {}
    try:
        proto = tfi.fingerprint_pb2.FingerprintDef.FromString(_bytes_of(file))
    except tfi.DecodeError as error:
        raise DamagedFileError(f"Cannot read {file}: it is damaged.") from error
    return {
        field.name: str(value) for field, value in proto.ListFields() if field.name != "version"
    }


def to_json(info: SavedModelInfo) -> str:
    """`info` as indented JSON."""
    return json.dumps(info.to_dict(), indent=2)
