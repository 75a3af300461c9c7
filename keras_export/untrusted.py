"""What a model's file is by its content, and whether it may be read.

In: the path of a file that anybody may have made. Out: a `SourceFile`: what it is, its parsed
configuration, where its weights are. The invariant: nothing of the file is executed or followed.
Neither Keras nor TensorFlow is imported; zip archives are unpacked only into the folder that the
caller gives, under names that were checked.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import zipfile
from typing import Any

from keras_export.errors import ArgumentError, DamagedFileError, UnsafeFileError, failure
from keras_export.quarantine import examined
from keras_export.sources import (
    MAX_EXPANSION,
    MAX_NAME_CHARACTERS,
    MEGABYTE,
    SLACK_BYTES,
    SourceFile,
    check_config_size,
    parse_json,
    refuse,
    wrong_name,
)

_MAX_MEMBERS = 1_000_000
_BLOCK_BYTES = 16 * MEGABYTE

_CONFIG, _METADATA, _WEIGHTS, _ASSETS = "config.json", "metadata.json", "model.weights.h5", "assets"
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ENCRYPTED = 0x1  # bit of a zip member's flags
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


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
        _check_folder(path, safe_mode)
        return _from_folder(path, path, safe_mode)
    if kind == "json":
        return SourceFile(path, "config", parse_json(_read_text(path), path))
    found = examined(path, path, safe_mode)
    if found.config is None:
        return found
    return dataclasses.replace(found, config=parse_json(found.config, f"model_config of {path}"))


def _kind_of(path: str) -> str:
    if os.path.isdir(path):
        if os.path.isfile(os.path.join(path, _CONFIG)):
            return "folder"
        mend = "Give the file." if not os.path.isfile(os.path.join(path, "saved_model.pb")) else (
            "It is a SavedModel already."
        )  # fmt: skip
        raise ArgumentError(failure(f"convert {path}", "a file of Keras", "a directory", mend))
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe may never say anything
            raise ArgumentError(failure(f"convert {path}", "a file", "a device or a pipe"))
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
    check_config_size(path, os.path.getsize(path))
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DamagedFileError(f"Cannot read {path}: {error}.") from error


# -- archives --------------------------------------------------------------------------------------


def _from_folder(path: str, folder: str, safe_mode: bool) -> SourceFile:
    def read(name: str) -> Any:
        return parse_json(_read_text(os.path.join(folder, name)), f"{name} in {path}")

    has_metadata = os.path.isfile(os.path.join(folder, _METADATA))
    metadata = read(_METADATA) if has_metadata else {}
    weights = os.path.join(folder, _WEIGHTS)
    if not os.path.isfile(weights):
        raise DamagedFileError(failure(f"read {path}", f"a member {_WEIGHTS}", "none"))
    size = examined(weights, f"{_WEIGHTS} in {path}", safe_mode).weight_bytes
    version = metadata.get("keras_version", "") if isinstance(metadata, dict) else ""
    return SourceFile(path, "archive", read(_CONFIG), str(version), "", weights, size, folder)


def _check_folder(path: str, safe_mode: bool) -> None:
    """Refuses what an archive cannot have either."""
    reasons = []
    for place, folders, files in os.walk(path):
        for name in (*folders, *files):
            mode = os.lstat(os.path.join(place, name)).st_mode
            member = os.path.relpath(os.path.join(place, name), path)
            if stat.S_ISLNK(mode):
                reasons += [f"member {member!r} is a symbolic link"] * safe_mode
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                reasons.append(f"member {member!r} is a device or a pipe")
    refuse(path, reasons)


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
            reasons.append(f"member {member.filename[:MAX_NAME_CHARACTERS]!r} {reason}")
    refuse(path, reasons)
    declared = sum(member.file_size for member in members)
    budget = SLACK_BYTES + MAX_EXPANSION * os.path.getsize(path)
    if len(members) > _MAX_MEMBERS or declared > budget:
        largest = max(members, key=lambda member: member.file_size)
        refuse(path, [f"member {largest.filename!r} would take {largest.file_size} bytes unpacked, "
                      f"and all together {declared} from {os.path.getsize(path)}"])  # fmt: skip
    for member in members:
        if member.filename in (_CONFIG, _METADATA):
            check_config_size(f"{member.filename} in {path}", member.file_size)


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
