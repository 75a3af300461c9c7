"""Makes `keras_export/data/op_history.json.xz`: what each TensorFlow release knows.

In: TensorFlow releases, each installed by pip into an environment that is removed again, or
installed already. Out: one compressed JSON file with the ops, their attributes and their kernels
on a CPU, the dtypes and the GraphDef version of every release. The invariant: the same releases
give the same bytes.

    python scripts/op_history.py 2.22.0                       # adds a release, or replaces it
    python scripts/op_history.py --python env/bin/python      # one that is installed already
    python scripts/op_history.py --anew 2.12.1 2.13.1 2.14.1  # forgets all others

An op is stored once, and again with each release that changed it.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import subprocess
import tempfile
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parent.parent / "keras_export" / "data" / "op_history.json.xz"
_MOST_BYTES = 150_000
# Kernels for any device are registered under `DEFAULT`.
_ON_A_CPU = ("CPU", "DEFAULT")
_NOT_STORED = 100  # from here on dtypes are references to variables of TensorFlow 1


def main(arguments: list[str] | None = None) -> None:
    """Adds releases to the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", help="releases that pip installs, as 2.21.0")
    parser.add_argument("--python", nargs="*", default=[], help="interpreters with TensorFlow")
    parser.add_argument("--anew", action="store_true", help="start without the releases known")
    parser.add_argument("--out", type=Path, default=_FILE)
    options = parser.parse_args(arguments)
    releases = {} if options.anew or not options.out.exists() else unpacked(options.out)
    for facts in [*map(_dumped, options.python), *map(_installed, options.versions)]:
        releases[_minor(facts["tensorflow"])] = facts
    content = packed(releases)
    if len(content) > _MOST_BYTES:
        raise SystemExit(f"{len(content)} bytes: expected at most {_MOST_BYTES}")
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_bytes(content)
    print(f"{options.out}: {len(content)} bytes, TensorFlow {', '.join(_ordered(releases))}")


def packed(releases: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The file's content from the facts of each release, by its minor version."""
    order = _ordered(releases)
    ops: dict[str, list[Any]] = {}
    for index, release in enumerate(order):
        known = releases[release]["ops"]
        for name in sorted(ops.keys() | known.keys()):
            states = ops.setdefault(name, [])
            state = known.get(name)
            if state != (states[-1][1] if states else None):
                states.append([index, state])
    about = [{k: v for k, v in releases[x].items() if k != "ops"} for x in order]
    history = {"releases": about, "ops": dict(sorted(ops.items()))}
    text = json.dumps(history, sort_keys=True, separators=(",", ":"))
    return lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)


def unpacked(file: Path) -> dict[str, Any]:
    """The facts of each release from the file."""
    history = json.loads(lzma.decompress(file.read_bytes()))
    releases = {}
    for index, about in enumerate(history["releases"]):
        ops = {}
        for name, states in history["ops"].items():
            state = next((x for since, x in reversed(states) if since <= index), None)
            if state is not None:
                ops[name] = state
        releases[_minor(about["tensorflow"])] = {**about, "ops": ops}
    return releases


def _ordered(releases: Iterable[str]) -> list[str]:
    return sorted(releases, key=lambda text: [int(part) for part in text.split(".")])


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


# -- in the environment of a release --------------------------------------------------------------


def _installed(version: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = os.path.join(folder, "bin", "python")
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        subprocess.run([*pip, f"tensorflow-cpu=={version}"], check=True)
        return _dumped(python)


def _dumped(python: str) -> dict[str, Any]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import op_history"
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "facts.json")
        code += f"; op_history.dump({target!r})"
        subprocess.run([python, "-c", code], check=True, env=environment)
        return json.loads(Path(target).read_text())


def dump(target: str) -> None:
    """Writes what the imported TensorFlow knows."""
    import tensorflow as tf
    from tensorflow.core.framework import kernel_def_pb2, op_def_pb2, types_pb2

    ops = op_def_pb2.OpList.FromString(_buffer("TF_GetAllOpList"))
    kernels: dict[str, list[Any]] = {}
    elsewhere = set()
    registered = kernel_def_pb2.KernelList.FromString(_buffer("TF_GetAllRegisteredKernels"))
    for kernel in registered.kernel:
        if kernel.op == "Cast":
            continue
        if kernel.device_type in _ON_A_CPU and not kernel.label:
            kernels.setdefault(kernel.op, []).append(
                {x.name: _values(x.allowed_values.list) for x in kernel.constraint}
            )
        elif kernel.device_type == "GPU":
            elsewhere.add(kernel.op)
    dtypes = sorted(x for x in types_pb2.DataType.values() if 0 < x < _NOT_STORED)
    kernels["Cast"] = _casts(dtypes)
    facts = {
        "tensorflow": tf.__version__,
        "producer": tf.version.GRAPH_DEF_VERSION,
        "min_producer": tf.version.GRAPH_DEF_VERSION_MIN_PRODUCER,
        "dtypes": dtypes,
        "ops": {op.name: _op(op, kernels.get(op.name, []), op.name in elsewhere) for op in ops.op},
    }
    Path(target).write_text(json.dumps(facts))


