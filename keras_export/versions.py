"""The versions that a training has published: their numbers, their ranks, and which stay.

In: the template of their paths, and each version when readers can see it. Out: the next number,
the best values of earlier runs, and a folder that holds what is to be kept. The invariant: what a
number or a rank depends on is in the version itself before it is published, so the file beside the
versions can be lost at any moment; only versions of this template are ever deleted.

`.keras_export.json`, in the folder above the first placeholder, is the file: for each template the
last number, the best values, and the versions. Each version has a record of its own in
`assets.extra/keras_export.json`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import tensorflow as tf

from keras_export import atomic, locks, sweeping
from keras_export.ranking import Ranking
from keras_export.templates import Template

STATE_NAME = ".keras_export.json"
RECORD_NAME = "keras_export.json"
_ANY = ""  # stands for all templates, after the file was damaged
_MAX_NUMBER = 2**62  # what is larger comes from damage: TensorFlow Serving reads int64


@dataclass(frozen=True)
class Version:
    """A published version.

    Attributes:
        path: from the folder of the state.
        number: counts the versions of the template; the `{version}` of those that have one.
        epoch: counted from 1.
        batch: counted from 1, if it was exported at a batch.
        logs: metrics of its moment.
    """

    path: str
    number: int
    epoch: int
    batch: int | None
    logs: Mapping[str, float]


@dataclass
class _State:
    """What is known of one template."""

    last: int = 0
    best: dict[str, float] = field(default_factory=dict)
    versions: dict[str, Version] = field(default_factory=dict)


class VersionFolder:
    """The versions of one template.

    Several trainings may publish into it at a time: they share numbers, ranks and retention.

    Args:
        template: of their paths.
        ranking: says which is better.
        keep_last: how many of the newest stay; all if None.
        keep_best: how many of the best stay, beside those.
        pointers: keep links to the newest and to the best version beside the folder.
    """

    def __init__(
        self,
        template: Template,
        ranking: Ranking,
        keep_last: int | None = None,
        keep_best: int | None = None,
        pointers: bool = False,
    ) -> None:
        self._template, self._ranking = template, ranking
        self._keep_last, self._keep_best = keep_last, keep_best
        self._pointers = pointers
        self._state = _State()

    @property
    def kept(self) -> list[Version]:
        """The versions that stand in the folder as far as this object knows, by number."""
        return sorted(self._state.versions.values(), key=lambda version: version.number)

    @property
    def best(self) -> Version | None:
        """The best that stands; None if no version has a value to be ranked by."""
        ranked = [x for x in self.kept if not self._rank(x)[0]]
        return min(ranked, key=self._rank, default=None) if self._ranking.is_decided else None

    def newest(self) -> str | None:
        """The path of the artifact that readers of the folder would take, whoever wrote it."""
        folder = self._template.folder
        paths = [f"{folder}/{path}" for path in self._template.existing()]
        whole = [path for path in paths if tf.io.gfile.exists(f"{path}/saved_model.pb")]
        return max(whole, key=_numbers_in, default=None)

    def path_of(self, version: Version) -> str:
        """Where a version stands."""
        return f"{self._template.folder}/{version.path}"

    def open(self) -> None:
        """Cleans up after killed runs, and finds out what they published."""
        folder = self._template.folder
        paths = list(self._template.existing())
        for path in ("", *paths):
            sweeping.sweep(f"{folder}/{path}")
        stored = self._decoded(self._read())
        found = {path: version for path in paths if (version := self._at(path))}
        self._state.versions |= found
        self._learn(_State(stored.last, stored.best, found), set(found))

    def next_number(self, values: Mapping[str, float]) -> int:
        """A number above all that were given out, in this run or another."""
        taken = self._template.versions(values) if self._template.is_numbered else []
        stored = self._decoded(self._read()).last
        self._state.last = max(self._state.last, stored, *taken, 0) + 1
        return self._state.last

    def record(self, version: Version) -> dict[str, bytes]:
        """What a version says about itself: files for `assets.extra/` by name."""
        return {RECORD_NAME: _dumped({"template": self._template.tail, **asdict(version)})}

    def published(self, version: Version) -> list[str]:
        """Takes note of a version that readers can see, and deletes those that need not stay.

        Returns:
            The paths of what was deleted.

        Raises:
            TargetError: the folder cannot be written. The version stands.
        """
        self._state.versions[version.path] = version
        folder = self._template.folder
        with locks.turn(folder):
            everything = self._read()
            self._learn(self._decoded(everything), set(self._template.existing()))
            dropped = self._without_place()
            for gone in dropped:
                del self._state.versions[gone.path]
            everything[self._template.tail] = self._encoded()
            # Before anything is deleted: the numbers of what is gone stand nowhere else.
            state = _dumped({"templates": everything})
            atomic.replace_file(f"{folder}/{STATE_NAME}", state)
            self._point()
            for gone in dropped:
                atomic.remove(self.path_of(gone), above=folder)
        return [self.path_of(gone) for gone in dropped]

    def _learn(self, other: _State, present: Set[str]) -> None:
        """Adds what another run or the file knows; `present` are the paths that exist."""
        state, monitor = self._state, self._ranking.monitor
        versions = {**other.versions, **state.versions}
        state.versions = {path: version for path, version in versions.items() if path in present}
        state.last = max(state.last, other.last, *(x.number for x in versions.values()), 0)
        values = [x.logs[monitor] for x in versions.values() if monitor in x.logs]
        values += [best[monitor] for best in (other.best, state.best) if monitor in best]
        self._ranking.remember(values)
        state.best = {**other.best, **state.best}
        best = self._ranking.best_of(values)
        if best is not None:
            state.best[monitor] = best

    def _point(self) -> None:
        if not self._pointers:
            return
        newest = max(self.kept, key=lambda version: version.number, default=None)
        for name, version in (("latest", newest), ("best", self.best)):
            if version is not None:
                atomic.point(f"{self._template.folder}-{name}", self.path_of(version))

    def _without_place(self) -> list[Version]:
        if self._keep_last is None and self._keep_best is None:
            return []
        by_number = self.kept
        newest = by_number[-self._keep_last :] if self._keep_last else []
        best = sorted(by_number, key=self._rank)[: self._keep_best or 0]
        staying = {version.path for version in (*newest, *best)}
        return [version for version in by_number if version.path not in staying]

    def _rank(self, version: Version) -> tuple[bool, float]:
        return self._ranking.key(version.logs.get(self._ranking.monitor))

    # -- files -------------------------------------------------------------------------------------

    def _at(self, path: str) -> Version | None:
        """The version at a path, if it is one of this template that stands where it was put."""
        record = f"{self._template.folder}/{path}/assets.extra/{RECORD_NAME}"
        content = _parsed(_content(record))
        version = _version(content)
        if version is None or version.path != path:
            return None
        return version if content.get("template") == self._template.tail else None

    def _read(self) -> dict[str, Any]:
        """What the file says of all templates."""
        text = _content(f"{self._template.folder}/{STATE_NAME}")
        templates = _parsed(text).get("templates")
        if isinstance(templates, dict):
            return templates
        # Damaged: none of its numbers may come back, of whichever template.
        numbers = [int(match) for match in re.findall(r'"(?:last|number)": *([0-9]{1,18})', text)]
        return {_ANY: {"last": max(numbers, default=0)}}

    def _decoded(self, everything: Mapping[str, Any]) -> _State:
        content, floor = (_dict(everything.get(key)) for key in (self._template.tail, _ANY))
        versions = [_version(x) for x in _list(content.get("versions"))]
        return _State(
            max(_number(content.get("last")), _number(floor.get("last"))),
            _floats(content.get("best")),
            {version.path: version for version in versions if version is not None},
        )

    def _encoded(self) -> dict[str, Any]:
        versions = [asdict(version) for version in self.kept]
        return {"last": self._state.last, "best": self._state.best, "versions": versions}


def _numbers_in(path: str) -> list[tuple[int, str]]:
    """Sorts paths by the numbers in them."""
    parts = re.split("([0-9]+)", path)
    return [(int(part) if part.isdigit() else -1, part) for part in parts]


def _content(path: str) -> str:
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            content: bytes = file.read()
    except tf.errors.OpError:  # not there, or not to be read
        return ""
    return content.decode("utf-8", "replace")


def _parsed(text: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        content = json.loads(text)
        if isinstance(content, dict):
            return content
    return {}


def _dumped(content: Any) -> bytes:
    return json.dumps(_strict(content), indent=1, sort_keys=True).encode()


def _strict(content: Any) -> Any:
    """The same with words for the floats that JSON does not have."""
    if isinstance(content, Mapping):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_strict(value) for value in content]
    is_special = isinstance(content, float) and not math.isfinite(content)
    return repr(content) if is_special else content


def _version(content: Any) -> Version | None:
    """The version that a record describes, if it does."""
    if not isinstance(content, dict):
        return None
    path, epoch, batch = (content.get(name) for name in ("path", "epoch", "batch"))
    number = _number(content.get("number"))
    if not isinstance(path, str) or not number or not isinstance(epoch, int):
        return None
    if {"", ".", ".."} & set(path.split("/")):
        return None  # would be looked for outside of the folder
    batch = batch if isinstance(batch, int) else None
    return Version(path, number, epoch, batch, _floats(content.get("logs")))


def _number(content: Any) -> int:
    return content if isinstance(content, int) and 0 < content < _MAX_NUMBER else 0


def _floats(content: Any) -> dict[str, float]:
    found = {}
    for name, value in _dict(content).items():
        with suppress(TypeError, ValueError):
            found[name] = float(value)
    return found


def _list(content: Any) -> list[Any]:
    return content if isinstance(content, list) else []


def _dict(content: Any) -> dict[str, Any]:
    return content if isinstance(content, dict) else {}
