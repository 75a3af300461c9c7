"""Tells how two artifacts differ: for a client, in the graph, and in the values.

In: the directories of two SavedModels, whoever wrote them. Out: a `SavedModelDiff`. The invariant:
both are parsed and not loaded; names that a writer counts up, and the order in which it writes,
are no difference.
"""

from __future__ import annotations

import html
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from keras_export import crosschecks, digests, inspection, protos
from keras_export.bundles import (
    OBJECT_GRAPH_KEY,
    Bundle,
    BundleEntry,
    is_file,
    read_bundle,
    size_of,
)
from keras_export.errors import DamagedFileError
from keras_export.reports import Signature, format_size

_CHUNK_ELEMENTS = 1 << 22
_SHOWN_LAYERS = 20
# Attributes that hold names, or how the writer wanted the graph to be run.
_INCIDENTAL = frozenset({"shared_name", "container", "config_proto", "debug_name"})
# What a saver joins its file names from.
_OF_SAVERS = frozenset({b"", b".part", b"_temp/part", b"model", OBJECT_GRAPH_KEY.encode()})

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class VariableChange:
    """How a variable differs.

    Attributes:
        name: its own, or its path where that says more.
        change: `added`, `removed`, `reshaped` (shape or dtype), or `moved` (values).
        before: dtype and shape; empty if it was added.
        after: likewise; empty if it was removed.
        distance: the Euclidean distance of the values; None unless `moved` and numeric.
        relative: that, by the norm of the values before; infinite from zeros.
        largest: the largest change of one element.
    """

    name: str
    change: str
    before: str = ""
    after: str = ""
    distance: float | None = None
    relative: float | None = None
    largest: float | None = None

    def __str__(self) -> str:
        if self.change == "moved":
            if self.distance is None:
                return f"{self.name} moved"
            return (
                f"{self.name} moved by {self.distance:.4g} ({self.relative:.3%} of its norm, one "
                f"element by {self.largest:.3g})"
            )
        shapes = " -> ".join(filter(None, (self.before, self.after)))
        return f"{self.name} {self.change}: {shapes}"


@dataclass(frozen=True)
class LayerChange:
    """How far the variables of one layer moved, taken together.

    Attributes:
        name: of the layer: what the names of its variables begin with.
        distance: Euclidean distance.
        relative: that, by the norm before; infinite from zeros.
        moved: how many of its variables moved.
        variables: how many it has in both artifacts.
    """

    name: str
    distance: float
    relative: float
    moved: int
    variables: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.moved} of {self.variables} variables moved by "
            f"{self.distance:.4g} ({self.relative:.3%})"
        )


