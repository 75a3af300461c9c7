"""Nested values: encoded as TensorFlow does, refused with their place, named by one rule."""

import collections
import enum
import types
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.python.distribute.values import PerReplicaSpec
from tensorflow.python.framework import func_graph
from tensorflow.python.framework.extension_type import AnonymousExtensionTypeSpec
from tensorflow.python.framework.tensor import BoundedTensorSpec
from tensorflow.python.ops.ragged.row_partition import RowPartitionSpec
from tensorflow.python.ops.resource_variable_ops import VariableSpec
from tensorflow.python.saved_model import nested_structure_coder as coder
from tensorflow.python.util import nest

from keras_export import structures
from keras_export.errors import ExportError, SignatureError, UnsupportedError
from keras_export.tf_internals import struct_pb2

Point = collections.namedtuple("Point", ["x", "y"])


class Registered(tf.experimental.ExtensionType):
    __name__ = "keras_export_tests.Registered"
    values: tf.Tensor
    kind: str = "plain"


class Unregistered(tf.experimental.ExtensionType):
    values: tf.Tensor


class WithBytes(tf.experimental.ExtensionType):
    __name__ = "keras_export_tests.WithBytes"
    raw: bytes


class Level(enum.IntEnum):
    HIGH = 3


def wrapped(value):
    """The value in the wrapper that attribute assignment puts around containers."""
    module = tf.Module()
    module.value = value
    return module.value


def same_bytes(ours, theirs):
    return ours.SerializeToString(deterministic=True) == theirs.SerializeToString(
        deterministic=True
    )


# --- Strategies ----------------------------------------------------------------------------------

dtypes = st.sampled_from([tf.float32, tf.int64, tf.bool, tf.string, tf.bfloat16, tf.resource])
shapes = st.one_of(
    st.just(tf.TensorShape(None)),
    st.lists(st.none() | st.integers(0, 2**40), max_size=4).map(tf.TensorShape),
)
graph_names = st.none() | st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,5}", fullmatch=True)
tensor_specs = st.builds(tf.TensorSpec, shapes, dtypes, graph_names)
ragged_specs = st.builds(
    lambda rank, dtype: tf.RaggedTensorSpec([None] * (rank + 1), dtype, ragged_rank=rank),
    st.integers(1, 3),
    st.sampled_from([tf.float32, tf.string]),
)
sparse_specs = st.builds(tf.SparseTensorSpec, shapes, st.sampled_from([tf.float32, tf.int32]))
arrays = st.sampled_from(
    [
        np.zeros((2, 3), np.float32),
        np.array(5),
        np.array([], np.int64),
        np.array(["a", "bc"]),
        np.array([True]),
        np.array([1 + 2j]),
    ]
)
plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(), dtypes, shapes
)
leaves = st.one_of(
    plain,
    st.floats(),
    tensor_specs,
    ragged_specs,
    sparse_specs,
    arrays,
    arrays.map(tf.constant),
    st.floats().map(np.float64),
    st.just(Level.HIGH),
)


def nested_in(elements, *, plain_containers=False):
    def containers(inner):
        lists = st.lists(inner, max_size=3)
        dicts = st.dictionaries(st.text(max_size=5), inner, max_size=3)
        python = [lists, lists.map(tuple), dicts]
        if plain_containers:
            return st.one_of(*python)
        ordered = dicts.map(collections.OrderedDict)
        return st.one_of(*python, ordered, st.builds(Point, inner, inner))

    return st.recursive(elements, containers, max_leaves=8)


# --- Encoding ------------------------------------------------------------------------------------


@given(nested_in(leaves))
def test_encoding_equals_tensorflows_byte_for_byte(value):
    assert same_bytes(structures.encode(value), coder.encode_structure(value))


@given(nested_in(plain, plain_containers=True))
def test_python_values_come_back_equal_through_tensorflows_decoder(value):
    back = coder.decode_proto(structures.encode(value))
    # Unknown shapes never compare equal to each other.
    assert repr(back) == repr(value) or back == value


