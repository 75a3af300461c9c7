"""The SignatureDefs and the op that initialises: what sessions are asked for.

In: the main graph, and the functions behind the signatures. Out: a call of each in the graph, its
SignatureDef, and the init op. The invariant: tensors are called as the user called them.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_export import structures
from keras_export.contents import Contents
from keras_export.functions import BoundFunction, constant_of, constant_proto
from keras_export.main_graph import MainGraph, node_name
from keras_export.signatures import INIT_OP_KEY, SignatureFunction, SignatureOutput
from keras_export.wrappers import call_op, fill_call, keyword

# tensorflow/python/saved_model/signature_constants.py; TF Serving's predict API looks for it.
_METHOD_NAME = "tensorflow/serving/predict"

# tensorflow/cc/saved_model/constants.h
_MAIN_OP_COLLECTION = "saved_model_main_op"


def add_signatures(meta_graph: Any, graph: MainGraph, contents: Contents) -> None:
    """Calls each signature's function once in the graph and describes its tensors."""
    calls: dict[int, tuple[Any, dict[int, str]]] = {}
    for signature, function in sorted(contents.signatures, key=lambda pair: pair[0].key):
        if id(function) not in calls:
            calls[id(function)] = _add_signature_call(graph, signature, function)
        call, placeholders = calls[id(function)]
        _fill_signature_def(
            meta_graph.signature_def[signature.key], signature, call.name, placeholders
        )


def _add_signature_call(
    graph: MainGraph, signature: SignatureFunction, function: BoundFunction
) -> tuple[Any, dict[int, str]]:
    placeholders = {}
    for item in signature.inputs:
        name = node_name(f"{signature.key}_{item.name}")
        placeholders[item.position] = _add_input(graph, name, item)
    ordered = sorted(signature.inputs, key=lambda item: keyword(item.name))
    return graph.call(function, [placeholders[x.position] for x in ordered]), placeholders


def _add_input(graph: MainGraph, name: str, item: Any) -> str:
    dtype = item.spec.dtype.as_datatype_enum
    if item.default is None:
        return graph.placeholder(name, dtype, item.spec.shape)
    value = constant_proto(constant_of(item.default, f"the default of {item.name!r}"))
    node = graph.add("PlaceholderWithDefault", name, [graph.constant(f"{name}/default", value)])
    node.attr["dtype"].type = dtype
    node.attr["shape"].shape.CopyFrom(item.spec.shape.as_proto())
    return node.name


def _fill_signature_def(
    proto: Any, signature: SignatureFunction, call: str, placeholders: dict[int, str]
) -> None:
    for item in signature.inputs:
        info = proto.inputs[item.name]
        _fill_tensor_info(info, f"{placeholders[item.position]}:0", item.spec)
        if item.default is not None:
            default = constant_of(item.default, f"the default of {item.name!r}")
            proto.defaults[item.name].CopyFrom(constant_proto(default))
    start = 0
    for output in signature.outputs:
        _fill_output_info(proto.outputs[output.name], output, call, start)
        start += len(output.positions)
    proto.method_name = _METHOD_NAME


def _fill_tensor_info(info: Any, name: str, spec: Any) -> None:
    info.name = name
    info.dtype = spec.dtype.as_datatype_enum
    info.tensor_shape.CopyFrom(spec.shape.as_proto())


def _fill_output_info(info: Any, output: SignatureOutput, call: str, start: int) -> None:
    names = [f"{call}:{start + offset}" for offset in range(len(output.positions))]
    if isinstance(output.spec, tf.TensorSpec):
        _fill_tensor_info(info, names[0], output.spec)
    elif isinstance(output.spec, tf.SparseTensorSpec):
        info.dtype = output.spec.dtype.as_datatype_enum
        info.tensor_shape.CopyFrom(output.spec.shape.as_proto())
        sparse = info.coo_sparse
        sparse.indices_tensor_name, sparse.values_tensor_name, sparse.dense_shape_tensor_name = (
            names
        )
    else:
        _fill_composite_info(info, output.spec, names)


def _fill_composite_info(info: Any, spec: Any, names: list[str]) -> None:
    encoded = structures.encode(spec)
    info.composite_tensor.type_spec.CopyFrom(encoded.type_spec_value)
    components = tf.nest.flatten(spec, expand_composites=True)
    for name, component in zip(names, components, strict=False):
        _fill_tensor_info(info.composite_tensor.components.add(), name, component)


def add_init_op(meta_graph: Any, graph: MainGraph, contents: Contents) -> None:
    """One op that runs what must run before serving: asset paths first, then tables."""
    paths = {}
    done = []
    for asset in contents.assets:
        path = graph.placeholder(
            "asset_path_initializer", tf.string.as_datatype_enum, tf.TensorShape([])
        )
        paths[id(asset.node)] = path
        info = meta_graph.asset_file_def.add(filename=asset.filename)
        info.tensor_info.name = f"{path}:0"
        handle = graph.asset_handle(asset.node)
        if handle is not None:
            assign = graph.add("AssignVariableOp", f"{handle}/Assign", [handle, path])
            assign.attr["dtype"].type = tf.string.as_datatype_enum
            done.append(assign.name)
    for function in contents.initializers:
        done.append(_add_initializer(graph, contents, function, paths))
    init = graph.add("NoOp", "NoOp", [f"^{name}" for name in done])
    meta_graph.collection_def[_MAIN_OP_COLLECTION].node_list.value.append(init.name)
    proto = meta_graph.signature_def[INIT_OP_KEY]
    info = proto.outputs[INIT_OP_KEY]
    info.name = init.name
    info.tensor_shape.unknown_rank = True


def _add_initializer(
    graph: MainGraph, contents: Contents, function: BoundFunction, paths: dict[int, str]
) -> str:
    definition = contents.library.definitions[function.name]
    inputs = [
        paths[id(binding)] if id(binding) in paths else graph.tensor(binding)
        for binding in function.bindings
    ]
    node = graph.add(call_op(definition), "initialize", inputs)
    fill_call(node, definition, function)
    return node.name
