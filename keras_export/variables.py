"""The values of an artifact: what they are called, how they are held, how they are written.

In: a `TrackedGraph`. Out: a `CheckpointPlan` (keys and object graph, made once), `Snapshot`s of
the values of a moment, and tensor bundles on disk. The invariant: a value is stored once, under
the key that `tf.train.Checkpoint` of the same object would give it, and a snapshot costs
references, not copies.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from keras_export import tf_internals as tfi
from keras_export.errors import ArgumentError, UninitializedError, UnsupportedError, failure
from keras_export.tracking import Node, TrackedGraph, escape, object_key, path_text

# The checkpoint's own object graph, by which Python restores: tensorflow/python/trackable/base.py
OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"

VALUE_NAME = "VARIABLE_VALUE"

# tensorflow/python/trackable/python_state.py
_PYTHON_STATE = "py_state"


@dataclass(frozen=True)
class Source:
    """An object with values in the checkpoint.

    Attributes:
        node: the object.
        names: `(local name, checkpoint key)` of each of its attributes in the checkpoint: its
            tensors, or its `SaveableObject`s.
        by: how it gives its values: as an ordinary variable, whose buffer can be referred to; by
            `_serialize_to_tensors`; by `SaveableObject`s; as `tf.train.experimental.PythonState`.
        read_from: the variable whose value is taken in place of its own.
        save: the trace of its `_serialize_to_tensors`, where the artifact holds one.
    """

    node: Node
    names: tuple[tuple[str, str], ...]
    by: Literal["variable", "tensors", "saveables", "python"]
    read_from: Any = None
    save: Any = None


@dataclass(frozen=True)
class RegisteredSaver:
    """A saver that somebody registered for a class, with the objects that it saves.

    Attributes:
        name: under which it was registered.
        objects: by their names in the checkpoint.
    """

    name: str
    objects: dict[str, Node]

    @property
    def trackables(self) -> dict[str, Any]:
        """What its functions are called with."""
        return {name: node.obj for name, node in self.objects.items()}


@dataclass(frozen=True)
class CheckpointPlan:
    """What a checkpoint of the object holds, without the values.

    Attributes:
        sources: the objects with values, in the order of the graph.
        object_graph: the serialized `TrackableObjectGraph`.
        root: how messages call the exported object.
        savers: what else writes values.
    """

    sources: tuple[Source, ...]
    object_graph: bytes
    root: str = "obj"
    savers: tuple[RegisteredSaver, ...] = ()


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
    savers = _registered_savers(tracked)
    saved_by = {id(node): (x.name, name) for x in savers for name, node in x.objects.items()}
    kept = _with_values(tracked, sources.keys() | saved_by.keys())
    proto = tfi.trackable_object_graph_pb2.TrackableObjectGraph()
    ids = {id(node): index for index, node in enumerate(kept)}
    for node in kept:
        saved = proto.nodes.add()
        _fill_node(saved, node, sources.get(id(node)), ids)
        if id(node) in saved_by:
            saved.registered_saver.name, saved.registered_saver.object_name = saved_by[id(node)]
    return CheckpointPlan(
        tuple(sources.values()), proto.SerializeToString(deterministic=True), root, savers
    )


def _registered_savers(tracked: TrackedGraph) -> tuple[RegisteredSaver, ...]:
    found: dict[str, dict[str, Node]] = {}
    for node in tracked.nodes:
        if isinstance(node.obj, tfi.Trackable) and (name := saver_of(node)):
            found.setdefault(name, {})[object_key(node.path)] = node
    return tuple(RegisteredSaver(name, objects) for name, objects in found.items())


def saver_of(node: Node) -> str | None:
    """The name of the saver that is registered for a node's object."""
    name: str | None = tfi.registration.get_registered_saver_name(node.obj)
    return name


def _source(node: Node, root: str) -> Source | None:
    if node.kind in ("function", "concrete_function", "asset") or saver_of(node):
        return None
    base = node.slot_key or object_key(node.path)
    if is_plain_variable(node.obj):
        _refuse_uninitialized(node, root)
        return Source(node, ((VALUE_NAME, _key(base, VALUE_NAME)),), "variable")
    if isinstance(node.obj, tf.train.experimental.PythonState):
        return Source(node, ((_PYTHON_STATE, _key(base, _PYTHON_STATE)),), "python")
    if not isinstance(node.obj, tfi.Trackable):
        return None
    if saves_by_saveables(node.obj):
        _refuse_unknown_saveables(node, root)
        names = [tfi.get_saveable_name(node.obj) or name for name in _factories(node.obj)]
        by: Literal["saveables", "tensors"] = "saveables"
        save = None
    else:
        save = _traced_save(node, root)
        tensors = _serialized(node) if save is None else save.structured_outputs
        names = [escape(name) for name in tensors]
        by = "tensors"
    keyed = tuple((name, _key(base, name)) for name in names)
    return Source(node, keyed, by, save=save) if names else None


