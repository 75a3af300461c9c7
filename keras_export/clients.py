"""How clients call a signature: a line of Python, and a request to TensorFlow Serving.

In: the specs of a signature. Out: text that runs as it stands, on inputs of the right names, dtypes
and shapes. The invariant: it needs nothing but the artifact or its server; writing it needs no
TensorFlow.

The REST API: https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

import json
import keyword
import os
import shlex
from collections.abc import Mapping
from typing import Any

# tensorflow/python/saved_model/signature_constants.py
DEFAULT_KEY = "serving_default"

# Where TensorFlow Serving listens for REST when it is not told otherwise.
DEFAULT_HOST = "localhost:8501"

# Bytes have no place in JSON; this stands for one zero byte.
_BYTES = {"b64": "AA=="}

_TEXT = "text"

# JSON has no numbers of these kinds, and TensorFlow Serving no spelling for them.
_NOT_IN_JSON = frozenset({"complex64", "complex128", "resource", "variant"})


def python_call(export_dir: str, key: str, inputs: Mapping[str, Any]) -> str:
    """A line of Python that loads an artifact and calls a signature of it."""
    arguments = ", ".join(f"{name}={_literal(spec)}" for name, spec in inputs.items())
    if any(not name.isidentifier() or keyword.iskeyword(name) for name in inputs):
        pairs = ", ".join(f"{name!r}: {_literal(spec)}" for name, spec in inputs.items())
        arguments = f"**{{{pairs}}}"
    return f"tf.saved_model.load({export_dir!r}).signatures[{key!r}]({arguments})"


def _literal(spec: Any) -> str:
    shape, dtype = _smallest(spec), spec.dtype.name
    if dtype == "string":
        return f"tf.fill({shape}, {_TEXT!r})" if shape else f"tf.constant({_TEXT!r})"
    return f"tf.zeros({shape}, tf.{dtype})"


def request(key: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The body of a predict request, or None where JSON has no form for an input.

    Inputs come by name ("columns"), since they need not share a batch dimension.
    """
    if any(spec.dtype.name in _NOT_IN_JSON for spec in inputs.values()):
        return None
    return {
        "signature_name": key,
        "inputs": {name: _filled(_smallest(spec), name, spec) for name, spec in inputs.items()},
    }


def _smallest(spec: Any) -> list[int]:
    """The shape with 1 for each dimension that is free."""
    return [1 if d is None else d for d in spec.shape.as_list()] if spec.shape.rank else []


def _filled(shape: list[int], name: str, spec: Any) -> Any:
    dtype = spec.dtype.name
    value: Any = False if dtype == "bool" else 0 if "int" in dtype else 0.0
    if dtype == "string":
        value = _BYTES if name.endswith(("bytes", "examples")) else _TEXT
    for size in reversed(shape):
        value = [value] * size
    return value


def curl(
    export_dir: str, key: str, inputs: Mapping[str, Any], host: str, model_name: str | None
) -> str | None:
    """A shell command that sends a predict request, or None where JSON has no form for an input."""
    body = request(key, inputs)
    if body is None:
        return None
    url = f"http://{host}/v1/models/{model_name or served_name(export_dir)}:predict"
    return f"curl -d {shlex.quote(json.dumps(body))} {shlex.quote(url)}"


def served_name(export_dir: str) -> str:
    """What a model is called that is served from a directory, whose last part may be a version."""
    parent, name = os.path.split(export_dir.rstrip("/"))
    if name.isdecimal():
        name = os.path.basename(parent)
    return name or "model"
