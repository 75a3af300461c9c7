"""Nested Python values ⇄ `StructuredValue`, and the flat names of what is nested in them.

What comes in: arguments, results and specs of functions, nested as users nest them. What goes
out: the proto that a SavedModel stores for them, the specs of nested tensors, or one graph name
for each leaf. The invariant: TensorFlow's loader decodes from our proto what it decodes from
TensorFlow's own, and whatever TensorFlow can encode is encoded here.
"""

from __future__ import annotations

import dataclasses
import keyword
import re
import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

import numpy as np
import tensorflow as tf

from keras_export import tf_internals as tfi
from keras_export.errors import SignatureError, UnsupportedError, failure
from keras_export.tf_internals import struct_pb2

# The way to a value, innermost step first: `(way to the outer value, format of the step, key)`.
# Linked and not formatted, because one is made for every element and read only by an error.
_Way: TypeAlias = tuple[Any, str, Any] | None
_Writer: TypeAlias = Callable[[Any, "struct_pb2.StructuredValue", _Way], None]

_ELEMENT, _FIELD = "[{!r}]", ".{}"
_ENCODABLE = "None, a bool, number, str, tensor, array, spec, shape, dtype, list, tuple or dict"
_KEEP_OUT = "Keep it out of the function's arguments and results, or pass it as one of these."
_REGISTER = (
    "Give the class a name to register it by: `__name__ = 'my_project.MyType'` in the body of an "
    "ExtensionType."
)


def encode(value: Any) -> struct_pb2.StructuredValue:
    """Encodes a nested value as a SavedModel stores it.

    Args:
        value: None, bool, int of 64 bits, float, str, tensor with a value, numpy array, shape,
            dtype, any `tf.TypeSpec` that has a name in the format, or lists, tuples, named tuples
            and mappings with str keys of these.

    Returns:
        A new proto; a tensor or array inside is copied into it.

    Raises:
        UnsupportedError: neither keras_export nor any codec registered with TensorFlow can encode
            a part of `value`; the message says which part, `[0]['x'].field`.

    Example:
        >>> from keras_export import structures
        >>> structures.decode(structures.encode((1, {"x": [None, "a"]})))
        (1, {'x': [None, 'a']})
    """
    proto = struct_pb2.StructuredValue()
    _write(value, proto, None)
    return proto


def encode_into(value: Any, proto: struct_pb2.StructuredValue) -> None:
    """Encodes a nested value into a field of a larger proto, without a copy.

    Args:
        value: as for `encode`.
        proto: an empty `StructuredValue`; it is partly filled when an error is raised.

    Raises:
        UnsupportedError: as for `encode`.

    Example:
        >>> from keras_export import structures
        >>> from keras_export.tf_internals import saved_object_graph_pb2
        >>> function = saved_object_graph_pb2.SavedConcreteFunction()
        >>> structures.encode_into([None], function.output_signature)
        >>> len(function.output_signature.list_value.values)
        1
    """
    _write(value, proto, None)


def decode(proto: struct_pb2.StructuredValue) -> Any:
    """Decodes a nested value as TensorFlow's loader does.

    Args:
        proto: what `encode` or TensorFlow wrote.

    Returns:
        The value; named tuples come back as new classes of the same name, mappings as dicts,
        tensors as eager tensors.

    Example:
        >>> import tensorflow as tf
        >>> from keras_export import structures
        >>> structures.decode(structures.encode(tf.TensorSpec([None, 2], tf.int32, name="x")))
        TensorSpec(shape=(None, 2), dtype=tf.int32, name='x')
    """
    return tfi.decode_structure(proto)


# --- Encoding ------------------------------------------------------------------------------------


def _write(value: Any, proto: struct_pb2.StructuredValue, way: _Way) -> None:
    writer = _WRITERS.get(type(value)) or _writer_of_relative(value)
    writer(value, proto, way)


def _writer_of_relative(value: Any) -> _Writer:
    """Finds the writer of a value whose very type has none: a subclass, a wrapper, a stranger."""
    if _is_foreign(value):
        return _write_foreign
    for base, writer in _WRITERS_OF_BASES:
        if isinstance(value, base):
            return writer
    return _write_foreign


