"""Paths with placeholders: `models/{version}`, `runs/{epoch:02d}-{val_loss:.2f}`.

In: the `filepath` of a callback, and the values of a moment. Out: the path of an artifact, and the
version numbers that are taken where it goes. The invariant: what cannot be filled in at any moment
is refused when the template is made.
"""

from __future__ import annotations

import itertools
import os
import re
import string
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_export import locks
from keras_export.errors import ArgumentError, ArgumentTypeError, failure

_SETTING_UP = "set up SavedModelCheckpoint"
_MAX_VERSION = 2**63 - 1  # TensorFlow Serving reads version numbers as int64


@dataclass(frozen=True)
class Placeholder:
    """A placeholder of a path."""

    name: str
    spec: str
    conversion: str | None

    def __str__(self) -> str:
        conversion = f"!{self.conversion}" if self.conversion else ""
        return f"{{{self.name}{conversion}{self.spec and ':'}{self.spec}}}"

    def filled(self, value: float) -> str:
        return format(string.Formatter().convert_field(value, self.conversion), self.spec)


class Template:
    """A path with placeholders.

    Attributes:
        text: as it was given.
        is_numbered: whether it has `{version}`.
        is_fixed: whether it has no placeholder at all.
        folder: what is above the first placeholder; above the path itself where there is none.
        tail: the rest, with its placeholders.
    """

    def __init__(self, filepath: str | os.PathLike[str], *, with_batch: bool) -> None:
        try:
            self.text = os.fsdecode(filepath)
        except TypeError as error:
            raise ArgumentTypeError(
                failure(_SETTING_UP, "a str or os.PathLike", f"filepath={filepath!r}")
            ) from error
        self._parts = tuple(_parsed(self.text.rstrip("/") or self.text))
        placeholders = [part for part in self._parts if isinstance(part, Placeholder)]
        for placeholder in placeholders:
            _check_placeholder(placeholder, self.text, with_batch)
        self.is_numbered = any(placeholder.name == "version" for placeholder in placeholders)
        self.is_fixed = not placeholders
        literals = itertools.takewhile(lambda part: isinstance(part, str), self._parts)
        self.folder = folder_of("".join(map(str, literals)))
        self.tail = self.relative(self._joined(str))

    @property
    def fixed_folder(self) -> str:
        """What is above the first placeholder; the path itself where there is none."""
        return self._joined(str) if self.is_fixed else self.folder

    def relative(self, path: str) -> str:
        """A filled path, seen from `folder`."""
        return path.removeprefix(self.folder).lstrip("/") if self.folder != "." else path

    def filled(self, values: Mapping[str, float]) -> str:
        """The path for the values of a moment.

        Raises:
            ArgumentError: a placeholder has no value.
        """
        return self._joined(lambda placeholder: self._value(placeholder, values))

    def check(self, values: Mapping[str, float]) -> None:
        """Raises what `filled` would, before there is a version."""
        self._joined(lambda x: "" if x.name == "version" else self._value(x, values))

    def versions(self, values: Mapping[str, float]) -> list[int]:
        """The version numbers that are taken in the folder of `{version}`."""
        path = self._joined(lambda x: "\0" if x.name == "version" else self._value(x, values))
        folder = folder_of(path.partition("\0")[0])
        matches = map(self._version_pattern.fullmatch, _names_in(folder))
        found = [int(match[1]) for match in matches if match]
        return [number for number in found if number < _MAX_VERSION]

    def existing(self) -> Iterator[str]:
        """The paths below `folder` that the template may have been filled in to, shortest first."""
        shape = self.relative(self._joined(lambda x: "\0" if x.name == "version" else "\1"))
        found = [""]
        for component in shape.split("/"):
            text = re.escape(component).replace("\1", ".+").replace("\0", "[0-9]+")
            fits = re.compile(text).fullmatch
            found = [
                f"{above}/{name}".lstrip("/")
                for above in found
                for name in sorted(_names_in(f"{self.folder}/{above}"))
                if fits(name)
            ]
            yield from found

    @property
    def _version_pattern(self) -> re.Pattern[str]:
        shape = self._joined(lambda x: "\0" if x.name == "version" else "\1")
        component = next(part for part in shape.split("/") if "\0" in part)
        if component == "\0":  # as TensorFlow Serving reads names: ` 5` and `+5` are versions
            return re.compile(r"\s*\+?([0-9]+)\s*")
        pattern = re.escape(component).replace("\1", ".*").replace("\0", "([0-9]+)", 1)
        return re.compile(pattern.replace("\0", "[0-9]+"))

    def _joined(self, text_of: Callable[[Placeholder], str]) -> str:
        return "".join(
            text_of(part) if isinstance(part, Placeholder) else part for part in self._parts
        )

    def _value(self, placeholder: Placeholder, values: Mapping[str, float]) -> str:
        if placeholder.name not in values:
            raise ArgumentError(
                failure(
                    f"fill in filepath={self.text!r}",
                    f"the name of a value that there is ({listed(values)})",
                    str(placeholder),
                    "Metrics of validation need validation data, and the end of a batch has none.",
                )
            )
        return placeholder.filled(values[placeholder.name])


def _parsed(text: str) -> Iterator[str | Placeholder]:
    try:
        for literal, name, spec, conversion in string.Formatter().parse(text):
            if literal:
                yield literal
            if name is not None:
                yield Placeholder(name, spec or "", conversion)
    except ValueError as error:
        expected = "placeholders like {epoch}, with {{ and }} for braces"
        raise _refusal(expected, f"filepath={text!r} ({error})") from error


def _check_placeholder(placeholder: Placeholder, text: str, with_batch: bool) -> None:
    received = f"{placeholder} in filepath={text!r}"
    if not placeholder.name or placeholder.name.isdigit():
        raise _refusal("the name of a value in each placeholder", received)
    if placeholder.name == "batch" and not with_batch:
        raise _refusal("{batch} only with an integer save_freq", received)
    is_count = placeholder.name in ("epoch", "batch", "version")
    try:
        filled = placeholder.filled(12345 if is_count else 0.5)
    except ValueError as error:
        kind = "an integer" if is_count else "a float"
        raise _refusal(f"a format for {kind}", f"{received} ({error})") from error
    if placeholder.name == "version" and filled.lstrip("0") != "12345":
        raise _refusal("a format that gives digits alone", received)
    if "/" in filled:
        raise _refusal("a format that gives a part of a name", received)


def folder_of(path: str) -> str:
    """What is before the last `/` of a path, local or not."""
    return path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")


def _names_in(folder: str) -> list[str]:
    # A folder that may not be listed: to write exclusively finds a number that is taken, too.
    with suppress(tf.errors.OpError):
        names = [name.rstrip("/") for name in tf.io.gfile.listdir(folder)]
        return [name for name in names if not name.startswith(locks.PREFIX)]
    return []


def _refusal(expected: str, received: str) -> ArgumentError:
    return ArgumentError(failure(_SETTING_UP, expected, received))


def listed(values: Mapping[str, Any]) -> str:
    """The names of values, for a message."""
    return ", ".join(sorted(values)) or "nothing"
