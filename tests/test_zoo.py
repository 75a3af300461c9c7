"""Every kind of Keras model is, after a round trip, what its author meant: a table of the zoo.

What Keras's own export makes of a kind is computed here too, and listed at the end of a run.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from consumer_values import to_wire
from consumers import ConsumerError, Consumers, Named, Spec, assert_same
from zoo import KINDS, Kind

import keras_export as ke

_KEY = "serving_default"

# Kinds that Keras is asked for in the suite; the soak asks for all.
ASKED = [
    "diffusion_unet",
    "functional_fixed_batch",
    "functional_single",
    "layer",
    "sparse",
    "subclassed_integers",
    "subclassed_nested",
    "subclassed_several_arguments",
    "text_vectorization",
    "variables_in_a_module",
]

# Trained on through a TFSMLayer: every weight of theirs gets a gradient.
FINE_TUNED = [
    "causal_language_model",
    "diffusion_unet",
    "functional_shared_input",
    "masked_embedding",
    "subclassed_dict",
    "wavenet",
    "wide_and_deep",
]
_LEARNING_RATE = 1e-3


def kinds(names: Any = KINDS) -> list[Any]:
    return [
        pytest.param(kind, id=kind.name, marks=() if kind.available else _missing(kind))
        for kind in map(KINDS.__getitem__, names)
    ]


def _missing(kind: Kind) -> Any:
    return pytest.mark.skip(f"Keras has it since {kind.since}")


def export(kind: Kind, folder: Path) -> Any:
    """Exports one of a kind; the live model comes back, in the state of the export."""
    made = kind.make()
    options = {} if kind.input_signature is None else {"input_signature": kind.input_signature}
    ke.export(made, folder, **options)
    return made


def flat(values: Any) -> list[Any]:
    leaves = tf.nest.flatten(values, expand_composites=True)
    return [leaf for leaf in leaves if leaf is not None]


def named_inputs(kind: Kind) -> dict[str, Any]:
    return dict(zip(kind.inputs, map(to_wire, flat(kind.arguments())), strict=True))


def live_results(kind: Kind, made: Any) -> list[dict[str, Any]]:
    """What each of the calls in a row gives, by the declared names."""
    function, arguments = kind.function(made), kind.arguments()
    return [
        dict(zip(kind.outputs, map(to_wire, flat(function(*arguments))), strict=True))
        for _ in range(kind.calls)
    ]


def as_text(specs: dict[str, Spec]) -> dict[str, str]:
    return {name: _text(spec) for name, spec in specs.items()}


def _text(spec: Spec) -> str:
    dims = "..." if spec.shape is None else ", ".join(str(d or "?") for d in spec.shape)
    return f"{spec.dtype}[{dims}]"


def assert_close(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sorted(actual) == sorted(expected)
    for name, value in expected.items():
        if value.dtype.kind == "f":
            assert np.isfinite(value).all()
        assert_same(actual[name], value, rtol=1e-4, atol=1e-5)


def test_the_zoo_has_more_than_sixty_kinds() -> None:
    assert len(KINDS) >= 60
    assert len({kind.family for kind in KINDS.values()}) == 6


@pytest.mark.parametrize("kind", kinds())
def test_kind_is_what_its_author_meant(kind: Kind, tmp_path: Path, consumers: Consumers) -> None:
    made = export(kind, tmp_path)
    by_python, by_cpp = consumers.tf(tmp_path), consumers.cpp(tmp_path)
    signature = by_cpp.signatures()[_KEY]
    assert as_text(signature["inputs"]) == kind.inputs
    assert as_text(signature["outputs"]) == kind.outputs
    inputs = named_inputs(kind)
    by_layer = consumers.tfsm(tmp_path) if fits_in_a_layer(kind, made) else None
    for expected in live_results(kind, made):
        assert_close(by_python.signature(_KEY, **inputs), expected)
        assert_close(by_cpp.signature(_KEY, **inputs), expected)
        if by_layer is not None:
            found = leaves(by_layer(to_wire(kind.arguments()[0])))
            assert_close(dict(zip(kind.outputs, found, strict=True)), expected)


def fits_in_a_layer(kind: Kind, made: Any) -> bool:
    """A TFSMLayer takes one argument, casts it to float32, and wants the endpoint of a model."""
    dtypes = {text.partition("[")[0] for text in kind.inputs.values()}
    cast = dtypes & {"float16", "bfloat16", "float64"}
    return len(kind.arguments()) == 1 and not cast and hasattr(made, "trainable_weights")


def leaves(value: Any) -> list[Any]:
    """The arrays in what a consumer sent."""
    return tf.nest.flatten(value.fields.values() if isinstance(value, Named) else value)


def test_many_artifacts_live_in_one_process(tmp_path: Path, consumers: Consumers) -> None:
    chosen = [kind for kind in KINDS.values() if kind.family in ("preprocessing", "states")]
    chosen = [kind for kind in chosen if kind.available]
    made = {kind.name: export(kind, tmp_path / kind.name) for kind in chosen}
    loaded = {
        name: (consumers.tf(tmp_path / name), consumers.cpp(tmp_path / name)) for name in made
    }
    for kind in reversed(chosen):
        for expected in live_results(kind, made[kind.name]):
            for artifact in loaded[kind.name]:
                assert_close(artifact.signature(_KEY, **named_inputs(kind)), expected)


@pytest.mark.parametrize("kind", kinds(FINE_TUNED))
def test_kind_is_fine_tuned_in_a_layer(kind: Kind, tmp_path: Path, consumers: Consumers) -> None:
    made = export(kind, tmp_path)
    (inputs,) = map(to_wire, kind.arguments())
    results = kind.function(made)(*kind.arguments())
    targets = tf.nest.map_structure(lambda x: np.random.uniform(size=x.shape), results)
    targets = tf.nest.map_structure(lambda x: x.astype("float32"), targets)
    found = consumers.tfsm(tmp_path).fine_tune(inputs, targets, _LEARNING_RATE)
    assert found["trainable"] == found["updated"] == len(made.trainable_weights)
    assert found["after"] < found["before"]


# -- beside Keras ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds(ASKED))
def test_what_keras_loses_is_computed(
    kind: Kind, tmp_path: Path, consumers: Consumers, record_property: Any
) -> None:
    record_property("zoo", (kind.name, keras_outcome(kind, tmp_path / "keras", consumers)))


@pytest.mark.soak
def test_keras_fails_or_loses_where_ours_does_not(
    tmp_path: Path, consumers: Consumers, record_property: Any
) -> None:
    outcomes = {
        name: keras_outcome(kind, tmp_path / name, consumers)
        for name, kind in KINDS.items()
        if kind.available
    }
    for row in outcomes.items():
        record_property("zoo", row)
    assert any(outcome == "same" for outcome in outcomes.values())
    assert any(outcome.startswith("fails") for outcome in outcomes.values())
    assert any(outcome.startswith("loses") for outcome in outcomes.values())


def keras_outcome(kind: Kind, folder: Path, consumers: Consumers) -> str:
    """`same`, `fails: …` or `loses: …`: what Keras's own export makes of a kind."""
    made = kind.make(recorded=False)
    options = {} if kind.input_signature is None else {"input_signature": kind.input_signature}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.export(folder, **options)
    except Exception as error:
        return f"fails: {type(error).__name__}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = live_results(kind, made)
    return _losses(kind, expected, folder, consumers)


