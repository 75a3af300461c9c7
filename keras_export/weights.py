"""What the values of an artifact look like, variable by variable.

In: the directory of a SavedModel. Out: a few numbers of each variable. The invariant: no more than
a piece of one variable is in memory, and TensorFlow is not needed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras_export import inspection
from keras_export.bundles import read_bundle

_CHUNK_ELEMENTS = 1 << 20

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class WeightStatistics:
    """The values of one variable in a few numbers; those of finite elements only.

    Attributes:
        name: of the variable.
        spec: dtype and shape.
        bytes: its size.
        mean: None, like the following, for strings, and where no element is finite.
        deviation: the standard deviation.
        smallest: the least value.
        largest: the greatest.
        norm: the Euclidean norm.
        zeros: how many elements are exactly zero.
        not_finite: how many are infinite or no number.
    """

    name: str
    spec: str
    bytes: int
    mean: float | None = None
    deviation: float | None = None
    smallest: float | None = None
    largest: float | None = None
    norm: float | None = None
    zeros: int = 0
    not_finite: int = 0


def statistics(
    export_dir: str | os.PathLike[str], on_progress: Progress | None = None
) -> list[WeightStatistics]:
    """Computes the statistics of all variables, the largest first.

    Args:
        export_dir: a directory that TensorFlow, Keras or keras_export wrote.
        on_progress: called with what is being read, bytes done, and bytes in all.

    Raises:
        ArgumentError: there is no `saved_model.pb`.
        DamagedFileError: a file cannot be read.
    """
    path = os.fspath(export_dir)
    info = inspection.inspect(path)
    bundle = read_bundle(inspection.bundle_prefix(path))
    progress, done, found = on_progress or (lambda *_: None), 0, []
    for key, (shape, dtype, size) in info.variables.items():
        assert bundle is not None  # it has variables
        progress("variables", done, info.stored_bytes)
        shown = info.name_of(key), str(inspection.Spec(shape, dtype)), size
        values = bundle.array(key)
        found.append(WeightStatistics(*shown, **(_numbers(values) if values is not None else {})))
        done += size
    progress("variables", done, info.stored_bytes)
    return sorted(found, key=lambda x: (-x.bytes, x.name))


def _numbers(values: Any) -> dict[str, Any]:
    import numpy as np

    count = zeros = 0
    total = squares = 0.0
    smallest, largest = math.inf, -math.inf
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK_ELEMENTS):
        chunk = flat[start : start + _CHUNK_ELEMENTS]
        # Of complex numbers, the absolute values.
        wide = np.abs(chunk) if chunk.dtype.kind == "c" else chunk
        wide = wide.astype(np.float64)
        finite = wide[np.isfinite(wide)]
        zeros += int(np.count_nonzero(wide == 0))
        count += finite.size
        total += float(finite.sum())
        squares += float((finite * finite).sum())
        smallest = min(smallest, float(finite.min(initial=math.inf)))
        largest = max(largest, float(finite.max(initial=-math.inf)))
    if not count:
        return {"zeros": zeros, "not_finite": int(flat.size)}
    mean = total / count
    return {
        "mean": mean,
        "deviation": math.sqrt(max(squares / count - mean * mean, 0.0)),
        "smallest": smallest,
        "largest": largest,
        "norm": math.sqrt(squares),
        "zeros": zeros,
        "not_finite": int(flat.size) - count,
    }
