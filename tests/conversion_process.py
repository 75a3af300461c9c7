"""Makes a model's file, or measures what a conversion takes.

In: `make` or `convert`, a path, a number of layers of 8 MB. Out: the more memory that a conversion
took after one of a small model, in MB, on stdout. The invariant: one process does one of the two.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
from peak_memory import peak_bytes

import keras_export as ke

_UNITS = 1448  # a kernel of 8 MB


def model(units: int, layers: int) -> Any:
    return keras.Sequential(
        [keras.Input((units,), name="x"),
         *(keras.layers.Dense(units, use_bias=False) for _ in range(layers))]
    )  # fmt: skip


if __name__ == "__main__":
    verb, path, layers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    small = path.replace("large", "small")
    if verb == "make":
        model(_UNITS, layers).save(path)
        model(8, 2).save(small)
    else:
        ke.convert(small, f"{small}.out")
        before = peak_bytes()
        ke.convert(path, f"{path}.out")
        print((peak_bytes() - before) / (1 << 20))
