"""The nodes by which sessions restore the values, and by which a V1 `Saver` saves them again.

In: the main graph, and what the checkpoint holds. Out: nodes, and the `SaverDef` that names them.
The invariant: the keys are those of the checkpoint that Python restores from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_export import tf_internals as tfi
from keras_export.contents import Contents
from keras_export.main_graph import MainGraph
from keras_export.resources import SaveRestore
from keras_export.variables import Source


def add_saver(meta_graph: Any, graph: MainGraph, contents: Contents) -> None:
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


def _part(graph: MainGraph, filename: str, suffix: str) -> str:
    """A prefix beside the checkpoint's, as a scalar."""
    end = graph.constant("saver_suffix", tf.make_tensor_proto(suffix, tf.string))
    node = graph.add("StringJoin", "saver_part", [filename, end])
    node.attr["N"].i = 2
    return node.name


def _add_registered_saves(
    graph: MainGraph,
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
    graph: MainGraph, contents: Contents, filename: str, restored: Sequence[str]
) -> list[str]:
    done = list(restored)
    for saver in contents.savers:
        call = graph.call(saver.restore, [filename])
        call.input.extend(f"^{name}" for name in restored)
        done.append(call.name)
    return done


def _add_restore(
    graph: MainGraph, contents: Contents, plain: Sequence[Source], inputs: Sequence[str]
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
    graph: MainGraph, contents: Contents, plain: Sequence[Source], inputs: Sequence[str]
) -> str:
    tensors, dtypes = [], []
    for source in plain:
        dtypes.append(source.node.facts.dtype.as_datatype_enum)
        handle = graph.tensor(source.node)
        # Tools that freeze the graph of a session read the variables by this name.
        read = graph.add("ReadVariableOp", f"{handle}/Read/ReadVariableOp", [handle])
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


def _key_input(graph: MainGraph, item: SaveRestore) -> list[str]:
    if item.key is None:
        return []
    return [graph.constant("saver_key", tf.make_tensor_proto(item.key, tf.string))]


def _output(node: str, index: int) -> str:
    return f"{node}:{index}" if index else node
