"""Which values an artifact holds, and what they are called.

In: a `TrackedGraph`. Out: a `CheckpointPlan`, keys and object graph, made once. The invariant: a
value is stored once, under the key that `tf.train.Checkpoint` of the same object would give it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from keras_export import reading
from keras_export import tf_internals as tfi
from keras_export.checkpoint_keys import escape, object_key
from keras_export.errors import UninitializedError, UnsupportedError, failure
from keras_export.tracking import Node, TrackedGraph, path_text

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

    @property
    def byte_count(self) -> int:
        """The bytes of its variables, as far as their shapes and dtypes tell."""
        facts = (source.node.facts for source in self.sources if source.by == "variable")
        return sum((x.shape.num_elements() or 0) * (x.dtype.size or 0) for x in facts)


def plan_checkpoint(tracked: TrackedGraph, root: str = "obj") -> CheckpointPlan:
    """Gives every value its key and builds the checkpoint's object graph.

    Raises:
        UnsupportedError: an object has values that cannot be written.
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
        if node.saver is not None:
            found.setdefault(node.saver, {})[object_key(node.path)] = node
    return tuple(RegisteredSaver(name, objects) for name, objects in found.items())


def _source(node: Node, root: str) -> Source | None:
    if node.kind in ("function", "concrete_function", "asset") or node.saver is not None:
        return None
    base = node.slot_key or object_key(node.path)
    if _is_plain_variable(node.obj):
        return Source(node, ((VALUE_NAME, _key(base, VALUE_NAME)),), "variable")
    if isinstance(node.obj, tf.train.experimental.PythonState):
        return Source(node, ((_PYTHON_STATE, _key(base, _PYTHON_STATE)),), "python")
    if not isinstance(node.obj, tfi.Trackable) or _holds_no_values(node.obj):
        return None
    if saves_by_saveables(node.obj):
        _refuse_unknown_saveables(node, root)
        names = [tfi.get_saveable_name(node.obj) or name for name in _factories(node.obj)]
        by: Literal["saveables", "tensors"] = "saveables"
        save = None
    else:
        save = _traced_save(node, root)
        tensors = serialized(node) if save is None else save.structured_outputs
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


def refuse_uninitialized(plan: CheckpointPlan, values: Sequence[Any] | None = None) -> None:
    """Asks whether each variable of a plan has a value.

    Args:
        plan: of the checkpoint.
        values: the tensors of its variables in their order, if they have been read.

    Raises:
        UninitializedError: one has none.
    """
    if not tf.executing_eagerly():
        return
    nodes = [source.node for source in plan.sources if source.by == "variable"]
    if values is None:
        values = reading.read([node.obj for node in nodes])
    # Reading such a variable gives an empty tensor, and no error. To ask each variable costs more:
    # TensorFlow makes a kernel of each op for each shape.
    for node, value in zip(nodes, values, strict=True):
        if value.shape == [0] and not tf.raw_ops.VarIsInitializedOp(
            resource=reading.handle(node.obj)
        ):
            raise UninitializedError(
                failure(
                    f"export {path_text(node.path, plan.root)}",
                    "a variable with a value",
                    f"variable={node.obj.name!r} without one",
                    "Initialize it before exporting.",
                )
            )


_SAYS_VALUES = ("_serialize_to_tensors", "_gather_saveables_for_checkpoint")


def _holds_no_values(obj: Any) -> bool:
    """Whether neither the class of an object nor the object itself says which values it has."""
    cls: type = type(obj)
    own = getattr(obj, "__dict__", None)
    if own is None or not _says_no_values(cls):
        return False
    factories = own.get("_self_saveable_object_factories")
    return not factories and not any(name in own for name in _SAYS_VALUES)


@functools.lru_cache(maxsize=4096)
def _says_no_values(cls: type) -> bool:
    says = (base for base in cls.__mro__ if any(name in vars(base) for name in _SAYS_VALUES))
    return next(says, None) is tfi.Trackable


def _key(base: str, local_name: str) -> str:
    prefix = f"{base}/" if base else ""
    return f"{prefix}.ATTRIBUTES/{escape(local_name)}"


def _is_plain_variable(obj: Any) -> bool:
    """Whether TensorFlow itself would save `obj`, of no registered saver, by reading its handle."""
    if isinstance(obj, tfi.BaseResourceVariable):
        return type(obj)._serialize_to_tensors is tfi.BaseResourceVariable._serialize_to_tensors
    return isinstance(obj, tfi.DistributedVariable)


def serialized(node: Node) -> dict[str, Any]:
    """The tensors that an object gives by `_serialize_to_tensors`, by name."""
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
