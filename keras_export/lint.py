"""What works in TensorFlow and is a trouble elsewhere, or later.

In: the `Graph` of an artifact. Out: `Finding`s whose effect is `advice`. The invariant: nothing of
it keeps TensorFlow from loading the artifact; each finding says where it stands and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from keras_export import protos, releases
from keras_export.node_kinds import CPP, PYTHON, Graph
from keras_export.refusals import Finding

ADVICE = "advice"

_READERS = (PYTHON, CPP)
_DRAWING = re.compile(r"^(Random|Truncated|Multinomial|ParameterizedTruncated|Stateful(?!Part))")
_WRITING = re.compile(
    r"^(Assign(Add|Sub)?VariableOp|ResourceScatter|ResourceApply|LookupTableInsert)"
)
_ON_TEXT = ("String", "Regex", "StaticRegex", "UnicodeDecode", "AsString")
# A path of two steps at least, as people write it.
_PATH = re.compile(rb"(/[\w.@+ -]+){2,}/?|[A-Za-z]:\\[\w.\\ -]+")
_INIT_OP_KEY = "__saved_model_init_op"


def advice_on(graph: Graph) -> Iterator[Finding]:
    """Everything that a consumer other than TensorFlow on this machine may stumble over."""
    yield from _shapes(graph.meta_graph)
    reached = serving_functions(graph)
    for name, function in reached.items():
        for node in function.node_def:
            yield from _of_node(graph, name, node)
    assets = {x.tensor_info.name.partition(":")[0] for x in graph.meta_graph.asset_file_def}
    for node in graph.meta_graph.graph_def.node:
        if node.name not in assets:
            yield from _paths(graph, "", node)


def serving_functions(graph: Graph) -> dict[str, Any]:
    """The functions that a signature's outputs need; not those that restore or initialise."""
    nodes = {node.name: node for node in graph.meta_graph.graph_def.node}
    waiting = [
        tensor.value.name
        for entry in graph.meta_graph.signature_def
        if entry.key != _INIT_OP_KEY
        for tensor in entry.value.outputs
    ]
    seen: set[str] = set()
    found: dict[str, Any] = {}
    while waiting:
        name = waiting.pop().lstrip("^").partition(":")[0]
        if name in nodes and name not in seen:
            seen.add(name)
            waiting.extend(nodes[name].input)
            _add_callees(graph, nodes[name], found)
    return found


def _add_callees(graph: Graph, node: Any, found: dict[str, Any]) -> None:
    for callee in graph.callees(node):
        if callee not in found:
            found[callee] = graph.library[callee]
            for inner in graph.library[callee].node_def:
                _add_callees(graph, inner, found)


def _shapes(meta_graph: Any) -> Iterator[Finding]:
    for entry in sorted(meta_graph.signature_def, key=lambda x: x.key):
        for tensor in sorted(entry.value.inputs, key=lambda x: x.key):
            shape = protos.shape_of(tensor.value.tensor_shape)
            what = f"{tensor.key!r} of {entry.key!r}"
            if shape is None:
                yield _finding(
                    "shape", what, f"The input {what} has no rank.",
                    "Give its shape in `input_signature`: LiteRT and ONNX need one.",
                )  # fmt: skip
            elif shape and shape[0] is not None:
                yield _finding(
                    "shape", what, f"The input {what} takes batches of {shape[0]} only.",
                    "Leave out `batch_size` of the Input unless the consumer wants it so.",
                )  # fmt: skip
            elif shape and None in shape[1:]:
                yield _finding(
                    "shape", what, f"The input {what} has free sizes besides the batch: {shape}.",
                    "Fix them for LiteRT, which plans memory ahead, or resize there before a run.",
                )  # fmt: skip


def _of_node(graph: Graph, function: str, node: Any) -> Iterator[Finding]:
    if _DRAWING.match(node.op):
        yield _at(
            graph, function, node, "state", f"{node.op} gives another result each time.",
            "Export the inference mode, or draw with a seed that is an input.",
        )  # fmt: skip
    elif _WRITING.match(node.op):
        yield _at(
            graph, function, node, "state", f"{node.op} changes the served model with a request.",
            "Export with `state_updates='refuse'` to be told where; replicas grow apart.",
        )  # fmt: skip
    elif node.op.startswith(_ON_TEXT):
        yield _at(
            graph, function, node, "text", f"{node.op} works on text, for which ONNX has few ops.",
            "Serve the model behind the text step too: "
            "`signatures=` with an endpoint that takes numbers.",
        )  # fmt: skip
    yield from _paths(graph, function, node)


def _paths(graph: Graph, function: str, node: Any) -> Iterator[Finding]:
    if node.op != "Const":
        return
    for entry in node.attr:
        for text in entry.value.tensor.string_val if entry.key == "value" else ():
            if _PATH.fullmatch(text):
                yield _at(
                    graph, function, node, "path",
                    f"The constant {text.decode(errors='replace')!r} is a path of one machine.",
                    "Hold the file as a `tf.saved_model.Asset`, so that it travels along.",
                )  # fmt: skip


def _at(graph: Graph, function: str, node: Any, problem: str, message: str, remedy: str) -> Finding:
    layer = graph.layers.of(function, node)
    known = tuple(releases.known())
    return Finding(
        problem, node.op, ADVICE, message, remedy, _READERS, known, function, node.name, layer
    )


def _finding(problem: str, subject: str, message: str, remedy: str) -> Finding:
    return Finding(problem, subject, ADVICE, message, remedy, _READERS, tuple(releases.known()))
