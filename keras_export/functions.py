"""Turns ConcreteFunctions into the function library of an artifact.

In: a `TrackedGraph` and the ConcreteFunctions to export. Out: a `FunctionLibrary`: the
FunctionDefs under their names in this process, and for each exported function the nodes that its
captures are bound to. The invariant: nothing is traced again, and every capture of an exported
function is bound to something that the artifact holds, or an error names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from keras_export import structures
from keras_export import tf_internals as tfi
from keras_export.errors import UnsupportedError, UntrackedCaptureError
from keras_export.tracking import Node, TrackedGraph, path_text

_HANDLE_DTYPES = (tf.resource, tf.variant)


# The attribute that names the gradient of an op.
MARK = "_gradient_op_type"

# What the author of a function called an argument, for people and tools.
ARGUMENT_NAME = "_user_specified_name"


@dataclass(eq=False)
class Constant:
    """A value that a function captured."""

    value: np.ndarray
    dtype: tf.DType


@dataclass(eq=False)
class CapturedTensor:
    """A tensor inside a function that a gradient function captured.

    Attributes:
        function: name of the function that computes it.
        tensor: its name in the graph of that function, `node:0` or `argument:0`.
    """

    function: str
    tensor: str


Binding: TypeAlias = "Node | Constant | CapturedTensor"


@dataclass(eq=False)
class BoundFunction:
    """One function that the loaded object can call.

    Attributes:
        name: its name in the library.
        bindings: what its trailing arguments are bound to, in order.
        input_signature: `(args, kwargs)` of specs and Python values.
        output_signature: nested specs.
        concrete: the live function; None for one that was assembled from protos.
    """

    name: str
    bindings: list[Binding]
    input_signature: Any
    output_signature: Any
    concrete: Any = None


@dataclass(eq=False)
class FunctionLibrary:
    """All functions of an artifact.

    Attributes:
        definitions: FunctionDefs by name, callees and callers in the order they were met.
        functions: those that an object of the artifact refers to, by name.
        graphs: the live graphs of the definitions that have one.
        constants: captured eager tensors, each once.
        gradients: registered gradient op type -> name of the function.
    """

    definitions: dict[str, Any] = field(default_factory=dict)
    functions: dict[str, BoundFunction] = field(default_factory=dict)
    graphs: dict[str, Any] = field(default_factory=dict)
    constants: list[Constant] = field(default_factory=list)
    gradients: dict[str, str] = field(default_factory=dict)


class FunctionCollector:
    """Fills a `FunctionLibrary`.

    Args:
        tracked: the objects that captures may be bound to.
        root: how error messages call the exported object.
    """

    def __init__(self, tracked: TrackedGraph, root: str = "obj"):
        self.library = FunctionLibrary()
        self._root = root
        self._bindings: dict[int, Binding] = {}
        self._held: list[Any] = []
        self._added: dict[str, BoundFunction] = {}
        for node in tracked.nodes:
            self._bind_handles(node)

    def _bind_handles(self, node: Node) -> None:
        for handle in handles_of(node):
            self.bind(handle, node)

    def bind(self, tensor: Any, binding: Binding) -> None:
        """Says that functions which captured `tensor` are bound to `binding`."""
        self._held.append(tensor)
        self._bindings[id(tensor)] = binding

    def binding_of(self, tensor: Any) -> Binding | None:
        return self._bindings.get(id(tensor))

    def add(self, concrete: Any, described_as: str) -> BoundFunction:
        """Adds a ConcreteFunction with all that it calls.

        Args:
            concrete: the function.
            described_as: what error messages call it.

        Raises:
            UntrackedCaptureError: it captured something that the walk did not reach.
            UnsupportedError: it cannot be serialized.
        """
        name = function_name(concrete)
        known = self._added.get(name)
        if known is not None:
            return known
        refuse_unsaveable(concrete, described_as)
        cached = cached_captures(concrete)
        bindings = [
            self.resolve(cached.get(index, x), concrete, described_as)
            for index, x in enumerate(concrete.captured_inputs)
        ]
        bound = BoundFunction(
            name,
            bindings,
            concrete.structured_input_signature,
            structures.to_specs(concrete.structured_outputs),
            concrete,
        )
        self.add_definitions(concrete)
        if cached:
            bound.name = _add_reading_function(self.library, bound, cached)
        self._added[name] = self.library.functions[bound.name] = bound
        return bound

    def resolve(self, capture: Any, concrete: Any, described_as: str) -> Binding:
        """What a captured input is bound to."""
        known = self._bindings.get(id(capture))
        if known is not None:
            return known
        if capture.dtype in _HANDLE_DTYPES:
            raise UntrackedCaptureError(
                untracked_message(capture, concrete, described_as, self._root)
            )
        constant = constant_of(capture, described_as)
        self.library.constants.append(constant)
        self.bind(capture, constant)
        return constant

    def add_definitions(self, concrete: Any) -> None:
        """Adds the FunctionDef of `concrete` and those of all that it calls."""
        self._note_graph(function_name(concrete), concrete.graph)
        self.add_definition(function_name(concrete), concrete.graph)

    def add_definition(self, name: str, graph: Any) -> None:
        """Adds a FunctionDef that `graph` or the process knows, and those of all that it calls."""
        pending = [name]
        while pending:
            name = pending.pop()
            if name in self.library.definitions:
                continue
            definition = definition_of(name, graph)
            self.library.definitions[name] = definition
            pending.extend(reversed(list(callees(definition, graph))))

    def _note_graph(self, name: str, graph: Any) -> None:
        if name in self.library.graphs:
            return
        self.library.graphs[name] = graph
        for inner in graph._functions.values():
            if getattr(inner, "graph", None) is not None:
                self._note_graph(function_name(inner), inner.graph)


def handles_of(node: Node) -> Iterator[Any]:
    """The eager tensors that stand for a node when a function captures it."""
    if node.kind == "variable":
        if node.keras_variable is not None:
            yield node.keras_variable
        yield node.obj
        yield from node.facts.handles
    elif node.kind == "resource":
        yield node.obj.resource_handle
    elif node.kind == "asset":
        yield node.obj.asset_path


def stem_of(name: str) -> str:
    """A function's name without the numbers of the process at its end."""
    return re.sub(r"(_\d+)+$", "", name)