@given(nested_in(leaves))
def test_what_is_decoded_encodes_to_the_same_bytes(value):
    proto = structures.encode(value)
    again = structures.encode(structures.decode(proto))
    assert same_bytes(again, proto)


@pytest.mark.parametrize(
    "spec",
    [
        BoundedTensorSpec([2, None], tf.float32, -1.0, [1.0, 2.0], name="bounded"),
        tf.IndexedSlicesSpec([None, 3], tf.float32),
        tf.TensorArraySpec([None, 2], tf.float32),
        tf.data.DatasetSpec({"x": tf.TensorSpec([None]), "y": (tf.TensorSpec([], tf.int32),)}),
        tf.data.IteratorSpec(tf.TensorSpec([2], tf.string)),
        tf.OptionalSpec(tf.TensorSpec([], tf.int64)),
        VariableSpec([2], tf.float32, trainable=False),
        VariableSpec([2], tf.float32, alias_id=3),
        PerReplicaSpec(tf.TensorSpec([1]), tf.TensorSpec([1])),
        RowPartitionSpec(uniform_row_length=2),
        tf.RaggedTensorSpec([2, None, 3], tf.string, ragged_rank=1, row_splits_dtype=tf.int32),
        Registered.Spec(tf.TensorSpec([None]), "fancy"),
        AnonymousExtensionTypeSpec(values=tf.TensorSpec([3])),
    ],
    ids=lambda spec: type(spec).__qualname__,
)
def test_every_kind_of_spec_is_encoded_as_tensorflow_does(spec):
    ours = structures.encode([spec])
    assert same_bytes(ours, coder.encode_structure([spec]))
    assert structures.decode(ours)[0].is_compatible_with(spec)


def test_every_spec_that_has_a_number_in_the_format_has_a_writer():
    assert set(structures._NUMBERED_SPECS) == set(coder.BuiltInTypeSpecCodec._BUILT_IN_TYPE_SPECS)


def test_a_subclass_of_a_numbered_spec_is_written_as_its_base():
    class Mine(tf.SparseTensorSpec):
        pass

    spec = Mine([2, 2], tf.float32)
    ours = structures.encode(spec)
    assert same_bytes(ours, coder.encode_structure(spec))
    assert ours.type_spec_value.type_spec_class_name == "SparseTensorSpec"


def test_a_registered_type_spec_is_written_with_a_warning_for_its_readers(monkeypatch):
    operator = tf.linalg.LinearOperatorDiag(tf.constant([1.0, 2.0]))
    spec = tf.type_spec_from_value(operator)
    with warnings.catch_warnings(action="ignore"):
        theirs = coder.encode_structure(spec)
    # Whoever reads has TensorFlow, so that what it registers itself needs no word.
    assert same_bytes(structures.encode(spec), theirs)
    monkeypatch.setattr(coder.type_spec_registry, "get_name", lambda _: "mine.Spec")
    with pytest.warns(UserWarning, match="A reader must first import what registers 'mine.Spec'"):
        structures.encode(spec)


@pytest.mark.parametrize(
    "container",
    [[1, [2]], {"a": {"b": 1}}, (1, (2,)), Point(1, Point(2, 3)), [(1, {"a": []})]],
    ids=str,
)
def test_containers_wrapped_by_attribute_assignment_are_written_as_what_they_wrap(container):
    value = wrapped(container)
    assert same_bytes(structures.encode(value), coder.encode_structure(container))
    assert same_bytes(structures.encode(value), coder.encode_structure(value))


def test_any_mapping_is_written_as_a_dict_also_where_tensorflow_is_too_old_for_that():
    mapping = types.MappingProxyType({"a": 1})
    assert same_bytes(structures.encode(mapping), coder.encode_structure({"a": 1}))


@pytest.mark.parametrize("value", [[], (), {}, [{}, [], ()]], ids=str)
def test_empty_containers_keep_their_kind(value):
    assert structures.decode(structures.encode(value)) == value


