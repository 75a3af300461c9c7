"""`python -m benchmarks`, the same as `python benchmarks/run.py`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE))
runpy.run_path(str(_HERE / "run.py"), run_name="__main__")
