"""Reads an artifact back: what it takes, gives and holds.

In: the directory of a SavedModel, whoever wrote it. Out: a `SavedModelInfo`. The invariant: the
artifact is parsed and not loaded; nothing of it runs, and a local one is read
without TensorFlow.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from keras_export import object_graphs, plots, protos
from keras_export.bundles import (
    OBJECT_GRAPH_KEY,
    Bundle,
    BundleEntry,
    bytes_of,
    is_file,
    read_bundle,
    size_of,
)
from keras_export.errors import ArgumentError, DamagedFileError, failure
from keras_export.reports import Signature, format_size, listed

_VALUE_SUFFIX = f"/.ATTRIBUTES/{object_graphs.VALUE}"
MAX_LAYERS = 24  # in a picture
_WIDTH_INCHES, _HEAD_INCHES, _STRIP_INCHES, _ROW_INCHES = 10.0, 1.6, 0.3, 0.3
_SHOWN_VARIABLES, _SHOWN_OPS = 12, 8
_DEFAULT_KEY = "serving_default"
_INIT_OP_KEY = "__saved_model_init_op"


@dataclass(frozen=True)
class Spec:
    """A tensor that a signature takes or gives.

    Attributes:
        shape: None for an unknown size; None as a whole for an unknown rank.
        dtype: its name.
        kind: `tensor`, `sparse`, or the class of a composite tensor's spec.
    """

    shape: tuple[int | None, ...] | None
    dtype: str
    kind: str = "tensor"

    def __str__(self) -> str:
        dims = "..."
        if self.shape is not None:
            dims = ", ".join("?" if size is None else str(size) for size in self.shape)
        kind = "" if self.kind == "tensor" else f"{self.kind} "
        return f"{kind}{self.dtype}[{dims}]"


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
        names: what the variables are called, by checkpoint key, where the artifact tells.
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
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """The bytes of all variables."""
        return sum(size for _, _, size in self.variables.values())

    def name_of(self, key: str) -> str:
        """What the variable at a checkpoint key is called: its name, or a path that says more."""
        name = self.names.get(key, "")
        return name if "/" in name else path_of(key)

    def by_size(self) -> list[tuple[str, str, int]]:
        """Name, dtype with shape, and bytes of every variable, the largest first."""
        rows = [
            (self.name_of(key), str(Spec(shape, dtype)), size)
            for key, (shape, dtype, size) in self.variables.items()
        ]
        return sorted(rows, key=lambda row: (-row[2], row[0]))

    def layers(self) -> dict[str, int]:
        """Bytes by layer, the largest first: what the names of the variables begin with."""
        found: Counter[str] = Counter()
        for name, _, size in self.by_size():
            found[layer_of(name)] += size
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def parts(self) -> dict[str, int]:
        """The bytes of the variables, of `saved_model.pb` and of the assets."""
        assets = [os.path.join(self.export_dir, "assets", name) for name in self.assets]
        return {
            "variables": self.stored_bytes,
            "graph": self.graph_bytes,
            "assets": sum(size_of(path) for path in assets if is_file(path)),
        }

    def largest_layers(self) -> list[tuple[str, int]]:
        """Name and bytes of the largest layers, and in the last row those of all others."""
        layers = list(self.layers().items())
        shown, rest = layers[:MAX_LAYERS], layers[MAX_LAYERS:]
        if rest:
            shown.append((f"{len(rest)} other layers", sum(size for _, size in rest)))
        return shown

    def plot(self) -> Any:
        """Draws where the bytes are: what the artifact consists of, and its largest layers.

        Needs matplotlib: `pip install 'keras_export[plots]'`.

        Returns:
            A `matplotlib.figure.Figure`; a notebook shows it, `savefig` writes it.

        Raises:
            ArgumentError: matplotlib is not installed.

        Example:
            >>> import tempfile, keras, keras_export as ke
            >>> model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1)])
            >>> figure = ke.inspect(ke.export(model, tempfile.mkdtemp()).export_dir).plot()
            >>> [axes.get_title(loc="left") for axes in figure.axes]
            ['', 'variables by layer']
        """
        bars = self.largest_layers()
        rows = max(len(bars), 1) * _ROW_INCHES
        figure = plots.new_figure(_WIDTH_INCHES, _HEAD_INCHES + rows)
        top, bottom = figure.subplots(2, 1, height_ratios=(_STRIP_INCHES, rows))
        sizes = self.parts()
        name = os.path.basename(os.path.normpath(self.export_dir))
        figure.suptitle(f"{name}: {format_size(sum(sizes.values()))}", x=0.01, ha="left", size=13)
        plots.draw_strip(top, sizes, format_size, plots.COLOURS)
        plots.draw_bars(bottom, bars, self.stored_bytes, format_size, MAX_LAYERS)
        bottom.set_title("variables by layer", loc="left", fontsize=10)
        return figure

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
                key: {
                    "name": self.name_of(key),
                    "shape": list(shape),
                    "dtype": dtype,
                    "bytes": size,
                }
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
        lines = [f"{self.export_dir}: written by TensorFlow {self.producer}"]
        lines += [f"  tags: {', '.join(self.tags)}"]
        lines += [f"  {key}{signature}" for key, signature in self.signatures.items()]
        lines += [f"  {len(self.variables)} variables, {format_size(self.stored_bytes)}"]
        shown = self.by_size()[:_SHOWN_VARIABLES]
        lines += [f"    {format_size(size):>8}  {name}  {spec}" for name, spec, size in shown]
        left = len(self.variables) - len(shown)
        lines += [f"    and {left} smaller ones"] if left else []
        lines += [
            f"  {sum(self.ops.values())} nodes of {len(self.ops)} ops in {self.functions} "
            f"functions, {format_size(self.graph_bytes)}"
        ]
        most = sorted(self.ops.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_OPS]
        lines += ["    " + ", ".join(f"{count} {op}" for op, count in most)] if most else []
        lines += [f"  asset: {name}" for name in self.assets]
        lines += [f"  {name}: {value}" for name, value in self.fingerprint.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        signatures = "".join(
            f"<tr><td>{html.escape(key)}</td><td>{html.escape(listed(signature.inputs))}</td>"
            f"<td>{html.escape(listed(signature.outputs))}</td></tr>"
            for key, signature in self.signatures.items()
        )
        variables = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(spec)}</td>"
            f"<td>{format_size(size)}</td></tr>"
            for name, spec, size in self.by_size()[:_SHOWN_VARIABLES]
        )
        left = max(len(self.variables) - _SHOWN_VARIABLES, 0)
        return (
            f"<p><b>{html.escape(self.export_dir)}</b>: {len(self.variables)} variables, "
            f"{format_size(self.stored_bytes)}; {sum(self.ops.values())} nodes of {len(self.ops)} "
            f"ops, {format_size(self.graph_bytes)}; {len(self.assets)} assets; written by "
            f"TensorFlow {html.escape(self.producer)}</p>"
            f"<table><tr><th>signature</th><th>inputs</th><th>outputs</th></tr>{signatures}</table>"
            f"<table><tr><th>variable</th><th>shape</th><th>bytes</th></tr>{variables}</table>"
            + (f"<p>and {left} smaller ones</p>" if left else "")
        )


def path_of(key: str) -> str:
    """The path of a variable, without what the format puts behind it."""
    return key.removesuffix(_VALUE_SUFFIX)


def layer_of(name: str) -> str:
    """What a variable's name says of its layer; the name itself if it says nothing."""
    return name.rpartition("/")[0] or name


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
    meta_graph, size = read_graph(path)
    info = meta_graph.meta_info_def
    bundle = read_bundle(bundle_prefix(path))
    return SavedModelInfo(
        path,
        tuple(info.tags),
        {
            entry.key: Signature(_specs(entry.value.inputs), _specs(entry.value.outputs))
            for entry in sorted(meta_graph.signature_def, key=lambda x: x.key)
            if entry.key != _INIT_OP_KEY
        },
        _variables(bundle) if bundle is not None else {},
        dict(sorted(Counter(node.op for _, node in nodes_of(meta_graph)).items())),
        len(meta_graph.graph_def.library.function),
        tuple(sorted({asset.filename for asset in meta_graph.asset_file_def})),
        info.tensorflow_version,
        size,
        read_fingerprint(path),
        object_graphs.variable_names(meta_graph, bundle) if bundle is not None else {},
    )


