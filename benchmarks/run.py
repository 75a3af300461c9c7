"""Measures keras_export against Keras, TensorFlow and the floors: `make benchmark`.

In: options, see `--help`. Out: `benchmark.json` and `benchmark.md` in the folder of results, and
the tables on the terminal. The invariant: each measurement has a process of its own, contenders
take turns, and the results name no path of this machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import table
from rich.console import Console

_HERE = Path(__file__).resolve().parent
# keras_export need not be installed, and the C++ loader is an example.
_IMPORTED = (_HERE.parent, _HERE.parent / "examples")
_NAMES = ("MobileNetV2", "ResNet50", "EfficientNetB0", "EfficientNetB7", "Encoder12")
_QUICK_NAMES = ("MobileNetV2",)
_SMALL = 300  # layers, variables or megabytes
_WIDTH = 140  # columns, where the output is a file
_EXPORTS = ("keras_export", "model.export", "tf.saved_model.save")
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parsed(arguments)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    results: dict[str, Any] = {"machine": _machine(), "rounds": options.rounds, "models": {}}
    with _working_folder(options.work) as folder:
        for name in options.models:
            with console.status(name):
                results["models"][name] = _measure_model(name, options, folder)
            _store(results, options.out)  # what is measured stays, should a later model fail
        if not options.skip_growth:
            with console.status("growth"):
                results["growth"] = _measure_growth(options, folder)
    _store(results, options.out)
    table.show(results, console)


def _store(results: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "benchmark.md").write_text(table.markdown(results))


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--models",
        nargs="+",
        type=_model_name,
        metavar="NAME",
        help=f"of {', '.join(_NAMES)} (default: these), or zoo/KIND for a kind of the zoo",
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    parser.add_argument("--quick", action="store_true", help="one small model, one round")
    parser.add_argument("--skip-growth", action="store_true", help="models only")
    parser.add_argument("--full", action="store_true", help="grow up to 3000 layers, 4 GB")
    parser.add_argument("--out", type=Path, default=_HERE / "results", help="default: results/")
    parser.add_argument("--work", type=Path, help="disk to write artifacts to; default: as --out")
    options = parser.parse_args(arguments)
    options.models = options.models or (_QUICK_NAMES if options.quick else _NAMES)
    options.rounds = 1 if options.quick else options.rounds
    options.work = options.work or options.out
    return options


def _model_name(text: str) -> str:
    # Which kinds there are is told by the process that builds them: it imports Keras.
    if text not in _NAMES and not text.startswith("zoo/"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(_NAMES)}, zoo/KIND")
    return text


@contextmanager
def _working_folder(parent: Path) -> Iterator[Path]:
    # Beside the results: a temporary folder may be in memory, where fsync costs nothing.
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=parent) as folder:
        yield Path(folder).resolve()


# -- one model ---------------------------------------------------------------------------------


def _measure_model(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    artifacts = folder / "artifacts"
    artifacts.mkdir()
    measured = _run("model", name, options.rounds, str(_new(folder)), str(artifacts))
    series = measured["series"]
    series.update(_load_times(options.rounds, artifacts))
    series.update(_memory(name, folder))
    measured["load"] = {
        contender: _run("load_profile", str(_artifact(artifacts, contender)))
        for contender in _EXPORTS
    }
    shutil.rmtree(artifacts)
    return measured


def _artifact(artifacts: Path, contender: str) -> Path:
    return artifacts / contender.replace(".", "_")


def _load_times(rounds: int, artifacts: Path) -> dict[str, Any]:
    series: dict[str, Any] = {}
    for _ in range(rounds):
        for loader in ("python", "cpp"):
            for contender in _EXPORTS:
                seconds = _run("load", loader, str(_artifact(artifacts, contender)))
                for which, value in seconds.items():
                    quantity = series.setdefault(f"load by {loader}, {which}", {})
                    quantity.setdefault(contender, []).append(value)
    return series


def _memory(name: str, folder: Path) -> dict[str, Any]:
    """Peaks above that of a process which only builds the model, and cold exports."""
    alone = _run("peak", name, None, str(_new(folder)))["peak"]
    series: dict[str, Any] = {"peak memory": {"the model alone": [alone]}, "cold export": {}}
    for contender in _EXPORTS:
        place = _new(folder)
        found = _run("peak", name, contender, str(place))
        shutil.rmtree(place)
        series["peak memory"][contender] = [found["peak"]]
        series["cold export"][contender] = [found["seconds"]]
    return series


def _measure_growth(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    return [
        {"shape": shape, "size": size, **_growth(shape, size, options, folder)}
        for shape, sizes in _growth_sizes(options).items()
        for size in sizes
    ]


def _growth(shape: str, size: int, options: argparse.Namespace, folder: Path) -> Any:
    # What takes a tenth of a second differs by more from turn to turn than what takes a minute.
    turns = 9 if size <= _SMALL and not options.quick else min(options.rounds, 2)
    return _run("growth", shape, size, turns, str(_new(folder)))


def _growth_sizes(options: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    if options.quick:
        return {"chain": (100, 300)}
    if not options.full:
        return {
            "chain": (100, 300, 1000),
            "wide": (300, 1000),
            "variables": (1000, 5000),
            "megabytes": (256, 1024),
        }
    return {
        "chain": (100, 300, 1000, 3000),
        "wide": (300, 1000, 3000),
        "variables": (1000, 5000, 20000),
        "megabytes": (256, 1024, 4096),
    }


# -- processes and the machine -----------------------------------------------------------------


def _new(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


def _run(task: str, *arguments: Any) -> Any:
    """Runs a task of `task.py` in a fresh process and returns its result."""
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "result.json"), Path(folder, "log.txt")
        command = [sys.executable, str(_HERE / "task.py"), task, json.dumps(arguments), str(result)]
        with log.open("wb") as output:
            code = subprocess.call(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=_environment()
            )
        if code != 0:
            raise SystemExit(f"{task} {arguments} failed:\n{log.read_text(errors='replace')}")
        return json.loads(result.read_text())


def _environment() -> dict[str, str]:
    known = os.environ.get("PYTHONPATH")
    paths = [*([known] if known else []), *map(str, _IMPORTED)]
    return {**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}


def _machine() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("tensorflow", "keras", "numpy")},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
