"""Hostile files, made when a test asks for one.

In: the name of an attack from `ATTACKS` and an empty folder. Out: a file of Keras in it that would
harm whoever loads it carelessly. The invariant: making one is harmless, and none is kept.
"""

from __future__ import annotations

from attacks.archives import *  # noqa: F403
from attacks.configurations import *  # noqa: F403
from attacks.hdf5 import *  # noqa: F403
from attacks.kinds import ATTACKS, Attack, canary, innocent

__all__ = ["ATTACKS", "Attack", "canary", "innocent"]