def _is_foreign(value: Any) -> bool:
    return any(
        codec.can_encode(value)
        for codec in tfi.structure_codecs
        if not type(codec).__module__.startswith("tensorflow.")
    )


def _write_foreign(value: Any, proto: struct_pb2.StructuredValue, way: _Way) -> None:
    try:
        proto.CopyFrom(tfi.encode_structure(value))
    except tfi.NotEncodableError as error:
        mend = _REGISTER if isinstance(value, tf.TypeSpec) else _KEEP_OUT
        _refuse(value, way, _ENCODABLE, mend, error)


def _write_none(value: None, proto: struct_pb2.StructuredValue, way: _Way) -> None:
    proto.none_value.SetInParent()


def _writer_of_scalar(field: str, expected: str = "", mend: str = "") -> _Writer:
    def write(value: Any, proto: struct_pb2.StructuredValue, way: _Way) -> None:
        try:
            setattr(proto, field, value)
        except ValueError as error:
            _refuse(value, way, expected, mend, error)

    return write


def _write_list(value: list[Any], proto: struct_pb2.StructuredValue, way: _Way) -> None:
    proto.list_value.SetInParent()
    _write_elements(value, proto.list_value.values, way)


def _write_tuple(value: tuple[Any, ...], proto: struct_pb2.StructuredValue, way: _Way) -> None:
    if _has_field_names(value):
        return _write_named_tuple(value, proto, way)
    proto.tuple_value.SetInParent()
    _write_elements(value, proto.tuple_value.values, way)


def _write_elements(elements: Iterable[Any], protos: Any, way: _Way) -> None:
    for position, element in enumerate(elements):
        _write(element, protos.add(), (way, _ELEMENT, position))


def _has_field_names(value: tuple[Any, ...]) -> bool:
    fields = getattr(value, "_fields", None)
    return isinstance(fields, Sequence) and all(isinstance(field, str) for field in fields)


def _write_named_tuple(value: Any, proto: struct_pb2.StructuredValue, way: _Way) -> None:
    proto.named_tuple_value.name = value.__class__.__name__
    for field, element in value._asdict().items():
        pair = proto.named_tuple_value.values.add(key=field)
        _write(element, pair.value, (way, _FIELD, field))


def _write_mapping(value: Mapping[str, Any], proto: struct_pb2.StructuredValue, way: _Way) -> None:
    proto.dict_value.SetInParent()
    fields = proto.dict_value.fields
    for key, element in value.items():
        try:
            field = fields[key]
        except (TypeError, UnicodeError) as error:
            _refuse(key, way, "str keys in a dict", "Turn the keys into text.", error)
        _write(element, field, (way, _ELEMENT, key))
    if len(fields) < len(value):  # b"x" and "x" are one key in a proto
        _refuse(value, way, "keys that differ as text", "Rename one of them.")


def _write_shape(value: tf.TensorShape, proto: struct_pb2.StructuredValue, way: _Way) -> None:
    _fill_shape(value, proto.tensor_shape_value)


def _fill_shape(shape: tf.TensorShape, proto: Any) -> None:
    proto.SetInParent()
    if shape.rank is None:
        proto.unknown_rank = True
        return
    for size in shape.as_list():
        proto.dim.add(size=-1 if size is None else size)


def _write_dtype(value: tf.DType, proto: struct_pb2.StructuredValue, way: _Way) -> None:
    proto.tensor_dtype_value = value.as_datatype_enum


def _write_tensor_spec(value: tf.TensorSpec, proto: struct_pb2.StructuredValue, way: _Way) -> None:
    _fill_tensor_spec(value, proto.tensor_spec_value)


def _write_bounded_spec(value: Any, proto: struct_pb2.StructuredValue, way: _Way) -> None:
    spec = proto.bounded_tensor_spec_value
    _fill_tensor_spec(value, spec)
    spec.minimum.CopyFrom(tf.make_tensor_proto(value.minimum))
    spec.maximum.CopyFrom(tf.make_tensor_proto(value.maximum))


def _fill_tensor_spec(spec: Any, proto: Any) -> None:
    _fill_shape(spec.shape, proto.shape)
    proto.dtype = spec.dtype.as_datatype_enum
    if spec.name is not None:
        proto.name = spec.name


