"""A zoo of Keras models: every kind that people export, small, with random weights.

In: the name of a kind from `KINDS`. Out: a model, the signature that its author means, and data to
call it on. The invariant: nothing here knows how an artifact is made or read, so that tests and
benchmarks use the same animals.
"""

from __future__ import annotations

from . import architectures, dtypes, interfaces, preprocessing, states, values
from .kinds import KINDS, Kind

__all__ = [
    "KINDS",
    "Kind",
    "architectures",
    "dtypes",
    "interfaces",
    "preprocessing",
    "states",
    "values",
]
