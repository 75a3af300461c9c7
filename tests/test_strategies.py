"""Objects whose variables a distribution strategy holds on several devices."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import artifacts
import numpy as np
import pytest
import tensorflow as tf
from consumers import Consumers

_SCRIPT = Path(__file__).with_name("strategy_process.py")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strategies")
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), str(folder)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", ["mirrored", "scope"])
def test_a_mirrored_object_gives_the_artifact_of_a_single_device(exported: Path, name: str) -> None:
    assert artifacts.files(exported / name) == artifacts.files(exported / "single")


def test_replicas_are_reduced_and_updates_happen_once(exported: Path, consumers: Consumers) -> None:
    values = consumers.checkpoint(exported / "mirrored/variables/variables").values()
    assert values["mean/.ATTRIBUTES/VARIABLE_VALUE"] == 1.0
    assert values["sum/.ATTRIBUTES/VARIABLE_VALUE"] == 3.0
    loaded = consumers.tf(exported / "mirrored")
    x = np.ones(2, np.float32)
    np.testing.assert_allclose(loaded.call("f", x)["y"], [2.0, 3.0])
    everywhere = consumers.everywhere(exported / "mirrored", "serving_default", x=x)
    np.testing.assert_allclose(everywhere["y"], [2.0, 3.0])


def test_a_model_trained_on_two_devices_is_served_from_one(
    exported: Path, consumers: Consumers
) -> None:
    with np.load(exported / "keras.npz") as live:
        served = consumers.everywhere(exported / "keras", "serving_default", x=live["x"])
        (y,) = served.values()
        np.testing.assert_allclose(y, live["y"], rtol=1e-5, atol=1e-6)
    assert b"CPU:1" not in (exported / "keras" / "saved_model.pb").read_bytes()


def test_variables_of_two_devices_keep_their_values_apart(
    exported: Path, consumers: Consumers
) -> None:
    values = consumers.checkpoint(exported / "both/variables/variables").values()
    assert len(values) == 100
    for index in range(100):
        found = values[f"variables_of_both/{index}/.ATTRIBUTES/VARIABLE_VALUE"]
        np.testing.assert_array_equal(found, [float(index)] * (index % 3))


def test_a_function_is_traced_as_for_one_device(exported: Path, consumers: Consumers) -> None:
    loaded = consumers.tf(exported / "updating")
    assert [float(loaded.call("f")["y"]) for _ in range(2)] == [1.0, 2.0]
    assert consumers.everywhere(exported / "updating") == {"y": 1.0}


@pytest.mark.parametrize("strategy", ["one", "two"])
def test_a_generator_draws_what_one_device_would(
    exported: Path, consumers: Consumers, strategy: str
) -> None:
    expected = tf.random.Generator.from_seed(3).normal([3])
    drawn = consumers.tf(exported / f"drawing_{strategy}").call("f")
    np.testing.assert_array_equal(drawn, expected)


def test_the_shards_of_a_variable_are_one_variable_after_load(
    exported: Path, consumers: Consumers
) -> None:
    (v,) = consumers.tf(exported / "sharded").variables().values()
    np.testing.assert_array_equal(v.value, np.float32([1, 2, 3]))
    served = consumers.everywhere(exported / "sharded", x=np.float32(2))
    np.testing.assert_array_equal(served["y"], np.float32([2, 4, 6]))
    (handle,) = (x for x in artifacts.nodes(exported / "sharded") if x.op == "VarHandleOp")
    assert handle.name == "v"


def test_a_packed_variable_is_one_variable(exported: Path, consumers: Consumers) -> None:
    served = consumers.everywhere(exported / "packed", x=np.float32([3, 4]))
    np.testing.assert_array_equal(served["y"], np.float32([3, 8]))
    (v,) = consumers.tf(exported / "packed").variables().values()
    np.testing.assert_array_equal(v.value, np.float32([1, 2]))


def test_an_untracked_packed_variable_is_refused_by_its_name(exported: Path) -> None:
    assert not (exported / "untracked").exists()
    message = (exported / "untracked.txt").read_text()
    assert "Cannot export the function obj.f: it uses" in message
    assert "which obj does not track" in message


def test_the_expanding_policy_lists_the_replicas_of_each_variable(
    exported: Path, consumers: Consumers
) -> None:
    variable = artifacts.object_at(exported / "expanded", "v").variable
    parts = variable.experimental_distributed_variable_components
    assert [part.name for part in parts] == ["v", "v/replica_1"]
    assert [part.device[-5:] for part in parts] == ["CPU:0", "CPU:1"]
    served = consumers.everywhere(exported / "expanded", x=np.ones(2, np.float32))
    np.testing.assert_allclose(served["y"], [2.0, 3.0])
    assert not artifacts.object_at(
        exported / "mirrored", "v"
    ).variable.experimental_distributed_variable_components


# --- Checkpoints ----------------------------------------------------------------------------------

_TRAINING = Path(__file__).with_name("strategy_training_process.py")
_EXAMPLES = np.random.RandomState(0).rand(16, 3).astype("float32")


def _run(*calls: tuple[object, ...]) -> None:
    """Runs the script once for each call, all at a time."""
    commands = [[sys.executable, str(_TRAINING), *map(str, call)] for call in calls]
    with contextlib.ExitStack() as stack:
        started = []
        for command in commands:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output[-4000:]


def test_versions_of_a_mirrored_training_are_those_of_a_single_device(
    tmp_path: Path, consumers: Consumers
) -> None:
    _run(("mirrored", tmp_path))
    for version in ("1", "2", "3"):
        mirrored = artifacts.files(tmp_path / "models" / version)
        mirrored.pop("assets.extra/keras_export.json")
        assert mirrored == artifacts.files(tmp_path / "single" / version)
    consumers.everywhere(tmp_path / "models" / "3", x=_EXAMPLES)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def test_of_several_workers_the_chief_alone_publishes_and_nobody_hangs(
    tmp_path: Path, consumers: Consumers
) -> None:
    folder, ports = tmp_path / "models", (_free_port(), _free_port())
    _run(("worker", folder, 0, *ports), ("worker", folder, 1, *ports))
    assert sorted(path.name for path in folder.iterdir()) == [".keras_export.json", "1", "2"]
    with np.load(f"{folder}-0.npz") as chief, np.load(f"{folder}-1.npz") as other:
        assert (chief["exports"], other["exports"]) == (2, 0)
        for version, epoch in {"1": 0, "2": 2}.items():
            served = consumers.cpp(folder / version).signature("serve", x=_EXAMPLES)
            np.testing.assert_allclose(served["y"], chief["y"][epoch], rtol=1e-5, atol=1e-6)
