"""Holds the graph of an artifact against its variables and its surroundings.

In: a parsed MetaGraph, the index of its variables, its directory. Out: what does not fit, each a
kind, a place and a message. The invariant: nothing is loaded; what only running shows is not
looked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from keras_export import object_graphs, protos
from keras_export.bundles import OBJECT_GRAPH_KEY, Bundle
from keras_export.inspection import nodes_of

Finding = tuple[str, str, str]

# Ops that open files by name.
_OF_FILES = re.compile(
    r"File|TFRecord|TextLine|FixedLengthRecord|CSVDataset|LoadDataset|SqlDataset|LMDB|Reader"
)
_OF_PYTHON = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})


def crosscheck(meta_graph: Any, bundle: Bundle | None, export_dir: str) -> Iterator[Finding]:
    """Everything that does not fit."""
    keys = set(bundle.entries) if bundle is not None else set()
    for key in sorted(restored_keys(meta_graph) - keys):
        yield (
            "missing-variable",
            key,
            "the graph restores it, and variables/variables.index lacks it",
        )
    if bundle is not None:
        yield from _unreached_variables(meta_graph, bundle)
    yield from _files_outside(meta_graph, export_dir)
    for function, node in nodes_of(meta_graph):
        if node.op in _OF_PYTHON:
            yield (
                "python-code",
                f"{function}/{node.name}" if function else node.name,
                f"{node.op} calls Python code of the process that exported it",
            )


def restored_keys(meta_graph: Any) -> set[str]:
    """The keys that the graph's restore op reads from the variables."""
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    functions = {x.signature.name: x for x in meta_graph.graph_def.library.function}
    start = meta_graph.saver_def.restore_op_name
    if not start:
        return set()
    found: set[str] = set()
    for node in _upstream(_node_name(start), nodes):
        if node.op == "RestoreV2":
            found |= _names_of(node, nodes)
        for entry in node.attr:
            function = functions.get(entry.value.func.name)
            if function is not None:
                inner = {x.name: x for x in function.node_def}
                for x in function.node_def:
                    if x.op == "RestoreV2":
                        found |= _names_of(x, inner)
    return found - {OBJECT_GRAPH_KEY}


def _upstream(start: str, nodes: dict[str, Any]) -> Iterator[Any]:
    seen, queue = {start}, [start]
    while queue:
        node = nodes.get(queue.pop())
        if node is None:
            continue
        yield node
        for name in map(_node_name, node.input):
            if name not in seen:
                seen.add(name)
                queue.append(name)


def _node_name(tensor: str) -> str:
    return tensor.lstrip("^").partition(":")[0]


def _names_of(restore: Any, nodes: dict[str, Any]) -> set[str]:
    names = nodes.get(_node_name(restore.input[1])) if len(restore.input) > 1 else None
    return {text.decode(errors="replace") for text in strings_of(names)}


def strings_of(node: Any) -> list[bytes]:
    """The elements of a constant of strings; nothing for any other node."""
    if node is None or node.op != "Const":
        return []
    return [
        text
        for entry in node.attr
        if entry.key == "value"
        for text in entry.value.tensor.string_val
    ]


def names_functions(attribute: Any) -> bool:
    """Whether the value of an attribute is the name of a function, or several."""
    return attribute.HasField("func") or bool(attribute.list.func)


def _unreached_variables(meta_graph: Any, bundle: Bundle) -> Iterator[Finding]:
    """Variables that Python's loader would look for in the checkpoint's object graph in vain."""
    saved, stored = meta_graph.object_graph_def.nodes, object_graphs.stored_objects(bundle)
    if not saved or not stored:
        return
    paths, pairs = object_graphs.walk(saved, stored)
    for number, path in paths.items():
        variable = saved[number].variable
        if not saved[number].HasField("variable"):
            continue
        name = variable.name or path
        keys = [
            x.checkpoint_key
            for place in pairs.get(number, ())
            for x in stored[place].attributes
            if x.name == object_graphs.VALUE
        ]
        found = [bundle.entries[key] for key in keys if key in bundle.entries]
        if not keys or len(found) < len(keys):
            yield (
                "missing-variable",
                name,
                f"the object {path} needs it, and variables/variables.index lacks it",
            )
            continue
        shape, dtype = protos.shape_of(variable.shape), protos.dtype_name(variable.dtype)
        for entry in found:
            if entry.dtype != dtype or not _fits(entry.shape, shape):
                yield (
                    "mismatched-variable",
                    name,
                    f"the graph has it as {dtype}{_listed(shape)}, variables/variables.index as "
                    f"{entry.dtype}{_listed(entry.shape)}",
                )


def _fits(stored: tuple[int, ...], declared: tuple[int | None, ...] | None) -> bool:
    if declared is None:
        return True
    return len(stored) == len(declared) and all(
        size in (None, found) for found, size in zip(stored, declared, strict=True)
    )


def _listed(shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return "[...]"
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _is_outside(path: str, export_dir: str) -> bool:
    if "\0" in path or not os.path.isfile(path):
        return False
    return not os.path.realpath(path).startswith(f"{os.path.realpath(export_dir)}{os.sep}")


def _files_outside(meta_graph: Any, export_dir: str) -> Iterator[Finding]:
    """Paths in the graph of files that are here and not in the artifact."""
    nodes = list(nodes_of(meta_graph))
    if not any(_OF_FILES.search(node.op) for _, node in nodes):
        return
    assets = {_node_name(x.tensor_info.name) for x in meta_graph.asset_file_def}
    for function, node in nodes:
        if not function and node.name in assets:
            continue
        for path in (text.decode(errors="replace") for text in strings_of(node)):
            if path.startswith("/") and _is_outside(path, export_dir):
                yield (
                    "outside-file",
                    path,
                    f"the graph reads this file, which is not in the artifact (node {node.name!r}"
                    f"{f' of {function!r}' if function else ''}): make it an asset",
                )