@dataclass(frozen=True)
class SavedModelDiff:
    """How two artifacts differ. It is true if they do.

    Attributes:
        a: directory of the first.
        b: directory of the second.
        signatures: what a client would notice, sentences by signature key.
        functions: what Python callers would notice: the arguments of the loaded object's functions,
            in their order, before and after, by name.
        ops: `{op: (nodes before, nodes after)}` where the numbers differ.
        attributes: `{op: nodes}` whose attributes or constants differ, where the numbers do not.
        variables: those that differ.
        layers: how far they moved, the furthest first.
        assets: files that were added, removed or changed, a sentence each.
        sizes: bytes before and after of `graph`, `values` and `assets`; no difference by itself.
        producers: the TensorFlow releases that wrote them; no difference by itself.
    """

    a: str
    b: str
    signatures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    functions: Mapping[str, str] = field(default_factory=dict)
    ops: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    attributes: Mapping[str, int] = field(default_factory=dict)
    variables: tuple[VariableChange, ...] = ()
    layers: tuple[LayerChange, ...] = ()
    assets: tuple[str, ...] = ()
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    producers: tuple[str, str] = ("", "")

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        found = (self.signatures, self.functions, self.ops, self.attributes, self.variables)
        return not any((*found, self.assets))

    def __bool__(self) -> bool:
        return not self.same

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON can hold."""
        return {
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "signatures": {key: list(changes) for key, changes in self.signatures.items()},
            "functions": dict(self.functions),
            "ops": {op: list(counts) for op, counts in self.ops.items()},
            "attributes": dict(self.attributes),
            "variables": [_finite(vars(x)) for x in self.variables],
            "layers": [_finite(vars(x)) for x in self.layers],
            "assets": list(self.assets),
            "sizes": {name: list(sizes) for name, sizes in self.sizes.items()},
            "producers": list(self.producers),
        }

    def __str__(self) -> str:
        head = f"{self.a} -> {self.b}: {self._verdict()}"
        return "\n".join([head, *(f"  {line}" for line in self._lines())])

    def _verdict(self) -> str:
        return "no difference" if self.same else "different"

    def _lines(self) -> Iterator[str]:
        for key, changes in self.signatures.items():
            yield from (f"signature {key}: {change}" for change in changes)
        yield from (f"function {name}: {change}" for name, change in self.functions.items())
        for op, (before, after) in self.ops.items():
            yield f"op {op}: {before} -> {after} nodes"
        for op, count in self.attributes.items():
            yield f"op {op}: {count} nodes with other attributes or values"
        yield from (f"variable {x}" for x in self.variables if x.change != "moved")
        yield from (f"layer {x}" for x in self.layers[:_SHOWN_LAYERS])
        if len(self.layers) > _SHOWN_LAYERS:
            yield f"and {len(self.layers) - _SHOWN_LAYERS} layers that moved less"
        yield from (f"asset {x}" for x in self.assets)
        for name, (before, after) in self.sizes.items():
            if before != after:
                yield f"{name}: {format_size(before)} -> {format_size(after)}"
        if self.producers[0] != self.producers[1]:
            yield f"written by TensorFlow {self.producers[0]} -> {self.producers[1]}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(x.name)}</td><td>{x.moved} of {x.variables}</td>"
            f"<td>{x.distance:.4g}</td><td>{x.relative:.3%}</td></tr>"
            for x in self.layers
        )
        head = "<tr><th>layer</th><th>variables moved</th><th>by</th><th>of its norm</th></tr>"
        other = [line for line in self._lines() if not line.startswith(("layer ", "and "))]
        items = "".join(f"<li>{html.escape(line)}</li>" for line in other)
        return (
            f"<p><b>{html.escape(self.a)}</b> → <b>{html.escape(self.b)}</b>: {self._verdict()}"
            f"</p><ul>{items}</ul>" + (f"<table>{head}{rows}</table>" if rows else "")
        )


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    on_progress: Progress | None = None,
) -> SavedModelDiff:
    """Compares two artifacts.

    Variables are matched by their names, and where those are not unique by their keys.

    Args:
        a: a directory that TensorFlow, Keras or keras_export wrote.
        b: the one to compare it with.
        on_progress: called with what is being compared, bytes done, and bytes in all.

    Returns:
        What differs. Two exports of one model do not.

    Raises:
        ArgumentError: there is no `saved_model.pb` in one of them.
        DamagedFileError: a file cannot be read.

    Example:
        >>> import tempfile, keras, keras_export as ke
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="y")])
        >>> one = ke.export(model, tempfile.mkdtemp()).export_dir
        >>> two = ke.export(model, tempfile.mkdtemp()).export_dir
        >>> ke.diff(one, two).same
        True
        >>> model.layers[0].kernel.assign_add([[1.0], [0.0], [0.0]])
        >>> [layer.name for layer in ke.diff(one, ke.export(model, two).export_dir).layers]
        ['y']
    """
    one, two = _Side(os.fspath(a)), _Side(os.fspath(b))
    variables, layers = _compare_variables(one, two, on_progress or (lambda *_: None))
    ops = {
        op: (one.info.ops.get(op, 0), two.info.ops.get(op, 0))
        for op in sorted({*one.info.ops, *two.info.ops})
    }
    return SavedModelDiff(
        one.path,
        two.path,
        _compare_signatures(one, two),
        _compare_functions(one, two),
        {op: counts for op, counts in ops.items() if counts[0] != counts[1]},
        _compare_attributes(one, two, {op for op, (x, y) in ops.items() if x == y}),
        variables,
        layers,
        _compare_assets(one, two),
        {name: (one.sizes[name], two.sizes[name]) for name in one.sizes},
        (one.info.producer, two.info.producer),
    )


class _Side:
    """One of the artifacts, read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.info = inspection.inspect(path)
        self.meta_graph, _ = inspection.read_graph(path)
        prefix = inspection.bundle_prefix(path)
        self.bundle = read_bundle(prefix) or Bundle(prefix, 0, {}, {})
        self.variables = self._by_name()
        self.functions = self._by_attribute()
        self.assets = {name: self._asset(f"assets/{name}") for name in self.info.assets}
        self.sizes = {
            "graph": self.info.graph_bytes,
            "values": sum(size for _, _, size in self.info.variables.values()),
            "assets": sum(size for size, _ in self.assets.values()),
        }

    def _by_name(self) -> dict[str, str]:
        """Checkpoint keys by what the variables are called; one key where it is stored twice."""
        keys = defaultdict(list)
        for key in self.info.variables:
            keys[self.info.name_of(key)].append(key)
        found = {}
        for name, candidates in keys.items():
            stored = {self._stored(key) for key in candidates}
            if len(stored) == 1:
                found[name] = candidates[0]
            else:
                found.update({inspection.path_of(key): key for key in candidates})
        return found

    def _by_attribute(self) -> dict[str, tuple[str, ...]]:
        """What the functions of the loaded object take, one text for each way to call them."""
        graph = self.meta_graph.object_graph_def
        traces = {x.key: x.value.canonicalized_input_signature for x in graph.concrete_functions}
        found = {}
        for child in graph.nodes[0].children if graph.nodes else ():
            names = graph.nodes[child.node_id].function.concrete_functions
            texts = {_arguments(traces[name]) for name in names if name in traces}
            if texts:
                found[child.local_name] = tuple(sorted(texts))
        return found

    def _stored(self, key: str) -> tuple[Any, ...]:
        entry = self.bundle.entries[key]
        return entry.dtype, entry.shape, entry.size, entry.crc

    def _asset(self, name: str) -> tuple[int, str]:
        path = os.path.join(self.path, name)
        if not is_file(path):
            raise DamagedFileError(f"Cannot read {path}: the file is missing.")
        return size_of(path), digests.sha256(path)


