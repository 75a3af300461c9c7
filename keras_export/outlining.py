"""Moves ops with a custom gradient into functions of their own, one for all ops alike.

In: a function of the library that holds such an op, and the tensors that its gradient reads.
Out: the op becomes a call of a small function that holds it and takes what the gradient reads as
arguments, so that one gradient function serves every call. The invariant: a call computes what the
op computed, and whatever its gradient read is an argument of the function that now holds the op.

Without it each op needs a gradient function of its own, bound to tensors of the function around
it. A loader makes one graph for each, and can bind none inside of a branch or a loop.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_export import tf_internals as tfi
from keras_export.functions import MARK, FunctionLibrary
from keras_export.wrappers import unused_name

# What `tf.custom_gradient` marks. Its results have the same names as those of a call.
_MARKED_OP = "IdentityN"

_STEM = "__inference_with_gradient"

# A graph that a function takes apart cannot pass these on without what it knows of them.
_HANDLES = (tf.resource, tf.variant)


@dataclass(frozen=True)
class Region:
    """A function that holds one op with a custom gradient.

    Attributes:
        name: of the function.
        op_type: the gradient op type of the op.
        captures: names of the arguments that the gradient reads, as tensors of a graph.
    """

    name: str
    op_type: str
    captures: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """An op with a custom gradient, where it stands.

    Attributes:
        function: name of the function that holds it.
        node: its NodeDef there.
        op: it in the live graph of the function.
        captures: the tensors that its gradient reads.
        reads: the same as inputs of nodes of the function.
    """

    function: str
    node: Any
    op: Any
    captures: tuple[Any, ...]
    reads: tuple[str, ...]


def place_of(
    library: FunctionLibrary, function: str, node: Any, op: Any, captures: Sequence[Any]
) -> Place | None:
    """Where an op stands; None if it must stay there."""
    definition = library.definitions[function]
    # An artifact that is saved again has been through this before.
    if node.op != _MARKED_OP or len(definition.node_def) == 1:
        return None
    reads = [_source(definition, op.graph, tensor) for tensor in captures]
    if None in reads:
        return None
    return Place(function, node, op, tuple(captures), tuple(x for x in reads if x is not None))


def add_region(library: FunctionLibrary, places: Sequence[Place], op_type: str) -> Region:
    """Adds the function that holds an op like those at `places`.

    Args:
        library: gets the function.
        places: the ops that calls of the function replace; only their shapes differ.
        op_type: the gradient op type that the op in the function is marked with.
    """
    definition = tfi.function_pb2.FunctionDef()
    definition.signature.name = name = unused_name(library, _STEM)
    inner = definition.node_def.add()
    inner.CopyFrom(places[0].node)
    inner.attr.pop("_output_shapes", None)
    inner.attr[MARK].s = op_type.encode()
    del inner.input[:]
    first = len(places[0].op.inputs)
    arguments = [[*place.op.inputs, *place.captures] for place in places]
    for index, tensors in enumerate(zip(*arguments, strict=True)):
        argument = definition.signature.input_arg.add()
        argument.name = f"x{index}"
        argument.type = tensors[0].dtype.as_datatype_enum
        set_shapes(definition.arg_attr[index].attr, [common_shape(x.shape for x in tensors)])
        if index < first:
            inner.input.append(argument.name)
    for index, tensor in enumerate(places[0].op.outputs):
        result = definition.signature.output_arg.add()
        result.name = f"y{index}"
        result.type = tensor.dtype.as_datatype_enum
        definition.ret[result.name] = f"{inner.name}:output:{index}"
    library.definitions[name] = definition
    captures = range(first, len(arguments[0]))
    return Region(name, op_type, tuple(f"x{index}:0" for index in captures))


def common_shape(shapes: Iterable[tf.TensorShape]) -> tf.TensorShape:
    """The most that is true of all shapes."""
    return functools.reduce(lambda a, b: a.most_specific_compatible_shape(b), shapes)


def call_region(library: FunctionLibrary, region: Region, place: Place) -> None:
    """Replaces an op by a call of the function that holds one like it."""
    node, op = place.node, place.op
    signature = library.definitions[region.name].signature
    sources = [x for x in node.input if x[0] != "^"]
    order = [x for x in node.input if x[0] == "^"]
    node.op = "PartitionedCall"
    node.attr.clear()
    node.attr["f"].func.name = region.name
    node.attr["Tin"].list.type.extend(x.type for x in signature.input_arg)
    node.attr["Tout"].list.type.extend(x.type for x in signature.output_arg)
    set_shapes(node.attr, [x.shape for x in op.outputs])
    del node.input[:]
    node.input.extend([*sources, *place.reads, *order])


def _source(definition: Any, graph: Any, tensor: Any) -> str | None:
    """A tensor of a graph as a node of the graph's FunctionDef takes it; None if none can."""
    if getattr(tensor, "graph", None) is not graph:
        tensor = next((inner for outer, inner in graph.captures if outer is tensor), None)
        if tensor is None:
            return None
    if tensor.dtype in _HANDLES:
        return None
    if tensor.op.type == "Placeholder":
        for argument, given in zip(definition.signature.input_arg, graph.inputs, strict=False):
            if given is tensor:
                name: str = argument.name
                return name
        return None
    return _result_name(tensor)


def _result_name(tensor: Any) -> str | None:
    """The result of a node as FunctionDefs write it, `node:result:index`.

    Source: tensorflow/core/framework/function.proto, `FunctionDef.node_def`.
    """
    op = tensor.op
    op_def = tfi.op_def_of(op.type)
    if op_def is None:
        return None
    first = 0
    for result in op_def.output_arg:
        count = 1
        if result.number_attr:
            count = op.get_attr(result.number_attr)
        elif result.type_list_attr:
            count = len(op.get_attr(result.type_list_attr))
        if tensor.value_index < first + count:
            return f"{op.name}:{result.name}:{tensor.value_index - first}"
        first += count
    return None


def set_shapes(attr: Any, shapes: Iterable[tf.TensorShape]) -> None:
    """Says in the attributes of a node or an argument what its shapes are."""
    attr.pop("_output_shapes", None)
    target = attr["_output_shapes"].list
    target.SetInParent()
    for shape in shapes:
        target.shape.add().CopyFrom(shape.as_proto())
