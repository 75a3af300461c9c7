"""Assembles the MetaGraph: main graph, signatures, saver and object graph, as protos.

In: everything that the steps before made, under its final names. Out: a `MetaGraph`, with the
bytes of `saved_model.pb`. The invariant: the main graph (for the C++ and V1 loaders) and the
object graph (for Python) say the same: one `VarHandleOp` per variable serves both the signatures
and the saver.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from keras_export import attributes, structures, weight_paths
from keras_export import tf_internals as tfi
from keras_export.errors import UnsupportedError
from keras_export.functions import (
    Binding,
    BoundFunction,
    CapturedTensor,
    Constant,
    FunctionLibrary,
    constant_of,
    constant_proto,
)
from keras_export.resources import ResourceGraph, SaveRestore, SaverFunctions
from keras_export.signatures import (
    DEFAULT_ATTRIBUTE,
    DEFAULT_KEY,
    INIT_OP_KEY,
    SignatureFunction,
    SignatureOutput,
)
from keras_export.tracking import Collection, Node, TrackedGraph, is_keras_layer, path_text
from keras_export.variables import CheckpointPlan, Source, saver_of
from keras_export.wrappers import call_op, fill_call, keyword

# protobuf refuses to serialize more: google/protobuf/io/coded_stream.h
_MAX_PROTO_BYTES = 2**31 - 1

# tensorflow/python/saved_model/signature_constants.py; TF Serving's predict API looks for it.
_METHOD_NAME = "tensorflow/serving/predict"

# tensorflow/cc/saved_model/constants.h
_MAIN_OP_COLLECTION = "saved_model_main_op"
_SCHEMA_VERSION = 1

# tensorflow/core/graph/graph.cc: older readers do not know functions.
_MIN_CONSUMER_OF_FUNCTIONS = 12


@dataclass(frozen=True)
class PythonFunction:
    """A function of the loaded object that no live `tf.function` stands behind.

    Attributes:
        name: attribute of the loaded root.
        function: what it calls.
        argument_names: its positional arguments.
        input_signature: the specs of these.
    """

    name: str
    function: BoundFunction
    argument_names: tuple[str, ...]
    input_signature: tuple[Any, ...]


@dataclass(frozen=True)
class Asset:
    """A file that is copied into the artifact."""

    node: Node
    filename: str
    source: str


@dataclass(frozen=True)
class Contents:
    """Everything that a MetaGraph is assembled from.

    Attributes:
        tracked: all objects.
        saved: the nodes that the loaded object has, the root first.
        library: the functions under their final names.
        signatures: each with the function that serves it.
        python_functions: additional functions of the loaded root.
        resources: the nodes that make tables.
        initializers: the functions that fill them.
        save_restore: functions of objects that serialize themselves.
        savers: functions of registered checkpoint savers.
        assets: files.
        checkpoint: keys of the values.
        aliases: function name -> alias.
        traces: the functions behind each function node, by `id` of the node.
        debug_info: where nodes were made, serialized, if it is wanted.
        options: the caller's `tf.saved_model.SaveOptions`.
    """

    tracked: TrackedGraph
    saved: Sequence[Node]
    library: FunctionLibrary
    signatures: Sequence[tuple[SignatureFunction, BoundFunction]]
    checkpoint: CheckpointPlan
    options: Any
    python_functions: Sequence[PythonFunction] = ()
    resources: ResourceGraph = field(default_factory=ResourceGraph)
    initializers: Sequence[BoundFunction] = ()
    save_restore: Sequence[SaveRestore] = ()
    savers: Sequence[SaverFunctions] = ()
    assets: Sequence[Asset] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    traces: Mapping[int, Sequence[BoundFunction]] = field(default_factory=dict)
    debug_info: bytes | None = None


@dataclass(frozen=True)
class MetaGraph:
    """An assembled artifact, but for the values.

    Attributes:
        saved_model: the bytes of `saved_model.pb`.
        assets: the files to copy.
    """

    saved_model: bytes
    assets: tuple[Asset, ...]


def assemble(contents: Contents) -> MetaGraph:
    """Builds `saved_model.pb`.

    Raises:
        UnsupportedError: an op's namespace is not allowed, or the proto would exceed 2 GiB.
    """
    proto = tfi.saved_model_pb2.SavedModel(saved_model_schema_version=_SCHEMA_VERSION)
    meta_graph = proto.meta_graphs.add()
    graph = _MainGraph(meta_graph.graph_def, contents)
    _fill_library(meta_graph.graph_def, contents.library)
    constants = graph.add_constants(contents.library.constants)
    graph.add_resources()
    _add_signatures(meta_graph, graph, contents)
    _add_init_op(meta_graph, graph, contents)
    if not contents.options.experimental_skip_saver:
        _add_saver(meta_graph, graph, contents)
    _refuse_namespaces(meta_graph.graph_def, contents.options.namespace_whitelist)
    _fill_meta_info(meta_graph, contents)
    _fill_object_graph(meta_graph.object_graph_def, contents, constants)
    attributes.strip_nodes(meta_graph.graph_def.node, Counter())
    _refuse_size(proto, contents)
    return MetaGraph(proto.SerializeToString(deterministic=True), tuple(contents.assets))


# -- main graph -------------------------------------------------------------------------------


class _MainGraph:
    """Adds nodes to the main graph; a node is added before those that take it as input."""

    def __init__(self, graph_def: Any, contents: Contents):
        self.graph_def = graph_def
        self._contents = contents
        self._names: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._tensors: dict[int, str] = {}
        self._assets: dict[int, str] = {}
        graph_def.versions.producer = tfi.GRAPH_DEF_VERSION
        graph_def.versions.min_consumer = tfi.GRAPH_DEF_VERSION_MIN_CONSUMER
        if contents.library.definitions:
            graph_def.versions.min_consumer = _MIN_CONSUMER_OF_FUNCTIONS

    def unique(self, name: str) -> str:
        candidate = name
        while candidate.lower() in self._names:
            self._numbers[name] = number = self._numbers.get(name, 0) + 1
            candidate = f"{name}_{number}"
        self._names.add(candidate.lower())
        return candidate

    def add(self, op: str, name: str, inputs: Iterable[str] = (), device: str = "") -> Any:
        node = self.graph_def.node.add(name=self.unique(name), op=op, device=device)
        node.input.extend(inputs)
        return node

    def placeholder(self, name: str, dtype: int, shape: tf.TensorShape) -> str:
        node = self.add("Placeholder", name)
        node.attr["dtype"].type = dtype
        node.attr["shape"].shape.CopyFrom(shape.as_proto())
        return node.name

    def constant(self, name: str, tensor: Any) -> str:
        node = self.add("Const", name)
        node.attr["dtype"].type = tensor.dtype
        node.attr["value"].tensor.CopyFrom(tensor)
        return node.name

    def strings(self, name: str, values: Sequence[str]) -> str:
        return self.constant(name, tf.make_tensor_proto(list(values), tf.string))

    def add_constants(self, constants: Sequence[Constant]) -> dict[int, str]:
        for constant in constants:
            name = self.constant("Const", constant_proto(constant))
            self._tensors[id(constant)] = name
        return {id(constant): self._tensors[id(constant)] for constant in constants}

    def add_resources(self) -> None:
        resources = self._contents.resources
        for node in resources.nodes:
            self._names.add(node.name.lower())
            self.graph_def.node.add().CopyFrom(node)
        self._tensors.update(
            {key: name.removesuffix(":0") for key, name in resources.tensors.items()}
        )

    def tensor(self, binding: Binding) -> str:
        """The main graph's tensor for what a function is bound to, made on first use."""
        if id(binding) not in self._tensors:
            self._tensors[id(binding)] = self._make(binding)
        return self._tensors[id(binding)]

    def _make(self, binding: Binding) -> str:
        if isinstance(binding, Node) and binding.kind == "variable":
            return self._variable(binding)
        if isinstance(binding, Node) and binding.kind == "asset":
            return self._asset(binding)
        raise UnsupportedError(f"Cannot export: {binding!r} has no place in the main graph.")

    def _variable(self, node: Node) -> str:
        facts = node.facts
        handle = self.add("VarHandleOp", node_name(variable_name(node)))
        handle.attr["dtype"].type = facts.dtype.as_datatype_enum
        handle.attr["shape"].shape.CopyFrom(facts.shape.as_proto())
        # MLIR and LiteRT look for the variable under the node's name.
        handle.attr["shared_name"].s = handle.name.encode()
        if self._contents.options.experimental_variable_policy._save_variable_devices():
            handle.device = node.obj.device
        return handle.name

    def _asset(self, node: Node) -> str:
        """A variable with the path: the loader feeds the path only while it initialises."""
        handle = self.add("VarHandleOp", "asset_path")
        handle.attr["dtype"].type = tf.string.as_datatype_enum
        handle.attr["shape"].shape.SetInParent()
        handle.attr["shared_name"].s = handle.name.encode()
        read = self.add("ReadVariableOp", f"{handle.name}/Read", [handle.name])
        read.attr["dtype"].type = tf.string.as_datatype_enum
        self._assets[id(node)] = handle.name
        return read.name

    def asset_handle(self, node: Node) -> str | None:
        """The variable that holds an asset's path, if a signature reads it."""
        return self._assets.get(id(node))

    def call(self, function: BoundFunction, inputs: Sequence[str]) -> Any:
        definition = self._contents.library.definitions[function.name]
        bound = [self.tensor(binding) for binding in function.bindings]
        op = call_op(definition)
        node = self.add(op, op, [*inputs, *bound])
        fill_call(node, definition, function)
        return node