# -- signatures -----------------------------------------------------------------------------------


def _compare_signatures(one: _Side, two: _Side) -> dict[str, tuple[str, ...]]:
    before, after = one.info.signatures, two.info.signatures
    found: dict[str, tuple[str, ...]] = {}
    for key in sorted({*before, *after}):
        if key not in after:
            found[key] = (f"removed: {before[key]}",)
        elif key not in before:
            found[key] = (f"added: {after[key]}",)
        else:
            found[key] = tuple(_compare_specs(before[key], after[key]))
    return {key: changes for key, changes in found.items() if changes}


def _compare_specs(before: Signature, after: Signature) -> Iterator[str]:
    for what in ("input", "output"):
        x, y = getattr(before, f"{what}s"), getattr(after, f"{what}s")
        for name in sorted({*x, *y}):
            if name not in y:
                yield f"{what} {name} removed: {x[name]}"
            elif name not in x:
                yield f"{what} {name} added: {y[name]}"
            elif str(x[name]) != str(y[name]):
                yield f"{what} {name}: {x[name]} -> {y[name]}"


def _compare_functions(one: _Side, two: _Side) -> dict[str, str]:
    before, after = one.functions, two.functions
    found = {}
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            x, y = (" | ".join(side.get(name, ())) or "none" for side in (before, after))
            found[name] = f"{x} -> {y}"
    return found


