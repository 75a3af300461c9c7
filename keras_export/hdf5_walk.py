"""One look at all that an HDF5 file of weights has.

In: the path of a file that anybody may have made. Out: what it is, as a `SourceFile`. The
invariant: links are not followed and no other file is opened; what is read of the file later was
read here once, by the same functions of the library. That may never end or end the process:
`quarantine` calls this where it does no harm.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import h5py

from keras_export.errors import DamagedFileError, UnsafeFileError, failure
from keras_export.sources import (
    MAX_EXPANSION,
    MAX_NAME_CHARACTERS,
    SLACK_BYTES,
    SourceFile,
    check_config_size,
    refuse,
    wrong_name,
)

_MAX_MEMBERS = 1_000_000
_MAX_DEPTH = 200
_MAX_NAMES = 1_000_000
# Readers ask for these, whether they are there or not, and others for what sorts before or after.
_ASKED_FOR = ("vars", "layers", "model_weights", "optimizer_weights", " ", "~")


def examine(path: str, called: str, safe_mode: bool) -> SourceFile:
    """Looks at every member and reads what a reader of weights reads.

    Args:
        path: of the file.
        called: what to call it in an error.
        safe_mode: refuse also what a trusted file may have.

    Returns:
        What it is; its configuration as text.

    Raises:
        UnsafeFileError: a member of it may not be read.
        DamagedFileError: it cannot be read, or is no file of Keras.
    """
    try:
        with h5py.File(path, "r") as file:
            return _Walk(path, called, safe_mode).over(file)
    except (UnsafeFileError, DamagedFileError):
        raise
    except Exception as error:  # h5py raises any of ten types for a damaged file
        raise DamagedFileError(f"Cannot read {called}: {_first_line(error)}.") from error


class _Walk:
    """One look at every member of an HDF5 file, by hard links alone."""

    def __init__(self, path: str, called: str, safe_mode: bool) -> None:
        self._path, self._called, self._safe_mode = path, called, safe_mode
        self._bytes = self._unaccounted = self._members = 0
        self._reasons: list[str] = []
        self._scattered: list[str] = []
        self._has_vars = False

    def over(self, file: Any) -> SourceFile:
        self._walk(file)
        if self._unaccounted > SLACK_BYTES:
            self._reasons.append(
                f"its arrays say that they have {self._bytes} bytes in a file of "
                f"{os.path.getsize(self._path)}"
            )
        refuse(self._called, self._reasons)
        self._read_values(file)
        return self._described(file)

    def _described(self, file: Any) -> SourceFile:
        version, backend = (_text(file, name) for name in ("keras_version", "backend"))
        rest = (version, backend, self._path, self._bytes)
        if "model_config" in file.attrs:
            name = f"model_config of {self._called}"
            text = _text(file, "model_config")
            check_config_size(name, len(text))
            group = _weights_group(file)
            for wrong in names_of(group, "layer_names") if group is not None else ():
                self._check_name(f"layer {wrong!r}", wrong)
            refuse(self._called, self._reasons)
            return SourceFile(self._called, "model", text, *rest)
        if "layer_names" in file.attrs or "layer_names0" in file.attrs:
            for wrong in names_of(file, "layer_names"):
                self._check_name(f"layer {wrong!r}", wrong)
            refuse(self._called, self._reasons)
            return SourceFile(self._called, "layers", None, *rest)
        if self._has_vars:
            return SourceFile(self._called, "weights", None, *rest)
        raise DamagedFileError(
            failure(
                f"read {self._called}",
                "the HDF5 file of a Keras model or of its weights",
                f"one with the members {sorted(file)[:8]}",
            )
        )

    def _walk(self, root: Any) -> None:
        seen = {_address(root)}
        self._read("", root)
        waiting = [("", root, 0)]
        while waiting:
            path, group, depth = waiting.pop()
            for name in group:
                member = f"{path}/{name}".lstrip("/")
                self._members += 1
                if self._members > _MAX_MEMBERS or depth > _MAX_DEPTH:
                    refuse(self._called, [f"member {member[:200]!r} is one of too many"])
                self._check_name(f"member {member[:200]!r}", name)
                found = self._open(member, group, name)
                if isinstance(found, h5py.Dataset):
                    self._check_dataset(member, found)
                    self._read(member, found)
                elif isinstance(found, h5py.Group):
                    address = _address(found)
                    if address in seen:
                        self._reasons.append(f"member {member!r} is a group that has another path")
                        continue
                    seen.add(address)
                    self._read(member, found)
                    self._has_vars |= name == "vars"
                    waiting.append((member, found, depth + 1))

    def _open(self, member: str, group: Any, name: str) -> Any:
        with self._naming(member):
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.HardLink):
                return group[name]
        if self._safe_mode:
            kind = "an external link" if isinstance(link, h5py.ExternalLink) else "a soft link"
            where = f" to {link.filename!r}" if isinstance(link, h5py.ExternalLink) else ""
            self._reasons.append(f"member {member!r} is {kind}{where}")
        return None

    def _check_dataset(self, member: str, dataset: Any) -> None:
        with self._naming(member):
            layout = dataset.id.get_create_plist()
            size = math.prod(dataset.shape or (0,)) * dataset.dtype.itemsize
            stored = dataset.id.get_storage_size()
            external = layout.get_external_count()
            virtual = layout.get_layout() == h5py.h5d.VIRTUAL
            chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
        self._bytes += size
        if dataset.chunks or (dataset.dtype.kind == "O" and not (external or virtual)):
            self._scattered.append(member)
        if not self._safe_mode:
            return
        if external:
            self._reasons.append(f"member {member!r} keeps its data in other files")
        elif virtual:
            self._reasons.append(f"member {member!r} is a view on other datasets")
        elif dataset.dtype.kind == "O" and h5py.check_string_dtype(dataset.dtype) is None:
            self._reasons.append(f"member {member!r} holds references")
        elif size > SLACK_BYTES + MAX_EXPANSION * stored or chunk > SLACK_BYTES + 2 * size:
            self._reasons.append(
                f"member {member!r} says that it has the shape {dataset.shape}, {size} bytes, "
                f"and stores {stored}"
            )
        else:
            self._unaccounted += max(0, size - MAX_EXPANSION * stored)

    def _read(self, member: str, found: Any) -> None:
        with self._naming(member):
            for name in found.attrs:
                with suppress(TypeError):  # NumPy has no such type
                    found.attrs[name]
            for name in _ASKED_FOR if isinstance(found, h5py.Group) else ():
                found.get(name, getlink=True)

    def _read_values(self, file: Any) -> None:
        """The values whose place is in trees and heaps; others stand in the file as they are."""
        for member in self._scattered:
            with self._naming(member):
                dataset = file[member]
                for part in dataset.iter_chunks() if dataset.chunks else [()]:
                    dataset[part]

    @contextmanager
    def _naming(self, member: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise DamagedFileError(
                f"Cannot read member {member or '/'!r} of {self._called}: {_first_line(error)}."
            ) from error

    def _check_name(self, what: str, name: str) -> None:
        if reason := wrong_name(name):
            self._reasons.append(f"{what[:MAX_NAME_CHARACTERS]} {reason}")


def names_of(group: Any, attribute: str) -> list[str]:
    """The strings of a list that Keras keeps in attributes, cut into parts where it is long."""
    parts = [attribute] if attribute in group.attrs else list(_parts(group, attribute))
    where = _place(group, attribute)
    return [_decoded(name, where) for part in parts for name in _array(group, part)]


def _parts(group: Any, attribute: str) -> Iterator[str]:
    number = 0
    while f"{attribute}{number}" in group.attrs:
        yield f"{attribute}{number}"
        number += 1


def _array(group: Any, attribute: str) -> list[Any]:
    shape = group.attrs.get_id(attribute).shape
    if shape is None or len(shape) > 1 or math.prod(shape) > _MAX_NAMES:
        raise DamagedFileError(f"Cannot read {_place(group, attribute)}: it is no list of names.")
    found = group.attrs[attribute]
    return list(found) if shape else [found]


def _text(group: Any, attribute: str) -> str:
    if attribute not in group.attrs:
        return ""
    if group.attrs.get_id(attribute).shape not in ((), (1,)):
        raise DamagedFileError(f"Cannot read {_place(group, attribute)}: it is no text.")
    found = group.attrs[attribute]
    found = found if isinstance(found, str | bytes) else getattr(found, "flat", [found])[0]
    return _decoded(found, _place(group, attribute))


def _place(group: Any, attribute: str) -> str:
    return f"attribute {attribute!r} of {group.name!r} in {group.file.filename}"


def _decoded(value: Any, where: str) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return str(value)
    raise DamagedFileError(failure(f"read {where}", "text", f"{value!r:.80}"))


def _weights_group(file: Any) -> Any:
    link = file.get("model_weights", getlink=True)
    return file["model_weights"] if isinstance(link, h5py.HardLink) else None


def _address(group: Any) -> tuple[int, int]:
    # Not h5o.get_info: it measures the group's heap and tree, for ever where they are damaged.
    found = h5py.h5g.get_objinfo(group.id)
    return found.fileno, found.objno


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
