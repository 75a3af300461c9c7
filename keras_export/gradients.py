"""Custom gradients: one function of the artifact for each op that has a gradient of its own.

In: a `FunctionLibrary` whose FunctionDefs mark ops with `_gradient_op_type`. Out: the same
library with a traced gradient function for each mark, bound to the tensors of the forward
function that it reads. The invariant: every mark that leaves this module names a registered
gradient of this artifact, or one that no process has.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_export import closures, outlining, structures, wrappers
from keras_export import tf_internals as tfi
from keras_export.errors import GradientError
from keras_export.functions import (
    MARK,
    Binding,
    BoundFunction,
    CapturedTensor,
    FunctionCollector,
    FunctionLibrary,
    function_name,
)

# Gradients of gradients: second-order differentiation is the deepest that TensorFlow documents.
_MAX_ORDER = 2

# A call's gradient is made again by the loader from the function that it calls.
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})

_NUMBERS = itertools.count()


@dataclass(eq=False)
class _Group:
    """Ops whose gradients are one computation on other tensors.

    Attributes:
        traced: the gradient function of the first of them.
        reads: for each capture, its position among the tensors that the gradient closes over;
            None where the gradient cannot be shared.
        members: the ops.
        arguments: specs of what the gradient takes, captures last, that hold for all members.
        results: a spec, or None, for each result.
        joined: whether members differ in shapes.
    """

    traced: Any
    reads: list[int] | None
    members: list[_Member]
    arguments: list[tf.TensorSpec]
    results: list[tf.TensorSpec | None]
    joined: bool = False

    @property
    def shared(self) -> bool:
        """Whether the gradient stands for several ops."""
        return self.reads is not None and len(self.members) > 1

    def join(self, other: _Group) -> None:
        """Takes in the members of a group with other shapes."""
        self.members.extend(other.members)
        self.arguments = [*map(_common_spec, self.arguments, other.arguments)]
        self.results = [*map(_common_spec, self.results, other.results)]
        self.joined = True

    def captures_of(self, member: _Member) -> list[Any]:
        """The tensors that the gradient of a member reads."""
        if self.reads is None:
            return list(self.traced.graph.external_captures)
        return [member.tensors[position] for position in self.reads]


@dataclass(eq=False)
class _Member:
    """An op with a custom gradient.

    Attributes:
        op_type: its gradient op type.
        function: the function that holds it.
        node: its NodeDef there.
        op: it in the live graph of the function.
        tensors: those that its gradient closes over.
        computation: equal for ops whose gradients have the same code; None if it is unknown.
    """

    op_type: str
    function: str
    node: Any
    op: Any
    tensors: list[Any]
    computation: Any


def add_gradients(collector: FunctionCollector) -> None:
    """Traces the gradient functions of all marked ops of the library.

    Gradients that differ only in the tensors they read are traced once and share one body.

    Raises:
        GradientError: a gradient cannot be traced or reads what the artifact cannot hold.
    """
    library = collector.library
    names = list(library.definitions)
    for order in range(_MAX_ORDER):
        known = set(library.definitions)
        groups: dict[Any, _Group] = {}
        seen: set[str] = set()
        for name in names:
            for node, op_type in marks(library.definitions[name]):
                if op_type not in library.gradients and op_type not in seen:
                    seen.add(op_type)
                    _group(collector, groups, name, node, op_type, required=order == 0)
        merged = _merged(library, groups)
        read = [
            x for group in merged for member in group.members for x in group.captures_of(member)
        ]
        outlined = outlining.Library(library, read)
        for group in merged:
            _add_group(collector, group, outlined)
        names = [name for name in library.definitions if name not in known]


def marks(definition: Any) -> Iterator[tuple[Any, str]]:
    """`(NodeDef, gradient op type)` of the nodes with a custom gradient."""
    for node in definition.node_def:
        if MARK in node.attr and node.op not in _CALLS:
            yield node, node.attr[MARK].s.decode()


def _group(
    collector: FunctionCollector,
    groups: dict[Any, _Group],
    function: str,
    node: Any,
    op_type: str,
    *,
    required: bool,
) -> None:
    try:
        gradient = tfi.gradient_registry.lookup(op_type)
    except LookupError:
        return
    graph = collector.library.graphs.get(function)
    if graph is None:
        raise GradientError(
            f"Cannot export the custom gradient of {node.name!r} in {function!r}: the function has "
            "no graph in this process. Export with experimental_custom_gradients=False."
        )
    op = graph.get_operation_by_name(node.name)
    described = closures.describe(gradient, op)
    tensors = described.tensors
    key = op_type if described.key is None else (described.key, described.shapes)
    if key not in groups:
        try:
            traced = _trace(gradient, op, function)
        except GradientError:
            if required:
                raise
            return  # a gradient without a derivative of its own, as of `tf.recompute_grad`
        reads = closures.positions(traced.graph.external_captures, tensors)
        # One that reads something else as well cannot stand for others.
        key = key if reads is not None else op_type
        collector.add_definitions(traced)
        groups[key] = _Group(traced, reads, [], *_specs(traced.graph))
    groups[key].members.append(_Member(op_type, function, node, op, tensors, described.key))


def _merged(library: FunctionLibrary, groups: Mapping[Any, _Group]) -> list[_Group]:
    """Joins the groups whose gradients do the same for tensors of other shapes."""
    merged: dict[Any, _Group] = {}
    for key, group in groups.items():
        if group.reads is not None and group.members[0].computation is not None:
            definition = library.definitions[function_name(group.traced)]
            upstream = len(group.members[0].op.outputs)
            alike = closures.without_shapes(definition, upstream)
            if alike is not None:
                key = (group.members[0].computation, tuple(group.reads), alike)
        if key in merged:
            merged[key].join(group)
            del library.definitions[function_name(group.traced)]
        else:
            merged[key] = group
    return list(merged.values())


def _add_group(collector: FunctionCollector, group: _Group, outlined: outlining.Library) -> None:
    if group.joined:
        _relax(collector.library.definitions[function_name(group.traced)], group.arguments)
    for member in _outline(collector, group, outlined):
        bound = _bound(collector, group, group.captures_of(member), member)
        if group.shared:
            _register_wrapper(collector, member, bound)
        else:
            _register(collector, member.op_type, bound)


def _outline(
    collector: FunctionCollector, group: _Group, outlined: outlining.Library
) -> list[_Member]:
    """Lets one function hold the op of each member that allows it; returns the others."""
    graph = group.traced.graph
    # A value that Python holds, or a variable, is bound to the gradient whoever calls it.
    passed = [
        index
        for index, capture in enumerate(graph.external_captures)
        if not hasattr(_outermost(collector, capture), "numpy")
    ]
    if group.shared and len(passed) < len(graph.external_captures):
        return group.members
    places: list[outlining.Place] = []
    remaining = []
    for member in group.members:
        captures = group.captures_of(member)
        read = [captures[index] for index in passed]
        place = outlined.place_of(member.function, member.node, member.op, read)
        if place is None:
            remaining.append(member)
        else:
            places.append(place)
    if not places:
        return remaining
    first = group.members[0]
    places = outlined.alike(places)
    region = outlined.add_region(places, f"{first.op_type}-outlined")
    captures = group.captures_of(first)
    for index, name in zip(passed, region.captures, strict=True):
        captures[index] = graph.internal_captures[index]
        collector.bind(captures[index], CapturedTensor(region.name, name))
    _register(collector, region.op_type, _bound(collector, group, captures, first))
    for place in places:
        outlined.call_region(region, place)
    return remaining


def _register(collector: FunctionCollector, op_type: str, bound: BoundFunction) -> None:
    collector.library.functions[bound.name] = bound
    collector.library.gradients[op_type] = bound.name


def _register_wrapper(collector: FunctionCollector, member: _Member, inner: BoundFunction) -> None:
    (specs, _), results = inner.input_signature, inner.output_signature
    outputs = [x for x in results if x is not None]
    wrapper = wrappers.wrap(
        collector.library,
        inner,
        "__inference_gradient_of",
        range(len(specs)),
        range(len(outputs)),
        (specs, {}),
        results,
    )
    collector.library.gradients[member.op_type] = wrapper.name


def _specs(graph: Any) -> tuple[list[tf.TensorSpec], list[tf.TensorSpec | None]]:
    arguments = [tf.TensorSpec(x.shape, x.dtype) for x in graph.inputs]
    return arguments, structures.to_specs(graph.structured_outputs)


def _common_spec(one: tf.TensorSpec | None, other: tf.TensorSpec | None) -> tf.TensorSpec | None:
    if one is None or other is None:
        return None
    return tf.TensorSpec(outlining.common_shape([one.shape, other.shape]), one.dtype)


def _relax(definition: Any, arguments: Sequence[tf.TensorSpec]) -> None:
    """Leaves only the shapes that hold for all."""
    for index, spec in enumerate(arguments):
        outlining.set_shapes(definition.arg_attr[index].attr, [spec.shape])
    for node in definition.node_def:
        node.attr.pop("_output_shapes", None)


def _trace(gradient: Any, op: Any, function: str) -> Any:
    """Traces the gradient of one op inside the graph of the op, so that it captures from there."""
    with op.graph.as_default():
        graph = tfi.FuncGraph("gradient")
        with graph.as_default(), tf.device(None):
            arguments = [_placeholder(output, index) for index, output in enumerate(op.outputs)]
            try:
                results = gradient(op, *arguments)
            except Exception as error:
                raise GradientError(
                    f"Cannot export the custom gradient of {op.name!r} in {function!r}: tracing it "
                    f"failed with {type(error).__name__}: {error}. Mend the gradient, or export "
                    "with experimental_custom_gradients=False."
                ) from error
            results = list(results) if isinstance(results, (list, tuple)) else [results]
            graph.structured_outputs = [
                None if x is None else graph.capture(tf.convert_to_tensor(x)) for x in results
            ]
    graph.inputs = [*arguments, *graph.internal_captures]
    graph.outputs = [x for x in graph.structured_outputs if x is not None]
    return tfi.atomic_function_from_graph(_new_name(), graph, {})


def _new_name() -> str:
    for number in _NUMBERS:
        name = f"__inference_gradient_{number}"
        if not tfi.eager_context().has_function(name):
            return name
    raise AssertionError("an endless counter ended")


def _placeholder(output: Any, index: int) -> Any:
    placeholder = tf.compat.v1.placeholder(output.dtype, output.shape, name=f"grad_{index}")
    tfi.copy_handle_data(output, placeholder)
    return placeholder


def _bound(
    collector: FunctionCollector, group: _Group, captures: Sequence[Any], member: _Member
) -> BoundFunction:
    """The traced gradient, reading `captures`."""
    described = f"the custom gradient in {member.function!r}"
    traced = group.traced
    bindings: list[Binding] = []
    for capture in captures:
        resolved = _outermost(collector, capture)
        if isinstance(resolved, tf.Tensor) and not hasattr(resolved, "numpy"):
            bindings.append(_captured(collector, resolved, member.function))
        else:
            bindings.append(collector.resolve(resolved, traced, described))
    specs = tuple(group.arguments[: len(group.arguments) - len(bindings)])
    return BoundFunction(function_name(traced), bindings, (specs, {}), group.results, traced)


def _outermost(collector: FunctionCollector, tensor: Any) -> Any:
    """What a tensor of a graph is a capture of, as far out as it goes and is not known."""
    while hasattr(tensor, "graph") and not hasattr(tensor, "numpy"):
        if collector.binding_of(tensor) is not None:
            return tensor
        graph = tensor.graph
        outer = _captured_from(graph, tensor)
        if outer is None:
            return tensor
        tensor = outer
    return tensor


def _captured_from(graph: Any, tensor: Any) -> Any:
    if not _is_argument(tensor):
        return None
    for external, internal in getattr(graph, "captures", ()):
        if internal is tensor:
            return external
    return None


def _captured(collector: FunctionCollector, tensor: Any, function: str) -> Binding:
    known = collector.binding_of(tensor)
    if known is not None:
        return known
    owner = _owner(collector, tensor.graph)
    if owner is None:
        raise GradientError(
            f"Cannot export a custom gradient in {function!r}: it reads {tensor.name!r}, which is "
            "no tensor of an exported function. Export with experimental_custom_gradients=False."
        )
    captured = CapturedTensor(owner, _tensor_name(collector, tensor, owner))
    collector.bind(tensor, captured)
    return captured


def _owner(collector: FunctionCollector, graph: Any) -> str | None:
    for name, known in collector.library.graphs.items():
        if known is graph and name in collector.library.definitions:
            return name
    return None


def _tensor_name(collector: FunctionCollector, tensor: Any, owner: str) -> str:
    """The tensor's name once the loader has made a graph of the FunctionDef.

    Arguments get the names that the FunctionDef gives them; nodes keep theirs.
    """
    if _is_argument(tensor):
        for index, argument in enumerate(tensor.graph.inputs):
            if argument is tensor:
                definition = collector.library.definitions[owner]
                return f"{definition.signature.input_arg[index].name}:0"
    return tensor.name


def _is_argument(tensor: Any) -> bool:
    """Whether it can be an input of its graph: most tensors are not, and looking takes long."""
    kind: str = tensor.op.type
    return kind == "Placeholder"