def test_a_named_tuple_keeps_its_name_and_fields():
    back = structures.decode(structures.encode(Point(1, None)))
    assert type(back).__name__ == "Point"
    assert back._asdict() == {"x": 1, "y": None}


def test_a_constant_of_a_graph_is_written_with_its_value():
    with tf.Graph().as_default():
        constant = tf.constant([1, 2])
        assert same_bytes(structures.encode(constant), coder.encode_structure(constant))


def test_encode_into_fills_a_field_of_a_larger_proto():
    outer = struct_pb2.ListValue()
    structures.encode_into({"a": (1,)}, outer.values.add())
    structures.encode_into(None, outer.values.add())
    assert [structures.decode(value) for value in outer.values] == [{"a": (1,)}, None]


class ForeignList(list):
    pass


class ForeignCodec:
    """What a third party may register with TensorFlow's coder."""

    def can_encode(self, value):
        return isinstance(value, (ForeignList, complex))

    def do_encode(self, value, encode):
        return struct_pb2.StructuredValue(string_value=f"foreign {value}")

    def can_decode(self, proto):
        return False

    def do_decode(self, proto, decode):
        raise AssertionError


@pytest.fixture
def foreign_codec():
    coder.register_codec(ForeignCodec())
    yield
    coder._codecs.pop()


@pytest.mark.parametrize("value", [1j, ForeignList([5])], ids=["unknown", "subclass"])
def test_codecs_that_others_registered_are_asked(value, foreign_codec):
    proto = structures.encode({"a": value})
    assert same_bytes(proto, coder.encode_structure({"a": value}))
    assert structures.decode(proto) == {"a": f"foreign {value}"}


# --- What cannot be encoded ----------------------------------------------------------------------

NOT_ENCODABLE = {
    "bytes": b"x",
    "set": {1},
    "numpy scalar": np.int64(1),
    "object": object(),
    "function": len,
    "big integer": 2**63,
    "surrogate": "\ud800",
    "int key": {1: 2},
    "None key": {None: 2},
    "object array": np.array([{}]),
    "unregistered spec": Unregistered.Spec(tf.TensorSpec([])),
    "composite tensor": tf.sparse.eye(2),
}


@pytest.mark.parametrize("value", NOT_ENCODABLE.values(), ids=NOT_ENCODABLE.keys())
def test_what_tensorflow_refuses_is_refused_with_our_error(value):
    with pytest.raises(Exception):  # noqa: B017 - TensorFlow's kinds of error vary
        coder.encode_structure(value)
    with pytest.raises(UnsupportedError) as caught:
        structures.encode(value)
    assert isinstance(caught.value, (ExportError, ValueError))
    assert str(caught.value).startswith("Cannot encode the value")


def test_a_refusal_names_the_place_in_the_structure_and_the_type():
    with pytest.raises(UnsupportedError) as caught:
        structures.encode(({"x": Point(1, [b"raw"])},))
    assert str(caught.value) == (
        "Cannot encode the value at [0]['x'].y[0]: expected None, a bool, number, str, tensor, "
        "array, spec, shape, dtype, list, tuple or dict, received value=b'raw' of type bytes. "
        "Keep it out of the function's arguments and results, or pass it as one of these."
    )


def test_a_refusal_by_tensorflow_is_chained():
    with pytest.raises(UnsupportedError) as caught:
        structures.encode([object()])
    assert isinstance(caught.value.__cause__, coder.NotEncodableError)


def test_an_integer_over_64_bits_is_refused_by_name():
    with pytest.raises(UnsupportedError) as caught:
        structures.encode({"n": 2**63})
    assert str(caught.value) == (
        "Cannot encode the value at ['n']: expected an integer of 64 bits, received "
        "value=9223372036854775808 of type int. Pass it as text."
    )


