"""Walks a trackable object and lists what an artifact of it must hold.

In: the object that the user exports. Out: a `TrackedGraph`, the nodes in the order in which they
get their ids, each with its attribute path, its children and its kind. The invariant: the nodes
that `tf.train.Checkpoint(obj)` would reach come first, in its order and under its names, so that
the checkpoint keys are those of a training checkpoint; what only a SavedModel needs (functions,
tables' functions, Keras's lists of layers) comes after them.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import tensorflow as tf

from keras_export import tf_internals as tfi
from keras_export.checkpoint_keys import slot_variable_key
from keras_export.errors import UninitializedError, UnsupportedError, failure
from keras_export.keras_objects import (
    Collection,
    function_kind,
    function_names,
    is_keras_layer,
    is_keras_optimizer,
    is_keras_variable,
    keras_collections,
    keras_functions,
    uses_keras,
)

Kind = Literal["variable", "asset", "resource", "function", "concrete_function", "object"]


@dataclass(frozen=True)
class VariableFacts:
    """What a variable holds, and the tensors that functions capture for it."""

    dtype: tf.DType
    shape: tf.TensorShape
    handles: tuple[Any, ...]


@dataclass(eq=False)
class Node:
    """One object of the graph.

    Attributes:
        obj: the trackable; a Keras variable is represented by the `tf.Variable` inside it.
        path: attribute names from the root to the object.
        kind: what the SavedModel stores it as.
        children: the edges, by name.
        in_checkpoint: whether a training checkpoint of the root reaches it.
        slots: `(slot name, variable, slot variable)` of a legacy optimizer.
        keras_variable: the Keras variable around `obj`, if there is one.
    """

    obj: Any
    path: tuple[str, ...]
    kind: Kind
    children: dict[str, Node] = field(default_factory=dict)
    in_checkpoint: bool = True
    slots: list[tuple[str, Node, Node]] = field(default_factory=list)
    slot_key: str | None = None
    keras_variable: Any = None
    _facts: VariableFacts | None = None

    @property
    def facts(self) -> VariableFacts:
        """What a variable holds and which tensors stand for it."""
        if self._facts is None:
            self._facts = _facts_of(self.obj)
        return self._facts

    @functools.cached_property
    def saver(self) -> str | None:
        """The name of the saver that somebody registered for the object."""
        if not isinstance(self.obj, tfi.Trackable):
            return None
        name: str | None = tfi.registration.get_registered_saver_name(self.obj)
        return name

    def store_as(self, dtype: tf.DType) -> None:
        """Lets the artifact hold the variable in another dtype than the live object does."""
        self._facts = replace(self.facts, dtype=dtype)

    def __repr__(self) -> str:
        return f"Node({self.kind} at {path_text(self.path)})"


@dataclass(eq=False)
class TrackedGraph:
    """The objects of an export, in the order of their ids.

    Attributes:
        nodes: all nodes; the first one is the root.
        notes: what the user should know about the walk.
    """

    nodes: list[Node]
    notes: list[str] = field(default_factory=list)
    _by_id: dict[int, Node] = field(default_factory=dict)

    @property
    def root(self) -> Node:
        return self.nodes[0]

    def find(self, obj: Any, path: tuple[str, ...] = ()) -> Node | None:
        """The node of `obj`, or None where the walk did not reach it; `path` is for errors."""
        return self._by_id.get(id(obj)) or self._by_id.get(id(unwrap_variable(obj, path)))

    def of_kind(self, *kinds: Kind) -> Iterator[Node]:
        return (node for node in self.nodes if node.kind in kinds)

    def attach(self, parent: Node, name: str, obj: Any) -> Node:
        """Adds `obj` as a child that the live object does not have, and returns its node."""
        node = self.find(obj, (*parent.path, name))
        if node is None:
            node = self._add(obj, (*parent.path, name))
            node.in_checkpoint = False
        parent.children[name] = node
        return node

    def _add(self, obj: Any, path: tuple[str, ...]) -> Node:
        held = unwrap_variable(obj, path)
        wrapper = obj if held is not obj else None
        node = Node(held, path, kind_of(held), keras_variable=wrapper)
        self.nodes.append(node)
        self._by_id[id(held)] = self._by_id[id(obj)] = node
        return node


def track(
    root: Any,
    exclude: Callable[[Any], bool] = lambda _: False,
    beside: Mapping[str, Any] = MappingProxyType({}),
    listing: Listing | None = None,
) -> TrackedGraph:
    """Walks `root` breadth first.

    Args:
        root: a TensorFlow trackable.
        exclude: says which children are left out, with all that only they lead to.
        beside: children of the root that the live object does not have.
        listing: what was listed already; nothing must have been traced since.

    Returns:
        The graph; its nodes keep the objects alive.

    Raises:
        UnsupportedError: an object cannot list its children.
        UninitializedError: a Keras variable has no value yet.
    """
    walk = _Walk(exclude, {id(root): dict(beside)}, listing or Listing())
    walk.trace_functions(root)
    graph = TrackedGraph([])
    graph._add(root, ())
    walk.breadth_first(graph, walk.checkpoint_children, in_checkpoint=True)
    walk.add_saved_model_children(graph)
    _add_keras_variable_lists(graph)
    _add_slots(graph)
    return graph


def path_text(path: Iterable[str], root: str = "obj") -> str:
    """The path as a Python expression, `obj.layers[0].kernel`."""
    text = root
    for name in path:
        text += f"[{name}]" if name.isdigit() else f".{name}"
    return text


def unwrap_variable(obj: Any, path: tuple[str, ...] = ()) -> Any:
    """The `tf.Variable` of a Keras variable; anything else as it is."""
    if not is_keras_variable(obj):
        return obj
    if obj._value is None:
        raise UninitializedError(
            failure(
                f"export {path_text(path)}",
                "a variable with a value",
                f"variable={obj.path!r} without one",
                "Build the model first: call it once, or `model.build(input_shape)`.",
            )
        )
    return obj._value


class Listing:
    """What a checkpoint of each object holds, listed once; for as long as nothing is traced."""

    def __init__(self) -> None:
        self._children: dict[int, tuple[Any, Any]] = {}

    def children(self, obj: Any) -> Any:
        """The children of one object by name."""
        known = self._children.get(id(obj))
        if known is None:
            known = self._children[id(obj)] = (obj, _checkpoint_children(obj))
        return known[1]

    def clear(self) -> None:
        """Forgets all: a function that is traced may make objects."""
        self._children.clear()

    def descendants(self, root: Any) -> Iterable[Any]:
        """The root and all that it leads to."""
        found = {id(root): root}
        queue = [root]
        while queue:
            obj = queue.pop()
            yield obj
            for child in self.children(obj).values():
                if id(child) not in found:
                    found[id(child)] = child
                    queue.append(child)


_SAYS_CHILDREN = frozenset(
    {"_trackable_children", "_checkpoint_dependencies", "_maybe_initialize_trackable"}
)


def _checkpoint_children(obj: Any) -> Any:
    # TensorFlow's own way tells a Keras layer four times not to track what it is assigned.
    cls: type = type(obj)
    own = getattr(obj, "__dict__", {})
    if _lists_what_it_was_assigned(cls) and "_trackable_children" not in own:
        assigned = getattr(obj, "_self_unconditional_checkpoint_dependencies", ())
        children = {reference.name: reference.ref for reference in assigned}
        if all(isinstance(child, tfi.Trackable) for child in children.values()):
            return children
    return tf.train.TrackableView.children(obj)


@functools.lru_cache(maxsize=4096)
def _lists_what_it_was_assigned(cls: type) -> bool:
    """Whether no class but those of TensorFlow and Keras says what the children are."""
    usual = {tfi.Trackable, tfi.AutoTrackable}
    if uses_keras():
        usual.add(tfi.keras_tensorflow_layer_class())
    return all(base in usual or _SAYS_CHILDREN.isdisjoint(vars(base)) for base in cls.__mro__)


@functools.lru_cache(maxsize=4096)
def _lists_the_same_for_both(cls: type) -> bool:
    """Whether a SavedModel holds the children that a checkpoint holds, as of a variable."""
    own = (base for base in cls.__mro__ if base is not tfi.Trackable)
    return issubclass(cls, tfi.Trackable) and all(_SAYS_CHILDREN.isdisjoint(vars(x)) for x in own)


def is_distributed(root: Any, listing: Listing | None = None) -> bool:
    """Whether a strategy made one of the variables that `root` tracks.

    Args:
        root: a TensorFlow trackable.
        listing: is filled, for the walk that follows.
    """
    try:
        held = list((listing or Listing()).descendants(root))
    except (ValueError, NotImplementedError):  # the walk refuses it with its path
        return False
    classes = {type(x._value if is_keras_variable(x) else x) for x in held}
    kinds = (tfi.DistributedVariable, tfi.ShardedVariableMixin)
    return any(issubclass(cls, kinds) for cls in classes)


def kind_of(obj: Any) -> Kind:
    """What a SavedModel stores `obj` as."""
    if (function := function_kind(obj.__class__)) is not None:
        return function
    if isinstance(obj, tf.saved_model.Asset):
        return "asset"
    if tfi.is_resource_variable(obj):
        return "variable"
    if isinstance(obj, tfi.CapturableResource):
        return "resource"
    return "object"


def _facts_of(variable: Any) -> VariableFacts:
    if _has_one_handle(variable.__class__):
        return VariableFacts(variable.dtype, variable.shape, (variable.handle,))
    if isinstance(variable, tfi.ShardedVariableMixin):
        return _facts_of(variable._saving_variable)  # stands for all shards in a save context
    # Wrappers and distributed variables say which handles they have by making copies in a graph.
    tensors: Any = tfi.ObjectIdentityDictionary()
    with tf.Graph().as_default():
        variable._export_to_saved_model_graph(
            object_map=tfi.ObjectIdentityDictionary(),
            tensor_map=tensors,
            options=tf.saved_model.SaveOptions(),
        )
    op = next(iter(tensors.values())).op
    shape = tf.TensorShape(op.get_attr("shape"))
    return VariableFacts(tf.as_dtype(op.get_attr("dtype")), shape, tuple(tensors))


@functools.lru_cache(maxsize=1024)
def _has_one_handle(cls: type) -> bool:
    # A packed variable has one for functions and another for eager code.
    return issubclass(cls, tfi.BaseResourceVariable) and all(
        getattr(cls, name) is getattr(tfi.BaseResourceVariable, name)
        for name in ("handle", "_export_to_saved_model_graph")
    )


class _Walk:
    """The children of objects, each listed once: listing may trace functions or make objects."""

    def __init__(
        self,
        exclude: Callable[[Any], bool],
        beside: Mapping[int, dict[str, Any]],
        listing: Listing,
    ):
        self._exclude = exclude
        self._listing = listing
        self._beside = beside
        self._saved_model_children: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._checkpoint_children: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._function_names: dict[type, list[str]] = {}
        self._cache: dict[Any, Any] = {}

    def trace_functions(self, root: Any) -> None:
        """Lists everything once: a function's first trace may create and track variables."""
        seen: dict[int, Any] = {}
        traced = False
        queue: collections.deque[tuple[tuple[str, ...], Any]] = collections.deque([((), root)])
        while queue:
            path, obj = queue.popleft()
            kind = function_kind(obj.__class__)
            if id(obj) in seen or kind == "concrete_function":
                continue
            seen[id(obj)] = obj
            traced = traced or kind == "function"
            children = {**self.checkpoint_children(obj, path)}
            children.update(self.saved_model_children(obj, path))
            queue.extend(((*path, name), child) for name, child in children.items())
        if traced:
            self._checkpoint_children.clear()
            self._listing.clear()

    def breadth_first(
        self,
        graph: TrackedGraph,
        children_of: Callable[[Any, tuple[str, ...]], dict[str, Any]],
        *,
        in_checkpoint: bool,
    ) -> None:
        for node in graph.nodes:  # it grows meanwhile
            for name, child in children_of(node.obj, node.path).items():
                known = graph._by_id.get(id(child))
                if known is None:
                    path = (*node.path, name)
                    known = graph.find(child, path)
                    if known is None:
                        known = graph._add(child, path)
                        known.in_checkpoint = in_checkpoint
                node.children[name] = known

    def add_saved_model_children(self, graph: TrackedGraph) -> None:
        reached = {id(node.obj) for node in graph.nodes}

        def others(obj: Any, path: tuple[str, ...]) -> dict[str, Any]:
            found = self.saved_model_children(obj, path)
            return found if id(obj) in reached else {**self.checkpoint_children(obj, path), **found}

        self.breadth_first(graph, others, in_checkpoint=False)

    def checkpoint_children(self, obj: Any, path: tuple[str, ...]) -> dict[str, Any]:
        known = self._checkpoint_children.get(id(obj))
        if known is None:
            found = self._list_checkpoint_children(obj, path)
            # Some objects list new children each time; both kinds of children must agree.
            if preferred := self.saved_model_children(obj, path):
                found = {name: preferred.get(name, child) for name, child in found.items()}
            known = self._checkpoint_children[id(obj)] = (obj, found)
        return known[1]

    def _list_checkpoint_children(self, obj: Any, path: tuple[str, ...]) -> dict[str, Any]:
        if isinstance(obj, Collection) or function_kind(obj.__class__):
            return {}
        found = _list(obj, path, lambda: self._listing.children(obj))
        return {
            name: child
            for name, child in found.items()
            if not function_kind(child.__class__) and not self._exclude(child)
        }

    def saved_model_children(self, obj: Any, path: tuple[str, ...]) -> dict[str, Any]:
        known = self._saved_model_children.get(id(obj))
        if known is None:
            found = self._list_saved_model_children(obj, path)
            found = {name: child for name, child in found.items() if not self._exclude(child)}
            found.update(self._beside.get(id(obj), {}))
            known = self._saved_model_children[id(obj)] = (obj, found)
        return known[1]

    def _list_saved_model_children(self, obj: Any, path: tuple[str, ...]) -> dict[str, Any]:
        if isinstance(obj, Collection):
            return obj.items
        kind = function_kind(obj.__class__)
        if kind == "function":
            # Named by the traces themselves in the artifact; listing them here traces the function.
            _list(obj, path, obj._list_all_concrete_functions_for_serialization)
            return {}
        if kind == "concrete_function" or is_keras_optimizer(obj):
            return {}
        if is_keras_layer(obj):
            names = self._function_names.get(type(obj))
            if names is None:
                names = self._function_names[type(obj)] = function_names(type(obj))
            return {**keras_functions(obj, names), **keras_collections(obj)}
        cls: type = type(obj)
        own = getattr(obj, "__dict__", {})
        if _lists_the_same_for_both(cls) and "_trackable_children" not in own:
            return _list(obj, path, lambda: self._listing.children(obj))
        return _list(
            obj,
            path,
            lambda: tf.train.TrackableView.children(obj, save_type="savedmodel", cache=self._cache),
        )