def _write_tensor(value: tf.Tensor, proto: struct_pb2.StructuredValue, way: _Way) -> None:
    if not tf.is_symbolic_tensor(value):
        return _fill_tensor(value, proto.tensor_value, way)
    if value.op.type != "Const":
        _refuse(value, way, "a tensor with a value", "Pass its `tf.TensorSpec`.")
    proto.tensor_value.CopyFrom(value.op.get_attr("value"))


def _write_array(value: np.ndarray, proto: struct_pb2.StructuredValue, way: _Way) -> None:
    _fill_tensor(value, proto.numpy_value, way)


def _fill_tensor(value: Any, proto: Any, way: _Way) -> None:
    try:
        array = value.numpy() if isinstance(value, tf.Tensor) else value
        proto.CopyFrom(tf.make_tensor_proto(array))
    except (tf.errors.OpError, TypeError, ValueError) as error:
        _refuse(value, way, "numbers, bools or strings of less than 2 GiB", _KEEP_OUT, error)


def _writer_of_spec(number: int, name: str) -> _Writer:
    def write(value: Any, proto: struct_pb2.StructuredValue, way: _Way) -> None:
        _fill_type_spec(value, proto.type_spec_value, number, name, way)

    return write


def _write_registered_spec(
    value: tf.TypeSpec, proto: struct_pb2.StructuredValue, way: _Way
) -> None:
    try:
        name = tfi.type_spec_registry.get_name(type(value))
    except ValueError:
        return _write_foreign(value, proto, way)
    number = _REGISTERED
    if isinstance(value, tfi.ExtensionTypeSpec):
        number = _EXTENSION
    elif not name.startswith("tf."):  # what TensorFlow itself registers
        # An unknown extension type still loads, as an anonymous one; this one does not.
        warnings.warn(f"A reader must first import what registers {name!r}.", stacklevel=2)
    _fill_type_spec(value, proto.type_spec_value, number, name, way)


def _fill_type_spec(value: Any, proto: Any, number: int, name: str, way: _Way) -> None:
    proto.type_spec_class = number
    proto.type_spec_class_name = name
    components = tf.nest.flatten(value._component_specs, expand_composites=True)
    proto.num_flat_components = len(components)
    _write(value._serialize(), proto.type_state, (way, _FIELD, "type_state"))


_REGISTERED = struct_pb2.TypeSpecProto.REGISTERED_TYPE_SPEC
_EXTENSION = struct_pb2.TypeSpecProto.EXTENSION_TYPE_SPEC
_NUMBERED_SPECS = {
    tf.SparseTensorSpec: struct_pb2.TypeSpecProto.SPARSE_TENSOR_SPEC,
    tf.IndexedSlicesSpec: struct_pb2.TypeSpecProto.INDEXED_SLICES_SPEC,
    tf.RaggedTensorSpec: struct_pb2.TypeSpecProto.RAGGED_TENSOR_SPEC,
    tf.TensorArraySpec: struct_pb2.TypeSpecProto.TENSOR_ARRAY_SPEC,
    tf.data.DatasetSpec: struct_pb2.TypeSpecProto.DATA_DATASET_SPEC,
    tf.data.IteratorSpec: struct_pb2.TypeSpecProto.DATA_ITERATOR_SPEC,
    tf.OptionalSpec: struct_pb2.TypeSpecProto.OPTIONAL_SPEC,
    tfi.PerReplicaSpec: struct_pb2.TypeSpecProto.PER_REPLICA_SPEC,
    tfi.VariableSpec: struct_pb2.TypeSpecProto.VARIABLE_SPEC,
    tfi.RowPartitionSpec: struct_pb2.TypeSpecProto.ROW_PARTITION_SPEC,
}
# Most special first, as TensorFlow asks its codecs: np.float64 is a float, IntEnum an int.
_WRITERS_OF_BASES: tuple[tuple[type, _Writer], ...] = (
    *((spec, _writer_of_spec(n, spec.__name__)) for spec, n in _NUMBERED_SPECS.items()),
    (np.ndarray, _write_array),
    (tf.Tensor, _write_tensor),
    (tfi.BoundedTensorSpec, _write_bounded_spec),
    (tf.TensorSpec, _write_tensor_spec),
    (tf.TensorShape, _write_shape),
    (tf.DType, _write_dtype),
    (tf.TypeSpec, _write_registered_spec),
    (Mapping, _write_mapping),
    (bool, _writer_of_scalar("bool_value")),
    (int, _writer_of_scalar("int64_value", "an integer of 64 bits", "Pass it as text.")),
    (type(None), _write_none),
    (float, _writer_of_scalar("float64_value")),
    (str, _writer_of_scalar("string_value", "text without lone surrogates", "Replace them.")),
    (tuple, _write_tuple),
    (list, _write_list),
)
_WRITERS: dict[type, _Writer] = {
    **{base: writer for base, writer in _WRITERS_OF_BASES if base is not Mapping},
    dict: _write_mapping,
    tfi.EagerTensor: _write_tensor,
}


