"""Makes the functions of a library small and the same in every process.

In: a `FunctionLibrary` under the names of this process. Out: the same library, renamed, stripped
and pruned in place, with its FunctionDefs in order of first use. The invariant: what a function
computes and what it changes stays; names, attributes and nodes that no reader needs go.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable
from typing import Any

import tensorflow as tf

from keras_export import attributes, node_names
from keras_export import tf_internals as tfi
from keras_export.effects import READING_OPS
from keras_export.functions import (
    ARGUMENT_NAME,
    MARK,
    CapturedTensor,
    FunctionLibrary,
    called_by,
    callees,
    function_attributes,
    stem_of,
)
from keras_export.gradients import marks
from keras_export.outlining import set_shapes

# Attributes that start with `_` belong to no op. These say how a graph was built, and no reader of
# SavedModels was found to need them; every other one stays.
_DROPPED = frozenset(
    {
        "_class",
        "_collective_manager_ids",
        "_construction_context",
        "_has_manual_control_dependencies",
        "_output_shapes",
        "_read_only_resource_inputs",
        ARGUMENT_NAME,
    }
)

# What these return has the shape of a variable, which an argument of a function does not tell.
_READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd"})

# Attributes of calls that describe the process that traced them.
_DROPPED_FROM_CALLS = frozenset({"config_proto"})


def canonicalize(
    library: FunctionLibrary,
    roots: Iterable[str],
    main_nodes: Iterable[Any] = (),
    *,
    keep_names: bool = False,
    keep_given_names: bool = False,
    keep_read_shapes: bool = True,
    strip_debug_ops: bool = False,
) -> dict[str, str]:
    """Renames, strips, prunes and orders the library in place.

    Args:
        library: the functions with everything that they call.
        roots: names of the functions to start from, in the order that numbers them.
        main_nodes: NodeDefs outside the library that call its functions.
        keep_names: leave node names as they were traced, for debug information.
        keep_given_names: leave in the names of nodes the scopes that they were made in and what
            their authors called them, unless these may count what the process did. Converters name
            tensors after them, and of the ops of no Keras layer nothing else tells the place.
        keep_read_shapes: tell the shape of each variable where a function reads it. Who inlines the
            functions of a signature finds it in the main graph.
        strip_debug_ops: make checks and prints do nothing.

    Returns:
        The new name of each function.
    """
    main_nodes = list(main_nodes)
    called = [name for name in called_by(main_nodes) if name in library.definitions]
    order = _order_of_first_use(library, [*roots, *called])
    library.definitions = {name: library.definitions[name] for name in order}
    if strip_debug_ops:
        for definition in library.definitions.values():
            _strip_debug_ops(definition)
    readers = _reading_functions(library)
    needed = _captured_nodes(library)
    for name, definition in library.definitions.items():
        _keep_shapes(definition, library.graphs.get(name), _READS if keep_read_shapes else ())
        names = _argument_names(definition) if name in library.functions else {}
        _strip(definition)
        for index, given in names.items():
            definition.arg_attr[index].attr[ARGUMENT_NAME].s = given
        _prune(definition, name in readers, needed.get(name, frozenset()))
    if not keep_names:
        node_names.rename(library, keep_given_names)
    return _rename_functions(library, main_nodes)


# -- order ------------------------------------------------------------------------------------


def _order_of_first_use(library: FunctionLibrary, roots: Iterable[str]) -> list[str]:
    """Depth first from the roots; gradients follow the function whose ops they belong to."""
    order: dict[str, None] = {}
    pending = list(roots)[::-1]
    while pending:
        name = pending.pop()
        if name in order:
            continue
        order[name] = None
        definition = library.definitions[name]
        below = [callee for callee in callees(definition) if callee in library.definitions]
        below += _gradients_of(library, definition)
        pending.extend(below[::-1])
    return list(order)


def _gradients_of(library: FunctionLibrary, definition: Any) -> list[str]:
    types = (op_type for _, op_type in marks(definition))
    return [library.gradients[op_type] for op_type in types if op_type in library.gradients]


# -- attributes -------------------------------------------------------------------------------


def _argument_names(definition: Any) -> dict[int, bytes]:
    """The names that users gave to arguments; tools that list a function's arguments show them."""
    return {
        index: attributes.attr[ARGUMENT_NAME].s
        for index, attributes in definition.arg_attr.items()
        if ARGUMENT_NAME in attributes.attr
        and definition.signature.input_arg[index].type != tf.resource.as_datatype_enum
    }