def _list(obj: Any, path: tuple[str, ...], lister: Callable[[], Any]) -> Any:
    try:
        return lister()
    except (ValueError, NotImplementedError) as error:
        raise UnsupportedError(
            f"Cannot export {path_text(path)} ({type(obj).__name__}): {error}"
        ) from error


def _add_keras_variable_lists(graph: TrackedGraph) -> None:
    """Gives each outermost Keras layer the lists of its variables that Keras's own export gives.

    They also hold what nothing else leads to: the states of seed generators, for instance.
    """
    for node in _outermost_layers(graph):
        for name in ("variables", "trainable_variables", "non_trainable_variables"):
            if name not in node.children:
                attach_list(graph, node, name, getattr(node.obj, name))


def attach_list(graph: TrackedGraph, parent: Node, name: str, variables: Iterable[Any]) -> Node:
    """Attaches `variables` to `parent` as a list of the loaded object."""
    items = {str(index): variable for index, variable in enumerate(variables)}
    node = graph.attach(parent, name, Collection(items, "trackable_list_wrapper"))
    for key, variable in items.items():
        graph.attach(node, key, variable)
    return node


def _outermost_layers(graph: TrackedGraph) -> list[Node]:
    inner: set[int] = set()
    outermost = []
    for node in graph.nodes:
        if is_keras_layer(node.obj) and id(node) not in inner:
            outermost.append(node)
            inner.update(id(below) for below in descendants(node))
    return [node for node in outermost if id(node) not in inner]


