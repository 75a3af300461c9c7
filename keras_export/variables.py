"""The values of an artifact: what they are called, how they are held, how they are written.

In: a `TrackedGraph`. Out: a `CheckpointPlan` (keys and object graph, made once), `Snapshot`s of
the values of a moment, and tensor bundles on disk. The invariant: a value is stored once, under
the key that `tf.train.Checkpoint` of the same object would give it, and a snapshot costs
references, not copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_export import tf_internals as tfi
from keras_export.errors import UninitializedError, UnsupportedError, failure
from keras_export.tracking import Node, TrackedGraph, escape, object_key, path_text

# The checkpoint's own object graph, by which Python restores: tensorflow/python/trackable/base.py
OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"

VALUE_NAME = "VARIABLE_VALUE"


@dataclass(frozen=True)
class Source:
    """An object with values in the checkpoint.

    Attributes:
        node: the object.
        names: `(local name, checkpoint key)` of each of its tensors.
        plain: whether it is an ordinary variable, whose buffer can be referred to.
    """

    node: Node
    names: tuple[tuple[str, str], ...]
    plain: bool


@dataclass(frozen=True)
class CheckpointPlan:
    """What a checkpoint of the object holds, without the values.

    Attributes:
        sources: the objects with values, in the order of the graph.
        object_graph: the serialized `TrackableObjectGraph`.
        root: how messages call the exported object.
    """

    sources: tuple[Source, ...]
    object_graph: bytes
    root: str = "obj"


@dataclass(frozen=True)
class Entry:
    """One tensor of a bundle."""

    key: str
    slice_spec: str
    tensor: Any


@dataclass(frozen=True)
class Values:
    """The values of one moment, in groups that are written to a file each."""

    groups: tuple[tuple[Entry, ...], ...]

    @property
    def byte_count(self) -> int:
        return sum(_byte_count(entry.tensor) for group in self.groups for entry in group)


def plan_checkpoint(tracked: TrackedGraph, root: str = "obj") -> CheckpointPlan:
    """Gives every value its key and builds the checkpoint's object graph.

    Raises:
        UnsupportedError: an object has values that cannot be written.
        UninitializedError: a variable has no value.
    """
    sources = {id(node): source for node in tracked.nodes if (source := _source(node, root))}
    kept = _with_values(tracked, sources)
    proto = tfi.trackable_object_graph_pb2.TrackableObjectGraph()
    ids = {id(node): index for index, node in enumerate(kept)}
    for node in kept:
        _fill_node(proto.nodes.add(), node, sources.get(id(node)), ids)
    return CheckpointPlan(
        tuple(sources.values()), proto.SerializeToString(deterministic=True), root
    )


def _source(node: Node, root: str) -> Source | None:
    if node.kind in ("function", "concrete_function", "asset"):
        return None
    base = node.slot_key or object_key(node.path)
    if is_plain_variable(node.obj):
        _refuse_uninitialized(node, root)
        return Source(node, ((VALUE_NAME, _key(base, VALUE_NAME)),), plain=True)
    if not isinstance(node.obj, tfi.Trackable):
        return None
    names = [escape(name) for name in _serialized(node, root)]
    if not names:
        return None
    return Source(node, tuple((name, _key(base, name)) for name in names), plain=False)


def _refuse_uninitialized(node: Node, root: str) -> None:
    # Reading such a variable gives an empty tensor, and no error.
    initialized = tf.raw_ops.VarIsInitializedOp(resource=_handle(node.obj))
    if tf.executing_eagerly() and not initialized:
        raise UninitializedError(
            failure(
                f"export {path_text(node.path, root)}",
                "a variable with a value",
                f"variable={node.obj.name!r} without one",
                "Initialize it before exporting.",
            )
        )


def _key(base: str, local_name: str) -> str:
    prefix = f"{base}/" if base else ""
    return f"{prefix}.ATTRIBUTES/{escape(local_name)}"


def is_plain_variable(obj: Any) -> bool:
    """Whether `obj` is a variable that TensorFlow itself would save by reading its handle."""
    if isinstance(obj, tfi.DistributedVariable):
        return not tfi.registration.get_registered_saver_name(obj)
    return (
        isinstance(obj, tfi.BaseResourceVariable)
        and type(obj)._serialize_to_tensors is tfi.BaseResourceVariable._serialize_to_tensors
        and not tfi.registration.get_registered_saver_name(obj)
    )


def _handle(variable: Any) -> Any:
    """The handle of a variable; of the first copy where a strategy made several."""
    if isinstance(variable, tfi.DistributedVariable):
        return variable._primary.handle
    return variable.handle


def _value(variable: Any) -> Any:
    """The value of a variable, by reference; what replicas hold apart is reduced."""
    if isinstance(variable, tfi.SyncOnReadVariable):
        with variable.distribute_strategy.scope():
            return variable._get_cross_replica()
    return tf.raw_ops.ReadVariableOp(resource=_handle(variable), dtype=variable.dtype)


def _serialized(node: Node, root: str) -> dict[str, Any]:
    obj = node.obj
    if tfi.registration.get_registered_saver_name(obj):
        raise UnsupportedError(
            f"Cannot export {path_text(node.path, root)} ({type(obj).__name__}): its class has a "
            "registered checkpoint saver, which is not supported yet."
        )
    if not tfi.trackable_has_serialize_to_tensor(obj):
        if type(obj)._gather_saveables_for_checkpoint is not (
            tfi.Trackable._gather_saveables_for_checkpoint
        ):
            raise UnsupportedError(
                f"Cannot export {path_text(node.path, root)} ({type(obj).__name__}): it saves "
                "through `_gather_saveables_for_checkpoint`, which is not supported yet. Define "
                "`_serialize_to_tensors` and `_restore_from_tensors` instead."
            )
        return {}
    return obj._serialize_to_tensors()


def _with_values(tracked: TrackedGraph, sources: dict[int, Source]) -> list[Node]:
    """The nodes that hold a value or lead to one; the root always."""
    parents: dict[int, list[Node]] = {}
    for node in tracked.nodes:
        for child in node.children.values():
            parents.setdefault(id(child), []).append(node)
    kept = {id(tracked.root)}
    pending = [node for node in tracked.nodes if id(node) in sources or node.slots]
    while pending:
        node = pending.pop()
        if id(node) not in kept or node is tracked.root:
            kept.add(id(node))
            pending.extend(x for x in parents.get(id(node), ()) if id(x) not in kept)
    return [node for node in tracked.nodes if id(node) in kept]


def _fill_node(proto: Any, node: Node, source: Source | None, ids: dict[int, int]) -> None:
    for name, child in node.children.items():
        if id(child) in ids:
            proto.children.add(node_id=ids[id(child)], local_name=name)
    for slot_name, variable, slot in node.slots:
        proto.slot_variables.add(
            original_variable_node_id=ids[id(variable)],
            slot_name=slot_name,
            slot_variable_node_id=ids[id(slot)],
        )
    for local_name, key in source.names if source else ():
        full_name = getattr(node.obj, "_shared_name", "") if node.kind == "variable" else ""
        proto.attributes.add(name=local_name, full_name=full_name, checkpoint_key=key)
    proto.has_checkpoint_values.value = True


def read_values(plan: CheckpointPlan) -> Values:
    """Takes the values of this moment: a reference for each variable, no copy.

    TensorFlow copies a buffer that somebody else refers to before it changes it, so what is held
    here stays as it is while training goes on.
    """
    entries = [entry for source in plan.sources for entry in _entries(source, plan.root)]
    if not tf.executing_eagerly():
        entries = _run(entries)
    with tfi.eager_mode():
        graph = Entry(OBJECT_GRAPH_KEY, "", tf.constant(plan.object_graph))
    return Values(((graph, *entries),))


def _run(entries: Sequence[Entry]) -> list[Entry]:
    """The values that the graph's session holds."""
    session = tf.compat.v1.get_default_session()
    arrays = session.run([entry.tensor for entry in entries])
    with tfi.eager_mode():
        return [
            Entry(entry.key, entry.slice_spec, tf.constant(array, entry.tensor.dtype))
            for entry, array in zip(entries, arrays, strict=True)
        ]


