"""What the converters to other formats say of an artifact: they are asked themselves.

In: the directory of a SavedModel and `tflite`, `onnx` or `tfjs`. Out: a `Finding` for each op that
the converter refuses. The invariant: the converter runs in a process of its own, where it may
import what it likes; nothing that it writes is kept. That of TensorFlow.js goes by a list of ops,
and so do we.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import resources
from typing import Any

from keras_export import protos
from keras_export.errors import ArgumentError
from keras_export.lint import serving_functions
from keras_export.node_kinds import Graph
from keras_export.refusals import REFUSED, Finding

# What people call them -> the module that must be installed, and the extra that brings it.
FORMATS = {"tflite": "tensorflow", "litert": "tensorflow", "onnx": "tf2onnx", "tfjs": ""}

_SIGNATURES = ("serving_default", "serve")
_SECONDS = 600

# tensorflow/compiler/mlir/lite: the converter's own words for an op that it leaves over.
_LEFT_OVER = re.compile(
    r'\["(?P<op>[\w>]+):", "(?P<node>[^"@]+)@(?P<function>[^"]+)"\][^\n]*'
    r"op is neither a custom op nor a flex op"
)
_CODE = re.compile(r"Error code: (ERROR_NEEDS_\w+)")
_UNKNOWN_TO_ONNX = re.compile(r"Tensorflow op \[(?P<node>[^\]:]+): (?P<op>\w+)\] is not supported")

# What the converter of TensorFlow.js freezes, inlines or takes out before it looks at the ops.
_GONE_IN_JS = frozenset(("Assert", "CheckNumerics", "PartitionedCall", "Print", "ReadVariableOp",
                         "ResourceGather", "ResourceGatherNd", "StatefulPartitionedCall",
                         "VarHandleOp", "Variable", "VariableV2"))  # fmt: skip

# tensorflowjs/write_weights.py: what it stores, or turns into what it stores.
_DTYPES_IN_JS = ("float32", "float16", "float64", "int32", "int64", "complex64", "complex128",
                 "uint8", "uint16", "bool", "string", "resource")  # fmt: skip
_WEIGHTS = {"Const": "dtype", "ReadVariableOp": "dtype"}

_TO_LITE = """
import sys
import tensorflow as tf
converter = tf.lite.TFLiteConverter.from_saved_model(sys.argv[1], signature_keys=[sys.argv[2]])
converter.convert()
"""


def refusals_of(target: str, path: str, graph: Graph) -> list[Finding]:
    """Asks a converter.

    Args:
        target: a key of `FORMATS`.
        path: directory of the SavedModel.
        graph: what it holds.

    Raises:
        ArgumentError: the converter is not installed, or there is no signature to convert.
    """
    if target == "tfjs":
        return _merged(list(_unknown_to_js(graph)))
    module = FORMATS[target]
    if importlib.util.find_spec(module) is None:
        raise ArgumentError(
            f"Cannot check for {target!r}: {module} is not installed. Install "
            "`keras_export[consumers]`."
        )
    keys = sorted(x.key for x in graph.meta_graph.signature_def)
    chosen = [*(x for x in _SIGNATURES if x in keys), *(x for x in keys if x[:2] != "__")]
    if not chosen:
        raise ArgumentError(f"Cannot check {path} for {target!r}: it has no signature to convert.")
    ask = _ask_onnx if target == "onnx" else _ask_lite
    return _merged(list(ask(path, chosen[0], graph)))


def _ask_lite(path: str, key: str, graph: Graph) -> Iterator[Finding]:
    code, said = _run("-c", _TO_LITE, path, key)
    if not code:
        return
    codes = _CODE.findall(said)
    left = list(_LEFT_OVER.finditer(said))
    for index, match in enumerate(left):
        flex = index >= len(codes) or "FLEX" in codes[index]
        remedy = "Move the step in front of the model, or keep it out of the signature."
        if flex:
            remedy = "Convert with `SELECT_TF_OPS` and link the Flex delegate, or " + remedy.lower()
        message = f"LiteRT has no op of its own for {match['op']}."
        yield _finding("litert", match, match["function"], message, remedy, graph)
    if not left:
        yield _unread("litert", said)


def _ask_onnx(path: str, key: str, graph: Graph) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        code, said = _run(
            "-m", "tf2onnx.convert", "--saved-model", path, "--signature_def", key,
            "--output", f"{folder}/model.onnx",
        )  # fmt: skip
    matches = list(_UNKNOWN_TO_ONNX.finditer(said))
    for match in matches:
        remedy = "Move the step in front of the model, or keep it out of the signature."
        message = f"tf2onnx has no ONNX op for {match['op']}."
        yield _finding("onnx", match, "", message, remedy, graph)
    if code and not matches:
        yield _unread("onnx", said)


def _unknown_to_js(graph: Graph) -> Iterator[Finding]:
    serving = graph.execution.serving
    main = [node for node in graph.meta_graph.graph_def.node if node.name in serving]
    bodies = {"": main, **{k: v.node_def for k, v in serving_functions(graph).items()}}
    for name, nodes in bodies.items():
        by_name = {node.name: node for node in nodes}
        for node in nodes:
            message = _refused_by_js(graph, node, by_name)
            if message:
                yield Finding(
                    "op", node.op, REFUSED, message,
                    "Move the step in front of the model, or keep it out of the signature.",
                    ("tfjs",), (), name, node.name, graph.layers.of(name, node),
                )  # fmt: skip


def _refused_by_js(graph: Graph, node: Any, others: Mapping[str, Any]) -> str:
    """What the converter of TensorFlow.js has against a node; mostly nothing."""
    if any(map(_stays_apart, (graph.library[x] for x in graph.callees(node)))):
        return f"TensorFlow.js cannot take in the function of {node.op}, which is compiled apart."
    if node.op not in _js_ops() | _GONE_IN_JS and node.op not in graph.library:
        return f"TensorFlow.js has no op {node.op}."
    dtype = _dtype_of_weight(node, others)
    if dtype not in (None, *_DTYPES_IN_JS):
        return f"TensorFlow.js has no weights of {dtype}."
    return ""


def _stays_apart(function: Any) -> bool:
    return any(x.key in ("_XlaMustCompile", "_noinline") and x.value.b for x in function.attr)


def _dtype_of_weight(node: Any, others: Mapping[str, Any]) -> str | None:
    """Of what becomes a weight when the graph is frozen: constants, variables, casts of these."""
    attribute = _WEIGHTS.get(node.op)
    if node.op == "Cast" and all(others.get(x.partition(":")[0]) for x in node.input):
        (given,) = (others[x.partition(":")[0]] for x in node.input)
        attribute = "DstT" if given.op in _WEIGHTS else None
    for entry in node.attr:
        if entry.key == attribute:
            return protos.dtype_name(entry.value.type)
    return None


@functools.cache
def _js_ops() -> frozenset[str]:
    """Source: the lists in the wheel `tensorflowjs`, by `scripts/tfjs_ops.py`."""
    content = resources.files("keras_export").joinpath("data/tfjs_ops.json").read_text()
    return frozenset(json.loads(content)["ops"])


def _finding(
    reader: str, match: re.Match[str], function: str, message: str, remedy: str, graph: Graph
) -> Finding:
    place = _place(graph, function, match["op"], match["node"])
    name, node = place if place is not None else (function, None)
    layer = graph.layers.of(name, node) if node is not None else ""
    found = match["node"] if node is None else node.name
    return Finding(
        "op", match["op"], REFUSED, message, remedy, (reader,), (), name, found, layer
    )  # fmt: skip


def _place(graph: Graph, function: str, op: str, name: str) -> tuple[str, Any] | None:
    """A node by its function and name; converters that inline functions know its name alone."""
    last = name.rpartition("/")[2]
    for key, body in graph.library.items():
        if not function or key == function:
            for node in body.node_def:
                if node.op == op and node.name in (name, last):
                    return key, node
    return None


def _unread(reader: str, said: str) -> Finding:
    lines = [x.strip() for x in said.strip().splitlines() if x.strip()]
    return Finding(
        "conversion", reader, REFUSED, f"The converter fails: {lines[-1][:300] if lines else ''}.",
        "Convert by hand to see all that it says.", (reader,), (),
    )  # fmt: skip


def _merged(findings: list[Finding]) -> list[Finding]:
    """One finding for all nodes of an op in a layer."""
    found: dict[Any, Finding] = {}
    for finding in findings:
        key = (finding.problem, finding.subject, finding.layer, finding.function)
        first = found.get(key)
        found[key] = finding if first is None else replace(first, count=first.count + 1)
    return list(found.values())


def _run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_SECONDS,
        check=False,
    )
    return done.returncode, done.stderr + done.stdout
