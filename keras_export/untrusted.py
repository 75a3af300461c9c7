"""What a model's file is by its content, and whether it may be read.

In: the path of a file that anybody may have made. Out: a `SourceFile`: what it is, its parsed
configuration, where its weights are. The invariant: nothing of the file is executed or followed.
Neither Keras nor TensorFlow is imported; zip archives are unpacked only into the folder that the
caller gives, under names that were checked.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import h5py

from keras_export.errors import ArgumentError, DamagedFileError, UnsafeFileError, failure

Kind = Literal["archive", "model", "layers", "weights", "config"]

MEGABYTE = 1 << 20
# A configuration of ten thousand layers has about 20 MB.
_MAX_CONFIG_BYTES = 256 * MEGABYTE
_MAX_MEMBERS = 1_000_000
_MAX_DEPTH = 200
_MAX_NAME_CHARACTERS = 512
_MAX_NAMES = 1_000_000
# Weights of trained models hardly compress; what claims more than this is a bomb once it passes
# the slack, which lets small files of zeros pass.
_MAX_EXPANSION = 100
_SLACK_BYTES = 64 * MEGABYTE
_BLOCK_BYTES = 16 * MEGABYTE

_CONFIG, _METADATA, _WEIGHTS, _ASSETS = "config.json", "metadata.json", "model.weights.h5", "assets"
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ENCRYPTED = 0x1  # bit of a zip member's flags
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_TRUST = "Pass safe_mode=False if you trust who made it."


@dataclass(frozen=True)
class SourceFile:
    """A file that was looked through.

    Attributes:
        path: where it is.
        kind: `archive` for `.keras`, `model` for a whole model in HDF5, `layers` for weights in
            HDF5 by layer names, as Keras 1 and 2 wrote them, `weights` for those of Keras 3,
            `config` for an architecture in JSON.
        config: the parsed configuration; None for weights.
        keras_version: of the Keras that wrote it; empty if it does not say.
        backend: of that Keras, likewise.
        weights: path of the HDF5 file with the weights; empty for an architecture.
        weight_bytes: how many bytes its arrays say they have.
        folder: where an archive was unpacked; empty for others.
    """

    path: str
    kind: Kind
    config: Any = None
    keras_version: str = ""
    backend: str = ""
    weights: str = ""
    weight_bytes: int = 0
    folder: str = ""


def open_source(path: str, folder: str, safe_mode: bool = True) -> SourceFile:
    """Looks through a file, whatever its name says it is.

    Args:
        path: a local file, or the directory of an unpacked archive.
        folder: an empty directory into which an archive is unpacked.
        safe_mode: refuse also what a trusted file may have: links, external and virtual storage,
            and more bytes than the file can account for.

    Raises:
        UnsafeFileError: a member of it may not be read.
        DamagedFileError: it cannot be read, or is no file of Keras.
        ArgumentError: there is no such file.
    """
    kind = _kind_of(path)
    if kind == "zip":
        _unpack(path, folder)
        return _from_folder(path, folder, safe_mode)
    if kind == "folder":
        return _from_folder(path, path, safe_mode)
    if kind == "json":
        return SourceFile(path, "config", parse_json(_read_text(path), path))
    return _examine_hdf5(path, safe_mode)


def parse_json(text: str | bytes, name: str) -> Any:
    """Parses a configuration.

    Args:
        text: JSON.
        name: what to call it in an error.

    Raises:
        DamagedFileError: it is no JSON.
        UnsafeFileError: it is nested so deeply that no model can be meant.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UnsafeFileError(f"Cannot read {name}: its JSON is nested too deeply.") from error
    except ValueError as error:
        raise DamagedFileError(f"Cannot read {name}: it is not JSON ({error}).") from error


def wrong_name(name: str) -> str:
    """What is wrong with the name of a layer, weight or member; empty if nothing is.

    >>> wrong_name("block1/conv"), wrong_name("../conv")
    ('', 'leaves its folder')
    """
    if len(name) > _MAX_NAME_CHARACTERS:
        return f"has {len(name)} characters"
    if any(ord(character) < 32 for character in name):
        return "holds control characters"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name):
        return "is an absolute path"
    if ".." in re.split(r"[\\/]", name):
        return "leaves its folder"
    return ""


