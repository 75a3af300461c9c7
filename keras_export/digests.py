"""What tells an artifact from another: an identifier, and `assets.extra/digests.json`.

In: the directory of an artifact. Out: the SHA-256 of its assets, as a file or as a dict. The
invariant: paths are relative to the artifact, and the same content gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from typing import Any

from keras_export.errors import DamagedFileError

FOLDER = "assets.extra"
FILE = f"{FOLDER}/digests.json"
_CHUNK_BYTES = 1 << 20
# A fixed namespace: the identifier of an artifact is derived from its content alone.
_NAMESPACE = uuid.UUID("3f0b9f5e-6f4f-4d3c-9a35-8c1c5a7f0d11")


def describe(directory: str, files: Iterable[str]) -> bytes:
    """The content of the file for the given relative paths, once each is written."""
    found = {name: sha256(os.path.join(directory, name)) for name in sorted(set(files))}
    return (json.dumps({"sha256": found}, indent=1, sort_keys=True) + "\n").encode()


def read(directory: str) -> dict[str, str] | None:
    """The digests by relative path; None where the artifact has none.

    Raises:
        DamagedFileError: the file cannot be read.
    """
    path = os.path.join(directory, FILE)
    try:
        with open(path, "rb") as file:
            found = json.load(file)["sha256"]
        return {str(name): str(digest) for name, digest in found.items()}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"Cannot read {path}: it is damaged.") from error


def derived_uuid(fingerprint: bytes) -> str:
    """The identifier of an artifact with this `fingerprint.pb`, which has no `uuid` yet."""
    return str(uuid.uuid5(_NAMESPACE, fingerprint.hex()))


def sha256(path: str) -> str:
    """The digest of a file, at a local path or a URL that `tf.io.gfile` handles."""
    digest = hashlib.sha256()
    with _opened(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _opened(path: str) -> Any:
    if "://" not in path:
        return open(path, "rb")
    import tensorflow as tf  # only it knows other file systems

    return tf.io.gfile.GFile(path, "rb")
