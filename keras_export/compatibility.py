"""Tells which TensorFlow can load an artifact, before it is deployed.

In: the directory of a SavedModel, whoever wrote it, and a target such as `tensorflow==2.15`. Out:
a `CompatibilityReport` with what stands against it. The invariant: a finding is what a loader of
that release does, and not what it might do; the artifact is read without TensorFlow.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from keras_export import converters, releases
from keras_export.errors import ArgumentError, IncompatibleError, failure
from keras_export.inspection import read_graphs
from keras_export.lint import advice_on
from keras_export.node_kinds import CPP, PYTHON, Graph
from keras_export.refusals import BY_XLA, REFUSED, Finding, findings_of, span
from keras_export.releases import Release

# What people call them -> whether Python's loader takes part.
_TARGETS = {
    "tensorflow": (PYTHON, CPP),
    "tensorflow-cpu": (PYTHON, CPP),
    "tf": (PYTHON, CPP),
    "tf-serving": (CPP,),
    "tensorflow-serving": (CPP,),
    "tensorflow-model-server": (CPP,),
}

_MOST_LINES = 40

_BY_JAX = (
    "The artifact holds code by jax as StableHLO. Releases much older than the jax that made it "
    "cannot read it, which was not judged."
)


@dataclass(frozen=True)
class CompatibilityReport:
    """Who can load an artifact.

    Attributes:
        export_dir: the artifact.
        target: what was asked about; None for every release that is known.
        readers: whose loading was judged: `python`, `c++`.
        releases: the TensorFlow releases that the target stands for.
        findings: what stands against it, the refusals first.
        loadable: the readers that can load it, for every release that is known.
        oldest: the oldest release that can load it with all `readers`; None if none can. The
            oldest that is known may stand for older ones.
        notes: what the user should know besides.
        advice: what works in TensorFlow and may be a trouble elsewhere: fixed batches, ops on
            text, random or writing ops, paths.
    """

    export_dir: str
    target: str | None
    readers: tuple[str, ...]
    releases: tuple[str, ...]
    findings: tuple[Finding, ...]
    loadable: Mapping[str, tuple[str, ...]]
    oldest: str | None
    notes: tuple[str, ...] = ()
    advice: tuple[Finding, ...] = ()

    @property
    def loads(self) -> bool:
        """Whether the target loads and runs it; without a target, whether any release does."""
        if self.target is None:
            return self.oldest is not None
        return not any(x.effect == REFUSED for x in self.findings)

    @property
    def ok(self) -> bool:
        """Whether the target loads it and nothing of its meaning is lost there."""
        return self.loads and (self.target is None or not self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON can hold."""
        return {
            "export_dir": self.export_dir,
            "target": self.target,
            "ok": self.ok,
            "loads": self.loads,
            "oldest": self.oldest,
            "readers": list(self.readers),
            "releases": list(self.releases),
            "loadable": {release: list(readers) for release, readers in self.loadable.items()},
            "findings": [_as_dict(x) for x in self.findings],
            "advice": [_as_dict(x) for x in self.advice],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [f"{self.export_dir}: {self._headline()}"]
        shown = self.findings[:_MOST_LINES]
        lines += [f"  {x}{f' [{span(x.releases)}]' if x.releases else ''}" for x in shown]
        if len(self.findings) > len(shown):
            lines.append(f"  and {len(self.findings) - len(shown)} more findings")
        lines += [f"  {x}" for x in self.advice[:_MOST_LINES]]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(x.effect)}</td><td>{html.escape(x.message)}</td>"
            f"<td>{html.escape(x.place)}</td><td>{html.escape(x.remedy)}</td>"
            f"<td>{html.escape(span(x.releases) if x.releases else '')}</td></tr>"
            for x in (*self.findings, *self.advice)
        )
        head = "<tr><th></th><th>what</th><th>where</th><th>remedy</th><th>TensorFlow</th></tr>"
        table = f"<table>{head}{rows}</table>" if rows else ""
        return f"<p>{html.escape(self._headline())}</p>{table}"

    def _headline(self) -> str:
        oldest = "no TensorFlow that is known can load it"
        if self.oldest is not None:
            first = self.oldest == next(iter(releases.known()))
            oldest = f"loads in TensorFlow {self.oldest} {'or older' if first else 'at the oldest'}"
        elif partly := [name for name, able in self.loadable.items() if able]:
            who = "Python" if PYTHON in self.loadable[partly[-1]] else "C++"
            oldest = f"{who} alone can load it, in TensorFlow {span(partly)}"
        if self.target is None:
            return oldest
        verdict = "can" if self.ok else "loads it and loses something" if self.loads else "cannot"
        if verdict.startswith("can"):
            verdict = f"{verdict} load it"
        return f"{self.target} {verdict}; {oldest}"


def check(export_dir: str | os.PathLike[str], target: str | None = None) -> CompatibilityReport:
    """Tells whether a consumer can load an artifact and run its signatures.

    Args:
        export_dir: a directory that TensorFlow, Keras or keras_export wrote.
        target: `tensorflow==2.15`, `tensorflow>=2.13` (then every release from there on must load
            it), `tf-serving==2.14` (then the C++ loader alone counts), `2.15`; `tflite` or `onnx`:
            the converter itself is asked, in a process of its own; `tfjs`: the converter's list of
            ops is. Without one, all releases that are known are judged.

    Returns:
        What was found; `.ok` is the verdict, `.oldest` the oldest TensorFlow that can load it.

    Raises:
        ArgumentError: there is no `saved_model.pb`, or `target` names no release that is known.
        DamagedFileError: a file of it cannot be read.

    Example:
        >>> import tempfile, keras, keras_export as ke
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> report = ke.check(ke.export(model, tempfile.mkdtemp()).export_dir, "tensorflow==2.12")
        >>> report.ok, report.oldest
        (True, '2.12')
    """
    wanted = parse_target(target)
    path = os.fspath(export_dir)
    (meta_graph, *others), _ = read_graphs(path)
    if others:
        wanted = replace(wanted, notes=(*wanted.notes, _one_of_many(meta_graph, others)))
    graph = Graph(meta_graph)
    if any(kind.op == BY_XLA for kind, _ in graph.kinds.values()):
        wanted = replace(wanted, notes=(*wanted.notes, _BY_JAX))
    return _judge(path, graph, wanted)


