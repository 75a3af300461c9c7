"""Functions and ops of TensorFlow that Keras 2 recorded between layers.

In: the name of a function in a configuration, as `nn.relu` or `__operators__.getitem`, or an op as
a node of a graph. Out: the function. The invariant: only what computes tensors from tensors can be
had, nothing that reads or writes files, runs Python or talks to the network.
"""

from __future__ import annotations

import base64
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
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
# Ops by their names in graphs.
_OPS = frozenset((
    "Abs", "Acos", "Acosh", "Add", "AddN", "AddV2", "All", "Any", "ArgMax", "ArgMin", "Asin",
    "Asinh", "Atan", "Atan2", "Atanh", "AvgPool", "AvgPool3D", "BatchMatMul", "BatchMatMulV2",
    "BatchMatMulV3", "BatchToSpace", "BatchToSpaceND", "BiasAdd", "Bitcast", "BroadcastArgs",
    "BroadcastTo", "Bucketize", "Cast", "Ceil", "CheckNumerics", "ClipByValue", "Complex",
    "ComplexAbs", "Concat", "ConcatV2", "Conj", "Conv2D", "Conv3D", "Cos", "Cosh",
    "CropAndResize", "Cross", "Cumprod", "Cumsum", "DepthToSpace", "DepthwiseConv2dNative", "Diag",
    "DiagPart", "Dilation2D", "Div", "DivNoNan", "DynamicPartition", "DynamicStitch", "Einsum",
    "Elu", "Equal", "Erf", "Erfc", "Exp", "ExpandDims", "Expm1", "ExtractImagePatches", "FFT",
    "FFT2D", "Fill", "Floor", "FloorDiv", "FloorMod", "Gather", "GatherNd", "GatherV2", "Greater",
    "GreaterEqual", "IFFT", "IFFT2D", "IRFFT", "IRFFT2D", "Identity", "IdentityN", "Imag",
    "InTopK", "InTopKV2", "Inv", "Invert", "InvertPermutation", "IsFinite", "IsInf", "IsNan",
    "L2Loss", "LRN", "LeakyRelu", "Less", "LessEqual", "Lgamma", "LinSpace", "Log", "Log1p",
    "LogSoftmax", "LogicalAnd", "LogicalNot", "LogicalOr", "MatMul", "MatrixBandPart",
    "MatrixDeterminant", "MatrixDiag", "MatrixDiagPart", "MatrixDiagPartV2", "MatrixDiagV2",
    "MatrixInverse", "MatrixSetDiag", "MatrixTriangularSolve", "Max", "MaxPool", "MaxPool3D",
    "MaxPoolV2", "Maximum", "Mean", "Min", "Minimum", "MirrorPad", "Mod", "Mul", "MulNoNan", "Neg",
    "NotEqual", "OneHot", "OnesLike", "Pack", "Pad", "PadV2", "Pow", "PreventGradient", "Prod",
    "RFFT", "RFFT2D", "Range", "Rank", "Real", "RealDiv", "Reciprocal", "Relu", "Relu6", "Reshape",
    "ResizeArea", "ResizeBicubic", "ResizeBilinear", "ResizeNearestNeighbor", "Reverse",
    "ReverseSequence", "ReverseV2", "Rint", "Roll", "Round", "Rsqrt", "ScatterNd",
    "SegmentMax", "SegmentMean", "SegmentMin", "SegmentSum", "Select", "SelectV2", "Selu", "Shape",
    "ShapeN", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign",
    "SpaceToBatch", "SpaceToBatchND", "SpaceToDepth", "Split", "SplitV", "Sqrt", "Square",
    "SquaredDifference", "Squeeze", "StopGradient", "StridedSlice", "Sub", "Sum", "Tan", "Tanh",
    "TensorScatterAdd", "TensorScatterUpdate", "Tile", "TopK", "TopKV2", "Transpose",
    "TruncateDiv", "TruncateMod", "Unique", "UniqueV2", "Unpack", "UnravelIndex",
    "UnsortedSegmentMax", "UnsortedSegmentSum", "Where", "Xdivy", "Xlogy", "ZerosLike",
))  # fmt: skip
# Of these ops one argument takes several inputs: `N` says how many.
_LISTS = frozenset(("AddN", "Concat", "ConcatV2", "DynamicStitch", "Einsum", "IdentityN", "Pack",
                    "ShapeN"))  # fmt: skip
# Arguments that have another name in graphs.
_RENAMED = {("Squeeze", "axis"): "squeeze_dims"}


def operation_of(
    node: Mapping[str, Any], constants: Mapping[str, Any]
) -> Callable[[Sequence[Any]], Any] | None:
    """A function that runs an op on tensors, or None if it is none of those that may be run.

    Args:
        node: a NodeDef as parsed JSON.
        constants: values of inputs, by number as text; the tensors are the other inputs.

    >>> node = {"op": "AddV2", "input": ["x", "y"], "attr": {"T": {"type": "DT_FLOAT"}}}
    >>> operation_of(node, {"1": 2.0})([tf.constant([3.0])]).numpy().tolist()
    [5.0]
    >>> operation_of({"op": "ReadFile", "input": ["x"]}, {}) is None
    True
    """
    op, count = node["op"], len(node.get("input", ()))
    function = getattr(tf.raw_ops, op, None) if op in _OPS else None
    if function is None:
        return None
    attributes = node.get("attr", {})
    names = [name for name in inspect.signature(function).parameters if name != "name"]
    fixed = {int(number): value for number, value in constants.items()}

    def call(tensors: Sequence[Any]) -> Any:
        waiting = iter(tensors)
        inputs = [fixed[i] if i in fixed else next(waiting) for i in range(count)]
        if op in _LISTS:
            length = _number(attributes.get("N", attributes.get("T", {})), count)
            start = 1 if op == "Concat" else length if op == "DynamicStitch" else 0
            inputs = [*inputs[:start], inputs[start : start + length], *inputs[start + length :]]
            if op == "DynamicStitch":
                inputs = [inputs[:start], *inputs[start:]]
        given = dict(zip(names, inputs, strict=False))
        for name in names[len(inputs) :]:
            if (attribute := attributes.get(_RENAMED.get((op, name), name))) is not None:
                given[name] = _attribute(attribute)
        return function(**given)

    return call


def _number(attribute: Mapping[str, Any], default: int) -> int:
    return int(attribute.get("i", default))


def _attribute(value: Mapping[str, Any]) -> Any:
    """The value of an attribute that JSON holds, in which integers and bytes are text."""
    ((kind, content),) = value.items()
    if kind == "list":
        return [_attribute({k: x}) for k, several in content.items() for x in several]
    if kind == "type":
        return tf.as_dtype(content.removeprefix("DT_").lower())
    if kind == "s":
        return base64.b64decode(content)
    if kind == "i":
        return int(content)
    if kind == "shape":
        return [int(dim.get("size", 0)) for dim in content.get("dim", ())]
    return content


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
