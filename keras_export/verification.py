"""Tells whether an artifact is whole and can be served, and names what is wrong with it.

In: the directory of a SavedModel, whoever wrote it. Out: a `VerificationReport`. The invariant:
the files are read here and nothing of them runs here; the signatures run in a process of their
own, without a GPU and without the files that the exporting machine had.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from keras_export import crosschecks, digests, fingerprints, inspection, trial
from keras_export.bundles import OBJECT_GRAPH_KEY, Bundle, bytes_of, is_file, read_bundle
from keras_export.errors import ArgumentError, DamagedFileError, failure
from keras_export.reports import format_size

_PB, _FINGERPRINT = "saved_model.pb", "fingerprint.pb"
_INDEX = "variables/variables.index"
_TIMEOUT_SECONDS = 600.0
# The graph or the values cannot be read at all: running them would say nothing more.
_UNRUNNABLE = "not run, since the files are not sound"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an artifact.

    Attributes:
        kind: what it is, in a word for programs: `damaged-graph`, `damaged-index`,
            `damaged-data`, `damaged-digests`, `truncated-shard`, `missing-shard`,
            `missing-index`, `foreign-variables`, `wrong-fingerprint`, `missing-asset`,
            `changed-asset`, `missing-variable`, `mismatched-variable`, `outside-file`,
            `python-code`, `unloadable`, `unservable`, `readers-disagree`, `different-outputs`,
            `crash`.
        where: the file, variable or signature.
        message: a sentence for people.
    """

    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.kind}]"