def signature_of(export_dir: str, key: str) -> Signature:
    """How to call one signature.

    Raises:
        ArgumentError: the artifact has none of that name.
    """
    entry = _entry_of(export_dir, key)
    return Signature(_specs(entry.inputs), _specs(entry.outputs))


def defaults_of(export_dir: str, key: str) -> dict[str, Any]:
    """The values of inputs that may be left out, as arrays by name. TensorFlow decodes them."""
    entry = _entry_of(export_dir, key)
    if not entry.defaults:
        return {}
    import tensorflow as tf

    dtypes = {x.key: protos.dtype_name(x.value.dtype) for x in entry.inputs}
    return {x.key: tf.io.parse_tensor(x.value, dtypes[x.key]).numpy() for x in entry.defaults}


def _entry_of(export_dir: str, key: str) -> Any:
    meta_graph, _ = read_graph(os.fspath(export_dir))
    entries = {x.key: x.value for x in meta_graph.signature_def if x.key != _INIT_OP_KEY}
    if key not in entries:
        raise ArgumentError(
            failure(f"find a signature of {export_dir}", f"one of {sorted(entries)}", f"{key!r}")
        )
    return entries[key]


def default_signature(signatures: Mapping[str, Any]) -> str:
    """The key of the signature that is meant where none is named.

    Raises:
        ArgumentError: there is none, or there are several and none is `serving_default`.
    """
    if _DEFAULT_KEY in signatures:
        return _DEFAULT_KEY
    if len(signatures) == 1:
        return next(iter(signatures))
    raise ArgumentError(
        failure(
            "choose a signature",
            f"one signature, or one that is called {_DEFAULT_KEY!r}",
            f"{sorted(signatures)}",
            "Name the one that you mean.",
        )
    )


