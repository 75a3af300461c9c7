"""The SavedObjectGraph: what Python's loader makes the loaded object from.

In: the contents of an artifact. Out: a proto with a node for each object, function and constant.
The invariant: the functions are those that the main graph calls, bound to the same objects.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_export import structures, weight_paths
from keras_export import tf_internals as tfi
from keras_export.contents import Contents, PythonFunction
from keras_export.errors import UnsupportedError
from keras_export.functions import BoundFunction, CapturedTensor, Constant, FunctionLibrary
from keras_export.keras_objects import Collection, is_keras_layer
from keras_export.main_graph import variable_name
from keras_export.resources import SaveRestore
from keras_export.signatures import DEFAULT_ATTRIBUTE, DEFAULT_KEY, SignatureFunction
from keras_export.tracking import Node, path_text
from keras_export.variables import CheckpointPlan
from keras_export.wrappers import keyword


class _ObjectGraph:
    """Gives ids to objects, functions and constants of the loaded object."""

    def __init__(self, proto: Any, saved: Sequence[Node]):
        self.proto = proto
        self.ids = {id(node): index for index, node in enumerate(saved)}
        for _ in saved:
            proto.nodes.add()

    def add(self, key: Any) -> Any:
        self.ids[id(key)] = len(self.proto.nodes)
        return self.proto.nodes.add()


def fill_object_graph(proto: Any, contents: Contents, constants: dict[int, str]) -> None:
    """Describes the loaded object.

    Args:
        proto: an empty SavedObjectGraph.
        contents: of the artifact.
        constants: the node of each constant in the main graph, by `id`.

    Raises:
        UnsupportedError: objects depend on each other in a circle, or on what is not exported.
    """
    objects = _ObjectGraph(proto, contents.saved)
    for constant in contents.library.constants:
        objects.add(constant).constant.operation = constants[id(constant)]
    for node, saved in zip(contents.saved, proto.nodes, strict=False):
        _fill_saved_object(saved, node, objects, contents)
    _add_signature_map(objects, contents)
    for function in contents.python_functions:
        _add_python_function(objects, function)
    for item in contents.save_restore:
        _add_save_restore(objects, item)
    _add_captured_tensors(objects, contents.library)
    _name_constants(objects, contents)
    _fill_concrete_functions(objects, contents.library)
    _refuse_cycles(proto, contents.saved)


def _refuse_cycles(proto: Any, saved: Sequence[Node]) -> None:
    """The loader makes an object after those that it depends on."""
    waiting = {
        index: {dependency.node_id for dependency in node.dependencies}
        for index, node in enumerate(proto.nodes)
        if node.dependencies
    }
    while waiting:
        ready = [index for index, needed in waiting.items() if not needed & waiting.keys()]
        if not ready:
            paths = ", ".join(path_text(saved[index].path) for index in sorted(waiting))
            raise UnsupportedError(
                f"Cannot export: {paths} depend on each other in a circle, so that none of them "
                "can be made first. Remove one from `_deserialization_dependencies`."
            )
        for index in ready:
            del waiting[index]


def _fill_saved_object(saved: Any, node: Node, objects: _ObjectGraph, contents: Contents) -> None:
    for name, child in node.children.items():
        if id(child) in objects.ids:
            saved.children.add(node_id=objects.ids[id(child)], local_name=name)
    for slot_name, variable, slot in node.slots:
        saved.slot_variables.add(
            original_variable_node_id=objects.ids[id(variable)],
            slot_name=slot_name,
            slot_variable_node_id=objects.ids[id(slot)],
        )
    _KINDS[node.kind](saved, node, contents)
    if isinstance(node.obj, tfi.Trackable):
        _fill_dependencies(saved, node, objects)
        _fill_registration(saved, node.obj)
        saved.registered_saver = node.saver or ""


def _fill_variable(saved: Any, node: Node, contents: Contents) -> None:
    node.obj._write_object_proto(saved, contents.options)
    saved.variable.name = variable_name(node)
    saved.variable.dtype = node.facts.dtype.as_datatype_enum
    if node.keras_variable is not None:
        # The `tf.Variable` inside does not know that its layer was frozen.
        saved.variable.trainable = node.keras_variable.trainable
    on_write = tf.VariableSynchronization.ON_WRITE.value
    if not saved.variable.experimental_distributed_variable_components and (
        isinstance(node.obj, tfi.DistributedVariable) and saved.variable.synchronization == on_write
    ):
        # The strategy's word for AUTO; outside of one both mean the same.
        saved.variable.ClearField("synchronization")


def _fill_asset(saved: Any, node: Node, contents: Contents) -> None:
    index = next(i for i, asset in enumerate(contents.assets) if asset.node is node)
    saved.asset.asset_file_def_index = index
    saved.asset.SetInParent()


def _fill_resource(saved: Any, node: Node, contents: Contents) -> None:
    saved.resource.device = node.obj._resource_device
    saved.resource.SetInParent()


def _fill_function(saved: Any, node: Node, contents: Contents) -> None:
    _fill_function_spec(saved.function.function_spec, node.obj.function_spec, path_text(node.path))
    saved.function.concrete_functions.extend(x.name for x in contents.traces[id(node)])


def _fill_function_spec(proto: Any, spec: Any, path: str) -> None:
    fullargspec = spec.fullargspec._replace(annotations={})
    if fullargspec.args and fullargspec.args[0] == "self":
        raise UnsupportedError(
            f"Cannot export {path}: it is a method that is not bound to an object. Export the "
            "object that has the method."
        )
    structures.encode_into(fullargspec, proto.fullargspec)
    structures.encode_into(spec.input_signature, proto.input_signature)
    proto.jit_compile = _JIT_COMPILE[spec.jit_compile]


_JIT_COMPILE = {
    None: tfi.saved_object_graph_pb2.FunctionSpec.JitCompile.DEFAULT,
    True: tfi.saved_object_graph_pb2.FunctionSpec.JitCompile.ON,
    False: tfi.saved_object_graph_pb2.FunctionSpec.JitCompile.OFF,
}


def _fill_concrete_function(saved: Any, node: Node, contents: Contents) -> None:
    (bound,) = contents.traces[id(node)]
    concrete = node.obj
    proto = saved.bare_concrete_function
    proto.concrete_function_name = bound.name
    proto.allowed_positional_arguments = concrete._num_positional_args
    proto.argument_keywords.extend(tf.compat.as_str(x) for x in concrete._arg_keywords)
    fullargspec = _full_arg_spec(concrete)
    if fullargspec is not None:
        structures.encode_into(fullargspec, proto.function_spec.fullargspec)
        proto.function_spec.input_signature.none_value.SetInParent()


def _full_arg_spec(concrete: Any) -> Any:
    function_type = getattr(concrete, "function_type", None)
    if concrete.structured_input_signature is None or function_type is None:
        return None
    parameters = function_type.parameters.values()
    keyword_only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return tfi.FullArgSpec(
        [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)],
        next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None),
        next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None),
        None,
        keyword_only,
        None,
        {},
    )


def _fill_user_object(saved: Any, node: Node, contents: Contents) -> None:
    if isinstance(node.obj, Collection):
        saved.user_object.CopyFrom(_user_object(node.obj.identifier))
        return
    revived = tfi.revived_types.serialize(node.obj)
    if revived is None:
        revived = _user_object(node.obj._object_identifier)
    saved.user_object.CopyFrom(revived)
    if node is contents.saved[0] and is_keras_layer(node.obj):
        saved.user_object.metadata = _weight_paths(node.obj, contents.checkpoint)


def _weight_paths(model: Any, checkpoint: CheckpointPlan) -> str:
    """Where Keras keeps the variables in a file of weights: no loader reads it, `reweight` does."""
    paths = weight_paths.paths_of(model)
    keys = {id(x.node.obj): x.names[0][1] for x in checkpoint.sources if x.by == "variable"}
    known = {key: paths.of[held] for held, key in keys.items() if held in paths.of}
    return weight_paths.encoded(dataclasses.replace(paths, of=known)) if known else ""


def _user_object(identifier: str) -> Any:
    version = tfi.versions_pb2.VersionDef(producer=1, min_consumer=1)
    return tfi.saved_object_graph_pb2.SavedUserObject(identifier=identifier, version=version)


_KINDS = {
    "variable": _fill_variable,
    "asset": _fill_asset,
    "resource": _fill_resource,
    "function": _fill_function,
    "concrete_function": _fill_concrete_function,
    "object": _fill_user_object,
}


def _fill_dependencies(saved: Any, node: Node, objects: _ObjectGraph) -> None:
    if node.kind in ("function", "concrete_function"):
        return
    cls: type = type(node.obj)
    if _depends_on_nothing(cls):
        return
    children = {name: child.obj for name, child in node.children.items()}
    known = {id(child.obj): child for child in node.children.values()}
    for name, dependency in node.obj._deserialization_dependencies(children).items():
        child = known.get(id(dependency))
        if child is None:
            raise UnsupportedError(
                f"Cannot export {path_text(node.path)}: it depends on {dependency!r} "
                f"({name!r}), which is not among its children. Track it as an attribute."
            )
        saved.dependencies.add(node_id=objects.ids[id(child)], local_name=name)


@functools.lru_cache(maxsize=4096)
def _depends_on_nothing(cls: type) -> bool:
    usual = tfi.Trackable._deserialization_dependencies
    return getattr(cls, "_deserialization_dependencies", None) is usual


def _fill_registration(saved: Any, obj: Any) -> None:
    name = tfi.registration.get_registered_class_name(obj)
    if not name:
        return
    saved.registered_name = name
    own = obj._serialize_to_proto(object_proto=saved)
    if own is not None:
        saved.serialized_user_proto.Pack(own)


def _add_signature_map(objects: _ObjectGraph, contents: Contents) -> None:
    signature_map = objects.add(contents.signatures)
    signature_map.user_object.CopyFrom(_user_object("signature_map"))
    root = objects.proto.nodes[0]
    kept = [child for child in root.children if child.local_name != "signatures"]
    del root.children[:]
    root.children.extend(kept)
    root.children.add(node_id=objects.ids[id(contents.signatures)], local_name="signatures")
    for signature, function in sorted(contents.signatures, key=lambda pair: pair[0].key):
        if id(function) not in objects.ids:
            _fill_signature_function(objects.add(function), signature, function)
        signature_map.children.add(node_id=objects.ids[id(function)], local_name=signature.key)
        if signature.key == DEFAULT_KEY and is_keras_layer(contents.saved[0].obj):
            _keep_as_default(root, objects.ids[id(function)])


def _keep_as_default(root: Any, node_id: int) -> None:
    """Lets whoever saves the loaded model again, TensorFlow too, find its signature."""
    if all(child.local_name != DEFAULT_ATTRIBUTE for child in root.children):
        root.children.add(node_id=node_id, local_name=DEFAULT_ATTRIBUTE)


def _fill_signature_function(
    saved: Any, signature: SignatureFunction, function: BoundFunction
) -> None:
    ordered = sorted(signature.inputs, key=lambda item: keyword(item.name))
    proto = saved.bare_concrete_function
    proto.concrete_function_name = function.name
    proto.argument_keywords.extend(item.name for item in ordered)
    # With one input the order is clear; with more the loader must insist on names.
    proto.allowed_positional_arguments = 1 if len(ordered) == 1 else 0
    names = [keyword(item.name) for item in ordered]
    fullargspec = tfi.FullArgSpec([], None, None, None, names, None, {})
    structures.encode_into(fullargspec, proto.function_spec.fullargspec)
    proto.function_spec.input_signature.none_value.SetInParent()


def _add_python_function(objects: _ObjectGraph, function: PythonFunction) -> None:
    saved = objects.add(function)
    spec = saved.function.function_spec
    fullargspec = tfi.FullArgSpec(list(function.argument_names), None, None, None, [], None, {})
    structures.encode_into(fullargspec, spec.fullargspec)
    # TensorFlow takes no None in it; without it, a call is matched with the function's own specs.
    left_out = any(x is None for x in tf.nest.flatten(function.input_signature))
    signature = None if left_out else tuple(function.input_signature)
    structures.encode_into(signature, spec.input_signature)
    saved.function.concrete_functions.append(function.function.name)
    objects.proto.nodes[0].children.add(node_id=objects.ids[id(function)], local_name=function.name)


def _add_save_restore(objects: _ObjectGraph, item: SaveRestore) -> None:
    # The loader gives the object these two as its methods.
    proto = objects.proto.nodes[objects.ids[id(item.source.node)]].saveable_objects[item.name]
    positional = 1 if item.key is None else item.save.concrete._num_positional_args
    saved = _add_bare_function(objects, item.save, positional)
    if item.key is not None:
        # Without a spec TensorFlow 2.13 does not make a tensor of the key that it calls this with,
        # nor does 2.12 without the signature in it.
        names = list(saved.argument_keywords)
        fullargspec = tfi.FullArgSpec(names, None, None, None, [], None, {})
        structures.encode_into(fullargspec, saved.function_spec.fullargspec)
        positional_specs, _ = item.save.input_signature
        structures.encode_into(tuple(positional_specs), saved.function_spec.input_signature)
    proto.save_function = objects.ids[id(item.save)]
    positional = 1 if item.key is None else item.restore.concrete._num_positional_args
    _add_bare_function(objects, item.restore, positional)
    proto.restore_function = objects.ids[id(item.restore)]


def _add_bare_function(objects: _ObjectGraph, function: BoundFunction, positional: int) -> Any:
    proto = objects.add(function).bare_concrete_function
    proto.concrete_function_name = function.name
    proto.allowed_positional_arguments = positional
    proto.argument_keywords.extend(tf.compat.as_str(x) for x in function.concrete._arg_keywords)
    return proto


def _add_captured_tensors(objects: _ObjectGraph, library: FunctionLibrary) -> None:
    for function in library.functions.values():
        for binding in function.bindings:
            if isinstance(binding, CapturedTensor) and id(binding) not in objects.ids:
                proto = objects.add(binding).captured_tensor
                proto.name = binding.tensor
                proto.concrete_function = binding.function


def _name_constants(objects: _ObjectGraph, contents: Contents) -> None:
    """Makes each captured constant the child of a function; MLIR's importer names it by that."""
    holders: list[tuple[Any, BoundFunction]]
    holders = [(node, x) for node in contents.saved for x in contents.traces.get(id(node), ())]
    holders += [(x, x.function) for x in contents.python_functions]
    holders += [(function, function) for _, function in contents.signatures]
    named: set[int] = set()
    for holder, function in holders:
        for binding in function.bindings:
            if isinstance(binding, Constant) and id(binding) not in named:
                name = f"capture_{len(named)}"
                named.add(id(binding))
                saved = objects.proto.nodes[objects.ids[id(holder)]]
                saved.children.add(node_id=objects.ids[id(binding)], local_name=name)


def _fill_concrete_functions(objects: _ObjectGraph, library: FunctionLibrary) -> None:
    for name, function in library.functions.items():
        proto = objects.proto.concrete_functions[name]
        structures.encode_into(function.input_signature, proto.canonicalized_input_signature)
        structures.encode_into(function.output_signature, proto.output_signature)
        proto.bound_inputs.extend(objects.ids[id(binding)] for binding in function.bindings)