def refuse(export_dir: str, target: str) -> None:
    """Raises unless a consumer loads an artifact and nothing of its meaning is lost there.

    Raises:
        IncompatibleError: it does not, with every finding.
    """
    report = check(export_dir, target)
    if not report.ok:
        listed = "".join(f"\n  {finding}" for finding in report.findings[:_MOST_LINES])
        raise IncompatibleError(f"Cannot export for target={target!r}:{listed}")


def to_json(report: CompatibilityReport) -> str:
    """`report` as indented JSON."""
    return json.dumps(report.to_dict(), indent=2)


# -- targets --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Whose loading is judged, in which releases.

    Attributes:
        text: the target as it was given.
        readers: who loads.
        releases: in which releases.
        notes: what was left out.
        format: the format to convert to, if it is one of those.
    """

    text: str | None
    readers: tuple[str, ...]
    releases: tuple[str, ...]
    notes: tuple[str, ...] = ()
    format: str = ""


def parse_target(text: str | None) -> Target:
    """What a target means.

    Raises:
        ArgumentError: it is none that is known.
    """
    known = releases.known()
    if text is None:
        return Target(None, (PYTHON, CPP), tuple(known))
    if text in converters.FORMATS:
        return Target(text, (PYTHON, CPP), (), format=text)
    stripped = text.strip() or "nothing"
    if stripped[:1] in "<>=!~":
        stripped = f"tensorflow{stripped}"
    elif stripped[:1].isdigit():
        stripped = f"tensorflow=={stripped}"
    try:
        requirement = Requirement(stripped)
        readers = _TARGETS[canonicalize_name(requirement.name)]
    except (InvalidRequirement, KeyError) as error:
        raise ArgumentError(
            failure(
                "check",
                "target='tensorflow==2.15', 'tensorflow>=2.13', 'tf-serving==2.14', 'tflite', "
                "'onnx' or 'tfjs'",
                f"target={text!r}",
            )
        ) from error  # fmt: skip
    matching = tuple(name for name in known if _matches(requirement.specifier, name))
    if not matching:
        first, *_, last = known
        raise ArgumentError(
            failure(
                "check", f"a release from {first} to {last}, which are known", f"target={text!r}",
                "`scripts/op_history.py` of the project adds a release.",
            )
        )  # fmt: skip
    return Target(text, readers, matching, tuple(_limits(requirement.specifier, known)))


def _matches(specifier: Any, release: str) -> bool:
    """Whether a specifier means a minor release, or a patch release of it that it names."""
    named = (x.version.removesuffix(".*") for x in specifier)
    candidates = [release, *(x for x in named if x.startswith(f"{release}."))]
    return any(specifier.contains(x) for x in candidates)


def _limits(specifier: Any, known: Mapping[str, Release]) -> Iterator[str]:
    first = next(iter(known))
    major, minor = first.split(".")
    if specifier.contains(f"{major}.{int(minor) - 1}"):
        yield f"Releases before {first} are not known, and were not judged."


def _one_of_many(judged: Any, others: list[Any]) -> str:
    """That an artifact holds other MetaGraphs, which were not judged."""
    tags, *rest = (str(sorted(x.meta_info_def.tags)) for x in (judged, *others))
    return (
        f"The artifact holds {len(rest) + 1} MetaGraphs. Judged was the one with the tags {tags}, "
        f"not {', '.join(rest)}; `tf.saved_model.load` must be told `tags={tags}`."
    )


# -- the verdict ---------------------------------------------------------------------------------


def _judge(path: str, graph: Graph, wanted: Target) -> CompatibilityReport:
    known = releases.known()
    found: dict[Any, Finding] = {}
    refusing: dict[str, set[str]] = {name: set() for name in known}
    for name, release in known.items():
        for finding in findings_of(graph, release):
            readers = tuple(x for x in finding.readers if x in wanted.readers)
            if finding.effect == REFUSED:
                refusing[name].update(finding.readers)
            if readers and name in wanted.releases:
                key = (finding.problem, finding.subject, finding.function, finding.node, readers)
                earlier = found.get(key)
                spread = (*(earlier.releases if earlier else ()), name)
                found[key] = replace(earlier or finding, readers=readers, releases=spread)
    loadable = {
        name: tuple(x for x in (PYTHON, CPP) if x not in refused)
        for name, refused in refusing.items()
    }
    suiting = [name for name, able in loadable.items() if set(wanted.readers) <= set(able)]
    if wanted.format:
        found.update(enumerate(converters.refusals_of(wanted.format, path, graph)))
    ordered = sorted(found.values(), key=lambda x: (x.effect != REFUSED, x.problem, x.subject))
    return CompatibilityReport(
        path, wanted.text, wanted.readers, wanted.releases, tuple(ordered), loadable,
        suiting[0] if suiting else None, wanted.notes, tuple(advice_on(graph)),
    )  # fmt: skip


def _as_dict(finding: Finding) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(finding).items()
    }
