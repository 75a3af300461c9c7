"""Moves ops with a custom gradient into functions of their own, one for all ops alike.

In: a function of the library that holds such an op, and the tensors that its gradient reads.
Out: the op becomes a call of a small function that holds it, with the ops that compute nothing but
its results, and takes what the gradient reads as arguments, so that one gradient function serves
every call. The invariant: a call computes what the op computed, and whatever its gradient read is
an argument of the function that now holds the op.

Without it each op needs a gradient function of its own, bound to tensors of the function around
it. A loader makes one graph for each, and can bind none inside of a branch or a loop.
"""

from __future__ import annotations

import dataclasses
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

# What may differ between ops that one function holds.
_FREE = frozenset({MARK, "_output_shapes"})


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
        body: the ops that only compute its results, each after those that it takes.
        body_nodes: their NodeDefs.
    """

    function: str
    node: Any
    op: Any
    captures: tuple[Any, ...]
    reads: tuple[str, ...]
    body: tuple[Any, ...] = ()
    body_nodes: tuple[Any, ...] = ()

    @functools.cached_property
    def inner(self) -> _Inner:
        """The nodes as the function that holds them has them."""
        return _Inner(self)


class Library:
    """What is asked again and again of the functions of a library while ops leave them.

    Args:
        library: the functions.
        read: tensors that gradients read, which must stay where they are.
    """

    def __init__(self, library: FunctionLibrary, read: Iterable[Any]) -> None:
        self.functions = library
        self._read = {_key(tensor) for tensor in read if hasattr(tensor, "op")}
        self._nodes: dict[str, dict[str, Any]] = {}

    def nodes(self, function: str) -> dict[str, Any]:
        """The NodeDefs of a function by name."""
        if function not in self._nodes:
            definition = self.functions.definitions[function]
            self._nodes[function] = {node.name: node for node in definition.node_def}
        return self._nodes[function]

    def place_of(self, function: str, node: Any, op: Any, captures: Sequence[Any]) -> Place | None:
        """Where an op stands; None if it must stay there."""
        if node.op != _MARKED_OP:
            return None
        definition = self.functions.definitions[function]
        reads = [_source(definition, op.graph, tensor) for tensor in captures]
        if None in reads:
            return None
        body = self._body(function, op)
        # An artifact that is saved again has been through this before.
        if function.startswith(_STEM) and len(body) + 1 == len(definition.node_def):
            return None
        read = tuple(x for x in reads if x is not None)
        body_nodes = tuple(self.nodes(function)[x.name] for x in body)
        return Place(function, node, op, tuple(captures), read, tuple(body), body_nodes)

    def _body(self, function: str, op: Any) -> list[Any]:
        """The ops between the arguments of `tf.custom_gradient` and its results."""
        nodes = self.nodes(function)
        returned = {_key(tensor) for tensor in op.graph.outputs}
        of_results: list[Any] = []
        of_arguments: list[Any] = []
        # It passes its arguments through, too, for the gradient to be told of them.
        for given, passed in zip(op.inputs, op.outputs, strict=True):
            is_result = passed.consumers() or _key(passed) in returned
            (of_results if is_result else of_arguments).append(given.op)
        taken = {x.name for x in of_arguments}
        inside = {op.name: op}

        def is_needed(tensor: Any) -> bool:
            if _key(tensor) in self._read or _key(tensor) in returned:
                return True
            # `tf.custom_gradient` leaves an Identity of each result behind.
            return any(
                user.name not in inside
                and not (user.type == "Identity" and not is_needed(user.outputs[0]))
                for user in tensor.consumers()
            )

        pending = of_results
        while pending:
            candidate = pending.pop()
            if (
                candidate.name in nodes
                and candidate.name not in taken
                and candidate.name not in inside
                and _may_move(candidate, nodes[candidate.name])
                and not any(is_needed(x) for x in candidate.outputs)
            ):
                inside[candidate.name] = candidate
                pending.extend(x.op for x in candidate.inputs)
        # Each was found after all that take its results.
        return list(inside.values())[:0:-1]

    @staticmethod
    def alike(places: Sequence[Place]) -> list[Place]:
        """The places as they are, or without bodies where these are not all alike."""
        first, *others = (place.inner.form() for place in places)
        if all(other == first for other in others):
            return list(places)
        return [dataclasses.replace(place, body=(), body_nodes=()) for place in places]

    def add_region(self, places: Sequence[Place], op_type: str) -> Region:
        """Adds the function that holds an op like those at `places`.

        Args:
            places: the ops that calls of the function replace; only their shapes differ.
            op_type: the gradient op type that the op in the function is marked with.
        """
        definition = tfi.function_pb2.FunctionDef()
        definition.signature.name = name = unused_name(self.functions, _STEM)
        inner = places[0].inner
        for index, (node, inputs) in enumerate(zip(inner.nodes, inner.inputs, strict=True)):
            moved = definition.node_def.add()
            moved.CopyFrom(node)
            moved.name = f"n{index}"
            moved.attr.pop("_output_shapes", None)
            del moved.input[:]
            moved.input.extend(inputs)
        definition.node_def[-1].attr[MARK].s = op_type.encode()
        arguments = [[*place.inner.tensors, *place.captures] for place in places]
        for index, tensors in enumerate(zip(*arguments, strict=True)):
            argument = definition.signature.input_arg.add()
            argument.name = f"x{index}"
            argument.type = tensors[0].dtype.as_datatype_enum
            set_shapes(definition.arg_attr[index].attr, [common_shape(x.shape for x in tensors)])
        for index, tensor in enumerate(places[0].op.outputs):
            result = definition.signature.output_arg.add()
            result.name = f"y{index}"
            result.type = tensor.dtype.as_datatype_enum
            definition.ret[result.name] = f"{definition.node_def[-1].name}:output:{index}"
        self.functions.definitions[name] = definition
        captures = range(len(inner.sources), len(arguments[0]))
        return Region(name, op_type, tuple(f"x{index}:0" for index in captures))

    def call_region(self, region: Region, place: Place) -> None:
        """Replaces an op by a call of the function that holds one like it.

        What has moved into the function stays behind as ops that nobody needs.
        """
        node, op = place.node, place.op
        signature = self.functions.definitions[region.name].signature
        sources = place.inner.sources
        order = [x for x in node.input if x[0] == "^"]
        node.op = "PartitionedCall"
        node.attr.clear()
        node.attr["f"].func.name = region.name
        node.attr["Tin"].list.type.extend(x.type for x in signature.input_arg)
        node.attr["Tout"].list.type.extend(x.type for x in signature.output_arg)
        set_shapes(node.attr, [x.shape for x in op.outputs])
        del node.input[:]
        node.input.extend([*sources, *place.reads, *order])


class _Inner:
    """The nodes of a place as those of a function.

    Attributes:
        nodes: the NodeDefs, the marked one last.
        inputs: what each takes there, the arguments being `x0`, `x1` and so on.
        sources: what stands for the arguments in the function around it.
        tensors: the same in its live graph.
    """

    def __init__(self, place: Place) -> None:
        self.nodes = [*place.body_nodes, place.node]
        self.inputs: list[list[str]] = []
        self.sources: list[str] = []
        self.tensors: list[Any] = []
        moved: dict[str, int] = {}
        for node, op in zip(self.nodes, [*place.body, place.op], strict=True):
            taken = []
            for source, tensor in zip(node.input, op.inputs, strict=False):  # then "^node"s
                name, colon, rest = source.partition(":")
                if name in moved:
                    taken.append(f"n{moved[name]}{colon}{rest}")
                    continue
                if source not in self.sources:
                    self.sources.append(source)
                    self.tensors.append(tensor)
                taken.append(f"x{self.sources.index(source)}")
            moved[node.name] = len(self.inputs)
            self.inputs.append(taken)

    def form(self) -> list[Any]:
        """Equal for places of which one function can hold the op and its body."""
        return [
            (
                node.op,
                node.device,
                inputs,
                {k: v.SerializeToString() for k, v in node.attr.items() if k not in _FREE},
            )
            for node, inputs in zip(self.nodes, self.inputs, strict=True)
        ]


def _key(tensor: Any) -> tuple[int, str]:
    return id(tensor.graph), tensor.name


def _may_move(op: Any, node: Any) -> bool:
    """Whether it is the same to compute an op in a function of its own."""
    op_def = tfi.op_def_of(op.type)
    return (
        op_def is not None
        and node.op == op.type  # else it is a call by now
        and MARK not in node.attr
        and not op_def.is_stateful
        and op.type != "Placeholder"
        and not op.control_inputs
        and not op._control_outputs
        and not any(attr.type in ("func", "list(func)") for attr in op_def.attr)
        and not any(x.dtype in _HANDLES for x in (*op.inputs, *op.outputs))
    )


def common_shape(shapes: Iterable[tf.TensorShape]) -> tf.TensorShape:
    """The most that is true of all shapes."""
    return functools.reduce(lambda a, b: a.most_specific_compatible_shape(b), shapes)


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