def _refuse(
    value: Any, way: _Way, expected: str, mend: str, cause: Exception | None = None
) -> NoReturn:
    what = f"encode the value{_place(way)}"
    raise UnsupportedError(failure(what, expected, _described(value), mend)) from cause


def _place(way: _Way) -> str:
    steps = []
    while way is not None:
        way, form, key = way
        steps.append(form.format(key))
    return " at " + "".join(reversed(steps)) if steps else ""


def _described(value: Any) -> str:
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"value={reprlib.repr(value)} of type {module}{kind.__qualname__}"


# --- Specs ---------------------------------------------------------------------------------------


def to_specs(structure: Any) -> Any:
    """Replaces each tensor in a nested structure by its spec, as a SavedModel describes outputs.

    Args:
        structure: tensors, composite tensors, variables, specs, dtypes and Python values, nested
            as `tf.nest` understands it.

    Returns:
        The same structure. A tensor gives a `tf.TensorSpec` named by its place in lower case
        (`tensor_0_x` for `[0]['x']`, `unknown` for a tensor by itself), or as the user named the
        argument if it is one; a composite tensor gives its spec; all else stays.

    Raises:
        UnsupportedError: a leaf is nothing of these; the message names its place and type.

    Example:
        >>> import tensorflow as tf
        >>> from keras_export import structures
        >>> structures.to_specs({"sum": tf.constant([1, 2]), "why": None})
        {'sum': TensorSpec(shape=(2,), dtype=tf.int32, name='sum'), 'why': None}
    """
    leaves = tfi.flatten_with_tuple_paths(structure)
    return tf.nest.pack_sequence_as(structure, [_spec_of(leaf, path) for path, leaf in leaves])


def _spec_of(leaf: Any, path: tuple[Any, ...]) -> Any:
    if isinstance(leaf, tf.Tensor):
        return tf.TensorSpec(leaf.shape, leaf.dtype, _given_name(leaf, path) or _place_name(path))
    if isinstance(leaf, tfi.BaseResourceVariable):
        return tfi.VariableSpec(leaf.shape, leaf.dtype, leaf.trainable, alias_id=0)
    if isinstance(leaf, tfi.CompositeTensor):
        return tf.type_spec_from_value(leaf)
    if leaf is None or isinstance(leaf, (int, float, str, tf.DType, tf.TypeSpec)):
        return leaf
    what = f"describe the value{_place_of_path(path)}"
    expected = "a tensor, variable, spec, dtype, None, bool, number or str"
    raise UnsupportedError(failure(what, expected, _described(leaf), _KEEP_OUT))


def _given_name(tensor: tf.Tensor, path: tuple[Any, ...]) -> str | None:
    # Only placeholders carry the name, and asking another op for it costs 14 µs in a C++ error.
    if not path or not tf.is_symbolic_tensor(tensor) or tensor.op.type != "Placeholder":
        return None
    try:
        name = tensor.op.get_attr("_user_specified_name").decode()
    except ValueError:
        return None
    return name if name != path[0] else None


def _place_name(path: tuple[Any, ...]) -> str:
    place = "_".join(map(str, path)).lower()
    name = "".join(letter if letter.isalnum() else "_" for letter in place)
    if not name:
        return "unknown"
    return name if name[0].isalpha() else f"tensor_{name}"


# --- Names ---------------------------------------------------------------------------------------

_NOT_IN_NAMES = re.compile("[^A-Za-z0-9_]")