def variable_name(node: Node) -> str:
    """The name by which people know a variable: Keras's path, else the variable's own name."""
    if node.keras_variable is not None and node.keras_variable.path:
        return node.keras_variable.path
    return (getattr(node.obj, "name", None) or node.obj._shared_name).split(":")[0]


def node_name(name: str) -> str:
    """A valid node name; one that starts with `_` is refused by the C++ loader."""
    valid = re.sub(r"[^A-Za-z0-9_.\\/-]", "_", name)
    return valid if re.match(r"[A-Za-z0-9.]", valid) else f"v{valid}"


def _fill_library(graph_def: Any, library: FunctionLibrary) -> None:
    # The nodes move into the graph: a copy of a large library costs more than assembling it.
    graph_def.library.function.extend(library.definitions.values())
    for op_type, name in library.gradients.items():
        graph_def.library.registered_gradients.add(gradient_func=name, registered_op_type=op_type)


# -- signatures -------------------------------------------------------------------------------


def _add_signatures(meta_graph: Any, graph: _MainGraph, contents: Contents) -> None:
    calls: dict[int, tuple[Any, dict[int, str]]] = {}
    for signature, function in sorted(contents.signatures, key=lambda pair: pair[0].key):
        if id(function) not in calls:
            calls[id(function)] = _add_signature_call(graph, signature, function)
        call, placeholders = calls[id(function)]
        _fill_signature_def(
            meta_graph.signature_def[signature.key], signature, call.name, placeholders
        )


