"""The conformance matrix: what works in an artifact of `tf.saved_model.save` works in ours.

Rows are the kinds of `conformance_kinds.py` and what is saved again; columns are the readers, each
in a fresh process: `tf.saved_model.load` with every call, a V1 session, the C++ loader. A cell in
which TensorFlow's artifact gives the live values must give them with ours too. Cells that fail are
listed with the reason, so that the list stays true.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from conformance_kinds import KINDS, Call, Case, module
from consumer_values import from_wire, to_wire
from consumers import ConsumerError, Consumers, assert_same

import keras_export as ke

Write = Callable[..., Any]

WRITERS: dict[str, Write] = {"tf": tf.saved_model.save, "ours": ke.save}
READERS = ("tf", "v1", "cpp")

# Kind -> reader -> who fails in that cell; what is not listed works with both.
DIFFERENCES: dict[str, dict[str, str]] = {
    # It reads a variable while it is saved, which TensorFlow does inside a graph of its own.
    "objects_that_serialize_themselves": dict.fromkeys(READERS, "tensorflow"),
    # The loader asks the optimizer for its slots, and makes an object that has none.
    "legacy_optimizers": {"tf": "nobody"},
    # The Python code is in the process that exported.
    "python_functions": dict.fromkeys(READERS, "nobody"),
}

# What is put into one object to be loaded and saved again: what a loaded object holds otherwise
# than the live one does.
SAVED_AGAIN = [
    "table_of_a_file", "mutable_table", "files_of_one_name", "random_generator",
    "resources_of_third_parties", "datasets_that_a_function_iterates", "named_tuples",
    "arguments_by_keyword_and_default", "none_and_python_values", "ragged_tensors",
    "extension_types", "neither_arguments_nor_results", "custom_gradients",
    "concrete_functions_under_several_names", "lists_tuples_and_dicts", "circles",
]  # fmt: skip

# Each loads what the one before wrote.
CHAIN = ["ours", "tf", "ours", "ours"]


@pytest.mark.parametrize("name", KINDS)
def test_what_a_reader_finds_in_an_artifact_of_tensorflow_it_finds_in_ours(
    name: str, tmp_path: Path, consumers: Consumers
) -> None:
    cells = {}
    for writer, save in WRITERS.items():
        case = KINDS[name](tmp_path / "files")
        calls = live_calls(KINDS[name](tmp_path / "files"))
        error = None
        try:
            save(case.obj, str(tmp_path / writer), signatures=case.signatures)
        except Exception as refused:
            error = refused
        for reader in READERS:
            found = error or read(consumers, reader, tmp_path / writer, case, calls)
            cells[writer, reader] = found
    check(name, cells)


def test_what_is_loaded_is_saved_again_with_all_that_it_held(
    tmp_path: Path, consumers: Consumers
) -> None:
    case = everything(tmp_path / "files")
    calls = live_calls(everything(tmp_path / "files"))
    obj, served = case.obj, case.signatures
    for step, writer in enumerate(CHAIN):
        export_dir = tmp_path / str(step)
        WRITERS[writer](obj, str(export_dir), signatures=served)
        if step < len(CHAIN) - 1:
            obj = tf.saved_model.load(str(export_dir))
            served = obj.signatures
    shutil.rmtree(tmp_path / "files")
    found = [read_all(consumers, reader, export_dir, case, calls) for reader in READERS]
    assert_same(found[1:], found[:1] * 2)


def check(name: str, cells: dict[tuple[str, str], Any]) -> None:
    """Each cell is what the reader found, the error that it gave, or None where there is none."""
    found = [x for x in cells.values() if x is not None and not isinstance(x, Exception)]
    failed = {}
    for reader in READERS:
        theirs, ours = cells["tf", reader], cells["ours", reader]
        if isinstance(ours, Exception):
            failed[reader] = "nobody" if isinstance(theirs, Exception) else repr(ours)
        elif isinstance(theirs, Exception):
            failed[reader] = "tensorflow"
        if ours is not None and not isinstance(ours, Exception):
            assert_same(ours, found[0])
    assert failed == DIFFERENCES.get(name, {})


def live_calls(case: Case) -> list[Any]:
    """What the calls give on an object of their own: they may change it."""
    return [
        to_wire(_at(case.obj, call.path)(*from_wire(list(call.args)), **from_wire(call.kwargs)))
        for call in case.calls
    ]


def _at(obj: Any, path: str) -> Any:
    for step in path.split("."):
        obj = obj[int(step)] if step.isdigit() else getattr(obj, step)
    return obj


def read(consumers: Consumers, reader: str, export_dir: Path, case: Case, calls: list[Any]) -> Any:
    """The outputs of the signature, after Python's reader has made all calls."""
    try:
        artifact = getattr(consumers, reader)(export_dir)
        if reader == "tf":
            for call, expected in zip(case.calls, calls, strict=True):
                assert_same(artifact.call(call.path, *call.args, **call.kwargs), expected)
            artifact = consumers.tf(export_dir)
        return None if case.inputs is None else artifact.signature(**case.inputs)
    except (ConsumerError, AssertionError) as error:
        return error


def everything(folder: Path) -> Case:
    """One object that holds one of each kind, with a signature for each that has one."""
    cases = {name: KINDS[name](folder / name) for name in SAVED_AGAIN}
    root = module(**{name: case.obj for name, case in cases.items()})
    calls = [
        Call(f"{name}.{call.path}", call.args, call.kwargs)
        for name, case in cases.items()
        for call in case.calls
    ]
    served = {}
    for name, case in cases.items():
        signature = case.signatures or getattr(case.obj, "f", None)
        if case.inputs is not None:
            served[name] = signature["other"] if isinstance(signature, dict) else signature
    inputs = {name: case.inputs for name, case in cases.items() if case.inputs is not None}
    return Case(root, calls, inputs, served)


def read_all(
    consumers: Consumers, reader: str, export_dir: Path, case: Case, calls: list[Any]
) -> Any:
    """As `read`, for an object with a signature for each kind."""
    assert case.inputs is not None
    if reader == "tf":
        assert read(consumers, reader, export_dir, Case(case.obj, case.calls), calls) is None
    artifact = getattr(consumers, reader)(export_dir)
    return {name: artifact.signature(name, **inputs) for name, inputs in case.inputs.items()}