def function_name(function: Any) -> str:
    """The name of a function in the libraries of this process."""
    return tf.compat.as_str(function.name)


def callees(definition: Any, graph: Any = None) -> Iterator[str]:
    """Names of the functions that a FunctionDef calls, in the order of its nodes."""
    return called_by(definition.node_def, graph)


def called_by(nodes: Iterable[Any], graph: Any = None) -> Iterator[str]:
    """Names of the functions that NodeDefs call, in their order."""
    for node in nodes:
        op_type = node.op
        if is_function_call(op_type, graph):
            yield op_type
            continue
        yield from functions_in_attributes(node)


def functions_in_attributes(node: Any) -> Iterator[str]:
    """Names of the functions that the attributes of a NodeDef hold."""
    for name in function_attributes(node.op):
        if name in node.attr:
            value = node.attr[name]
            yield from (x.name for x in (value.func, *value.list.func) if x.name)


_FUNCTION_ATTRIBUTES: dict[str, tuple[str, ...]] = {}


def function_attributes(op_type: str) -> tuple[str, ...]:
    """Names of the attributes of an op that hold functions."""
    known = _FUNCTION_ATTRIBUTES.get(op_type)
    if known is None:
        op_def = tfi.op_def_of(op_type)
        if op_def is None:  # a function, or an op of a library that may be loaded later
            return ()
        known = tuple(a.name for a in op_def.attr if a.type in ("func", "list(func)"))
        _FUNCTION_ATTRIBUTES[op_type] = known
    return known


def is_function_call(op_type: str, graph: Any = None) -> bool:
    """Whether a node's op is the name of a function."""
    if tfi.op_def_of(op_type) is not None:
        return False
    return tfi.eager_context().has_function(op_type) or _in_graph(op_type, graph) is not None


def definition_of(name: str, graph: Any = None) -> Any:
    """A FunctionDef that may be changed."""
    context = tfi.eager_context()
    if context.has_function(name):
        return context.get_function_def(name)
    found = _in_graph(name, graph)
    if found is None:
        raise UnsupportedError(f"Cannot export: the function {name!r} is called but not defined.")
    definition = tfi.function_pb2.FunctionDef()
    # A function of a V1 graph has its definition under the older name.
    known = getattr(found, "cached_definition", None)
    definition.CopyFrom(found.definition if known is None else known)
    return definition


def _in_graph(name: str, graph: Any) -> Any:
    while graph is not None:
        found = graph._functions.get(name)
        if found is not None:
            return found
        graph = getattr(graph, "outer_graph", None)
    return None


def refuse_unsaveable(concrete: Any, described_as: str) -> None:
    """Refuses a trace that TensorFlow marked, one for a single replica for instance."""
    if not getattr(concrete.graph, "saveable", True):
        reasons = "; ".join(concrete.graph.saving_errors)
        raise UnsupportedError(f"Cannot export {described_as}: {reasons}")


def cached_captures(concrete: Any) -> dict[int, Any]:
    """Captures that are cached values of variables: position -> handle of the variable."""
    found = {}
    for index, capture in enumerate(concrete.captured_inputs):
        variable = getattr(capture, "_cached_variable", None)
        if variable is not None:
            found[index] = variable().handle
    return found


