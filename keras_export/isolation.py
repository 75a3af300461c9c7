"""Shuts a process off from most of the file system, with Linux's Landlock.

In: the folders that may be read, and those that may be written. Out: whether the kernel can do it.
The invariant: it holds for this thread, for every thread and process that it starts from now on,
and until they end; what was open stays open.

Sources: landlock(7); include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable

# The numbers are those of all architectures.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_READ = _READ_FILE | _READ_DIR
# To write files, and to remove and make entries of all kinds: bits 1 and 4 to 12.
_WRITE = (1 << 1) | sum(1 << bit for bit in range(4, 13))
_OF_FILES = _READ_FILE | (1 << 1)


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"  # Python 3.14 wants it beside _pack_
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def restrict(readable: Iterable[str], writable: Iterable[str]) -> bool:
    """Allows this process to read and write only below the given paths.

    Args:
        readable: files and folders; those that do not exist are passed over.
        writable: folders that may be read, too.

    Returns:
        Whether it is so; False where the system has no Landlock.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    rules = _Ruleset(_READ | _WRITE)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(rules), ctypes.sizeof(rules), 0)
    if ruleset < 0:
        return False
    try:
        for paths, access in ((readable, _READ), (writable, _READ | _WRITE)):
            for path in paths:
                _allow(libc, ruleset, path, access)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, access: int) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            access &= access if os.path.isdir(path) else _OF_FILES
            rule = _PathBeneath(access, descriptor)
            libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
        finally:
            os.close(descriptor)


def folders_of_python() -> list[str]:
    """What this Python and its libraries consist of, and what the system keeps for programs."""
    found = [*sys.path, sys.prefix, sys.base_prefix, sys.exec_prefix]
    found += ["/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys", "/dev", "/opt"]
    return [os.path.realpath(path) for path in found if path]