def _kind_of(path: str) -> str:
    if os.path.isdir(path):
        if os.path.isfile(os.path.join(path, _CONFIG)):
            return "folder"
        mend = "Give the file." if not os.path.isfile(os.path.join(path, "saved_model.pb")) else (
            "It is a SavedModel already."
        )  # fmt: skip
        raise ArgumentError(failure(f"convert {path}", "a file of Keras", "a directory", mend))
    try:
        with open(path, "rb") as file:
            start = file.read(64)
            if _has_hdf5_magic(file):
                return "hdf5"
    except FileNotFoundError as error:
        raise ArgumentError(failure(f"convert {path}", "a file", "a path without one")) from error
    except OSError as error:
        raise DamagedFileError(f"Cannot read {path}: {error}.") from error
    if start.startswith(_ZIP_MAGIC):
        return "zip"
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        return "json"
    raise DamagedFileError(
        failure(
            f"read {path}",
            "a .keras archive, an HDF5 file or a configuration in JSON",
            f"a file that starts with {start[:8]!r}",
        )
    )


def _has_hdf5_magic(file: Any) -> bool:
    """The signature stands at 0, 512, 1024, …: a block of the user's may come first."""
    size, offset = file.seek(0, os.SEEK_END), 0
    while offset < size:
        file.seek(offset)
        if file.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC:
            return True
        offset = offset * 2 or 512
    return False


def _read_text(path: str) -> bytes:
    _check_config_size(path, os.path.getsize(path))
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DamagedFileError(f"Cannot read {path}: {error}.") from error


def _check_config_size(name: str, size: int) -> None:
    if size > _MAX_CONFIG_BYTES:
        raise UnsafeFileError(f"Cannot read {name}: {size} bytes are too many for a model.")


# -- archives --------------------------------------------------------------------------------------


def _from_folder(path: str, folder: str, safe_mode: bool) -> SourceFile:
    def read(name: str) -> Any:
        return parse_json(_read_text(os.path.join(folder, name)), f"{name} in {path}")

    has_metadata = os.path.isfile(os.path.join(folder, _METADATA))
    metadata = read(_METADATA) if has_metadata else {}
    weights = os.path.join(folder, _WEIGHTS)
    if not os.path.isfile(weights):
        raise DamagedFileError(failure(f"read {path}", f"a member {_WEIGHTS}", "none"))
    size = _examine_hdf5(weights, safe_mode, f"{_WEIGHTS} in {path}").weight_bytes
    version = metadata.get("keras_version", "") if isinstance(metadata, dict) else ""
    return SourceFile(path, "archive", read(_CONFIG), str(version), "", weights, size, folder)