def _add_signature_call(
    graph: _MainGraph, signature: SignatureFunction, function: BoundFunction
) -> tuple[Any, dict[int, str]]:
    placeholders = {}
    for item in signature.inputs:
        name = node_name(f"{signature.key}_{item.name}")
        placeholders[item.position] = _add_input(graph, name, item)
    ordered = sorted(signature.inputs, key=lambda item: keyword(item.name))
    return graph.call(function, [placeholders[x.position] for x in ordered]), placeholders


def _add_input(graph: _MainGraph, name: str, item: Any) -> str:
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


# -- initialisation ---------------------------------------------------------------------------


def _add_init_op(meta_graph: Any, graph: _MainGraph, contents: Contents) -> None:
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
    init = graph.add("NoOp", "init", [f"^{name}" for name in done])
    meta_graph.collection_def[_MAIN_OP_COLLECTION].node_list.value.append(init.name)
    proto = meta_graph.signature_def[INIT_OP_KEY]
    info = proto.outputs[INIT_OP_KEY]
    info.name = init.name
    info.tensor_shape.unknown_rank = True


def _add_initializer(
    graph: _MainGraph, contents: Contents, function: BoundFunction, paths: dict[int, str]
) -> str:
    definition = contents.library.definitions[function.name]
    inputs = [
        paths[id(binding)] if id(binding) in paths else graph.tensor(binding)
        for binding in function.bindings
    ]
    node = graph.add(call_op(definition), "initialize", inputs)
    fill_call(node, definition, function)
    return node.name


