"""Attacks by what a zip archive may hold.

In: an empty folder. Out: a hostile `.keras` file. The invariant: each is an innocent archive but
for one thing.
"""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path

import keras_export as ke
from attacks.kinds import archive, attack, innocent, members_of


def _with_members(folder: Path, members: dict[str, bytes]) -> Path:
    path = innocent(folder / "model.keras")
    return archive(path, {**members_of(path), **members})


@attack("'../outside'")
def member_above_the_folder(folder: Path) -> Path:
    return _with_members(folder, {"../outside": b"x"})


@attack("'assets/../../outside'")
def member_above_the_folder_by_assets(folder: Path) -> Path:
    return _with_members(folder, {"assets/../../outside": b"x"})


@attack("outside")
def member_with_an_absolute_path(folder: Path) -> Path:
    return _with_members(folder, {str(folder / "outside"): b"x"})


@attack("backslash")
def member_with_a_backslash(folder: Path) -> Path:
    return _with_members(folder, {"assets\\vocabulary.txt": b"x"})


@attack("'C:/outside'")
def member_on_a_drive(folder: Path) -> Path:
    return _with_members(folder, {"C:/outside": b"x"})


@attack("config.json")
def member_whose_name_holds_a_null(folder: Path) -> Path:
    path = innocent(folder / "model.keras")
    members = members_of(path)
    archive(path, {**members, "config.json_x": members["config.json"]})
    path.write_bytes(path.read_bytes().replace(b"config.json_x", b"config.json\0x"))
    return path


@attack("'config.json' is there twice")
def member_twice(folder: Path) -> Path:
    path = innocent(folder / "model.keras")
    with zipfile.ZipFile(path, "a") as file:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file.writestr("config.json", members_of(path)["config.json"])
    return path


@attack("'assets/link'")
def member_that_is_a_symbolic_link(folder: Path) -> Path:
    path = innocent(folder / "model.keras")
    link = zipfile.ZipInfo("assets/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(link, "/etc/passwd")
    return path


@attack("config.json")
def member_that_is_encrypted(folder: Path) -> Path:
    path = innocent(folder / "model.keras")
    content = bytearray(path.read_bytes())
    _set_flag(content, b"PK\x03\x04", 6, b"config.json")
    _set_flag(content, b"PK\x01\x02", 8, b"config.json")
    path.write_bytes(content)
    return path


def _set_flag(content: bytearray, magic: bytes, offset: int, name: bytes) -> None:
    start = content.find(magic)
    while name not in content[start : start + 80]:
        start = content.find(magic, start + 1)
    content[start + offset] |= 1


@attack("'assets/bomb'")
def bomb_of_zeros(folder: Path) -> Path:
    path = innocent(folder / "model.keras")
    file = zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED)
    with file, file.open("assets/bomb", "w") as member:
        for _ in range(256):
            member.write(bytes(1 << 20))
    return path


@attack("'assets/7'")
def bomb_in_many_members(folder: Path) -> Path:
    path = innocent(folder / "model.keras")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        for number in range(8):
            file.writestr(f"assets/{number}", bytes((30 << 20) + number))
    return path


@attack("config.json")
def bomb_as_configuration(folder: Path) -> Path:
    path = innocent(folder / "model.keras")
    members = members_of(path)
    config = members.pop("config.json")
    archive(path, members)
    file = zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED)
    with file, file.open("config.json", "w") as member:
        member.write(config)
        for _ in range(100):
            member.write(b" " * (1 << 20))
    return path


@attack("assets/long", ke.DamagedFileError)
def member_longer_than_it_says(folder: Path) -> Path:
    path = innocent(folder / "model.keras")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("assets/long", bytes(50_000))
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 50_000), struct.pack("<I", 5)))
    return path


@attack("config.json", ke.DamagedFileError)
def archive_without_a_configuration(folder: Path) -> Path:
    path = innocent(folder / "model.keras")
    members = members_of(path)
    del members["config.json"]
    return archive(path, members)


@attack("config.json", ke.DamagedFileError)
def configuration_that_is_no_json(folder: Path) -> Path:
    return _with_members(folder, {"config.json": b'{"class_name": "Sequential", '})


@attack("nested too deeply")
def configuration_nested_without_end(folder: Path) -> Path:
    depth = 200_000
    return _with_members(folder, {"config.json": b'{"a":' * depth + b"1" + b"}" * depth})


@attack("'config.json'", ke.DamagedFileError)
def configuration_with_a_wrong_checksum(folder: Path) -> Path:
    path = innocent(folder / "model.keras")
    path.write_bytes(path.read_bytes().replace(b'"Sequential"', b'"SequentiaL"'))
    return path