def _entries(source: Source, root: str) -> Iterable[Entry]:
    if source.plain:
        return (Entry(source.names[0][1], "", _value(source.node.obj)),)
    serialized = _serialized(source.node, root)
    return [
        entry
        for (_, key), value in zip(source.names, serialized.values(), strict=False)
        for entry in _value_entries(key, value)
    ]


def _value_entries(key: str, value: Any) -> Iterable[Entry]:
    if isinstance(value, dict):
        return [entry for part, x in value.items() for entry in _sliced(key, part, x)]
    return _sliced(key, "", value)


def _sliced(key: str, slice_spec: str, value: Any) -> Iterable[Entry]:
    if callable(value):
        value = value()
    if hasattr(value, "slice_spec"):  # a SaveSpec of an older API
        return (Entry(key, value.slice_spec or "", value.tensor),)
    return (Entry(key, slice_spec, tf.convert_to_tensor(value)),)


def shard(values: Values, callback: Any) -> Values:
    """Groups values as a `tf.train.experimental.ShardingCallback` says.

    Args:
        values: in any groups.
        callback: is given the `tf.train.experimental.ShardableTensor`s of one process of a
            cluster, and may cut tensors.

    Raises:
        UnsupportedError: it returns something else than a list of shards.
    """
    by_task: dict[Any, list[Any]] = {}
    for group in values.groups:
        for entry in group:
            by_task.setdefault(_task_of(entry.tensor), []).append(_shardable(entry))
    with tfi.eager_mode():
        shards = [shard for tensors in by_task.values() for shard in callback(tensors)]
    try:
        groups = tuple(
            tuple(
                Entry(key, slice_spec, tensor)
                for key, parts in one.items()
                for slice_spec, tensor in parts.items()
            )
            for one in shards
        )
    except (AttributeError, TypeError) as error:
        raise UnsupportedError(
            failure(
                "export",
                "experimental_sharding_callback to return a list of {key: {slice: tensor}}",
                f"{shards!r}",
            )
        ) from error
    return Values(groups)