def _losses(kind: Kind, expected: list[dict[str, Any]], folder: Path, consumers: Consumers) -> str:
    try:
        by_cpp = consumers.cpp(folder)
        signature = by_cpp.signatures()[_KEY]
    except ConsumerError as error:
        return f"fails: {error.kind} in the C++ loader"
    declared = {"inputs": kind.inputs, "outputs": kind.outputs}
    lost = [
        f"{what} of {side}"
        for side, specs in declared.items()
        for what in _differences(specs, as_text(signature[side]))
    ]
    if not _agrees(kind, expected, consumers.tf(folder)):
        lost.append("values in Python")
    if not any(text.endswith("of inputs") for text in lost) and not _agrees_in_cpp(
        kind, expected, by_cpp
    ):
        lost.append("values in C++")
    return f"loses: {', '.join(lost)}" if lost else "same"


def _differences(declared: dict[str, str], found: dict[str, str]) -> list[str]:
    """Which of names, dtypes and shapes differ."""
    if sorted(declared) != sorted(found):
        kept = sorted(_dtype(text) for text in found.values())
        same = kept == sorted(_dtype(text) for text in declared.values())
        return ["names"] if same else ["names", "dtypes"]
    pairs = [(text, found[name]) for name, text in declared.items()]
    if any(_dtype(ours) != _dtype(theirs) for ours, theirs in pairs):
        return ["dtypes"]
    return ["shapes"] if any(ours != theirs for ours, theirs in pairs) else []


def _dtype(text: str) -> str:
    return re.match(r"\w+", text)[0]  # type: ignore[index]


def _agrees(kind: Kind, expected: list[dict[str, Any]], artifact: Any) -> bool:
    arguments = to_wire(kind.arguments())
    return _same_values(expected, lambda: leaves(artifact.call("serve", *arguments)))


def _agrees_in_cpp(kind: Kind, expected: list[dict[str, Any]], artifact: Any) -> bool:
    """By name, or in the order of Keras's numbers."""
    inputs = named_inputs(kind)

    def call() -> list[Any]:
        found = artifact.signature(_KEY, **inputs)
        if sorted(found) == sorted(kind.outputs):
            return [found[name] for name in kind.outputs]
        return [found[f"output_{index}"] for index in range(len(found))]

    return _same_values(expected, call)


def _same_values(expected: list[dict[str, Any]], call: Any) -> bool:
    try:
        for values in expected:
            assert_close(dict(zip(values, call(), strict=True)), values)
    except (AssertionError, ConsumerError, KeyError, ValueError):
        return False
    return True
