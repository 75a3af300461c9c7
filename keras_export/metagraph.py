"""Assembles the MetaGraph: main graph, signatures, saver and object graph, as protos.

In: everything that the steps before made, under its final names. Out: a `MetaGraph`, with the
bytes of `saved_model.pb`. The invariant: the main graph (for the C++ and V1 loaders) and the
object graph (for Python) say the same: one `VarHandleOp` per variable serves both the signatures
and the saver.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_export import attributes, main_graph, object_graph, saver_nodes, signature_defs
from keras_export import tf_internals as tfi
from keras_export.contents import Asset, Contents
from keras_export.errors import UnsupportedError

# protobuf refuses to serialize more: google/protobuf/io/coded_stream.h
_MAX_PROTO_BYTES = 2**31 - 1

# tensorflow/cc/saved_model/constants.h
_SCHEMA_VERSION = 1


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
    graph = main_graph.MainGraph(meta_graph.graph_def, contents)
    main_graph.fill_library(meta_graph.graph_def, contents.library)
    constants = graph.add_constants(contents.library.constants)
    graph.add_resources()
    signature_defs.add_signatures(meta_graph, graph, contents)
    signature_defs.add_init_op(meta_graph, graph, contents)
    if not contents.options.experimental_skip_saver:
        saver_nodes.add_saver(meta_graph, graph, contents)
    _refuse_namespaces(meta_graph.graph_def, contents.options.namespace_whitelist)
    _fill_meta_info(meta_graph, contents)
    object_graph.fill_object_graph(meta_graph.object_graph_def, contents, constants)
    attributes.strip_nodes(meta_graph.graph_def.node, Counter())
    _refuse_size(proto, contents)
    return MetaGraph(proto.SerializeToString(deterministic=True), tuple(contents.assets))


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
