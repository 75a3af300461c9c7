"""Functions of one call: another name, order or structure around a function of the library.

In: a function of the library and which of its arguments and results are meant. Out: a new
function in the same library that only calls it. The invariant: a wrapper adds no work to a call
but the call itself, and is never traced.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_export import tf_internals as tfi
from keras_export.functions import ARGUMENT_NAME, BoundFunction, FunctionLibrary
from keras_export.signatures import SignatureFunction


def wrap(
    library: FunctionLibrary,
    inner: BoundFunction,
    name: str,
    arguments: Sequence[int],
    results: Sequence[int],
    input_signature: Any,
    output_signature: Any,
) -> BoundFunction:
    """Adds a function that calls `inner`.

    Args:
        library: holds `inner`, gets the wrapper.
        inner: the function to call.
        name: base of the wrapper's name.
        arguments: for each argument of `inner`, its position among the wrapper's arguments.
        results: for each result of the wrapper, its position among those of `inner`.
        input_signature: `(args, kwargs)` of the wrapper.
        output_signature: nested specs of the wrapper's results.

    Returns:
        The wrapper, bound to what `inner` is bound to.
    """
    callee = library.definitions[inner.name]
    definition = tfi.function_pb2.FunctionDef()
    definition.signature.name = unused_name(library, name)
    definition.signature.is_stateful = callee.signature.is_stateful
    outer_names = _copy_arguments(definition, callee, arguments)
    call = _add_call(definition, callee, inner, outer_names)
    for index, position in enumerate(results):
        result = definition.signature.output_arg.add()
        result.CopyFrom(callee.signature.output_arg[position])
        result.name = f"output{index}"
        definition.ret[result.name] = f"{call}:output:{position}"
    _copy_attributes(definition, callee)
    if callee.signature.is_stateful:
        definition.signature.control_output.append(call)
        definition.control_ret[call] = call
    wrapper = BoundFunction(
        definition.signature.name, list(inner.bindings), input_signature, output_signature
    )
    library.definitions[wrapper.name] = definition
    library.functions[wrapper.name] = wrapper
    return wrapper


def wrap_signature(
    library: FunctionLibrary, inner: BoundFunction, signature: SignatureFunction
) -> BoundFunction:
    """Wraps a function so that it takes its named inputs and returns its named outputs."""
    order = sorted(range(len(signature.inputs)), key=lambda i: keyword(signature.inputs[i].name))
    rank = {signature.inputs[i].position: rank for rank, i in enumerate(order)}
    results = [position for output in signature.outputs for position in output.positions]
    wrapper = wrap(
        library,
        inner,
        "__inference_signature_wrapper",
        [rank[position] for position in range(len(rank))],
        results,
        *named_structures(signature),
    )
    arguments = library.definitions[wrapper.name].arg_attr
    for position, i in enumerate(order):
        arguments[position].attr[ARGUMENT_NAME].s = signature.inputs[i].name.encode()
    return wrapper


def named_structures(signature: SignatureFunction) -> tuple[Any, Any]:
    """The canonical input and output structures of a function that is called by names."""
    inputs = {keyword(x.name): x.spec for x in signature.inputs}
    return ((), inputs), {x.name: _named(x.spec, x.name) for x in signature.outputs}


def identifier(key: str) -> str:
    """A key as a part of a function's name."""
    return re.sub(r"\W", "_", key)


def keyword(name: str) -> str:
    """The keyword argument that TensorFlow gives an input name: an identifier."""
    return tfi.sanitize_arg_name(name)


def _named(spec: Any, name: str) -> Any:
    return tf.TensorSpec(spec.shape, spec.dtype, name) if isinstance(spec, tf.TensorSpec) else spec


def unused_name(library: FunctionLibrary, base: str) -> str:
    """The first name on `base` that no function of the library has."""
    number = 0
    while f"{base}_{number}" in library.definitions:
        number += 1
    return f"{base}_{number}"


def _copy_arguments(definition: Any, callee: Any, arguments: Sequence[int]) -> list[str]:
    """Declares the arguments; returns the outer name of each argument of `callee`."""
    count = len(callee.signature.input_arg)
    outer = [*arguments, *range(len(arguments), count)]
    inner_of = {position: index for index, position in enumerate(outer)}
    for position in range(count):
        argument = definition.signature.input_arg.add()
        argument.CopyFrom(callee.signature.input_arg[inner_of[position]])
        argument.name = f"input{position}"
        if inner_of[position] in callee.arg_attr:
            definition.arg_attr[position].CopyFrom(callee.arg_attr[inner_of[position]])
    return [f"input{position}" for position in outer]


def _copy_attributes(definition: Any, callee: Any) -> None:
    """What its author said of a function holds for its wrapper, but for what names its body."""
    for name, value in callee.attr.items():
        if name[0] != "_" and not name.endswith(("implements", "function_name")):
            definition.attr[name].CopyFrom(value)


def _add_call(definition: Any, callee: Any, inner: BoundFunction, inputs: list[str]) -> str:
    node = definition.node_def.add(name=call_op(callee), op=call_op(callee))
    node.input.extend(inputs)
    fill_call(node, callee, inner)
    return node.name


_MUST_COMPILE = "_XlaMustCompile"


def call_op(callee: Any) -> str:
    """The op that calls a function."""
    return "StatefulPartitionedCall" if callee.signature.is_stateful else "PartitionedCall"


def fill_call(node: Any, callee: Any, inner: BoundFunction) -> None:
    """Fills the attributes of a call, with the shapes of its results where they are known."""
    node.attr["f"].func.name = inner.name
    # A session inlines the function, and nothing compiles it, unless the call says so, too.
    # Source: tensorflow/core/common_runtime/lower_functional_ops.cc
    if _MUST_COMPILE in callee.attr:
        node.attr[_MUST_COMPILE].CopyFrom(callee.attr[_MUST_COMPILE])
    # The lists must be present even when they are empty.
    node.attr["Tin"].list.type.extend(x.type for x in callee.signature.input_arg)
    node.attr["Tin"].list.SetInParent()
    node.attr["Tout"].list.type.extend(x.type for x in callee.signature.output_arg)
    node.attr["Tout"].list.SetInParent()
    specs = [
        x for x in tf.nest.flatten(inner.output_signature, expand_composites=True) if x is not None
    ]
    if len(specs) == len(callee.signature.output_arg):
        shapes = node.attr["_output_shapes"].list
        shapes.SetInParent()
        for spec in specs:
            shapes.shape.add().CopyFrom(_shape_of(spec).as_proto())


def _shape_of(spec: Any) -> tf.TensorShape:
    return getattr(spec, "shape", tf.TensorShape(None))
