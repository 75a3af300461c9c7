"""What a TensorFlow release has against a graph.

In: a MetaGraph, as `protos` describes it, and a `Release`. Out: `Finding`s. The invariant: a
finding is what a loader of that release does, and not what it might do.

No loader refuses an attribute that it does not know: it leaves it out, and what the attribute
meant is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras_export import protos, releases
from keras_export.node_kinds import (
    CPP,
    DEVICE,
    ELSEWHERE,
    IMPORTED,
    PLACED,
    PYTHON,
    RUN,
    Graph,
    Kind,
    bytes_of,
)
from keras_export.releases import Op, Release

REFUSED, IGNORED = "refused", "ignored"

_MOST_TEXT = 60

# tensorflow/cc/saved_model/tag_constants.h
_SERVED = "serve"

# Attributes that change neither values nor shapes: names, hints for gradients, threads.
_HINTS = frozenset(
    {
        "debug_name",
        "force_synchronous",
        "grad_a",
        "grad_b",
        "grad_x",
        "grad_y",
        "sparse_gradient",
        "use_unbounded_threadpool",
    }
)

# Observed: Python's loaders that do not make a tensor of the key that they call a function with.
_STRICT_ABOUT_KEYS = ("2.12", "2.13")

# They call back into the Python of the process that traced them.
_PYTHON_OPS = frozenset({"EagerPyFunc", "PyFunc", "PyFuncStateless"})

# What jax2tf makes: a module of StableHLO with the platforms that it was made for.
BY_XLA = "XlaCallModule"

# Replaced by others before anything runs.
_REWRITTEN = frozenset({"AccumulateNV2"})


@dataclass(frozen=True)
class Finding:
    """Something in an artifact that a consumer lacks.

    Attributes:
        problem: `op`, `attribute`, `dtype`, `value`, `kernel`, `device`, `object`, `variable`,
            `table`, `tags` or `version`.
        subject: the op, `Op.attribute`, or what else it is about.
        effect: `refused`, the consumer fails; `ignored`, it loads, and the meaning is lost.
        message: what is wrong, and what the consumer has instead.
        remedy: what to do.
        readers: whom it concerns: `python`, `c++`.
        releases: and in which releases.
        function: where the first node stands; empty for the main graph.
        node: its name.
        layer: the layer that it belongs to, or the last one before it, as far as names tell.
        count: how many nodes are like it.
    """

    problem: str
    subject: str
    effect: str
    message: str
    remedy: str
    readers: tuple[str, ...]
    releases: tuple[str, ...]
    function: str = ""
    node: str = ""
    layer: str = ""
    count: int = 1

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        parts = [f"near layer {self.layer}"] if self.layer else []
        if self.node:
            parts.append(f"node {self.node}")
            parts.append(f"function {self.function}" if self.function else "main graph")
        more = f" and {self.count - 1} more" if self.count > 1 else ""
        return ", ".join(parts) + more

    def __str__(self) -> str:
        who = "" if len(self.readers) > 1 else f" ({self.readers[0]} only)"
        where = f" [{self.place}]" if self.place else ""
        return f"{self.effect}{who}: {self.message}{where} {self.remedy}"


# -- what a release makes of it -------------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
    """What one release has against nodes of one kind."""

    problem: str
    subject: str
    effect: str
    message: str
    remedy: str
    when: str = IMPORTED


def findings_of(graph: Graph, release: Release) -> Iterator[Finding]:
    """What one release has against a graph, one finding for nodes that are alike."""
    yield from _version_findings(graph, release)
    yield from _tag_findings(graph.meta_graph.meta_info_def.tags, release)
    yield from _unfilled_findings(graph, release)
    yield from _table_findings(graph.meta_graph.object_graph_def, release)
    for kind, places in graph.kinds.values():
        for problem in _problems(kind, graph, release):
            concerned = [(reader, where) for reader, where in places.of(problem.when) if where]
            if not concerned:
                continue
            function, node = concerned[0][1][0]
            yield Finding(
                problem.problem, problem.subject, problem.effect, problem.message, problem.remedy,
                tuple(reader for reader, _ in concerned), (release.name,), function, node.name,
                graph.layers.of(function, node), max(len(where) for _, where in concerned),
            )  # fmt: skip


def _version_findings(graph: Graph, release: Release) -> Iterator[Finding]:
    versions = graph.meta_graph.graph_def.versions
    # Where there are objects, Python's loader makes graphs of its own and does not look at these.
    readers = (CPP,) if graph.has_objects else (PYTHON, CPP)
    expected = ""
    if versions.min_consumer > release.producer:
        expected = f"a consumer of GraphDef version {versions.min_consumer} at least"
    elif release.producer in versions.bad_consumers:
        expected = "any other consumer"
    elif versions.producer < release.min_producer:
        expected = f"not the producer {versions.producer}, which is too old"
    if expected:
        yield Finding(
            "version", "graph_def.versions", REFUSED,
            f"The graph asks for {expected}; TensorFlow {release.name} is {release.producer}.",
            "Export it again, or deploy on another TensorFlow.", readers, (release.name,),
        )  # fmt: skip


def _tag_findings(tags: Iterable[str], release: Release) -> Iterator[Finding]:
    if set(tags) != {_SERVED}:
        named = _listed(sorted(tags)) or "none"
        yield Finding(
            "tags", named, REFUSED,
            f"TensorFlow Serving asks for the tag {_SERVED} alone; the artifact has {named}.",
            f"Export it with the tag {_SERVED}, or give the loader these tags.",
            (CPP,), (release.name,),
        )  # fmt: skip


def _unfilled_findings(graph: Graph, release: Release) -> Iterator[Finding]:
    """Variables and tables that the signatures read, and that are empty after loading.

    Python's loader fills the objects of an artifact by itself, from the checkpoint; and where
    there are none, the tables whose initializers are in a collection.
    """
    collections = {entry.key for entry in graph.meta_graph.collection_def}
    tables = [node for node in graph.execution.unfilled if "Table" in node.op]
    variables = [node for node in graph.execution.unfilled if "Table" not in node.op]
    for what, nodes, by_python in (
        ("variable", variables, graph.has_objects),
        ("table", tables, graph.has_objects or "table_initializer" in collections),
    ):
        if nodes:
            name = nodes[0].name
            yield Finding(
                what, name, REFUSED,
                f"A signature reads the {what} {name}, which neither the saver nor the init op "
                "fills.", "Export the model with `keras_export.export` or `keras_export.save`.",
                (CPP,) if by_python else (PYTHON, CPP), (release.name,), "", name,
                count=len(nodes),
            )  # fmt: skip


def _table_findings(objects: Any, release: Release) -> Iterator[Finding]:
    """Objects that save themselves by a function of a key, as tables do.

    Loaders call it with a Python string. A function that takes tensors alone refuses that in the
    first releases without a `function_spec`, and in the very first without a signature in that.
    """
    if release.name not in _STRICT_ABOUT_KEYS:
        return
    for saved in objects.nodes:
        for entry in saved.saveable_objects:
            bare = objects.nodes[entry.value.save_function].bare_concrete_function
            spared = bare.HasField("function_spec") and (
                release.name != _STRICT_ABOUT_KEYS[0]
                or bare.function_spec.input_signature.WhichOneof("value") is not None
            )
            if bare.argument_keywords and not spared:
                yield Finding(
                    "object", "saveable_objects", REFUSED,
                    f"Python's loader of TensorFlow {release.name} cannot call "
                    f"{bare.concrete_function_name}, by which a table is saved.",
                    "Export the model with `keras_export.export` or `keras_export.save`.",
                    (PYTHON,), (release.name,), bare.concrete_function_name,
                )  # fmt: skip


def _problems(kind: Kind, graph: Graph, release: Release) -> Iterator[_Problem]:
    op = release.ops.get(kind.op)
    if op is None:
        yield _unknown_op(kind.op, release)
        return
    if op.deprecated and op.deprecated <= graph.meta_graph.graph_def.versions.producer:
        yield _Problem(
            "op", kind.op, REFUSED,
            f"The op {kind.op} was removed from graphs of version {op.deprecated} on.",
            f"Use {_listed(release.relatives(kind.op)) or 'another op'}.",
        )  # fmt: skip
    problems = list(_attribute_problems(kind, op, graph, release))
    yield from problems
    if not any(x.effect == REFUSED for x in problems):
        yield from _run_problems(kind, op, release)


def _unknown_op(op: str, release: Release) -> _Problem:
    having = [name for name, other in releases.known().items() if op in other.ops]
    relatives = release.relatives(op)
    instead = f"; it has {_listed(relatives)}" if relatives else ""
    if not having:
        return _Problem(
            "op", op, REFUSED, f"No TensorFlow that is known has the op {op}.",
            "Load the library that registers it before the model (`tf.load_op_library`, or "
            "link it into the server), or export without what needs it.",
        )  # fmt: skip
    return _Problem(
        "op", op, REFUSED, f"TensorFlow {release.name} has no op {op}{instead}.",
        f"Deploy on TensorFlow {span(having)}, or export without what needs it.",
    )  # fmt: skip


def _attribute_problems(kind: Kind, op: Op, graph: Graph, release: Release) -> Iterator[_Problem]:
    unknown = [name for name in kind.attributes if name not in op.attributes]
    for name in sorted(unknown):
        problem = _unknown_attribute(kind, name, graph, release)
        if problem is not None:
            yield problem
    for name, attribute in op.attributes.items():
        value = kind.attributes.get(name)
        subject = f"{kind.op}.{name}"
        if value is None:
            if attribute.default is None:
                yield _Problem(
                    "attribute", subject, REFUSED,
                    f"TensorFlow {release.name} has no default for {subject}, which is missing.",
                    f"Deploy on a TensorFlow that has one, or write {name} into the graph.",
                )  # fmt: skip
        elif value.WhichOneof("value") != "placeholder":
            yield from _value_problems(subject, attribute, value, release)


def _unknown_attribute(kind: Kind, name: str, graph: Graph, release: Release) -> _Problem | None:
    value, subject = kind.attributes[name], f"{kind.op}.{name}"
    having = [
        other
        for other in releases.known().values()
        if kind.op in other.ops and name in other.ops[kind.op].attributes
    ]
    default = graph.own_defaults.get((kind.op, name))
    if having:
        default = having[-1].ops[kind.op].attributes[name].default
    if name in _HINTS or (default is not None and _same(value, default)):
        return None
    here = release.ops[kind.op]
    wrong = _other_tensors(kind, here, having[-1].ops[kind.op]) if having else ""
    what = f"TensorFlow {release.name} does not know {subject}={_text(value)}"
    since = f"TensorFlow {span([x.name for x in having])}" if having else "one that does"
    remedy = f"Deploy on {since}, or export without it."
    if wrong:
        return _Problem("attribute", subject, REFUSED, f"{what} and {wrong}.", remedy)
    message = f"{what}: it leaves the attribute out, and computes as if it were not there."
    return _Problem("attribute", subject, IGNORED, message, remedy)


def _other_tensors(kind: Kind, here: Op, there: Op) -> str:
    """What an op takes or gives that the node was not made for."""
    for verb, ours, theirs in (
        ("takes", here.inputs, there.inputs),
        ("gives", here.outputs, there.outputs),
    ):
        had = _dtypes(ours, here, kind.attributes)
        wanted = _dtypes(theirs, there, kind.attributes)
        if had != wanted:
            return f"{verb} {_listed(had)}, not {_listed(wanted)}"
    return ""


def _dtypes(arguments: Sequence[str], op: Op, attributes: Mapping[str, Any]) -> list[str]:
    found = []
    for argument in arguments:
        name, _, number = argument.rstrip("&").partition("*")
        if name.isdigit():
            found.append(protos.dtype_name(int(name)) + (f" {number} times" if number else ""))
            continue
        value = _value_of(name, op, attributes)
        found.extend(protos.dtype_name(x) for x in _types(value))
    return found


def _value_of(name: str, op: Op, attributes: Mapping[str, Any]) -> Any:
    if name in attributes:
        return attributes[name]
    return protos.Attr.FromString(op.attributes[name].default or b"")


def _types(value: Any) -> list[int]:
    return [value.type] if value.WhichOneof("value") == "type" else list(value.list.type)


def _value_problems(
    subject: str, attribute: releases.Attribute, value: Any, release: Release
) -> Iterator[_Problem]:
    if attribute.kind in ("type", "list(type)"):
        for number in _types(value):
            dtype = protos.dtype_name(number)
            if number not in release.dtypes:
                yield _Problem(
                    "dtype", subject, REFUSED, f"TensorFlow {release.name} has no dtype {dtype}.",
                    f"Cast to another dtype in the model, or deploy on {_with_dtype(number)}.",
                )  # fmt: skip
            elif attribute.allowed is not None and number not in attribute.allowed:
                allowed = _listed(map(protos.dtype_name, attribute.allowed))
                yield _Problem(
                    "dtype", subject, REFUSED,
                    f"In TensorFlow {release.name}, {subject} cannot be {dtype}, but {allowed}.",
                    "Cast to one of these in the model.",
                )  # fmt: skip
    elif attribute.allowed is not None:
        texts = [value.s] if value.WhichOneof("value") == "s" else list(value.list.s)
        for text in (x.decode(errors="replace") for x in texts):
            if text not in attribute.allowed:
                yield _Problem(
                    "value", subject, REFUSED,
                    f"In TensorFlow {release.name}, {subject} cannot be {text!r}, but "
                    f"{_listed(map(repr, attribute.allowed))}.",
                    "Use one of these in the model.",
                )  # fmt: skip
    is_number = value.WhichOneof("value") == "i"
    if attribute.minimum is not None and is_number and value.i < attribute.minimum:
        yield _Problem(
            "value", subject, REFUSED,
            f"In TensorFlow {release.name}, {subject} is {attribute.minimum} at least, not "
            f"{value.i}.",
            "Use a larger one in the model.",
        )  # fmt: skip


def _with_dtype(number: int) -> str:
    having = [name for name, release in releases.known().items() if number in release.dtypes]
    return f"TensorFlow {span(having)}" if having else "a TensorFlow that has it"


def _run_problems(kind: Kind, op: Op, release: Release) -> Iterator[_Problem]:
    yield from _device_problems(kind.device)
    if kind.op in _PYTHON_OPS:
        yield _Problem(
            "kernel", kind.op, REFUSED,
            f"{kind.op} calls Python code that only the exporting process has.",
            "Write the step with TensorFlow's ops instead of `tf.py_function`.", RUN,
        )  # fmt: skip
    elif kind.op == BY_XLA and "CPU" not in (_texts(kind, "platforms") or ["CPU"]):
        yield _Problem(
            "kernel", kind.op, REFUSED,
            f"{kind.op} holds code for {_listed(_texts(kind, 'platforms'))} alone.",
            "Convert it for the CPU, too: `native_serialization_platforms=['cpu', ...]` of jax2tf.",
            RUN,
        )  # fmt: skip
    elif op.only_on_gpu:
        yield _Problem(
            "kernel", kind.op, REFUSED, f"The op {kind.op} has kernels for GPUs only.",
            "Export a portable form of the layer, or deploy on a GPU.", PLACED,
        )  # fmt: skip
    elif not op.kernels and kind.op not in _REWRITTEN:
        yield _Problem(
            "kernel", kind.op, REFUSED,
            f"TensorFlow {release.name} has no CPU kernel for {kind.op} at all.",
            "Compile the function with `jit_compile=True` if XLA knows the op, or export without "
            "what needs it.", PLACED,
        )  # fmt: skip
    elif op.kernels and not any(_runs(kernel, kind, op) for kernel in op.kernels):
        chosen = sorted({name for kernel in op.kernels for name in kernel})
        given = ", ".join(f"{x}={_text(_value_of(x, op, kind.attributes))}" for x in chosen)
        yield _Problem(
            "kernel", kind.op, REFUSED,
            f"TensorFlow {release.name} has no CPU kernel for {kind.op} with {given}.",
            f"Cast to another dtype in the model{_with_kernel(kind)}.", PLACED,
        )  # fmt: skip


def _texts(kind: Kind, name: str) -> list[str]:
    """An attribute that is a list of texts, in capitals; empty if the node lacks it."""
    value = kind.attributes.get(name)
    return [] if value is None else [x.decode(errors="replace").upper() for x in value.list.s]


def _device_problems(device: str) -> Iterator[_Problem]:
    parts = dict(x.partition(":")[::2] for x in device.strip("/").lower().split("/") if x)
    kind, _, number = parts.get("device", "").partition(":")
    for name in ("cpu", "gpu"):  # as in `/cpu:0`
        if name in parts:
            kind, number = name, parts[name]
    here = {"job": ("", "*", "localhost"), "replica": ("", "*", "0"), "task": ("", "*", "0")}
    if any(parts.get(name, "") not in allowed for name, allowed in here.items()):
        yield _Problem(
            "device", device, REFUSED, f"A node must run on {device}, which is another process.",
            "Export it again outside of `tf.device`.", ELSEWHERE,
        )  # fmt: skip
    elif kind not in ("", "*", "cpu") or number not in ("", "*", "0"):
        yield _Problem(
            "device", device, REFUSED,
            f"A node must run on {device}, which a consumer without it cannot.",
            "Export it again with keras_export outside of `tf.device`, or allow soft placement.",
            DEVICE,
        )  # fmt: skip


def _with_kernel(kind: Kind) -> str:
    having = [
        name
        for name, release in releases.known().items()
        if (op := release.ops.get(kind.op)) and any(_runs(x, kind, op) for x in op.kernels)
    ]
    return f", or deploy on TensorFlow {span(having)}" if having else ""


def _runs(kernel: Mapping[str, frozenset[Any]], kind: Kind, op: Op) -> bool:
    return all(
        _taken(_value_of(name, op, kind.attributes), allowed) for name, allowed in kernel.items()
    )


def _taken(value: Any, allowed: frozenset[Any]) -> bool:
    which = value.WhichOneof("value")
    if which in ("type", "list"):
        return all(number in allowed for number in _types(value))
    if which in ("s", "i", "b"):
        given = value.s.decode(errors="replace") if which == "s" else getattr(value, which)
        return str(given) in allowed
    return True


# -- words ----------------------------------------------------------------------------------------


def _same(value: Any, default: bytes) -> bool:
    return bytes_of(value) == bytes_of(protos.Attr.FromString(default))


def _text(value: Any) -> str:
    which = value.WhichOneof("value")
    if which == "type":
        return protos.dtype_name(value.type)
    if which == "s":
        return repr(value.s.decode(errors="replace"))[:_MOST_TEXT]
    if which == "list":
        items = [*map(protos.dtype_name, value.list.type), *value.list.i, *value.list.s]
        return f"[{_listed(items)}]"[:_MOST_TEXT]
    return str(getattr(value, which))[:_MOST_TEXT] if which else "nothing"


def _listed(items: Iterable[Any]) -> str:
    return ", ".join(map(str, items))


def span(names: Sequence[str]) -> str:
    """`2.12 to 2.15`, `2.16 or newer`."""
    known = list(releases.known())
    if len(names) == 1:
        return names[0] if names[0] != known[-1] else f"{names[0]} or newer"
    if list(names) == known[-len(names) :]:
        return f"{names[0]} or newer"
    if list(names) == known[known.index(names[0]) :][: len(names)]:
        return f"{names[0]} to {names[-1]}"
    return _listed(names)