def descendants(node: Node) -> Iterator[Node]:
    """All nodes below `node`, without it (unless a cycle leads back)."""
    seen: set[int] = set()
    queue = list(node.children.values())
    while queue:
        below = queue.pop()
        if id(below) not in seen:
            seen.add(id(below))
            yield below
            queue.extend(below.children.values())


def _add_slots(graph: TrackedGraph) -> None:
    """Adds the slot variables of optimizers that keep them beside their variables.

    Keras 3 optimizers list theirs as children; those of TensorFlow and Keras 2 do not.
    """
    variables = [node for node in graph.nodes if node.kind == "variable"]
    for optimizer in list(graph.nodes):
        if not hasattr(type(optimizer.obj), "get_slot_names"):
            continue
        for slot_name in optimizer.obj.get_slot_names():
            for variable in variables:
                _add_slot(graph, optimizer, slot_name, variable)


def _add_slot(graph: TrackedGraph, optimizer: Node, slot_name: str, variable: Node) -> None:
    try:
        slot = optimizer.obj.get_slot(variable.obj, slot_name)
    except (AttributeError, KeyError):
        return
    if slot is None:
        return
    if graph.find(slot) is not None:
        raise UnsupportedError(
            failure(
                f"export {path_text(graph.find(slot).path)}",  # type: ignore[union-attr]
                "a slot variable that only its optimizer holds",
                f"slot={slot_name!r} of {path_text(optimizer.path)}",
                "Do not assign slot variables to attributes.",
            )
        )
    node = graph._add(slot, (*variable.path, slot_name))
    node.slot_key = slot_variable_key(variable.path, optimizer.path, slot_name)
    optimizer.slots.append((slot_name, variable, node))
