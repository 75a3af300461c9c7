"""Stripping equals TensorFlow's own, in the main graph and in the library; the list of ops."""

import collections
import struct

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.python.client import pywrap_tf_session
from tensorflow.python.framework import meta_graph, op_def_registry

from keras_export import attributes
from keras_export.attributes import strip_default_attributes
from keras_export.errors import ArgumentTypeError, ExportError
from keras_export.tf_internals import (
    attr_value_pb2,
    graph_pb2,
    meta_graph_pb2,
    op_def_pb2,
    saved_model_pb2,
)


def conv_model():
    model = keras.Sequential(
        [
            keras.Input([8, 8, 3]),
            keras.layers.Conv2D(4, 3, strides=2, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    return tf.function(lambda x: model(x, training=False)), [tf.TensorSpec([None, 8, 8, 3])]


def loops_and_branches():
    @tf.function
    def called(x):
        return tf.matmul(x, x, transpose_b=True)

    def function(x):
        for _ in tf.range(3):
            if tf.reduce_sum(x) > 0:
                x = called(x)
            else:
                x = tf.nn.softmax(x) + tf.strings.to_number("1")
        return x

    return tf.function(function), [tf.TensorSpec([2, 2])]


def recurrent_model():
    model = keras.Sequential([keras.Input([4, 2]), keras.layers.LSTM(3)])
    return tf.function(lambda x: model(x, training=False)), [tf.TensorSpec([1, 4, 2])]


GRAPHS = {"conv": conv_model, "loops": loops_and_branches, "lstm": recurrent_model}


@pytest.fixture(scope="module", params=GRAPHS.values(), ids=GRAPHS.keys())
def metagraph(request):
    """A graph whose main part calls the traced function, so both parts have nodes of a model."""
    function, specs = request.param()
    inner = function.get_concrete_function(*specs)
    outer = tf.function(lambda *args: (inner(*args), function.python_function(*args)))
    graph_def = outer.get_concrete_function(*specs).graph.as_graph_def()
    return meta_graph_pb2.MetaGraphDef(graph_def=graph_def)


def copy_of(proto):
    return type(proto).FromString(proto.SerializeToString())


def stripped_by_tensorflow(metagraph):
    theirs = copy_of(metagraph)
    meta_graph.strip_graph_default_valued_attrs(theirs)
    return theirs


def graph_of(text):
    return text_format.Parse(text, graph_pb2.GraphDef())


# --- The same as TensorFlow ----------------------------------------------------------------------


def test_stripping_a_metagraph_equals_tensorflows_own(metagraph):
    ours = copy_of(metagraph)
    report = strip_default_attributes(ours)
    assert ours == stripped_by_tensorflow(metagraph)
    assert report.total > 10
    assert ours.meta_info_def.stripped_default_attrs


def test_nodes_of_the_main_graph_and_of_the_library_are_stripped(metagraph):
    graph_def = copy_of(metagraph.graph_def)
    report = strip_default_attributes(graph_def)
    in_main = sum(len(node.attr) for node in metagraph.graph_def.node) - sum(
        len(node.attr) for node in graph_def.node
    )
    changed = [
        before.signature.name
        for before, after in zip(
            metagraph.graph_def.library.function, graph_def.library.function, strict=True
        )
        if before != after
    ]
    assert 0 < in_main < report.total
    assert report.functions == tuple(changed) != ()


def test_stripping_twice_changes_nothing_more(metagraph):
    once = copy_of(metagraph.graph_def)
    strip_default_attributes(once)
    twice = copy_of(once)
    report = strip_default_attributes(twice)
    assert twice == once
    assert report.total == report.bytes_saved == 0
    assert report.functions == ()


def test_the_stripped_graph_is_filled_in_again_on_import(metagraph):
    graph_def = copy_of(metagraph.graph_def)
    strip_default_attributes(graph_def)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    kept = [node for node in graph.as_graph_def().node if node.op not in graph_functions(graph)]
    assert {node.name: dict(op_attributes(node)) for node in kept} == {
        node.name: dict(op_attributes(node))
        for node in metagraph.graph_def.node
        if node.op not in graph_functions(graph)
    }


def graph_functions(graph):
    return {function.signature.name for function in graph.as_graph_def().library.function}


def op_attributes(node):
    # The importer adds attributes of its own, which start with `_`.
    return [
        (name, value.SerializeToString(deterministic=True))
        for name, value in sorted(node.attr.items())
        if not name.startswith("_")
    ]


def all_registered_ops():
    buffer = pywrap_tf_session.TF_GetAllOpList()
    return op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetBuffer(buffer)).op


OPS_WITH_DEFAULTS = [
    op for op in all_registered_ops() if any(a.HasField("default_value") for a in op.attr)
]
floats = st.floats(width=32)
attr_values = st.one_of(
    st.builds(attr_value_pb2.AttrValue, i=st.integers(-3, 3)),
    st.builds(attr_value_pb2.AttrValue, b=st.booleans()),
    st.builds(attr_value_pb2.AttrValue, f=floats),
    st.builds(attr_value_pb2.AttrValue, s=st.sampled_from([b"", b"NHWC", b"x"])),
    st.builds(attr_value_pb2.AttrValue, type=st.sampled_from([0, 1, 3, 9])),
    st.builds(attr_value_pb2.AttrValue, placeholder=st.sampled_from(["T", ""])),
    st.just(attr_value_pb2.AttrValue()),
    st.lists(st.integers(0, 1), max_size=4).map(
        lambda i: attr_value_pb2.AttrValue(list=attr_value_pb2.AttrValue.ListValue(i=i))
    ),
    st.lists(floats, max_size=2).map(
        lambda f: attr_value_pb2.AttrValue(list=attr_value_pb2.AttrValue.ListValue(f=f))
    ),
)


@st.composite
def nodes(draw):
    op = draw(st.sampled_from(OPS_WITH_DEFAULTS))
    node = graph_pb2.GraphDef().node.add(op=op.name, name="n")
    for attribute in op.attr:
        choice = draw(st.sampled_from(["default", "random", "absent"]))
        if choice == "random":
            node.attr[attribute.name].CopyFrom(draw(attr_values))
        elif choice == "default" and attribute.HasField("default_value"):
            node.attr[attribute.name].CopyFrom(attribute.default_value)
    return node


@given(st.lists(nodes(), max_size=5))
def test_any_attribute_of_any_op_is_judged_as_tensorflow_judges_it(some_nodes):
    metagraph = meta_graph_pb2.MetaGraphDef()
    metagraph.graph_def.node.extend(some_nodes)
    metagraph.graph_def.library.function.add().node_def.extend(some_nodes)
    ours = copy_of(metagraph)
    strip_default_attributes(ours)
    theirs = stripped_by_tensorflow(metagraph)
    # Compared as bytes, since protos with a NaN never compare equal.
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(
        deterministic=True
    )


def test_the_defaults_of_every_registered_op_are_known_and_removed():
    graph_def = graph_pb2.GraphDef()
    for op in OPS_WITH_DEFAULTS:
        node = graph_def.node.add(op=op.name, name=op.name)
        for attribute in op.attr:
            if attribute.HasField("default_value"):
                node.attr[attribute.name].CopyFrom(attribute.default_value)
    strip_default_attributes(graph_def)
    assert {node.op: sorted(node.attr) for node in graph_def.node if node.attr} == {}


# --- What goes and what stays --------------------------------------------------------------------


def removed_from(text):
    graph_def = graph_of(text)
    before = set(graph_def.node[0].attr)
    strip_default_attributes(graph_def)
    return before - set(graph_def.node[0].attr)


def test_other_values_than_the_default_stay():
    assert removed_from(
        """node { name: "x" op: "MatMul"
                  attr { key: "transpose_a" value { b: true } }
                  attr { key: "transpose_b" value { b: false } }
                  attr { key: "T" value { type: DT_FLOAT } } }"""
    ) == {"transpose_b"}


def test_attributes_that_start_with_an_underscore_stay():
    assert not removed_from(
        """node { name: "x" op: "IdentityN"
                  attr { key: "_gradient_op_type" value { s: "CustomGradient-1" } }
                  attr { key: "_output_shapes" value { list { } } } }"""
    )


def test_nodes_of_unknown_ops_stay_untouched():
    graph_def = graph_of(
        'node { name: "x" op: "NoSuchOp" attr { key: "transpose_a" value { b: false } } }'
    )
    before = copy_of(graph_def)
    assert strip_default_attributes(graph_def).total == 0
    assert graph_def == before


def test_an_op_that_is_registered_later_is_stripped_then(monkeypatch):
    assert attributes.defaults_of("KerasExportLater") == ()
    op_def = copy_of(op_def_registry.get("MatMul"))
    monkeypatch.setattr(attributes.tfi, "op_def_of", lambda op_type: op_def)
    assert ("transpose_a", b"\x28\x00") in attributes.defaults_of("KerasExportLater")
    del attributes._DEFAULTS["KerasExportLater"]


def test_calls_of_a_library_function_with_the_name_of_an_op_stay_untouched():
    graph_def = graph_of(
        """node { name: "x" op: "MatMul" attr { key: "transpose_a" value { b: false } } }
           library { function { signature { name: "MatMul" }
             node_def { name: "y" op: "MatMul" attr { key: "grad_a" value { b: false } } } } }"""
    )
    metagraph = meta_graph_pb2.MetaGraphDef(graph_def=graph_def)
    strip_default_attributes(graph_def)
    assert graph_def == metagraph.graph_def == stripped_by_tensorflow(metagraph).graph_def


def test_placeholders_for_the_attributes_of_a_function_stay():
    assert not removed_from(
        'node { name: "x" op: "MatMul" attr { key: "transpose_a" value { placeholder: "t" } } }'
    )


def test_minus_zero_is_not_the_default_zero():
    op = "CropAndResize"
    for value, expected in [(-0.0, set()), (0.0, {"extrapolation_value"})]:
        assert (
            removed_from(
                f'node {{ name: "x" op: "{op}" '
                f'attr {{ key: "extrapolation_value" value {{ f: {value} }} }} }}'
            )
            == expected
        )


def test_a_float_is_compared_in_single_precision():
    epsilon = struct.unpack("f", struct.pack("f", 1e-4))[0]
    text = 'node {{ name: "x" op: "FusedBatchNormV3" attr {{ key: "epsilon" value {{ f: {} }} }} }}'
    assert removed_from(text.format(epsilon)) == removed_from(text.format("0.0001")) == {"epsilon"}
    assert not removed_from(text.format(np.nextafter(np.float32(1e-4), np.float32(1))))


def test_nan_is_the_default_where_the_default_is_nan(monkeypatch):
    nan = attr_value_pb2.AttrValue(f=float("nan")).SerializeToString()
    monkeypatch.setitem(attributes._DEFAULTS, "Elu", (("alpha", nan),))
    assert removed_from('node { name: "x" op: "Elu" attr { key: "alpha" value { f: nan } } }') == {
        "alpha"
    }


def test_a_tensor_is_compared_by_content():
    # This op of TensorFlow's own tests is the only registered one with a tensor as default.
    for content, expected in [
        ("int_val: 1", {"tensor_val"}),
        (r'tensor_content: "\001\000\000\000"', {"tensor_val"}),
        ("int_val: 2", set()),
    ]:
        text = f"""node {{ name: "x" op: "DefaultAttrs" attr {{ key: "tensor_val" value {{
            tensor {{ dtype: DT_INT32 tensor_shape {{ }} {content} }} }} }} }}"""
        assert removed_from(text) == expected
        metagraph = meta_graph_pb2.MetaGraphDef(graph_def=graph_of(text))
        assert ("tensor_val" not in stripped_by_tensorflow(metagraph).graph_def.node[0].attr) == (
            expected == {"tensor_val"}
        )


def test_lists_are_compared_in_order_and_length():
    text = """node {{ name: "x" op: "Conv2D"
                     attr {{ key: "dilations" value {{ list {{ i: [{}] }} }} }} }}"""
    assert removed_from(text.format("1, 1, 1, 1")) == {"dilations"}
    assert not removed_from(text.format("1, 1, 1"))
    assert not removed_from(text.format("1, 2, 2, 1"))


# --- The function by itself ----------------------------------------------------------------------


def test_every_graph_of_a_saved_model_is_stripped(metagraph):
    saved_model = saved_model_pb2.SavedModel(meta_graphs=[metagraph, metagraph])
    report = strip_default_attributes(saved_model)
    theirs = stripped_by_tensorflow(metagraph)
    assert list(saved_model.meta_graphs) == [theirs, theirs]
    assert report.total == 2 * strip_default_attributes(copy_of(metagraph)).total


@pytest.mark.parametrize("wrong", [b"\x08\x01", None, "saved_model.pb"], ids=repr)
def test_other_types_than_graphs_are_refused(wrong):
    with pytest.raises(ArgumentTypeError) as caught:
        strip_default_attributes(wrong)
    assert isinstance(caught.value, (ExportError, TypeError))
    assert str(caught.value) == (
        "Cannot strip default attributes: expected a GraphDef, MetaGraphDef or SavedModel proto, "
        f"received graph_or_metagraph=builtins.{type(wrong).__name__}. "
        "Pass `graph.as_graph_def()`, or parse the bytes first."
    )


def test_a_live_graph_is_refused_with_the_way_to_its_proto():
    with pytest.raises(ArgumentTypeError, match=r"Graph\. Pass `graph\.as_graph_def\(\)`"):
        strip_default_attributes(tf.Graph())


def test_the_report_counts_what_was_removed(metagraph):
    before = copy_of(metagraph.graph_def)
    after = copy_of(before)
    report = strip_default_attributes(after)
    removed = collections.Counter(
        (node.op, name)
        for node, left in zip(
            attributes._nodes_of(before), attributes._nodes_of(after), strict=True
        )
        for name in set(node.attr) - set(left.attr)
    )
    assert dict(report.counts) == dict(removed)
    assert report.total == removed.total()
    saved = before.ByteSize() - after.ByteSize()
    assert report.bytes_saved <= saved <= 1.1 * report.bytes_saved


def test_the_report_cannot_be_changed(metagraph):
    report = strip_default_attributes(copy_of(metagraph))
    with pytest.raises(AttributeError):
        report.total = 0
    with pytest.raises(TypeError):
        report.counts["MatMul", "transpose_a"] = 0


def test_the_report_prints_the_most_frequent_first():
    report = attributes.report_of({("MatMul", "transpose_a"): 1, ("Conv2D", "dilations"): 3}, ["f"])
    assert str(report) == (
        "4 default attributes removed, 88 bytes, 1 function changed\n"
        "  Conv2D.dilations: 3\n"
        "  MatMul.transpose_a: 1"
    )


def test_a_long_report_is_cut_in_text_and_whole_in_html():
    counts = {
        (op.name, a.name): 1
        for op in OPS_WITH_DEFAULTS[:30]
        for a in op.attr
        if a.HasField("default_value")
    }
    report = attributes.report_of(counts, [])
    assert str(report).endswith(f"\n  and {len(counts) - 20} more")
    assert report._repr_html_().count("<tr>") == len(counts) + 1


# --- Ops -----------------------------------------------------------------------------------------


def test_ops_are_counted_over_the_main_graph_and_the_library():
    graph_def = graph_of(
        """node { name: "a" op: "NoOp" } node { name: "b" op: "f" } node { name: "c" op: "Odd" }
           library { function { signature { name: "f" } node_def { name: "d" op: "NoOp" } } }"""
    )
    assert attributes.ops_of(graph_def) == {"NoOp": 2, "Odd": 1}


def test_the_op_list_has_every_op_of_tensorflows_with_the_same_definition(metagraph):
    theirs = meta_graph.stripped_op_list_for_graph(metagraph.graph_def)
    ours = {op.name: op for op in attributes.op_list(metagraph.graph_def).op}
    assert {op.name: op for op in theirs.op}.items() <= ours.items()


def test_the_op_list_equals_tensorflows_where_no_function_is_passed_as_an_attribute():
    graph_def = (
        tf.function(lambda x: tf.nn.relu(x) @ x)
        .get_concrete_function(tf.TensorSpec([2, 2]))
        .graph.as_graph_def()
    )
    assert attributes.op_list(graph_def) == meta_graph.stripped_op_list_for_graph(graph_def)


def test_the_op_list_has_the_ops_of_loop_bodies_and_branches():
    function, specs = loops_and_branches()
    graph_def = function.get_concrete_function(*specs).graph.as_graph_def()
    names = [op.name for op in attributes.op_list(graph_def).op]
    assert {"StatelessWhile", "If", "StatelessIf", "While"} & set(names)
    assert {"Softmax", "MatMul", "StringToNumber"} <= set(names)
    assert names == sorted(names)


def test_the_op_list_leaves_out_unknown_ops_and_descriptions():
    graph_def = graph_of('node { name: "a" op: "Conv2D" } node { name: "b" op: "NoSuchOp" }')
    [op] = attributes.op_list(graph_def).op
    assert op.name == "Conv2D"
    assert not op.description + op.summary
