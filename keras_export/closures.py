"""Tells whether two gradient functions are one computation on other tensors.

In: a gradient function that `tf.custom_gradient` registered. Out: a key that is equal for
functions with the same code and the same constants, and the graph tensors that the function
closes over, in a fixed order. The invariant: what cannot be compared for sure gives no key, and
is then traced by itself.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# The function that `tf.custom_gradient` registers ignores the op itself; others may read it.
_REGISTERING_MODULE = "tensorflow.python.ops.custom_gradient"

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))

_MOST_DEPTH = 20


class _Incomparable(Exception):
    """Something whose influence on the gradient is unknown."""


def describe(gradient: Any, op: Any) -> tuple[Any, list[Any]]:
    """Describes a gradient function.

    Args:
        gradient: what is registered for the op's type.
        op: the op with the custom gradient.

    Returns:
        The key, or None where the gradient must be traced by itself; and the tensors of the
        graph that it closes over.
    """
    tensors: list[Any] = []
    if getattr(gradient, "__module__", None) != _REGISTERING_MODULE:
        return None, tensors
    try:
        key = _function(gradient, tensors, {}, 0)
    except _Incomparable:
        return None, []
    outputs = tuple(_tensor_key(output) for output in op.outputs)
    return (key, outputs), tensors


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
    return ("tensor", len(tensors) - 1, *_tensor_key(tensor))


def _tensor_key(tensor: Any) -> tuple[Any, str]:
    return tensor.dtype, str(tensor.shape)


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
