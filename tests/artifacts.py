"""What the files of an artifact hold, as bytes and as protos.

In: a directory that a test exported. Out: its files and the messages in `saved_model.pb`, for the
promises that no reader shows: names, attributes, devices, what is stored twice.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
from tensorflow.core.protobuf import saved_model_pb2

PathLike = str | os.PathLike[str]


def files(folder: PathLike) -> dict[str, bytes]:
    """The bytes of every file by its relative path; folders without files end in `/`."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = path.read_bytes()
        elif not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


def meta_graph(export_dir: PathLike) -> Any:
    """The only MetaGraphDef of an artifact."""
    content = Path(export_dir, "saved_model.pb").read_bytes()
    (only,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    return only


def library(export_dir: PathLike) -> dict[str, Any]:
    """The FunctionDefs by name."""
    return {f.signature.name: f for f in meta_graph(export_dir).graph_def.library.function}


def nodes(export_dir: PathLike) -> Iterator[Any]:
    """The NodeDefs of the main graph and of all functions."""
    graph_def = meta_graph(export_dir).graph_def
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def ops(export_dir: PathLike) -> list[str]:
    """The op types of all nodes."""
    return [node.op for node in nodes(export_dir)]


def object_at(export_dir: PathLike, *path: str) -> Any:
    """The SavedObject at a path from the root."""
    graph = meta_graph(export_dir).object_graph_def
    found = graph.nodes[0]
    for name in path:
        (found,) = (graph.nodes[c.node_id] for c in found.children if c.local_name == name)
    return found


def export_with_keras(model: keras.Model, folder: PathLike) -> None:
    """What Keras itself writes, silently where its release can be silent."""
    known = inspect.signature(model.export).parameters
    model.export(folder, **({"verbose": False} if "verbose" in known else {}))
