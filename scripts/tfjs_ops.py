"""Makes `keras_export/data/tfjs_ops.json`: the ops that TensorFlow.js's converter lets pass.

In: a release of the wheel `tensorflowjs`, which pip fetches without what it depends on, or a wheel.
Out: the names of the ops, sorted, and the release. The invariant: the same release gives the same
bytes.

    python scripts/tfjs_ops.py 4.22.0
    python scripts/tfjs_ops.py --wheel tensorflowjs-4.22.0-py3-none-any.whl
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_FILE = Path(__file__).parent.parent / "keras_export" / "data" / "tfjs_ops.json"
_LISTS = "tensorflowjs/op_list/"


def main(arguments: list[str] | None = None) -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", nargs="?", help="a release that pip finds, as 4.22.0")
    parser.add_argument("--wheel", type=Path, help="one that is here already")
    parser.add_argument("--out", type=Path, default=_FILE)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        wheel = options.wheel or _fetched(options.version, folder)
        release = wheel.name.split("-")[1]
        ops = ops_of(wheel)
    content = {"tensorflowjs": release, "ops": ops}
    options.out.write_text(json.dumps(content, separators=(",", ":")) + "\n")
    print(f"{options.out}: {len(ops)} ops of tensorflowjs {release}")


def ops_of(wheel: Path) -> list[str]:
    """The names in the wheel's lists."""
    with zipfile.ZipFile(wheel) as content:
        lists = [x for x in content.namelist() if x.startswith(_LISTS) and x.endswith(".json")]
        return sorted({op["tfOpName"] for x in lists for op in json.loads(content.read(x))})


def _fetched(version: str | None, folder: str) -> Path:
    wanted = f"tensorflowjs=={version}" if version else "tensorflowjs"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    subprocess.run([*pip, wanted], check=True)
    return next(Path(folder).glob("*.whl"))


if __name__ == "__main__":
    main()