def _strip(definition: Any) -> None:
    _move_input_shapes(definition)
    definition.attr.pop("_construction_context", None)
    returned = {source.partition(":")[0] for source in definition.ret.values()}
    for node in definition.node_def:
        calls = bool(function_attributes(node.op))
        kept = calls or node.op in _READS
        attr = node.attr
        for name in list(attr):
            if name[0] == "_":
                if name in _DROPPED and not (
                    name == "_output_shapes" and (kept or node.name in returned)
                ):
                    del attr[name]
            elif calls and name in _DROPPED_FROM_CALLS:
                del attr[name]
        if node.HasField("experimental_debug_info"):
            node.ClearField("experimental_debug_info")
    attributes.strip_nodes(definition.node_def, Counter())


def _keep_shapes(definition: Any, graph: Any, reads: Container[str]) -> None:
    """Notes the shapes that a reader cannot infer: of what calls return, and variables hold."""
    if graph is None or not hasattr(graph, "outputs"):
        return
    _copy_handle_data(definition, graph)
    for node in definition.node_def:
        calls = function_attributes(node.op)
        if (calls or node.op in reads) and "_output_shapes" not in node.attr:
            op = _operation(graph, node.name)
            # A call that was rewritten for gradients has more results than the node declares.
            count = len(node.attr["Tout"].list.type) if calls and "Tout" in node.attr else None
            if op is not None:
                set_shapes(node.attr, [x.shape for x in op.outputs][:count])


def _copy_handle_data(definition: Any, graph: Any) -> None:
    """What a returned resource holds; arguments learn it from what they are bound to."""
    for tensor, result in zip(graph.outputs, definition.signature.output_arg, strict=False):
        if result.type == tf.resource.as_datatype_enum:
            for item in tfi.get_resource_handle_data(tensor).shape_and_type:
                result.handle_data.add(dtype=item.dtype).shape.CopyFrom(item.shape)


def _operation(graph: Any, name: str) -> Any:
    try:
        return graph.get_operation_by_name(name)
    except KeyError:
        return None


def _move_input_shapes(definition: Any) -> None:
    """Argument shapes as one attribute of the function: all readers take them from there."""
    if "_input_shapes" not in definition.attr:
        shapes = tfi.attr_value_pb2.AttrValue()
        for index in range(len(definition.signature.input_arg)):
            shape = shapes.list.shape.add()
            known = definition.arg_attr[index].attr if index in definition.arg_attr else {}
            if "_output_shapes" in known and known["_output_shapes"].list.shape:
                shape.CopyFrom(known["_output_shapes"].list.shape[0])
            else:
                shape.unknown_rank = True
        definition.attr["_input_shapes"].CopyFrom(shapes)
    definition.arg_attr.clear()


def _strip_debug_ops(definition: Any) -> None:
    """What only checks or prints becomes a node that passes its input on, or nothing."""
    for node in definition.node_def:
        if node.op in ("Assert", "PrintV2"):
            node.op = "NoOp"
            _keep_attributes(node, ())
            _order_after(node, 0)
        elif node.op in ("CheckNumerics", "CheckNumericsV2", "Print"):
            node.op = "Identity"
            _keep_attributes(node, ("T",))
            _order_after(node, 1)


def _keep_attributes(node: Any, names: Iterable[str]) -> None:
    for name in list(node.attr):
        if name[0] != "_" and name not in names:
            del node.attr[name]


def _order_after(node: Any, first: int) -> None:
    """Inputs from `first` on only order the node; each once."""
    inputs = list(node.input)
    after = ["^" + x.lstrip("^").partition(":")[0] for x in inputs[first:]]
    del node.input[:]
    node.input.extend([*inputs[:first], *dict.fromkeys(after)])


# -- pruning ----------------------------------------------------------------------------------


def _reading_functions(library: FunctionLibrary) -> set[str]:
    """Functions that change nothing, neither themselves nor through what they call."""
    readers = {name for name, definition in library.definitions.items() if _only_reads(definition)}
    changed = True
    while changed:
        changed = False
        for name in list(readers):
            below = callees(library.definitions[name])
            if any(callee in library.definitions and callee not in readers for callee in below):
                readers.discard(name)
                changed = True
    return readers


def _only_reads(definition: Any) -> bool:
    return all(
        node.op in READING_OPS or not _is_stateful(node.op) or function_attributes(node.op)
        for node in definition.node_def
    )


_STATEFUL: dict[str, bool] = {}


def _is_stateful(op_type: str) -> bool:
    known = _STATEFUL.get(op_type)
    if known is None:
        op_def = tfi.op_def_of(op_type)
        known = _STATEFUL[op_type] = op_def is not None and op_def.is_stateful
    return known


def _captured_nodes(library: FunctionLibrary) -> dict[str, set[str]]:
    """The nodes that gradient functions read, by the function that holds them."""
    needed: dict[str, set[str]] = {}
    for bound in library.functions.values():
        for binding in bound.bindings:
            if isinstance(binding, CapturedTensor):
                needed.setdefault(binding.function, set()).add(binding.tensor.partition(":")[0])
    return needed