def _arguments(signature: Any) -> str:
    """The arguments of a trace, given by position and by name."""
    by_position, by_name = (_described(x) for x in signature.tuple_value.values)
    return by_position if by_name == "{}" else f"{by_position} {by_name}"


def _described(value: Any) -> str:
    """A nested argument of a function as text."""
    kind = value.WhichOneof("value")
    if kind is None:  # a none_value, which has no field here
        return "None"
    held = getattr(value, kind)
    if kind == "tensor_spec_value":
        spec = inspection.Spec(protos.shape_of(held.shape), protos.dtype_name(held.dtype))
        return f"{held.name}: {spec}" if held.name else str(spec)
    if kind == "type_spec_value":
        return held.type_spec_class_name.rpartition(".")[2] or "composite"
    if kind in ("list_value", "tuple_value"):
        inner = ", ".join(_described(x) for x in held.values)
        return f"[{inner}]" if kind == "list_value" else f"({inner})"
    if kind in ("dict_value", "named_tuple_value"):
        pairs = held.fields if kind == "dict_value" else held.values
        inner = ", ".join(sorted(f"{x.key}={_described(x.value)}" for x in pairs))
        return f"{{{inner}}}"
    return str(held)


# -- the graph ------------------------------------------------------------------------------------


def _compare_attributes(one: _Side, two: _Side, ops: set[str]) -> dict[str, int]:
    x, y = _described_nodes(one), _described_nodes(two)
    different: Counter[str] = Counter()
    for (op, _), count in (x - y).items():
        if op in ops:
            different[op] += count
    return dict(sorted(different.items()))


def _described_nodes(side: _Side) -> Counter[tuple[str, bytes]]:
    """Nodes by what they do, without their names: op, attributes, constants."""
    keys = {key.encode() for key in side.bundle.entries} | _OF_SAVERS
    found: Counter[tuple[str, bytes]] = Counter()
    for _, node in inspection.nodes_of(side.meta_graph):
        if node.op == "Const" and _belongs_to_saver(node, keys):
            continue
        attributes = sorted(
            entry.key.encode() + b"=" + entry.value.SerializeToString(deterministic=True)
            for entry in node.attr
            if not entry.key.startswith("_")
            and entry.key not in _INCIDENTAL
            and not crosschecks.names_functions(entry.value)
        )
        found[node.op, b"\0".join(attributes)] += 1
    return found


def _belongs_to_saver(node: Any, keys: set[bytes]) -> bool:
    strings = crosschecks.strings_of(node)
    return bool(strings) and all(text in keys for text in strings)


# -- values ---------------------------------------------------------------------------------------


def _compare_variables(
    one: _Side, two: _Side, progress: Progress
) -> tuple[tuple[VariableChange, ...], tuple[LayerChange, ...]]:
    pairs = _matched(one, two)
    total = sum(one.bundle.entries[x].size for _, x, y in pairs if x and y)
    done = 0
    changes = []
    layers: dict[str, list[_Distance]] = defaultdict(list)
    for name, x, y in pairs:
        if not y:
            changes.append(VariableChange(name, "removed", before=_shown(one, x)))
        elif not x:
            changes.append(VariableChange(name, "added", after=_shown(two, y)))
        elif _shown(one, x) != _shown(two, y):
            changes.append(VariableChange(name, "reshaped", _shown(one, x), _shown(two, y)))
        else:
            progress("variables", done, total)
            distance = _distance(one.bundle, two.bundle, x, y)
            done += one.bundle.entries[x].size
            layers[inspection.layer_of(name)].append(distance)
            if distance.moved:
                shown = _shown(one, x)
                changes.append(VariableChange(name, "moved", shown, shown, *distance.told()))
    progress("variables", total, total)
    return tuple(changes), tuple(_moved_layers(layers))