def _unpack(path: str, folder: str) -> None:
    """Writes the members that a model has; each is checked first, and counted while it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members)
            for member in members:
                if _is_ours(member):
                    _extract(path, archive, member, folder)
    except (UnsafeFileError, DamagedFileError):
        raise
    except Exception as error:  # what zipfile and struct raise on damage is nobody's list
        raise DamagedFileError(f"Cannot read {path}: it is a damaged archive ({error}).") from error
    if not os.path.isfile(os.path.join(folder, _CONFIG)):
        raise DamagedFileError(failure(f"read {path}", f"an archive with {_CONFIG}", "one without"))


def _check_members(path: str, members: list[zipfile.ZipInfo]) -> None:
    names: set[str] = set()
    reasons = []
    for member in members:
        reason = _wrong_member(member)
        if member.filename in names:
            reason = "is there twice"
        names.add(member.filename)
        if reason:
            reasons.append(f"member {member.filename[:_MAX_NAME_CHARACTERS]!r} {reason}")
    refuse(path, reasons)
    declared = sum(member.file_size for member in members)
    budget = _SLACK_BYTES + _MAX_EXPANSION * os.path.getsize(path)
    if len(members) > _MAX_MEMBERS or declared > budget:
        largest = max(members, key=lambda member: member.file_size)
        refuse(path, [f"member {largest.filename!r} would take {largest.file_size} bytes unpacked, "
                      f"and all together {declared} from {os.path.getsize(path)}"])  # fmt: skip
    for member in members:
        if member.filename in (_CONFIG, _METADATA):
            _check_config_size(f"{member.filename} in {path}", member.file_size)


def _wrong_member(member: zipfile.ZipInfo) -> str:
    # A NUL ends the name for some readers and not for others, so the original counts.
    reason = wrong_name(member.orig_filename) or wrong_name(member.filename)
    if reason:
        return reason
    if "\\" in member.orig_filename:
        return "has a backslash in its name"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a symbolic link"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.compress_type not in _METHODS:
        return f"is compressed by a method, {member.compress_type}, that Keras does not use"
    return ""


def _is_ours(member: zipfile.ZipInfo) -> bool:
    name = member.filename
    return not member.is_dir() and (
        name in (_CONFIG, _METADATA, _WEIGHTS) or name.startswith(f"{_ASSETS}/")
    )


def _extract(path: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: str) -> None:
    target = os.path.join(folder, *member.filename.split("/"))
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with archive.open(member) as source, open(target, "xb") as file:
            left = member.file_size
            while block := source.read(min(_BLOCK_BYTES, left + 1)):
                left -= len(block)
                if left < 0:
                    refuse(path, [f"member {member.filename!r} is longer than it says"])
                file.write(block)
    except UnsafeFileError:
        raise
    except Exception as error:
        raise DamagedFileError(
            f"Cannot read member {member.filename!r} of {path}: {error or type(error).__name__}."
        ) from error
    if left:
        raise DamagedFileError(f"Cannot read member {member.filename!r} of {path}: it is cut off.")


# -- HDF5 ------------------------------------------------------------------------------------------


def _examine_hdf5(path: str, safe_mode: bool, called: str = "") -> SourceFile:
    called = called or path
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
        self._has_vars = False

    def over(self, file: Any) -> SourceFile:
        self._walk(file)
        if self._unaccounted > _SLACK_BYTES:
            self._reasons.append(
                f"its arrays say that they have {self._bytes} bytes in a file of "
                f"{os.path.getsize(self._path)}"
            )
        refuse(self._called, self._reasons)
        return self._described(file)

    def _described(self, file: Any) -> SourceFile:
        version, backend = (_text(file, name) for name in ("keras_version", "backend"))
        rest = (version, backend, self._path, self._bytes)
        if "model_config" in file.attrs:
            name = f"model_config of {self._called}"
            text = _text(file, "model_config")
            _check_config_size(name, len(text))
            group = _weights_group(file)
            for wrong in names_of(group, "layer_names") if group is not None else ():
                self._check_name(f"layer {wrong!r}", wrong)
            refuse(self._called, self._reasons)
            return SourceFile(self._called, "model", parse_json(text, name), *rest)
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
                elif isinstance(found, h5py.Group):
                    address = _address(found)
                    if address in seen:
                        self._reasons.append(f"member {member!r} is a group that has another path")
                        continue
                    seen.add(address)
                    self._has_vars |= name == "vars"
                    waiting.append((member, found, depth + 1))

    def _open(self, member: str, group: Any, name: str) -> Any:
        try:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.HardLink):
                return group[name]
        except Exception as error:
            raise DamagedFileError(
                f"Cannot read member {member!r} of {self._called}: {_first_line(error)}."
            ) from error
        if self._safe_mode:
            kind = "an external link" if isinstance(link, h5py.ExternalLink) else "a soft link"
            where = f" to {link.filename!r}" if isinstance(link, h5py.ExternalLink) else ""
            self._reasons.append(f"member {member!r} is {kind}{where}")
        return None

    def _check_dataset(self, member: str, dataset: Any) -> None:
        try:
            layout = dataset.id.get_create_plist()
            size = math.prod(dataset.shape or (0,)) * dataset.dtype.itemsize
            stored = dataset.id.get_storage_size()
            external = layout.get_external_count()
            virtual = layout.get_layout() == h5py.h5d.VIRTUAL
            chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
        except Exception as error:
            raise DamagedFileError(
                f"Cannot read member {member!r} of {self._called}: {_first_line(error)}."
            ) from error
        self._bytes += size
        if not self._safe_mode:
            return
        if external:
            self._reasons.append(f"member {member!r} keeps its data in other files")
        elif virtual:
            self._reasons.append(f"member {member!r} is a view on other datasets")
        elif dataset.dtype.kind == "O" and h5py.check_string_dtype(dataset.dtype) is None:
            self._reasons.append(f"member {member!r} holds references")
        elif size > _SLACK_BYTES + _MAX_EXPANSION * stored or chunk > _SLACK_BYTES + 2 * size:
            self._reasons.append(
                f"member {member!r} says that it has the shape {dataset.shape}, {size} bytes, "
                f"and stores {stored}"
            )
        else:
            self._unaccounted += max(0, size - _MAX_EXPANSION * stored)

    def _check_name(self, what: str, name: str) -> None:
        if reason := wrong_name(name):
            self._reasons.append(f"{what[:_MAX_NAME_CHARACTERS]} {reason}")


def refuse(path: str, reasons: list[str], mend: str = _TRUST) -> None:
    """Raises an `UnsafeFileError` with all reasons, if there are any."""
    if reasons:
        shown = "; ".join(reasons[:20]) + (f"; and {len(reasons) - 20} more" * (len(reasons) > 20))
        raise UnsafeFileError(f"Cannot trust {path}: {shown}. {mend}")


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