def bundle_prefix(path: str) -> str:
    """Where an artifact keeps its variables."""
    return os.path.join(path, "variables", "variables")


def read_graph(path: str) -> tuple[Any, int]:
    """The MetaGraph of an artifact that servers ask for, and the size of its file in bytes."""
    found, size = read_graphs(path)
    return found[0], size


def read_graphs(path: str) -> tuple[list[Any], int]:
    """The MetaGraphs of an artifact and the size of its file in bytes.

    The first is the one with the tag `serve` alone, for which servers ask, if there is one.
    """
    file = os.path.join(path, "saved_model.pb")
    if not is_file(file):
        raise ArgumentError(
            failure(
                f"inspect {path}", "the directory of a SavedModel", "one without saved_model.pb"
            )
        )
    content = bytes_of(file)
    try:
        found = list(protos.SavedModel.FromString(content).meta_graphs)
    except protos.DecodeError as error:
        raise _no_graph(file) from error
    if not found:
        raise _no_graph(file)
    return sorted(found, key=lambda x: list(x.meta_info_def.tags) != ["serve"]), len(content)


def _no_graph(file: str) -> DamagedFileError:
    return DamagedFileError(
        f"Cannot read {file}: it is damaged or no SavedModel. Export the model again."
    )


def nodes_of(meta_graph: Any) -> Iterator[tuple[str, Any]]:
    """Every node with the name of its function, which is empty for the main graph."""
    for node in meta_graph.graph_def.node:
        yield "", node
    for function in meta_graph.graph_def.library.function:
        for node in function.node_def:
            yield function.signature.name, node


def _specs(entries: Any) -> dict[str, Any]:
    return {x.key: _described(x.value) for x in sorted(entries, key=lambda x: x.key)}


def _described(info: Any) -> Spec:
    if not info.HasField("composite_tensor"):
        kind = "sparse" if info.HasField("coo_sparse") else "tensor"
        return Spec(protos.shape_of(info.tensor_shape), protos.dtype_name(info.dtype), kind)
    spec = info.composite_tensor.type_spec
    shape: tuple[int | None, ...] | None = None
    dtypes = []
    for value in _flat(spec.type_state):
        if value.HasField("tensor_shape_value"):
            shape = protos.shape_of(value.tensor_shape_value)
        elif value.tensor_dtype_value:
            dtypes.append(protos.dtype_name(value.tensor_dtype_value))
    kind = spec.type_spec_class_name.rsplit(".", 1)[-1]
    kind = kind.replace("TensorSpec", "").lower() or _KINDS.get(spec.type_spec_class, "composite")
    return Spec(shape, dtypes[0] if dtypes else "?", kind)


# Source: TypeSpecProto.TypeSpecClass in tensorflow/core/protobuf/struct.proto.
_KINDS = {1: "sparse", 2: "indexed_slices", 3: "ragged", 4: "tensor_array"}


def _flat(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.tuple_value.values:
        yield from _flat(inner)


def _plain(specs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {
            "shape": list(spec.shape) if spec.shape is not None else None,
            "dtype": spec.dtype,
            **({"kind": spec.kind} if spec.kind != "tensor" else {}),
        }
        for name, spec in specs.items()
    }


def _variables(bundle: Bundle) -> dict[str, tuple[tuple[int, ...], str, int]]:
    return {
        key: (entry.shape, entry.dtype, _size(entry))
        for key, entry in sorted(bundle.entries.items())
        if key != OBJECT_GRAPH_KEY
    }


def _size(entry: BundleEntry) -> int:
    width = next((size for name, size in protos.DTYPES.values() if name == entry.dtype), 0)
    return math.prod(entry.shape) * width if width else entry.size


def read_fingerprint(path: str) -> dict[str, str]:
    """The fields of `fingerprint.pb` as text; empty without that file."""
    file = os.path.join(path, "fingerprint.pb")
    if not is_file(file):
        return {}
    try:
        proto = protos.Fingerprint.FromString(bytes_of(file))
    except protos.DecodeError as error:
        raise DamagedFileError(f"Cannot read {file}: it is damaged.") from error
    return {field.name: str(value) for field, value in proto.ListFields()}


def to_json(info: SavedModelInfo) -> str:
    """`info` as indented JSON."""
    return json.dumps(info.to_dict(), indent=2)