def _casts(dtypes: list[int]) -> list[dict[str, list[Any]]]:
    """The kernels of `Cast`, of which the registry has one for all dtypes, that refuses many."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        given = tf.compat.v1.GraphDef()
        for source in dtypes:
            empty = given.node.add(name=f"of_{source}", op="Const")
            empty.attr["dtype"].type = empty.attr["value"].tensor.dtype = source
            empty.attr["value"].tensor.tensor_shape.dim.add(size=0)
            for target in dtypes:
                cast = given.node.add(name=f"c_{source}_{target}", op="Cast", input=[empty.name])
                cast.attr["SrcT"].type, cast.attr["DstT"].type = source, target
        tf.graph_util.import_graph_def(given, name="")
    options = tf.compat.v1.ConfigProto()
    options.graph_options.rewrite_options.disable_meta_optimizer = True  # it takes casts out
    with tf.compat.v1.Session(graph=graph, config=options) as session:
        return [
            {"SrcT": [source], "DstT": [x for x in dtypes if _goes(session, f"c_{source}_{x}")]}
            for source in dtypes
        ]


def _goes(session: Any, operation: str) -> bool:
    import tensorflow as tf

    try:
        session.run(session.graph.get_operation_by_name(operation))
    except (tf.errors.OpError, ValueError):  # ValueError: a constant that cannot be made
        return False
    return True


def _op(op: Any, kernels: list[Any], on_gpu: bool) -> dict[str, Any]:
    """What a reader checks of an op; what is empty is left out."""
    facts = {
        "attrs": {attr.name: _attr(attr) for attr in op.attr},
        "in": [_argument(x) for x in op.input_arg],
        "out": [_argument(x) for x in op.output_arg],
        "stateful": op.is_stateful,
        "deprecated": op.deprecation.version,
        "kernels": _merged(kernels),
        "gpu": on_gpu and not kernels,
    }
    return {name: value for name, value in facts.items() if value}


def _attr(attr: Any) -> list[Any]:
    """Its type; then, as far as there is one: the default in hex, what is allowed, the minimum."""
    allowed: Any = list(attr.allowed_values.list.type)
    allowed = sorted(allowed or [x.decode() for x in attr.allowed_values.list.s])
    default = None
    if attr.HasField("default_value"):
        default = attr.default_value.SerializeToString(deterministic=True).hex()
    facts = [attr.type, default, allowed or None, attr.minimum if attr.has_minimum else None]
    while facts[-1] is None:
        facts.pop()
    return facts


def _values(allowed: Any) -> list[Any]:
    """What a kernel takes of an attribute: dtypes as numbers, all else as text."""
    others = [*allowed.i, *map(bool, allowed.b), *(x.decode() for x in allowed.s)]
    return sorted([*allowed.type, *map(str, others)], key=str)


def _argument(argument: Any) -> str:
    """Its dtype, the attribute that gives it, or those that give a list; `&` for a reference."""
    kind = argument.type_attr or argument.type_list_attr or str(argument.type)
    number = f"*{argument.number_attr}" if argument.number_attr else ""
    return f"{kind}{number}{'&' if argument.is_ref else ''}"


def _merged(kernels: list[dict[str, list[Any]]]) -> list[Any]:
    """Kernels that differ in the dtypes of one attribute become one."""
    found = [dict(x) for x in sorted(kernels, key=json.dumps)]
    for name in sorted({name for kernel in found for name in kernel}, reverse=True):
        groups: dict[str, dict[str, list[Any]]] = {}
        for kernel in found:
            rest = {k: v for k, v in kernel.items() if k != name}
            key = json.dumps([rest, name in kernel], sort_keys=True)
            same = groups.setdefault(key, {**rest, **({name: []} if name in kernel else {})})
            if name in kernel:
                same[name] = sorted({*same[name], *kernel[name]}, key=str)
        found = list(groups.values())
    texts = {json.dumps(x, sort_keys=True) for x in found}
    return [json.loads(text) for text in sorted(texts)]


def _buffer(function: str) -> bytes:
    """What a function of TensorFlow's C API without arguments returns."""
    import ctypes
    import glob

    import tensorflow as tf

    class Buffer(ctypes.Structure):
        _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_size_t))

    (path,) = glob.glob(os.path.join(tf.sysconfig.get_lib(), "libtensorflow_cc*.so.2"))
    library = ctypes.CDLL(path)
    library.TF_NewStatus.restype = ctypes.c_void_p
    called = getattr(library, function)
    called.restype = ctypes.POINTER(Buffer)
    buffer = called(ctypes.c_void_p(library.TF_NewStatus())).contents
    return ctypes.string_at(buffer.data, buffer.length)


if __name__ == "__main__":
    main()