def _traced_save(node: Node, root: str) -> Any:
    """What the artifact does to save an object again; a variable's loader knows how by itself.

    It names the tensors, too: some objects do much to give them, so they are asked for the values
    alone.
    """
    obj = node.obj
    if node.kind == "variable" or not tfi.trackable_has_serialize_to_tensor(obj):
        return None
    save = obj._serialize_to_tensors
    if isinstance(save, tfi.ConcreteFunction):
        return save

    def tensors() -> dict[str, Any]:
        found = dict(obj._serialize_to_tensors())
        _refuse_deferred(found, node, root)
        return found

    return tf.function(tensors, autograph=False).get_concrete_function()


def _refuse_deferred(tensors: dict[str, Any], node: Node, root: str) -> None:
    for name, value in tensors.items():
        if not tf.is_tensor(value) and (callable(value) or hasattr(value, "slice_spec")):
            raise UnsupportedError(
                failure(
                    f"export {path_text(node.path, root)}",
                    "`_serialize_to_tensors` to return tensors",
                    f"{name}={type(value).__name__}, which is called when a checkpoint is written",
                    "Return the tensor itself; a SavedModel saves itself without Python.",
                )
            )


def _refuse_unknown_saveables(node: Node, root: str) -> None:
    try:
        for name, factory in _factories(node.obj).items():
            list(Saveable(name, name, factory).specs())
    except (TypeError, ValueError) as error:
        raise UnsupportedError(
            failure(
                f"export {path_text(node.path, root)}",
                "`_gather_saveables_for_checkpoint` to give SaveableObjects or variables",
                f"{type(node.obj).__name__}, whose saveables cannot be made ({error})",
                "Define `_serialize_to_tensors` and `_restore_from_tensors` instead.",
            )
        ) from error


def saves_by_saveables(obj: Any) -> bool:
    """Whether an object's values are stored as its `SaveableObject`s call them.

    Tables have been migrated from these, and keep the names in the checkpoint.
    """
    if not tfi.trackable_has_serialize_to_tensor(obj):
        own = type(obj)._gather_saveables_for_checkpoint
        return own is not tfi.Trackable._gather_saveables_for_checkpoint or bool(_factories(obj))
    renamed = bool(tfi.get_saveable_name(obj))
    return renamed and not tfi.force_checkpoint_conversion_enabled()


def _factories(obj: Any) -> dict[str, Any]:
    found: dict[str, Any] = tfi.saveable_objects_from_trackable(obj)
    return found


@dataclass(frozen=True)
class Saveable:
    """One `SaveableObject` factory of an object.

    Attributes:
        name: of the attribute that it saves.
        key: in the checkpoint.
        factory: makes the `SaveableObject`s.
    """

    name: str
    key: str
    factory: Any

    @property
    def checkpoint_key(self) -> str:
        """As TensorFlow's own description of a factory calls it."""
        return self.key

    def specs(self) -> Iterator[Any]:
        """What is saved: each has a name, a slice and a tensor."""
        made = self.factory(name=self.key) if callable(self.factory) else self.factory
        if not isinstance(made, tfi.SaveableObject):
            made = tfi.saveable_objects_for_op(op=made, name=self.key)
        for saveable in made if not isinstance(made, tfi.SaveableObject) else [made]:
            yield from saveable.specs


def saveables_of(source: Source) -> list[Saveable]:
    """The factories of an object that saves by `SaveableObject`s."""
    pairs = zip(source.names, _factories(source.node.obj).values(), strict=True)
    return [Saveable(name, key, factory) for (name, key), factory in pairs]


def _refuse_uninitialized(node: Node, root: str) -> None:
    if not tf.executing_eagerly():
        return
    # Reading such a variable gives an empty tensor, and no error. To ask each variable costs as
    # much again: TensorFlow makes a kernel of each op for each shape.
    read = tf.raw_ops.ReadVariableOp(resource=_handle(node.obj), dtype=node.obj.dtype)
    if read.shape == [0] and not tf.raw_ops.VarIsInitializedOp(resource=_handle(node.obj)):
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


def _serialized(node: Node) -> dict[str, Any]:
    if not tfi.trackable_has_serialize_to_tensor(node.obj):
        return {}
    values: dict[str, Any] = node.obj._serialize_to_tensors()
    return values


def _with_values(tracked: TrackedGraph, holders: Set[int]) -> list[Node]:
    """The nodes that hold a value or lead to one; the root always."""
    parents: dict[int, list[Node]] = {}
    for node in tracked.nodes:
        for child in node.children.values():
            parents.setdefault(id(child), []).append(node)
    kept = {id(tracked.root)}
    pending = [node for node in tracked.nodes if id(node) in holders or node.slots]
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
    entries = [entry for saver in plan.savers for entry in _written_by(saver, plan.root)]
    entries += [entry for source in plan.sources for entry in _entries(source)]
    if not tf.executing_eagerly():
        entries = _run(entries)
    with tfi.eager_mode():
        graph = Entry(OBJECT_GRAPH_KEY, "", tf.constant(plan.object_graph))
    return Values(((graph, *entries),))