def _add_reading_function(
    library: FunctionLibrary, bound: BoundFunction, cached: dict[int, Any]
) -> str:
    """Adds a function that reads variables and calls one which captured their cached values."""
    inner = library.definitions[bound.name]
    definition = tfi.function_pb2.FunctionDef()
    definition.CopyFrom(inner)
    # The process's numbers stay at the end of the name, where they are replaced.
    stem = stem_of(bound.name)
    definition.signature.name = f"{stem}_uncached{bound.name.removeprefix(stem)}"
    del definition.node_def[:]
    definition.ret.clear()
    call = tfi.node_def_pb2.NodeDef(name="call", op="StatefulPartitionedCall")
    call.attr["f"].func.name = bound.name
    call.attr["Tin"].list.type.extend(x.type for x in inner.signature.input_arg)
    call.attr["Tout"].list.type.extend(x.type for x in inner.signature.output_arg)
    call.attr["Tin"].list.SetInParent()
    call.attr["Tout"].list.SetInParent()
    first = len(inner.signature.input_arg) - len(bound.bindings)
    for index, argument in enumerate(definition.signature.input_arg):
        if index - first in cached:
            read = definition.node_def.add(name=f"read_{index}", op="ReadVariableOp")
            read.input.append(argument.name)
            read.attr["dtype"].type = argument.type
            argument.type = tf.resource.as_datatype_enum
            definition.arg_attr.pop(index, None)
            call.input.append(f"{read.name}:value:0")
        else:
            call.input.append(argument.name)
    definition.node_def.append(call)
    for index, result in enumerate(inner.signature.output_arg):
        definition.ret[result.name] = f"call:output:{index}"
    _run_whatever_is_used(definition, "call")
    library.definitions[definition.signature.name] = definition
    name: str = definition.signature.name
    return name


def _run_whatever_is_used(definition: Any, node: str) -> None:
    del definition.signature.control_output[:]
    definition.control_ret.clear()
    definition.signature.is_stateful = True
    definition.signature.control_output.append(node)
    definition.control_ret[node] = node


def constant_of(tensor: Any, described_as: str) -> Constant:
    """The value of an eager tensor, or of a graph tensor that has one."""
    value = tensor.numpy() if hasattr(tensor, "numpy") else tf.get_static_value(tensor)
    if value is None:
        raise UnsupportedError(
            f"Cannot export {described_as}: it captures {tensor.name!r}, a tensor of a function "
            "that is being traced, which has no value. Pass it as an argument."
        )
    return Constant(np.asarray(value), tensor.dtype)


# What lives as long as its process: the C++ type that a handle tells, and what people call it.
_PASSING_RESOURCES = {
    "tensorflow::QueueInterface": "a queue",
    "tensorflow::data::IteratorResource": "an iterator over a dataset",
    "tensorflow::data::MultiDeviceIterator": "an iterator over a dataset",
    "tensorflow::SummaryWriterInterface": "a summary writer",
}


def untracked_message(capture: Any, concrete: Any, described_as: str, root: str) -> str:
    """Names the function, the resource and the assignment that would track it."""
    shown = _shown(capture)
    for kind, what in _PASSING_RESOURCES.items():
        if kind in shown:
            return (
                f"Cannot export {described_as}: it uses {what}, which a SavedModel cannot hold. "
                "Pass what it takes from there as an argument."
            )
    what, attribute = _describe_resource(capture, concrete)
    return (
        f"Cannot export {described_as}: it uses {what}, which {root} does not track, so the "
        f"artifact would lack it. Assign it to an attribute of {root} or of an object that {root} "
        f"holds, for instance `{root}.{attribute} = ...`, before exporting."
    )


def _shown(capture: Any) -> str:
    # One handle for the copies of several devices has no text.
    return "" if getattr(capture, "is_packed", False) else str(capture)


def _describe_resource(capture: Any, concrete: Any) -> tuple[str, str]:
    for variable in concrete.graph.variables:
        if variable.handle is capture:
            return _describe_variable(variable)
    parent = getattr(capture, "_parent_trackable", None)
    owner = parent() if parent is not None else None
    if tfi.is_resource_variable(owner):
        return _describe_variable(owner)
    if owner is not None:
        kind = type(owner).__name__
        name = getattr(owner, "name", None) or kind
        return f"the {kind} {name!r}", _identifier(kind.lower(), "table")
    return f"a resource ({capture.dtype.name} tensor)", "resource"


def _describe_variable(variable: Any) -> tuple[str, str]:
    name = variable.name.split(":")[0]
    described = f"the variable {name!r} (shape {variable.shape}, {variable.dtype.name})"
    return described, _identifier(name, "variable")


def _identifier(name: str, default: str) -> str:
    last = name.split("/")[-1]
    return last if last.isidentifier() else default


def constant_proto(constant: Constant) -> Any:
    """The TensorProto of a constant; equal elements are stored once.

    Source: tensorflow/core/framework/tensor.proto (a single element fills the shape).
    """
    array = constant.value
    if array.size > 1 and array.dtype.kind != "O" and _uniform(array):
        return tf.make_tensor_proto(array.flat[0], dtype=constant.dtype, shape=array.shape)
    return tf.make_tensor_proto(array, dtype=constant.dtype)


def _uniform(array: np.ndarray) -> bool:
    # By bytes: -0.0 equals 0.0 and NaN equals nothing, but both must come back as they were.
    rows = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, -1)
    return bool(np.all(rows == rows[0]))


def concrete_functions_of(node: Node) -> list[Any]:
    """The ConcreteFunctions of a function node."""
    if node.kind == "concrete_function":
        return [node.obj]
    return list(node.obj._list_all_concrete_functions_for_serialization())


def described(node: Node, root: str) -> str:
    """What error messages call a function."""
    return f"the function {path_text(node.path, root)}"