# -- saver ------------------------------------------------------------------------------------


def _add_saver(meta_graph: Any, graph: _MainGraph, contents: Contents) -> None:
    """The nodes by which graph-world readers restore, and by which a V1 `Saver` saves again."""
    filename = graph.placeholder("saver_filename", tf.string.as_datatype_enum, tf.TensorShape([]))
    plain = [x for x in contents.checkpoint.sources if x.node.kind == "variable"]
    keys = [(source.names[0][1], "") for source in plain]
    keys += [pair for item in contents.save_restore for pair in item.keys]
    done, restored = [], []
    if keys:
        names = graph.strings("saver_names", [key for key, _ in keys])
        slices = graph.strings("saver_slices", [part for _, part in keys])
        restored = _add_restore(graph, contents, plain, [filename, names, slices])
        target = _part(graph, filename, "_temp/part") if contents.savers else filename
        done = [_add_save(graph, contents, plain, [target, names, slices])]
    if contents.savers:
        parts = [target] if keys else []
        done = [_add_registered_saves(graph, contents, filename, parts, done)]
        restored = _add_registered_restores(graph, contents, filename, restored)
    save = graph.add("Identity", "save", [filename, *(f"^{name}" for name in done)])
    save.attr["T"].type = tf.string.as_datatype_enum
    saver = meta_graph.saver_def
    saver.filename_tensor_name = f"{filename}:0"
    saver.save_tensor_name = f"{save.name}:0"
    saver.restore_op_name = graph.add("NoOp", "restore", [f"^{name}" for name in restored]).name
    saver.version = tfi.saver_pb2.SaverDef.V2


def _part(graph: _MainGraph, filename: str, suffix: str) -> str:
    """A prefix beside the checkpoint's, as a scalar."""
    end = graph.constant("saver_suffix", tf.make_tensor_proto(suffix, tf.string))
    node = graph.add("StringJoin", "saver_part", [filename, end])
    node.attr["N"].i = 2
    return node.name


def _add_registered_saves(
    graph: _MainGraph,
    contents: Contents,
    filename: str,
    parts: Sequence[str],
    done: Sequence[str],
) -> str:
    """Lets registered savers write, and joins what they wrote with the rest."""
    axis = graph.constant("saver_axis", tf.make_tensor_proto(0, tf.int32))
    shape = graph.constant("saver_vector", tf.make_tensor_proto([-1], tf.int32))
    written = []
    for part in parts:
        node = graph.add("Reshape", "saver_part_vector", [part, shape])
        node.attr["T"].type = tf.string.as_datatype_enum
        written.append(node.name)
    for saver in contents.savers:
        written.append(graph.call(saver.save, [_part(graph, filename, f"-{saver.name}")]).name)
    prefixes = written[0]
    if len(written) > 1:
        joined = graph.add("ConcatV2", "saver_parts", [*written, axis])
        joined.attr["N"].i = len(written)
        joined.attr["T"].type = tf.string.as_datatype_enum
        prefixes = joined.name
    controls = [f"^{name}" for name in done]
    return str(graph.add("MergeV2Checkpoints", "merge", [prefixes, filename, *controls]).name)


def _add_registered_restores(
    graph: _MainGraph, contents: Contents, filename: str, restored: Sequence[str]
) -> list[str]:
    done = list(restored)
    for saver in contents.savers:
        call = graph.call(saver.restore, [filename])
        call.input.extend(f"^{name}" for name in restored)
        done.append(call.name)
    return done


def _add_restore(
    graph: _MainGraph, contents: Contents, plain: Sequence[Source], inputs: Sequence[str]
) -> list[str]:
    handles = [graph.tensor(source.node) for source in plain]
    restore = graph.add("RestoreV2", "load", inputs)
    dtypes = restore.attr["dtypes"].list.type
    done = []
    for index, (source, handle) in enumerate(zip(plain, handles, strict=False)):
        dtype = source.node.facts.dtype.as_datatype_enum
        dtypes.append(dtype)
        assign = graph.add("AssignVariableOp", "set", [handle, _output(restore.name, index)])
        assign.attr["dtype"].type = dtype
        done.append(assign.name)
    for item in contents.save_restore:
        arguments = contents.library.definitions[item.restore.name].signature.input_arg
        start = len(dtypes)
        dtypes.extend(x.type for x in arguments[: len(item.keys)])
        values = [_output(restore.name, i) for i in range(start, len(dtypes))]
        done.append(graph.call(item.restore, values).name)
    return done


