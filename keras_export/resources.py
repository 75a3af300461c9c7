"""Tables and other resources: the nodes that make them in the artifact's main graph.

In: a `TrackedGraph`. Out: a `ResourceGraph`, the NodeDefs with the tensor that stands for each
object. The invariant: an object makes its own resource in an empty graph, as it would for
TensorFlow; names that it drew at random are replaced by numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from keras_export import tf_internals as tfi
from keras_export.errors import UnsupportedError
from keras_export.functions import BoundFunction, FunctionCollector
from keras_export.tracking import Node, TrackedGraph, path_text
from keras_export.variables import Source

# Ops that make a table and are shared by name between functions and the main graph.
_TABLE_OPS = frozenset(
    {
        "HashTable",
        "HashTableV2",
        "MutableHashTable",
        "MutableHashTableV2",
        "MutableHashTableOfTensors",
        "MutableHashTableOfTensorsV2",
        "MutableDenseHashTable",
        "MutableDenseHashTableV2",
    }
)


@dataclass(eq=False)
class ResourceGraph:
    """The part of the main graph that makes resources.

    Attributes:
        nodes: NodeDefs in topological order.
        tensors: the tensor of each object, by `id` of its node.
        shared_names: random name -> name in the artifact.
    """

    nodes: list[Any] = field(default_factory=list)
    tensors: dict[int, str] = field(default_factory=dict)
    shared_names: dict[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class SaveRestore:
    """The functions of an object that serializes itself to tensors.

    Attributes:
        source: the object and its checkpoint keys.
        save: takes nothing, returns a dict of tensors.
        restore: takes such a dict.
        key_order: the checkpoint keys in the order of the flat dict.
    """

    source: Source
    save: BoundFunction
    restore: BoundFunction
    key_order: tuple[str, ...]


def build_resources(
    tracked: TrackedGraph, collector: FunctionCollector, options: Any, root: str = "obj"
) -> ResourceGraph:
    """Lets every resource make itself in a graph of its own.

    Raises:
        UnsupportedError: a resource cannot be made in a graph.
    """
    result = ResourceGraph()
    graph = tf.Graph()
    for node in tracked.of_kind("resource"):
        with graph.as_default(), tf.device(None):
            result.tensors[id(node)] = _make(node, options, root)
    if not result.tensors:
        return result
    for name in graph._functions:
        collector.add_definition(tf.compat.as_str(name), graph)
    result.nodes = list(graph.as_graph_def(add_shapes=False).node)
    _number_tables(result, collector)
    return result


def _make(node: Node, options: Any, root: str) -> str:
    tensors: Any = tfi.ObjectIdentityDictionary()
    objects: Any = tfi.ObjectIdentityDictionary()
    try:
        node.obj._export_to_saved_model_graph(
            object_map=objects, tensor_map=tensors, options=options
        )
    except Exception as error:
        raise UnsupportedError(
            f"Cannot export {path_text(node.path, root)} ({type(node.obj).__name__}): making it in "
            f"a graph failed with {type(error).__name__}: {error}"
        ) from error
    return next(iter(tensors.values())).name


def _number_tables(result: ResourceGraph, collector: FunctionCollector) -> None:
    for node in _tables(result.nodes):
        name = node.attr["shared_name"].s
        if name:
            number = len(result.shared_names)
            result.shared_names.setdefault(name, f"table_{number}".encode())
    rename_tables(result.nodes, result.shared_names)
    for definition in collector.library.definitions.values():
        rename_tables(definition.node_def, result.shared_names)


def rename_tables(nodes: Iterable[Any], names: dict[bytes, bytes]) -> None:
    """Gives tables their new shared names, in place."""
    for node in _tables(nodes):
        name = node.attr["shared_name"].s
        if name in names:
            node.attr["shared_name"].s = names[name]


def _tables(nodes: Iterable[Any]) -> Iterable[Any]:
    return (node for node in nodes if node.op in _TABLE_OPS and "shared_name" in node.attr)


def trace_save_restore(source: Source, collector: FunctionCollector, root: str) -> SaveRestore:
    """Traces the functions by which an object saves and restores itself through tensors."""
    obj = source.node.obj
    described = f"the saving of {path_text(source.node.path, root)}"
    save = obj._serialize_to_tensors
    if not isinstance(save, tfi.ConcreteFunction):
        save = tf.function(lambda: dict(obj._serialize_to_tensors()), autograph=False)
        save = save.get_concrete_function()
    restore = obj._restore_from_tensors
    if not isinstance(restore, tfi.ConcreteFunction):
        restore = tf.function(_quiet(obj._restore_from_tensors), autograph=False)
        restore = restore.get_concrete_function(_unnamed(save.structured_outputs))
    keys = dict(zip(obj._serialize_to_tensors(), (key for _, key in source.names), strict=False))
    return SaveRestore(
        source,
        collector.add(save, described),
        collector.add(restore, described),
        tuple(keys[name] for name in sorted(keys)),
    )


def _quiet(restore: Any) -> Any:
    def restore_from_tensors(tensors: Any) -> None:
        restore(tensors)

    return restore_from_tensors


def _unnamed(outputs: Any) -> Any:
    return {name: tf.TensorSpec(value.shape, value.dtype) for name, value in outputs.items()}
