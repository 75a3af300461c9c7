"""What a file of Keras is said to be, and what no name or configuration in one may be.

In: names and texts out of a file that anybody may have made. Out: what is wrong with them, or the
`SourceFile` that they make up. The invariant: only built-in types are made of them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from keras_export.errors import DamagedFileError, UnsafeFileError

Kind = Literal["archive", "model", "layers", "weights", "config"]

MEGABYTE = 1 << 20
# A configuration of ten thousand layers has about 20 MB.
_MAX_CONFIG_BYTES = 256 * MEGABYTE
MAX_NAME_CHARACTERS = 512
# Weights of trained models hardly compress; what claims more than this is a bomb once it passes
# the slack, which lets small files of zeros pass.
MAX_EXPANSION = 100
SLACK_BYTES = 64 * MEGABYTE

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
    if len(name) > MAX_NAME_CHARACTERS:
        return f"has {len(name)} characters"
    if any(ord(character) < 32 for character in name):
        return "holds control characters"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name):
        return "is an absolute path"
    if ".." in re.split(r"[\\/]", name):
        return "leaves its folder"
    return ""


def refuse(path: str, reasons: list[str], mend: str = _TRUST) -> None:
    """Raises an `UnsafeFileError` with all reasons, if there are any."""
    if reasons:
        shown = "; ".join(reasons[:20]) + (f"; and {len(reasons) - 20} more" * (len(reasons) > 20))
        raise UnsafeFileError(f"Cannot trust {path}: {shown}. {mend}")


def check_config_size(name: str, size: int) -> None:
    """Refuses a configuration that is too long for any model."""
    if size > _MAX_CONFIG_BYTES:
        raise UnsafeFileError(f"Cannot read {name}: {size} bytes are too many for a model.")