@dataclasses.dataclass(frozen=True)
class FlatNames:
    """The named leaves of one argument or result; iterating gives `(name, leaf)`.

    Attributes:
        leaves: `(name, leaf)` in the order in which `tf.nest` flattens.
        mapped: the names that had to change: what the rule gives → the graph name.
    """

    leaves: tuple[tuple[str, Any], ...]
    mapped: Mapping[str, str]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.leaves)

    def __len__(self) -> int:
        return len(self.leaves)


def graph_name(text: str) -> str:
    """Maps any text to a name that a graph accepts, character by character.

    Args:
        text: a key, field or argument name.

    Returns:
        The text with `_` for each character outside `[A-Za-z0-9_]`; `_` for an empty text.

    Example:
        >>> from keras_export import structures
        >>> structures.graph_name("user id/größe")
        'user_id_gr__e'
    """
    return _NOT_IN_NAMES.sub("_", text) or "_"


def argument_name(text: str) -> str:
    """A name that Python's loader accepts, too: a signature that is loaded is a Python function.

    Args:
        text: a name that `graph_name` gave.

    Returns:
        The text, with `_` behind a keyword of Python and behind `self`, by which TensorFlow's
        functions call themselves; with `input_` in front of a digit.

    Example:
        >>> from keras_export import structures
        >>> structures.argument_name("in")
        'in_'
    """
    if not text.isidentifier():
        return f"input_{text}"
    return f"{text}_" if keyword.iskeyword(text) or text == "self" else text


def flat_names(structure: Any, prefix: str) -> FlatNames:
    """Names every leaf of a nested argument or result by one rule.

    The rule: the keys, fields and positions on the way to a leaf, joined by `_`; if the outermost
    is a position, or there is none, `prefix` comes first. So a tensor is `a`, a list `a_0`, `a_1`,
    a dict its keys, a named tuple its fields, `{"x": [t, t]}` is `x_0`, `x_1`, and `[{"x": t}]` is
    `a_0_x`. An integer key counts as a position. Composite tensors and None are leaves.

    Args:
        structure: what the argument holds, nested as `tf.nest` understands it.
        prefix: the name of the argument.

    Returns:
        The names with their leaves, and which names had to be mapped by `graph_name`.

    Raises:
        SignatureError: two leaves get one name, or the keys of a dict cannot be sorted.

    Example:
        >>> from keras_export import structures
        >>> list(structures.flat_names([1, {"b c": 2}], "a"))
        [('a_0', 1), ('a_1_b_c', 2)]
        >>> dict(structures.flat_names({"b c": 2}, "a").mapped)
        {'b c': 'b_c'}
    """
    paths = _sorted_paths(structure, prefix)
    spoken = [_joined(path, prefix) for path, _ in paths]
    names = [graph_name(text) for text in spoken]
    _refuse_clash(names, [path for path, _ in paths], prefix)
    leaves = tuple(zip(names, (leaf for _, leaf in paths), strict=True))
    mapped = {text: name for text, name in zip(spoken, names, strict=True) if text != name}
    return FlatNames(leaves, MappingProxyType(mapped))


def _sorted_paths(structure: Any, prefix: str) -> list[tuple[tuple[Any, ...], Any]]:
    try:
        return list(tfi.flatten_with_tuple_paths(structure))
    except TypeError as error:
        received = _described(structure)
        raise _name_error(prefix, "dict keys of one type", received, "Use str keys.") from error


def _name_error(prefix: str, expected: str, received: str, mend: str) -> SignatureError:
    return SignatureError(failure(f"name the tensors of `{prefix}`", expected, received, mend))


def _joined(path: tuple[Any, ...], prefix: str) -> str:
    steps = [str(step) for step in path]
    if not path or isinstance(path[0], int):
        steps.insert(0, prefix)
    return "_".join(steps)


def _refuse_clash(names: list[str], paths: list[tuple[Any, ...]], prefix: str) -> None:
    first: dict[str, tuple[Any, ...]] = {}
    for name, path in zip(names, paths, strict=True):
        if name in first:
            both = f"{name!r} for `{prefix}{_steps(first[name])}` and `{prefix}{_steps(path)}`"
            raise _name_error(prefix, "a name for each", both, "Rename one of the two keys.")
        first[name] = path


def _steps(path: tuple[Any, ...]) -> str:
    return "".join(_ELEMENT.format(step) for step in path)


def _place_of_path(path: tuple[Any, ...]) -> str:
    return f" at {_steps(path)}" if path else ""