def test_a_dict_key_that_is_no_text_is_refused_by_name():
    with pytest.raises(UnsupportedError) as caught:
        structures.encode([{3: "a"}])
    assert str(caught.value) == (
        "Cannot encode the value at [0]: expected str keys in a dict, received value=3 of type "
        "int. Turn the keys into text."
    )


def test_keys_that_become_one_are_refused_instead_of_dropped():
    with pytest.raises(UnsupportedError, match="expected keys that differ as text"):
        structures.encode({"a": 1, b"a": 2})


def test_an_unregistered_extension_type_says_how_to_register_it():
    with pytest.raises(UnsupportedError, match=r"`__name__ = 'my_project.MyType'`"):
        structures.encode(Unregistered.Spec(tf.TensorSpec([])))


def test_a_refused_part_of_a_spec_is_placed_in_its_state():
    with pytest.raises(UnsupportedError, match=r"at \[0\]\.type_state\[0\]\[1\]: .*value=b'raw'"):
        structures.encode([WithBytes.Spec(b"raw")])


def test_a_tensor_without_a_value_is_refused():
    with tf.Graph().as_default():
        tensor = tf.compat.v1.placeholder(tf.float32)
        with pytest.raises(UnsupportedError, match=r"expected a tensor with a value.*TensorSpec"):
            structures.encode(tensor)


def test_a_handle_is_refused():
    with pytest.raises(UnsupportedError, match="expected numbers, bools or strings"):
        structures.encode(tf.Variable(1.0).handle)


# --- Specs of results ----------------------------------------------------------------------------


def as_tensorflow(structure):
    return func_graph.convert_structure_to_signature(structure)


def assert_same_specs(structure):
    ours, theirs = structures.to_specs(structure), as_tensorflow(structure)
    nest.assert_same_structure(ours, theirs)
    for mine, its in zip(tf.nest.flatten(ours), tf.nest.flatten(theirs), strict=True):
        assert type(mine) is type(its)
        assert mine == its
        assert getattr(mine, "name", None) == getattr(its, "name", None)


@tf.function
def nested_results(x, features):
    ragged = tf.RaggedTensor.from_row_lengths(features["A b"], [1, 2])
    return x, {"A b": x + 1, "0": ragged, "ü": None}, [Point(x * 2, tf.sparse.from_dense([x]))], 3


def test_specs_of_a_functions_results_equal_tensorflows():
    concrete = nested_results.get_concrete_function(
        tf.TensorSpec([], name="given"), {"A b": tf.TensorSpec([3])}
    )
    assert_same_specs(concrete.structured_outputs)
    assert_same_specs(concrete.structured_outputs[0])


def test_specs_of_placeholders_take_the_name_the_user_gave():
    concrete = nested_results.get_concrete_function(
        tf.TensorSpec([], name="given"), {"A b": tf.TensorSpec([3])}
    )
    assert_same_specs({"x": concrete.inputs[0], "given": concrete.inputs[0]})
    assert structures.to_specs({"x": concrete.inputs[0]})["x"].name == "given"


@pytest.mark.parametrize(
    "structure",
    [
        tf.constant(1),
        None,
        [1, 2.5, True, "a", None, tf.float32, tf.TensorSpec([1], name="n")],
        (tf.Variable([1.0]), tf.Variable(2, trainable=False)),
        {"r": tf.ragged.constant([[1], []]), "s": tf.sparse.eye(2)},
        tf.IndexedSlices(tf.ones([1]), tf.constant([0])),
        Registered(tf.constant([1])),
        wrapped([tf.constant(1), {"a": tf.constant(2)}]),
        tf.data.Dataset.range(2),
    ],
    ids=lambda structure: type(structure).__name__,
)
def test_specs_of_values_equal_tensorflows(structure):
    assert_same_specs(structure)


@given(st.text(max_size=4))
def test_specs_of_tensors_under_any_key_get_tensorflows_name(key):
    assert_same_specs({key: [tf.constant(1)]})