def _task_of(tensor: Any) -> tuple[Any, ...]:
    """A callback is asked for each process of a cluster apart."""
    device = tf.DeviceSpec.from_string(tensor.device)
    return device.job, device.replica, device.task


def _shardable(entry: Entry) -> Any:
    return tf.train.experimental.ShardableTensor(
        _tensor_save_spec=None,
        tensor=entry.tensor,
        dtype=entry.tensor.dtype,
        device=tf.DeviceSpec.from_string(entry.tensor.device),
        name=entry.key,
        shape=entry.tensor.shape,
        slice_spec=entry.slice_spec,
        checkpoint_key=entry.key,
        trackable=None,
    )


def write_bundle(prefix: str, values: Values, io_device: str | None = None) -> None:
    """Writes a tensor bundle, `<prefix>.index` and `<prefix>.data-…`.

    One group goes straight to its place. Several are written apart and joined by their index, so
    that a file holds what changes together.

    Args:
        prefix: path without suffix.
        values: what to write.
        io_device: the device whose file system is meant; the CPU of this process if None.
    """
    with tfi.eager_mode(), tf.device(io_device or "/cpu:0"):
        if len(values.groups) == 1:
            _save(prefix, values.groups[0])
            return
        prefixes = [f"{prefix}_temp/part-{i:05d}" for i in range(len(values.groups))]
        for part, group in zip(prefixes, values.groups, strict=False):
            _save(part, group)
        tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=prefixes, destination_prefix=prefix, delete_old_dirs=True
        )


def _save(prefix: str, group: Sequence[Entry]) -> None:
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[entry.key for entry in group],
        shape_and_slices=[entry.slice_spec for entry in group],
        tensors=[entry.tensor for entry in group],
    )


def _byte_count(tensor: Any) -> int:
    return tensor.dtype.size * tensor.shape.num_elements() if tensor.dtype.size else 0