def _add_save(
    graph: _MainGraph, contents: Contents, plain: Sequence[Source], inputs: Sequence[str]
) -> str:
    tensors, dtypes = [], []
    for source in plain:
        dtypes.append(source.node.facts.dtype.as_datatype_enum)
        read = graph.add("ReadVariableOp", "get", [graph.tensor(source.node)])
        read.attr["dtype"].type = dtypes[-1]
        tensors.append(read.name)
    for item in contents.save_restore:
        results = contents.library.definitions[item.save.name].signature.output_arg
        call = graph.call(item.save, _key_input(graph, item)).name
        tensors += [_output(call, i) for i in item.outputs]
        dtypes += [results[i].type for i in item.outputs]
    save = graph.add("SaveV2", "SaveV2", [*inputs, *tensors])
    save.attr["dtypes"].list.type.extend(dtypes)
    return save.name


def _key_input(graph: _MainGraph, item: SaveRestore) -> list[str]:
    if item.key is None:
        return []
    return [graph.constant("saver_key", tf.make_tensor_proto(item.key, tf.string))]


def _output(node: str, index: int) -> str:
    return f"{node}:{index}" if index else node


# -- meta information -------------------------------------------------------------------------


def _refuse_namespaces(graph_def: Any, allowed: Sequence[str] | None) -> None:
    if allowed is None:
        return
    refused = sorted(
        op
        for op in attributes.ops_of(graph_def)
        if ">" in op and op.partition(">")[0] not in allowed
    )
    if refused:
        namespaces = sorted({op.partition(">")[0] for op in refused})
        raise UnsupportedError(
            f"Cannot export: the ops {', '.join(refused)} are of namespaces that "
            f"namespace_whitelist={list(allowed)!r} does not allow. A consumer needs the library "
            f"that defines them; if it has it, add {', '.join(map(repr, namespaces))}."
        )


def _fill_meta_info(meta_graph: Any, contents: Contents) -> None:
    info = meta_graph.meta_info_def
    info.tags.append(tf.saved_model.SERVING)
    info.tags.extend(getattr(contents.options, "extra_tags", None) or ())
    info.tensorflow_version = tf.version.VERSION
    info.tensorflow_git_version = tf.version.GIT_VERSION
    info.stripped_default_attrs = True
    info.stripped_op_list.CopyFrom(attributes.op_list(meta_graph.graph_def))
    for name, alias in contents.aliases.items():
        info.function_aliases[name] = alias


def _refuse_size(proto: Any, contents: Contents) -> None:
    if proto.ByteSize() <= _MAX_PROTO_BYTES:
        return
    largest = sorted(
        contents.library.constants,
        key=lambda constant: -constant.value.nbytes,
    )[:3]
    listed = ", ".join(f"{x.dtype.name}{list(x.value.shape)}" for x in largest)
    raise UnsupportedError(
        "Cannot export: the graph is larger than 2 GiB, the most that a protobuf holds. Its "
        f"largest constants are {listed}. Make them variables, which are stored apart."
    )


# -- object graph -----------------------------------------------------------------------------


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


def _fill_object_graph(proto: Any, contents: Contents, constants: dict[int, str]) -> None:
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
        saved.registered_saver = saver_of(node) or ""


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
        # Without a spec, TensorFlow 2.13 does not make a tensor of the key that it calls this with.
        names = list(saved.argument_keywords)
        fullargspec = tfi.FullArgSpec(names, None, None, None, [], None, {})
        structures.encode_into(fullargspec, saved.function_spec.fullargspec)
        saved.function_spec.input_signature.none_value.SetInParent()
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


def _fill_concrete_functions(objects: _ObjectGraph, library: FunctionLibrary) -> None:
    for name, function in library.functions.items():
        proto = objects.proto.concrete_functions[name]
        structures.encode_into(function.input_signature, proto.canonicalized_input_signature)
        structures.encode_into(function.output_signature, proto.output_signature)
        proto.bound_inputs.extend(objects.ids[id(binding)] for binding in function.bindings)
