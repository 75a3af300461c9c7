"""Functions of TensorFlow that Keras 2 recorded between layers.

In: the name of a function in a configuration, as `nn.relu` or `__operators__.getitem`. Out: the
function. The invariant: only functions that compute tensors from tensors can be had, none that
reads or writes files, runs Python or talks to the network.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# Whole namespaces of pure functions.
_NAMESPACES = ("math", "nn", "image", "linalg", "signal", "strings", "bitwise", "sparse", "random",
               "quantization", "compat.v1.math", "compat.v1.nn", "compat.v1.image",
               "compat.v1.linalg", "compat.v1.strings", "dtypes", "sets")  # fmt: skip
_FUNCTIONS = frozenset((
    "abs", "acos", "acosh", "add", "add_n", "argmax", "argmin", "argsort", "asin", "asinh", "atan",
    "atan2", "atanh", "batch_to_space", "bitcast", "boolean_mask", "broadcast_to", "cast", "ceil",
    "clip_by_global_norm", "clip_by_norm", "clip_by_value", "complex", "concat", "constant",
    "convert_to_tensor", "cos", "cosh", "cumsum", "divide", "dynamic_partition", "dynamic_stitch",
    "edit_distance", "einsum", "ensure_shape", "equal", "exp", "expand_dims", "expm1", "eye",
    "fill", "floor", "floordiv", "floormod", "gather", "gather_nd", "gelu", "greater",
    "greater_equal", "identity", "less", "less_equal", "linspace", "log", "log1p", "logical_and",
    "logical_not", "logical_or", "logical_xor", "matmul", "maximum", "meshgrid", "minimum",
    "multiply", "negative", "norm", "not_equal", "one_hot", "ones", "ones_like", "pad", "pow",
    "range", "rank", "realdiv", "reciprocal", "reduce_all", "reduce_any", "reduce_logsumexp",
    "reduce_max", "reduce_mean", "reduce_min", "reduce_prod", "reduce_sum", "relu", "repeat",
    "reshape", "reverse", "reverse_sequence", "roll", "round", "rsqrt", "scatter_nd",
    "searchsorted", "sequence_mask", "shape", "shape_n", "sigmoid", "sign", "sin", "sinh", "size",
    "slice", "softmax", "sort", "space_to_batch", "space_to_batch_nd", "split", "sqrt", "square",
    "squeeze", "stack", "stop_gradient", "strided_slice", "subtract", "tan", "tanh",
    "tensor_scatter_nd_add", "tensor_scatter_nd_update", "tensordot", "tile", "to_float",
    "to_int32", "transpose", "truediv", "truncatediv", "truncatemod", "unique", "unstack",
    "unravel_index", "where", "where_v2", "zeros", "zeros_like", "expand_dims_v2", "div",
    "div_no_nan", "floor_div", "mod", "add_v2",
))  # fmt: skip
_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv,
    "div": operator.truediv, "floordiv": operator.floordiv, "mod": operator.mod,
    "pow": operator.pow, "matmul": operator.matmul, "neg": operator.neg, "abs": operator.abs,
    "invert": operator.invert, "and": operator.and_, "or": operator.or_, "xor": operator.xor,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "eq": operator.eq, "ne": operator.ne,
}  # fmt: skip


def function_of(name: str) -> Callable[..., Any] | None:
    """The function, or None if it is none of those that may be called.

    >>> function_of("nn.relu")([-1.0, 2.0]).numpy().tolist()
    [0.0, 2.0]
    >>> function_of("io.read_file") is None
    True
    """
    space, _, own = name.rpartition(".")
    if space == "__operators__":
        if own == "getitem":
            return _item
        return _operator(_OPERATORS.get(own))
    known = space in _NAMESPACES or (space in ("", "compat.v1") and own in _FUNCTIONS)
    if own.startswith("_") or not known:
        return None
    found: Any = tf
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if callable(found) and not isinstance(found, type) else None


def _operator(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    if function is None:
        return None

    def call(x: Any, y: Any = None, name: str | None = None) -> Any:
        x = tf.convert_to_tensor(x)
        return function(x) if y is None else function(x, y)

    return call


def _item(x: Any, slice_spec: Any) -> Any:
    spec = slice_spec if isinstance(slice_spec, list | tuple) else [slice_spec]
    return x[tuple(_slice(part) for part in spec)]


def _slice(part: Any) -> Any:
    if isinstance(part, dict):
        return slice(part.get("start"), part.get("stop"), part.get("step"))
    return part