def test_a_result_that_no_spec_describes_is_refused_with_its_place():
    with pytest.raises(UnsupportedError) as caught:
        structures.to_specs({"a": [1, {2}]})
    assert str(caught.value) == (
        "Cannot describe the value at ['a'][1]: expected a tensor, variable, spec, dtype, None, "
        "bool, number or str, received value={2} of type set. Keep it out of the function's "
        "arguments and results, or pass it as one of these."
    )


# --- Names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("structure", "names"),
    [
        (1, ["a"]),
        ([1, 2], ["a_0", "a_1"]),
        ((1, 2), ["a_0", "a_1"]),
        ({"y": 1, "x": 2}, ["x", "y"]),
        ({"k": {"l": 1, "m": [2, 3]}}, ["k_l", "k_m_0", "k_m_1"]),
        ([{"k": 1}, 2], ["a_0_k", "a_1"]),
        (Point(1, {"k": 2}), ["x", "y_k"]),
        ([Point(1, 2)], ["a_0_x", "a_0_y"]),
        ({0: 1, 1: 2}, ["a_0", "a_1"]),
        ({}, []),
        (None, ["a"]),
        (wrapped([1, {"k": 2}]), ["a_0", "a_1_k"]),
    ],
    ids=str,
)
def test_names_of_nested_inputs_follow_the_one_rule(structure, names):
    flat = structures.flat_names(structure, "a")
    assert [name for name, _ in flat] == names
    assert [leaf for _, leaf in flat] == tf.nest.flatten(structure)
    assert len(flat) == len(names)
    assert not flat.mapped


def test_composite_tensors_are_one_leaf():
    ragged = tf.ragged.constant([[1], []])
    [(name, leaf)] = structures.flat_names({"r": ragged}, "a")
    assert name == "r"
    assert leaf is ragged


def test_inputs_of_a_functional_model_are_named_by_their_keys():
    inputs = {"image": keras.Input([2]), "meta": [keras.Input([1]), keras.Input([1])]}
    assert [name for name, _ in structures.flat_names(inputs, "inputs")] == [
        "image",
        "meta_0",
        "meta_1",
    ]


def test_names_that_no_graph_accepts_are_mapped_and_reported():
    flat = structures.flat_names({"user id": 1, "größe/cm": [2], "": 3, "fine": 4}, "a")
    assert dict(flat) == {"_": 3, "fine": 4, "gr__e_cm_0": 2, "user_id": 1}
    assert dict(flat.mapped) == {"": "_", "größe/cm_0": "gr__e_cm_0", "user id": "user_id"}


def test_a_clash_after_mapping_is_an_error_that_names_both():
    with pytest.raises(SignatureError) as caught:
        structures.flat_names({"a b": 1, "a_b": 2}, "features")
    assert str(caught.value) == (
        "Cannot name the tensors of `features`: expected a name for each, received 'a_b' for "
        "`features['a b']` and `features['a_b']`. Rename one of the two keys."
    )


def test_a_clash_of_a_path_with_a_key_is_an_error():
    with pytest.raises(SignatureError, match=r"'a_b' for `f\['a'\]\['b'\]` and `f\['a_b'\]`"):
        structures.flat_names({"a": {"b": 1}, "a_b": 2}, "f")


def test_keys_that_cannot_be_sorted_are_an_error():
    with pytest.raises(SignatureError) as caught:
        structures.flat_names({"a": 1, 2: 3}, "features")
    assert str(caught.value) == (
        "Cannot name the tensors of `features`: expected dict keys of one type, received "
        "value={'a': 1, 2: 3} of type dict. Use str keys."
    )


@given(nested_in(st.integers(), plain_containers=True))
def test_names_are_unique_legal_and_in_the_order_of_tf_nest(structure):
    try:
        flat = structures.flat_names(structure, "a")
    except SignatureError:
        return
    names = [name for name, _ in flat]
    assert len(set(names)) == len(names)
    assert all(name == structures.graph_name(name) for name in names)
    assert [leaf for _, leaf in flat] == tf.nest.flatten(structure)
