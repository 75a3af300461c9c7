"""Default attributes of nodes, and the ops that a graph uses.

What comes in: graphs as protos. What goes out: the same protos, changed in place, without the
attributes that every reader fills in by itself, a report of what was removed, and the list of ops.
The invariant: an attribute goes only if its op is registered and C++ takes its value for the
registered default, so a reader that knows the op builds the same node. A reader that does not
know the attribute yet loads the graph only because it is gone.
"""

from __future__ import annotations

import dataclasses
import html
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from keras_export import tf_internals as tfi
from keras_export.errors import ArgumentTypeError, failure
from keras_export.tf_internals import (
    attr_value_pb2,
    graph_pb2,
    meta_graph_pb2,
    node_def_pb2,
    op_def_pb2,
    saved_model_pb2,
)

# Tensors and functions have several serialized forms of one value: C++ compares these by content,
# all else by its bytes (AreAttrValuesEqual). A serialized AttrValue starts with its field's tag.
_FIELDS = attr_value_pb2.AttrValue.DESCRIPTOR.fields_by_name
_COMPARED_BY_CONTENT = tuple(bytes([_FIELDS[name].number << 3 | 2]) for name in ("tensor", "func"))

_MOST_LINES = 20


@dataclasses.dataclass(frozen=True)
class StrippedAttributes:
    """What `strip_default_attributes` removed; prints as a table.

    Attributes:
        counts: how often each `(op, attribute)` was removed, the most frequent first.
        functions: the names of the library functions that lost attributes, in their order.
        total: how many attributes were removed.
        bytes_saved: by how much the serialized graph shrank, the length prefixes around a node
            not counted.
    """

    counts: Mapping[tuple[str, str], int]
    functions: tuple[str, ...]
    total: int
    bytes_saved: int

    def __str__(self) -> str:
        shown = list(self.counts.items())[:_MOST_LINES]
        lines = [f"  {op}.{attribute}: {count}" for (op, attribute), count in shown]
        hidden = len(self.counts) - len(shown)
        more = [f"  and {hidden} more"] if hidden else []
        return "\n".join([self._headline(), *lines, *more])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(op)}</td><td>{html.escape(attribute)}</td><td>{count}</td></tr>"
            for (op, attribute), count in self.counts.items()
        )
        head = "<tr><th>op</th><th>attribute</th><th>removed</th></tr>"
        return f"<p>{html.escape(self._headline())}</p><table>{head}{rows}</table>"

    def _headline(self) -> str:
        functions = f"{len(self.functions)} function{'s' * (len(self.functions) != 1)}"
        attributes = f"{self.total} default attribute{'s' * (self.total != 1)}"
        return f"{attributes} removed, {self.bytes_saved} bytes, {functions} changed"


def strip_default_attributes(
    graph_or_metagraph: graph_pb2.GraphDef
    | meta_graph_pb2.MetaGraphDef
    | saved_model_pb2.SavedModel,
) -> StrippedAttributes:
    """Removes the attributes that equal their op's registered default, in place.

    The nodes of the main graph and of every library function are stripped. What stays: other
    values, attributes that start with `_`, and all of a node whose op is not registered here or
    is the name of a library function.

    Args:
        graph_or_metagraph: a `GraphDef`, a `MetaGraphDef`, whose `stripped_default_attrs` is then
            set, or a `SavedModel`, each of whose graphs is stripped.

    Returns:
        What was removed.

    Raises:
        ArgumentTypeError: it is none of these protos.

    Example:
        >>> import tensorflow as tf
        >>> from keras_export.attributes import strip_default_attributes
        >>> graph = tf.compat.v1.GraphDef()
        >>> graph.node.add(name="x", op="MatMul").attr["transpose_a"].b = False
        >>> graph.node.add(name="y", op="MatMul").attr["transpose_a"].b = True
        >>> print(strip_default_attributes(graph))
        1 default attribute removed, 19 bytes, 0 functions changed
          MatMul.transpose_a: 1
        >>> len(graph.node[0].attr), len(graph.node[1].attr)
        (0, 1)
    """
    removed: Counter[tuple[str, str]] = Counter()
    functions: dict[str, None] = {}
    for graph in _graphs_of(graph_or_metagraph):
        functions.update(dict.fromkeys(strip_graph(graph, removed)))
    for metagraph in _metagraphs_of(graph_or_metagraph):
        metagraph.meta_info_def.stripped_default_attrs = True
    return report_of(removed, functions)


def strip_graph(graph_def: graph_pb2.GraphDef, removed: Counter[tuple[str, str]]) -> list[str]:
    """Strips a graph and its library; adds to `removed` and returns the functions changed."""
    own_functions = {function.signature.name for function in graph_def.library.function}
    strip_nodes(graph_def.node, removed, own_functions)
    return [
        function.signature.name
        for function in graph_def.library.function
        if strip_nodes(function.node_def, removed, own_functions)
    ]


