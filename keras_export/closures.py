"""Tells whether two gradient functions are one computation on other tensors.

In: a gradient function that `tf.custom_gradient` registered. Out: a key that is equal for
functions with the same code and the same constants, and the graph tensors that the function
closes over, in a fixed order. The invariant: what cannot be compared for sure gives no key, and
is then traced by itself; of two that differ in shapes the traced definitions decide.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_export.functions import MARK, function_attributes

# The function that `tf.custom_gradient` registers ignores the op itself; others may read it.
_REGISTERING_MODULE = "tensorflow.python.ops.custom_gradient"

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))

_MOST_DEPTH = 20


class _Incomparable(Exception):
    """Something whose influence on the gradient is unknown."""


@dataclass(frozen=True)
class Description:
    """What a gradient function computes, and from what.

    Attributes:
        key: equal for those with the same code and constants; None where it must be traced alone.
        shapes: of the results of the op, then of `tensors`.
        tensors: those of the graph that the function closes over.
    """

    key: Any
    shapes: tuple[str, ...]
    tensors: list[Any]


_UNKNOWN = Description(None, (), [])


def describe(gradient: Any, op: Any) -> Description:
    """Describes a gradient function.

    Args:
        gradient: what is registered for the op's type.
        op: the op with the custom gradient.
    """
    tensors: list[Any] = []
    if getattr(gradient, "__module__", None) != _REGISTERING_MODULE:
        return _UNKNOWN
    try:
        key = _function(gradient, tensors, {}, 0)
    except _Incomparable:
        return _UNKNOWN
    dtypes = tuple(output.dtype for output in op.outputs)
    shapes = tuple(str(tensor.shape) for tensor in [*op.outputs, *tensors])
    return Description((key, dtypes), shapes, tensors)


def without_shapes(definition: Any, upstream: int) -> bytes | None:
    """A traced gradient function without the shapes that its graph had.

    Args:
        definition: its FunctionDef.
        upstream: how many of its arguments are gradients of results.

    Returns:
        Bytes that are equal for functions which compute the same for every shape; None where the
        shapes may matter to what calls it or to what it calls.
    """
    stripped = type(definition)()
    stripped.CopyFrom(definition)
    del stripped.node_def[:]
    stripped.signature.name = ""
    stripped.arg_attr.clear()
    names: dict[str, str] = {}
    for index, argument in enumerate(stripped.signature.input_arg):
        names[argument.name] = argument.name = f"argument{index}"
    used: set[str] = set()
    for node in definition.node_def:
        if function_attributes(node.op) or MARK in node.attr:
            return None
        copied = stripped.node_def.add()
        copied.CopyFrom(node)
        copied.attr.pop("_output_shapes", None)
        used.update(source.lstrip("^") for source in node.input)
        for index, source in enumerate(node.input):
            marker = "^" if source[0] == "^" else ""
            copied.input[index] = marker + names.get(source.lstrip("^"), source.lstrip("^"))
    for key, source in definition.ret.items():
        used.add(source)
        stripped.ret[key] = names.get(source, source)
    # Zeros for a result that nothing uses are made with the shape that is known of it.
    first = [argument.name for argument in definition.signature.input_arg[:upstream]]
    if sum(name in used for name in first) > 1:
        return None
    return bytes(stripped.SerializeToString(deterministic=True))


def positions(captures: Sequence[Any], tensors: Sequence[Any]) -> list[int] | None:
    """For each capture its position among `tensors`; None if one is not among them."""
    known = {id(tensor): index for index, tensor in enumerate(tensors)}
    found = [known.get(id(capture)) for capture in captures]
    return None if None in found else found  # type: ignore[return-value]


def _describe(value: Any, tensors: list[Any], seen: dict[int, int], depth: int) -> Any:
    if depth > _MOST_DEPTH:
        raise _Incomparable
    if isinstance(value, _PLAIN):
        return (type(value), repr(value))
    if isinstance(value, tf.Tensor):
        return _tensor(value, tensors)
    if isinstance(value, types.FunctionType):
        return _function(value, tensors, seen, depth + 1)
    if isinstance(value, types.MethodType):
        raise _Incomparable
    if type(value) in (list, tuple):
        return (type(value), *(_describe(x, tensors, seen, depth + 1) for x in value))
    if type(value) is dict:
        return (dict, *((key, _describe(x, tensors, seen, depth + 1)) for key, x in value.items()))
    if isinstance(value, (types.ModuleType, type, types.BuiltinFunctionType, tf.DType)):
        return (type(value), id(value))
    if isinstance(value, tf.TensorShape):
        return (tf.TensorShape, str(value))
    raise _Incomparable


def _tensor(tensor: Any, tensors: list[Any]) -> Any:
    if hasattr(tensor, "numpy"):
        raise _Incomparable
    for index, known in enumerate(tensors):
        if known is tensor:
            return ("tensor", index)
    tensors.append(tensor)
    return ("tensor", len(tensors) - 1, tensor.dtype)


def _function(function: Any, tensors: list[Any], seen: dict[int, int], depth: int) -> Any:
    if id(function) in seen:
        return ("function", seen[id(function)])
    seen[id(function)] = len(seen)
    cells = []
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            raise _Incomparable from None
        cells.append(_describe(content, tensors, seen, depth + 1))
    defaults = _describe(function.__defaults__, tensors, seen, depth + 1)
    keywords = _describe(function.__kwdefaults__, tensors, seen, depth + 1)
    # Not the code's equality, which ignores where a function was written.
    return (id(function.__code__), id(function.__globals__), tuple(cells), defaults, keywords)
