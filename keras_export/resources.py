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
from keras_export.checkpoint_keys import escape
from keras_export.errors import UnsupportedError
from keras_export.functions import BoundFunction, FunctionCollector
from keras_export.held_values import prefixes_of
from keras_export.tracking import Node, TrackedGraph, path_text
from keras_export.variables import RegisteredSaver, Source, saveables_of

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
        save: returns the tensors; takes nothing, or the checkpoint key.
        restore: takes the tensors.
        keys: `(checkpoint key, slice)` of each tensor, in the order that `restore` takes.
        outputs: the positions of the tensors among the results of `save`.
        name: under which the loader looks for the functions.
        key: what `save` takes, if anything.
    """

    source: Source
    save: BoundFunction
    restore: BoundFunction
    keys: tuple[tuple[str, str], ...]
    outputs: tuple[int, ...]
    name: str = ".TENSORS"
    key: str | None = None


@dataclass(frozen=True)
class SaverFunctions:
    """The functions of a registered checkpoint saver, for the main graph.

    Attributes:
        name: of the saver.
        save: takes a prefix, returns a vector of those that it wrote.
        restore: takes a prefix.
    """

    name: str
    save: BoundFunction
    restore: BoundFunction


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


def trace_save_restore(
    source: Source, collector: FunctionCollector, root: str
) -> list[SaveRestore]:
    """Traces the functions by which an object saves and restores itself through tensors."""
    if source.node.kind == "variable":  # also a wrapper: the loaded object is a variable itself
        return []
    if source.by == "saveables":
        return _trace_saveables(source, collector, root)
    return [_trace_tensors(source, collector, root)] if source.by == "tensors" else []


def _trace_tensors(source: Source, collector: FunctionCollector, root: str) -> SaveRestore:
    obj, save = source.node.obj, source.save
    described = _saving_of(source, root)
    restore = obj._restore_from_tensors
    if not isinstance(restore, tfi.ConcreteFunction):
        restore = tf.function(_quiet(obj._restore_from_tensors), autograph=False)
        restore = restore.get_concrete_function(_unnamed(save.structured_outputs))
    keys = dict(source.names)
    ordered = [
        (keys[escape(name)], part)
        for name, value in sorted(save.structured_outputs.items())
        for part in (sorted(value) if isinstance(value, dict) else [""])
    ]
    return SaveRestore(
        source,
        collector.add(save, described),
        collector.add(restore, described),
        tuple(ordered),
        tuple(range(len(ordered))),
    )


def _trace_saveables(source: Source, collector: FunctionCollector, root: str) -> list[SaveRestore]:
    described = _saving_of(source, root)
    saveables = saveables_of(source)
    traced = tfi.trace_save_restore_function_map(source.node.obj, saveables)
    result = []
    for saveable in saveables:
        if saveable.name in traced:
            save, restore = (collector.add(x, described) for x in traced[saveable.name])
            keys = tuple((spec.name, spec.slice_spec or "") for spec in saveable.specs())
            # Each tensor comes as a dict of its name, slice and value, in this order.
            outputs = tuple(range(2, 3 * len(keys), 3))
            result.append(
                SaveRestore(source, save, restore, keys, outputs, saveable.name, saveable.key)
            )
    return result


def _saving_of(source: Source, root: str) -> str:
    return f"the saving of {path_text(source.node.path, root)}"


def trace_saver(saver: RegisteredSaver, collector: FunctionCollector) -> SaverFunctions:
    """Traces the functions of a registered checkpoint saver, for readers without Python."""
    write = tfi.registration.get_save_function(saver.name)
    read = tfi.registration.get_restore_function(saver.name)

    def save(file_prefix: Any) -> Any:
        written = write(trackables=saver.trackables, file_prefix=file_prefix)
        parts = [tf.reshape(x, [-1]) for x in prefixes_of(written, saver.name)]
        # TensorFlow orders nothing after `SaveV2` by itself, and the files are read next.
        with tf.control_dependencies(_effects(tf.compat.v1.get_default_graph())):
            return tf.concat([*parts, tf.fill([0], "")], 0)

    def restore(merged_prefix: Any) -> None:
        read(trackables=saver.trackables, merged_prefix=merged_prefix)

    described = f"the registered checkpoint saver {saver.name!r}"
    spec = tf.TensorSpec([], tf.string)
    save_trace, restore_trace = (
        tf.function(function, autograph=False).get_concrete_function(spec)
        for function in (save, restore)
    )
    return SaverFunctions(
        saver.name, collector.add(save_trace, described), collector.add(restore_trace, described)
    )


def _effects(graph: Any) -> list[Any]:
    return [
        op
        for op in graph.get_operations()
        if (op_def := tfi.op_def_of(op.type)) is not None and op_def.is_stateful
    ]


def _quiet(restore: Any) -> Any:
    def restore_from_tensors(tensors: Any) -> None:
        restore(tensors)

    return restore_from_tensors


def _unnamed(outputs: Any) -> Any:
    return tf.nest.map_structure(lambda value: tf.TensorSpec(value.shape, value.dtype), outputs)