def _prune(definition: Any, reads_only: bool, needed: Iterable[str]) -> None:
    if reads_only:
        _drop_read_order(definition)
    effects = [] if reads_only else list(definition.control_ret.values())
    inputs = {
        node.name: [x.lstrip("^").partition(":")[0] for x in node.input]
        for node in definition.node_def
    }
    pending = [source.partition(":")[0] for source in definition.ret.values()]
    pending += effects
    pending += needed
    reached: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in reached and name in inputs:
            reached.add(name)
            pending.extend(inputs[name])
    for index in reversed(range(len(definition.node_def))):
        if definition.node_def[index].name not in reached:
            del definition.node_def[index]
    for output in list(definition.signature.control_output):
        if definition.control_ret[output] not in reached:
            definition.signature.control_output.remove(output)
            del definition.control_ret[output]


def _drop_read_order(definition: Any) -> None:
    """Where nothing is written, the order of reads has no effect.

    But Grappler inlines a function only if every other stateful op leads to a control output.
    Source: ValidateSideEffectsExecution in tensorflow/core/grappler's function_optimizer.cc
    """
    stateful = {
        node.name
        for node in definition.node_def
        if node.op != "ReadVariableOp" and _is_stateful(node.op)
    }
    declared = definition.signature.control_output
    outputs = [x for x in declared if definition.control_ret[x] in stateful]
    dropped = [x for x in definition.control_ret if x not in outputs]
    del definition.signature.control_output[:]
    definition.signature.control_output.extend(outputs)
    for output in dropped:
        del definition.control_ret[output]
    orderless = {node.name for node in definition.node_def if node.op in READING_OPS}
    for node in definition.node_def:
        if any(x[0] == "^" for x in node.input):
            kept = [x for x in node.input if x[0] != "^" or x[1:] not in orderless]
            del node.input[:]
            node.input.extend(kept)
        if node.op == "NoOp" and not node.input:
            orderless.add(node.name)


# -- names ------------------------------------------------------------------------------------


def _rename_functions(library: FunctionLibrary, main_nodes: Iterable[Any]) -> dict[str, str]:
    names = _function_names(library.definitions)
    gradients = _gradient_names(library)
    for definition in library.definitions.values():
        definition.signature.name = names[definition.signature.name]
        for node in definition.node_def:
            _rename_references(node, names, gradients)
    for node in main_nodes:
        _rename_references(node, names, gradients)
    _rename_bound(library, names)
    library.definitions = {names[name]: value for name, value in library.definitions.items()}
    library.gradients = {
        gradients[op_type]: names[name]
        for op_type, name in library.gradients.items()
        if name in names and op_type in gradients
    }
    return names


# What TensorFlow makes of a branch or a loop for its gradient is called after it, counter and all.
_COUNTED = re.compile(r"_\d+(?=_(grad|rewritten)(_|$))")


def _function_names(definitions: Iterable[str]) -> dict[str, str]:
    """Numbered by order of first use.

    `CreateFingerprintDef` sorts functions by the number that their name ends in: it must be there,
    and be another for each.
    """
    return {
        name: f"{stem_of(_COUNTED.sub('', name))}_{number}"
        for number, name in enumerate(definitions)
    }


def _gradient_names(library: FunctionLibrary) -> dict[str, str]:
    """New gradient op types; one without a function gets a name that no process registers."""
    names: dict[str, str] = {}
    for definition in library.definitions.values():
        for _, op_type in marks(definition):
            kind = "CustomGradient" if op_type in library.gradients else "UnsavedGradient"
            names.setdefault(op_type, f"{kind}-{len(names)}")
    return names


def _rename_references(node: Any, names: dict[str, str], gradients: dict[str, str]) -> None:
    if node.op in names:
        node.op = names[node.op]
    for attr_name in function_attributes(node.op):
        if attr_name not in node.attr:
            continue
        value = node.attr[attr_name]
        if value.func.name in names:
            value.func.name = names[value.func.name]
        for function in value.list.func:
            function.name = names.get(function.name, function.name)
    if MARK in node.attr:
        op_type = node.attr[MARK].s.decode()
        if op_type in gradients:
            node.attr[MARK].s = gradients[op_type].encode()
        else:
            del node.attr[MARK]


def _rename_bound(library: FunctionLibrary, names: dict[str, str]) -> None:
    for bound in library.functions.values():
        bound.name = names[bound.name]
        for binding in bound.bindings:
            if isinstance(binding, CapturedTensor) and binding.function in names:
                binding.function = names[binding.function]
    library.functions = {bound.name: bound for bound in library.functions.values()}