def _matched(one: _Side, two: _Side) -> list[tuple[str, str, str]]:
    """Name and keys of every variable; an empty key where an artifact lacks it."""
    pairs = []
    left, right = dict(one.variables), dict(two.variables)
    for name in [name for name in left if name in right]:
        pairs.append((name, left.pop(name), right.pop(name)))
    # Names that a process counts up differ from one to the next; keys may still fit.
    by_key = {key: name for name, key in right.items()}
    for name, key in list(left.items()):
        if key in by_key and _shown(one, key) == _shown(two, key):
            pairs.append((name, left.pop(name), right.pop(by_key[key])))
    pairs += [(name, key, "") for name, key in left.items()]
    pairs += [(name, "", key) for name, key in right.items()]
    return sorted(pairs)


def _shown(side: _Side, key: str) -> str:
    entry = side.bundle.entries[key]
    return str(inspection.Spec(entry.shape, entry.dtype))


@dataclass
class _Distance:
    """Sums over the elements of a variable."""

    moved: bool = False
    numeric: bool = True
    squares: float = 0.0
    norm: float = 0.0
    largest: float = 0.0

    def told(self) -> tuple[float | None, float | None, float | None]:
        if not self.numeric:
            return None, None, None
        return math.sqrt(self.squares), _relative(self.squares, self.norm), self.largest


def _relative(squares: float, norm: float) -> float:
    return math.sqrt(squares / norm) if norm else math.inf


def _distance(one: Bundle, two: Bundle, x: str, y: str) -> _Distance:
    import numpy as np

    before, after = one.array(x), two.array(y)
    if before is None or after is None:
        return _Distance(_crcs(one, x) != _crcs(two, y), numeric=False)
    found = _Distance()
    same = one.entries[x].crc == two.entries[y].crc
    before, after = before.reshape(-1), after.reshape(-1)
    for start in range(0, before.size, _CHUNK_ELEMENTS):
        chunk = slice(start, start + _CHUNK_ELEMENTS)
        wide = np.complex128 if before.dtype.kind == "c" else np.float64
        old = np.abs(before[chunk].astype(wide)).astype(np.float64)
        # A NaN has no norm; it is told by `largest` where it came or went.
        found.norm += float(np.nansum(old * old))
        if same:
            continue
        step = np.abs(after[chunk].astype(wide) - before[chunk].astype(wide))
        found.squares += float(np.nansum(step * step))
        found.largest = float(max(found.largest, np.max(step, initial=0.0)))
    found.moved = not same
    return found


def _crcs(bundle: Bundle, key: str) -> list[int]:
    entry: BundleEntry = bundle.entries[key]
    if not entry.sliced:
        return [entry.crc]
    return [part.crc for raw, part in sorted(bundle.parts.items()) if key.encode() in raw]


def _moved_layers(layers: Mapping[str, list[_Distance]]) -> Iterator[LayerChange]:
    found = []
    for name, distances in layers.items():
        moved = sum(x.moved for x in distances)
        if moved:
            squares, norm = sum(x.squares for x in distances), sum(x.norm for x in distances)
            found.append(
                LayerChange(
                    name, math.sqrt(squares), _relative(squares, norm), moved, len(distances)
                )
            )
    yield from sorted(found, key=lambda x: (-x.relative, x.name))


def _finite(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity and no NaN."""
    return {
        name: value if not isinstance(value, float) or math.isfinite(value) else str(value)
        for name, value in fields.items()
    }


# -- assets ---------------------------------------------------------------------------------------


def _compare_assets(one: _Side, two: _Side) -> tuple[str, ...]:
    found = []
    for name in sorted({*one.assets, *two.assets}):
        if name not in two.assets:
            found.append(f"{name} removed")
        elif name not in one.assets:
            found.append(f"{name} added")
        elif one.assets[name] != two.assets[name]:
            found.append(f"{name} changed")
    return tuple(found)