@dataclass(frozen=True)
class VerificationReport:
    """What `verify` found.

    Attributes:
        export_dir: the artifact.
        problems: what is wrong; empty if the artifact is sound.
        notes: what could not be checked, and why.
        checked: how much was looked at: `variables`, `bytes`, `assets`, `signatures` that ran,
            `compared` with expected outputs.
    """

    export_dir: str
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    checked: Mapping[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON can hold."""
        return {
            "export_dir": self.export_dir,
            "ok": self.ok,
            "problems": [vars(problem) for problem in self.problems],
            "notes": list(self.notes),
            "checked": dict(self.checked),
        }

    def __str__(self) -> str:
        count = len(self.problems)
        verdict = "sound" if self.ok else f"{count} problem{'s' if count > 1 else ''}"
        lines = [f"{self.export_dir}: {verdict}", f"  checked: {self._summary()}"]
        lines += [f"  problem: {problem}" for problem in self.problems]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _summary(self) -> str:
        parts = [f"{self.checked.get(name, 0)} {name}" for name in ("variables", "assets")]
        parts.append(f"{format_size(self.checked.get('bytes', 0))} of values")
        parts.append(f"{self.checked.get('signatures', 0)} signatures run")
        if self.checked.get("compared"):
            parts.append(f"{self.checked['compared']} compared with expected outputs")
        return ", ".join(parts)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(x.where)}</td><td>{html.escape(x.message)}</td>"
            f"<td><code>{html.escape(x.kind)}</code></td></tr>"
            for x in self.problems
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        verdict = "✓ sound" if self.ok else f"✗ {len(self.problems)} problems"
        return (
            f"<p><b>{html.escape(self.export_dir)}</b>: {verdict}; "
            f"{html.escape(self._summary())}</p><table>{rows}</table><ul>{notes}</ul>"
        )


def verify(
    export_dir: str | os.PathLike[str],
    *,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    outputs: Mapping[str, Mapping[str, Any]] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    run: bool = True,
    timeout: float = _TIMEOUT_SECONDS,
    on_progress: Progress | None = None,
) -> VerificationReport:
    """Checks an artifact: its files against each other, then by running it.

    Every variable's checksum is computed, and every bit of `saved_model.pb`, of `variables.index`
    and of the assets is held against `fingerprint.pb` and `assets.extra/digests.json`. Then the
    C++ loader and `tf.saved_model.load` load it in a clean process, without GPU and, on Linux,
    without any file but the artifact's, and run every signature.

    Args:
        export_dir: a directory that TensorFlow, Keras or keras_export wrote.
        inputs: arrays by input name, by signature key. Signatures without get generated inputs.
        outputs: what a signature must give on its `inputs`, arrays by output name, by key.
        rtol: how far a float may be off, relative to what is expected.
        atol: and beside that.
        run: False leaves the second half out, and TensorFlow with it.
        timeout: seconds that loading and running may take.
        on_progress: called with what is being checked, how much is done, and of how much.

    Returns:
        What is wrong, what could not be checked, how much was.

    Raises:
        ArgumentError: there is no `saved_model.pb`, or a signature has no such key, input or
            output.

    Example:
        >>> import tempfile, keras, keras_export as ke
        >>> model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1, name="y")])
        >>> path = ke.export(model, tempfile.mkdtemp()).export_dir
        >>> ke.verify(path, run=False).ok
        True
    """
    shown = os.fspath(export_dir)
    with _local(shown) as path:
        found = _Verification(path, shown, on_progress or (lambda *_: None))
        found.check_files()
        if run:
            found.check_by_running(inputs or {}, outputs or {}, rtol, atol, timeout)
    return found.report()


@contextlib.contextmanager
def _local(path: str) -> Iterator[str]:
    """The artifact on this machine: what is elsewhere is copied first."""
    if "://" not in path:
        yield os.path.realpath(path)
        return
    import tensorflow as tf  # only it knows other file systems

    gfile = tf.io.gfile
    with tempfile.TemporaryDirectory(prefix="keras_export-") as folder:
        for source, _, names in gfile.walk(path):
            below = os.path.join(folder, source.removeprefix(path).strip("/"))
            os.makedirs(below, exist_ok=True)
            for name in names:
                if gfile.exists(f"{source}/{name}") and not gfile.isdir(f"{source}/{name}"):
                    gfile.copy(f"{source}/{name}", os.path.join(below, name), overwrite=True)
        yield folder


class _Verification:
    """The checks of one artifact, in the order in which a reader of it needs them to hold."""

    def __init__(self, path: str, shown: str, progress: Progress) -> None:
        self._path, self._shown, self._progress = path, shown, progress
        self._problems: list[Problem] = []
        self._notes: list[str] = []
        self._checked = {"variables": 0, "bytes": 0, "assets": 0, "signatures": 0, "compared": 0}
        self._meta_graph: Any = None
        self._bundle: Bundle | None = None

    def report(self) -> VerificationReport:
        problems = tuple(dict.fromkeys(self._problems))
        return VerificationReport(
            self._shown, problems, tuple(dict.fromkeys(self._notes)), self._checked
        )

    def check_files(self) -> None:
        self._read_graph()
        self._read_index()
        self._check_fingerprint()
        self._check_values()
        self._check_assets()
        # What is damaged has been named: that it does not fit says no more.
        if self._meta_graph is not None and not self._is_damaged():
            for kind, where, message in crosschecks.crosscheck(
                self._meta_graph, self._bundle, self._path
            ):
                if self._bundle is not None or kind != "missing-variable":
                    self._add(kind, where, message)

    def _is_damaged(self) -> bool:
        return any(x.kind.startswith(("damaged-", "truncated-")) for x in self._problems)

    def check_by_running(
        self,
        inputs: Mapping[str, Mapping[str, Any]],
        outputs: Mapping[str, Mapping[str, Any]],
        rtol: float,
        atol: float,
        timeout: float,
    ) -> None:
        if self._problems:
            self._notes.append(_UNRUNNABLE)
            return
        info = inspection.inspect(self._path)
        _check_names(info, inputs, outputs)
        self._progress("running", 0, 1)
        request = trial.Request(
            self._path, info.tags, info.signatures, inputs, outputs, rtol, atol
        )
        outcome = self._run(request, timeout)
        if outcome is None:
            return
        for kind, where, message in outcome["problems"]:
            self._add(kind, where, message)
        self._notes += outcome["notes"]
        self._checked["signatures"] = len(outcome["ran"])
        self._checked["compared"] = len(outcome["compared"])
        self._check_hashes(outcome["hashes"], outcome["tensorflow"], info.producer)
        self._progress("running", 1, 1)

    # -- files --------------------------------------------------------------------------------

    def _read_graph(self) -> None:
        try:
            self._meta_graph, _ = inspection.read_graph(self._path)
        except DamagedFileError as error:
            self._add("damaged-graph", _PB, str(error))

    def _read_index(self) -> None:
        prefix = inspection.bundle_prefix(self._path)
        try:
            self._bundle = read_bundle(prefix)
        except DamagedFileError as error:
            self._add("damaged-index", _INDEX, str(error))
            return
        needs = self._meta_graph is not None and crosschecks.restored_keys(self._meta_graph)
        if self._bundle is None and needs:
            self._add(
                "missing-index",
                _INDEX,
                f"it is missing, and the graph needs {len(needs)} variables from it",
            )

    def _check_fingerprint(self) -> None:
        path = os.path.join(self._path, _FINGERPRINT)
        if not is_file(path):
            self._notes.append(f"no {_FINGERPRINT}: bits of {_PB} and foreign variables go unseen")
            return
        try:
            stated = inspection.read_fingerprint(self._path)
        except DamagedFileError as error:
            self._add("wrong-fingerprint", _FINGERPRINT, str(error))
            return
        if fingerprints.is_intact(bytes_of(path)) is False:
            self._add("wrong-fingerprint", _FINGERPRINT, "its fields do not belong together")
            return
        if self._meta_graph is not None:
            self._hold_against(stated)

    def _hold_against(self, stated: Mapping[str, str]) -> None:
        graph_fits = self._graph_fits(int(stated.get("saved_model_checksum", 0)))
        index = os.path.join(self._path, _INDEX)
        values_fit = not is_file(index) or int(
            stated.get("checkpoint_hash", 0)
        ) == fingerprints.checkpoint_hash(bytes_of(index))
        if not graph_fits and not values_fit and self._bundle is not None:
            self._add(
                "wrong-fingerprint", _FINGERPRINT, f"it belongs neither to {_PB} nor to {_INDEX}"
            )
        elif not graph_fits:
            self._add("damaged-graph", _PB, f"it is not the one that {_FINGERPRINT} was made for")
        elif not values_fit and self._bundle is not None:
            self._add(
                "foreign-variables",
                "variables",
                f"{_INDEX} is not the one that {_FINGERPRINT} was made for: it belongs to "
                "another export, or was changed",
            )

    def _graph_fits(self, checksum: int) -> bool:
        try:
            content = bytes_of(os.path.join(self._path, _PB))
            return fingerprints.saved_model_checksum(content) == checksum
        except ValueError:
            return False

    def _check_values(self) -> None:
        bundle = self._bundle
        if bundle is None:
            return
        if not self._shards_are_whole(bundle):
            return
        stored = list(bundle.stored())
        total = sum(entry.size for _, entry in stored)
        for key, entry in stored:
            self._progress("variables", self._checked["bytes"], total)
            if not bundle.is_sound(entry):
                name = os.path.basename(bundle.shard_path(entry.shard))
                self._add(
                    "damaged-data",
                    key,
                    f"its bytes in variables/{name} ({entry.size} from {entry.offset}) have a "
                    "wrong checksum",
                )
            self._checked["bytes"] += entry.size
        self._checked["variables"] = len(set(bundle.entries) - {OBJECT_GRAPH_KEY})
        self._progress("variables", total, total)

    def _shards_are_whole(self, bundle: Bundle) -> bool:
        ends = dict.fromkeys(range(bundle.shards), 0)
        for _, entry in bundle.stored():
            ends[entry.shard] = max(ends.get(entry.shard, 0), entry.offset + entry.size)
        count = len(self._problems)
        for shard, end in sorted(ends.items()):
            path = bundle.shard_path(shard)
            name = f"variables/{os.path.basename(path)}"
            if not is_file(path):
                self._add("missing-shard", name, "the file is missing")
                continue
            size = os.path.getsize(path)
            if size < end:
                self._add("truncated-shard", name, f"it has {size} bytes, its index names {end}")
            elif size > end:
                self._add("damaged-data", name, f"it has {size - end} bytes that no index names")
        return len(self._problems) == count

    def _check_assets(self) -> None:
        try:
            stated = digests.read(self._path)
        except DamagedFileError as error:
            self._add("damaged-digests", digests.FILE, str(error))
            stated = None
        needed = {f"assets/{x.filename}" for x in self._assets()}
        for name in sorted(needed | set(stated or ())):
            path = os.path.join(self._path, name)
            if not is_file(path):
                self._add("missing-asset", name, "the file is missing")
                continue
            self._checked["assets"] += 1
            if stated is not None and name not in stated:
                self._add("damaged-digests", digests.FILE, f"it does not name {name}")
            elif stated is not None and digests.sha256(path) != stated[name]:
                self._add("changed-asset", name, "it is not the file that was exported")
        if needed and stated is None:
            self._notes.append(f"no {digests.FILE}: a changed asset goes unseen")

    def _assets(self) -> Any:
        return self._meta_graph.asset_file_def if self._meta_graph is not None else ()

    # -- running ------------------------------------------------------------------------------

    def _run(self, request: trial.Request, timeout: float) -> dict[str, Any] | None:
        with tempfile.TemporaryDirectory(prefix="keras_export-") as folder:
            folder = os.path.realpath(folder)
            asked, answered = os.path.join(folder, "request"), os.path.join(folder, "result")
            with open(asked, "wb") as file:
                pickle.dump((request, folder), file)
            done = self._start(["-m", "keras_export.trial", asked, answered], folder, timeout)
            if done is None:
                return None
            try:
                with open(answered) as file:
                    outcome: dict[str, Any] = json.load(file)
                    return outcome
            except (OSError, ValueError):
                self._add("crash", self._shown, _how_it_ended(done))
                return None

    def _start(
        self, arguments: list[str], folder: str, timeout: float
    ) -> subprocess.CompletedProcess[bytes] | None:
        try:
            return subprocess.run(
                [sys.executable, *arguments],
                cwd=folder,
                env=_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            self._add("crash", self._shown, f"loading and running did not end in {timeout:g} s")
            return None

    def _check_hashes(self, found: Mapping[str, int], installed: str, producer: str) -> None:
        stated = inspection.read_fingerprint(self._path)
        # The rules of these hashes change with TensorFlow.
        if not stated or installed != producer:
            return
        for name in ("graph_def_program_hash", "signature_def_hash", "saved_object_graph_hash"):
            if name in found and int(stated.get(name, 0)) != found[name]:
                self._add(
                    "wrong-fingerprint", _FINGERPRINT, f"its {name} is not that of the graph"
                )

    def _add(self, kind: str, where: str, message: str) -> None:
        self._problems.append(Problem(kind, where, message))


def _environment(folder: str) -> dict[str, str]:
    package = os.path.dirname(os.path.dirname(os.path.abspath(trial.__file__)))
    known = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package, known] if known else [package]),
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_HOME": folder,
        "TMPDIR": folder,
    }


def _how_it_ended(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stdout.decode(errors="replace").strip().splitlines() or ["no word"]
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"loading and running it ended the process by {name}: {lines[-1]}"
    return f"loading and running it failed: {lines[-1]}"


def _check_names(
    info: inspection.SavedModelInfo,
    inputs: Mapping[str, Mapping[str, Any]],
    outputs: Mapping[str, Mapping[str, Any]],
) -> None:
    for what, given in (("inputs", inputs), ("outputs", outputs)):
        for key, values in given.items():
            if key not in info.signatures:
                raise ArgumentError(
                    failure(
                        f"verify {info.export_dir}",
                        f"a signature of {sorted(info.signatures)}",
                        f"{what} for {key!r}",
                    )
                )
            expected = set(getattr(info.signatures[key], what))
            if set(values) != expected:
                raise ArgumentError(
                    failure(
                        f"verify {info.export_dir}",
                        f"the {what} {sorted(expected)} of {key!r}",
                        f"{sorted(values)}",
                    )
                )
            if what == "outputs" and key not in inputs:
                raise ArgumentError(
                    failure(
                        f"verify {info.export_dir}",
                        f"inputs beside the outputs of {key!r}",
                        "outputs alone",
                    )
                )