def _run(entries: Sequence[Entry]) -> list[Entry]:
    """The values that the graph's session holds."""
    session = tf.compat.v1.get_default_session()
    # A session whose graph is empty refuses to run even nothing.
    arrays = session.run([entry.tensor for entry in entries]) if entries else []
    with tfi.eager_mode():
        return [
            Entry(entry.key, entry.slice_spec, tf.constant(array, entry.tensor.dtype))
            for entry, array in zip(entries, arrays, strict=True)
        ]


def _written_by(saver: RegisteredSaver, root: str) -> list[Entry]:
    """What a registered saver writes, read back: it knows files alone, and we hold moments."""
    if not tf.executing_eagerly():
        raise UnsupportedError(
            f"Cannot export {path_text(next(iter(saver.objects.values())).path, root)} without "
            f"eager execution: the registered checkpoint saver {saver.name!r} writes files itself."
        )
    save = tfi.registration.get_save_function(saver.name)
    with tempfile.TemporaryDirectory() as folder:
        prefix = tf.constant(os.path.join(folder, f"variables-{saver.name}"))
        written = save(trackables=saver.trackables, file_prefix=prefix)
        return [entry for path in prefixes_of(written, saver.name) for entry in _read_back(path)]


def prefixes_of(written: Any, saver: str) -> list[Any]:
    """The string tensors that a registered saver returned.

    Raises:
        UnsupportedError: it returned something else.
    """
    flat = [] if written is None else tf.nest.flatten(written)
    if all(tf.is_tensor(x) and x.dtype == tf.string for x in flat):
        return flat
    raise UnsupportedError(
        failure(
            f"export with the registered checkpoint saver {saver!r}",
            "its save function to return string tensors, the prefixes that it wrote",
            f"{written!r}",
        )
    )


def _read_back(prefixes: Any) -> Iterator[Entry]:
    for prefix in tf.reshape(prefixes, [-1]).numpy():
        reader = tf.train.load_checkpoint(tf.compat.as_str(prefix))
        dtypes = reader.get_variable_to_dtype_map()
        for key in sorted(dtypes):
            yield Entry(key, "", tf.constant(reader.get_tensor(key), dtypes[key]))


def _entries(source: Source) -> Iterable[Entry]:
    if source.by == "variable":
        variable = source.node.obj if source.read_from is None else source.read_from
        return (Entry(source.names[0][1], "", _value(variable)),)
    if source.by == "python":
        return (Entry(source.names[0][1], "", tf.constant(source.node.obj.serialize())),)
    if source.by == "saveables":
        specs = [spec for saveable in saveables_of(source) for spec in saveable.specs()]
        return [Entry(x.name, x.slice_spec or "", tf.convert_to_tensor(x.tensor)) for x in specs]
    keys = dict(source.names)
    return [
        entry
        for name, value in _serialized(source.node).items()
        for entry in _value_entries(keys[escape(name)], value)
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


def cast(values: Values, dtypes: Mapping[str, tf.DType]) -> Values:
    """The same values, some of them in another dtype.

    Args:
        values: as they were read.
        dtypes: of those that are cast, by checkpoint key.

    Raises:
        ArgumentError: a finite number becomes infinite.
    """
    if not dtypes:
        return values
    with tfi.eager_mode():
        groups = tuple(tuple(_cast(x, dtypes.get(x.key)) for x in group) for group in values.groups)
    return Values(groups)


def _cast(entry: Entry, dtype: tf.DType | None) -> Entry:
    if dtype is None:
        return entry
    tensor = tf.cast(entry.tensor, dtype)
    if bool(tf.reduce_any(tf.math.is_inf(tensor) & tf.math.is_finite(entry.tensor))):
        raise ArgumentError(
            failure(
                f"store {entry.key.partition('/.ATTRIBUTES')[0]} as {dtype.name}",
                f"values of at most {dtype.max}",
                f"{float(tf.reduce_max(tf.abs(entry.tensor))):g}",
                "Use variables_dtype='bfloat16', which has the range of float32.",
            )
        )
    return Entry(entry.key, entry.slice_spec, tensor)


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
        merge_bundles(prefix, prefixes)


def merge_bundles(prefix: str, parts: Sequence[str]) -> None:
    """Joins bundles of one folder into one: a new index, and the same data files renamed.

    Args:
        prefix: of the result.
        parts: prefixes of what is joined, in the order of the data files of the result; with their
            folder, they are gone afterwards.
    """
    with tfi.eager_mode(), tf.device("/cpu:0"):
        tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=parts, destination_prefix=prefix, delete_old_dirs=True
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