def strip_nodes(
    nodes: Iterable[node_def_pb2.NodeDef],
    removed: Counter[tuple[str, str]],
    own_functions: Container[str] = (),
) -> int:
    """Strips nodes in place: the part of `strip_default_attributes` that an export calls itself.

    Args:
        nodes: NodeDefs of a graph or of one function.
        removed: the counts by `(op, attribute)`, added to.
        own_functions: names of library functions, which hide registered ops of the same name.

    Returns:
        How many attributes were removed.
    """
    total = 0
    for node in nodes:
        op = node.op
        if not (defaults := defaults_of(op)) or op in own_functions:
            continue
        attributes = node.attr
        for name, default in defaults:
            if name in attributes and _is_default(attributes[name], default):
                del attributes[name]
                removed[op, name] += 1
                total += 1
    return total


def defaults_of(op_type: str) -> tuple[tuple[str, bytes], ...]:
    """The default attributes of a registered op: `(name, serialized AttrValue)`; else empty."""
    known = _DEFAULTS.get(op_type)
    if known is None:
        op_def = tfi.op_def_of(op_type)
        if op_def is None:  # Not remembered: `tf.load_op_library` may register it later.
            return ()
        known = _DEFAULTS[op_type] = tuple(
            (attribute.name, _serialized(attribute.default_value))
            for attribute in op_def.attr
            if attribute.HasField("default_value")
        )
    return known


_DEFAULTS: dict[str, tuple[tuple[str, bytes], ...]] = {}


def report_of(
    removed: Mapping[tuple[str, str], int], functions: Iterable[str]
) -> StrippedAttributes:
    """Makes the report from the counts of `strip_nodes` and the names of the functions changed."""
    ordered = dict(sorted(removed.items(), key=lambda item: (-item[1], item[0])))
    saved = sum(count * _entry_size(*which) for which, count in ordered.items())
    total = sum(ordered.values())
    return StrippedAttributes(MappingProxyType(ordered), tuple(functions), total, saved)


def ops_of(graph_def: graph_pb2.GraphDef) -> Counter[str]:
    """Counts the ops of a graph and of its library.

    Args:
        graph_def: the graph; each library function counts once, however often it is called.

    Returns:
        `{op: number of nodes}`, without calls of library functions by their name.

    Example:
        >>> import tensorflow as tf
        >>> from keras_export.attributes import ops_of
        >>> square = tf.function(lambda x: x * x).get_concrete_function(tf.TensorSpec([]))
        >>> ops_of(square.graph.as_graph_def())["Mul"]
        1
    """
    ops = Counter(node.op for node in _nodes_of(graph_def))
    for function in graph_def.library.function:
        ops.pop(function.signature.name, None)
    return ops


def op_list(graph_def: graph_pb2.GraphDef) -> op_def_pb2.OpList:
    """Lists the definitions of a graph's ops, as `meta_info_def.stripped_op_list` holds them.

    An older reader finds there which attributes are new and have their default value. Unlike
    TensorFlow's list, this one has the ops of all functions, also of loop bodies and branches.

    Args:
        graph_def: the graph with its library.

    Returns:
        The definitions sorted by name, without descriptions; ops that are not registered are
        left out.

    Example:
        >>> import tensorflow as tf
        >>> from keras_export.attributes import op_list
        >>> graph = tf.compat.v1.GraphDef()
        >>> graph.node.add(name="x", op="NoOp").op
        'NoOp'
        >>> [op.name for op in op_list(graph).op]
        ['NoOp']
    """
    op_defs = map(tfi.op_def_of, sorted(ops_of(graph_def)))
    return op_def_pb2.OpList(op=[op_def for op_def in op_defs if op_def is not None])


def _graphs_of(proto: Any) -> list[graph_pb2.GraphDef]:
    if isinstance(proto, graph_pb2.GraphDef):
        return [proto]
    return [metagraph.graph_def for metagraph in _metagraphs_of(proto)]


def _metagraphs_of(proto: Any) -> list[meta_graph_pb2.MetaGraphDef]:
    if isinstance(proto, graph_pb2.GraphDef):
        return []
    if isinstance(proto, meta_graph_pb2.MetaGraphDef):
        return [proto]
    if isinstance(proto, saved_model_pb2.SavedModel):
        return list(proto.meta_graphs)
    kind = f"graph_or_metagraph={type(proto).__module__}.{type(proto).__qualname__}"
    expected = "a GraphDef, MetaGraphDef or SavedModel proto"
    mend = "Pass `graph.as_graph_def()`, or parse the bytes first."
    raise ArgumentTypeError(failure("strip default attributes", expected, kind, mend))


def _nodes_of(graph_def: graph_pb2.GraphDef) -> Iterator[node_def_pb2.NodeDef]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def _is_default(value: attr_value_pb2.AttrValue, default: bytes) -> bool:
    # Bytes and not `==`, which takes -0.0 for 0.0 and no NaN for another.
    serialized = _serialized(value)
    if serialized == default:
        return True
    if not default.startswith(_COMPARED_BY_CONTENT):
        return False
    return not tfi.attribute_difference(serialized, default)


def _serialized(value: attr_value_pb2.AttrValue) -> bytes:
    return value.SerializeToString(deterministic=True)


def _entry_size(op: str, attribute: str) -> int:
    node = node_def_pb2.NodeDef()
    node.attr[attribute].ParseFromString(dict(defaults_of(op))[attribute])
    return node.ByteSize()
