"""What a version must be like before it is published: what its model gives, and called as before.

In: an artifact in its staging directory, and what it is held against. Out: notes, or an error that
lists what a client would notice. The invariant: what is compared is what stands in the files, and
outputs are those of the moment of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from keras_export import inspection, verification
from keras_export.errors import CheckpointError, SignatureError, failure
from keras_export.signatures import SignatureFunction, SignatureInput

# Of inputs that leave a size open: the number of examples, and any other size.
_EXAMPLES, _SIZE = 2, 8
_MAX_INPUT_BYTES = 64 << 20
# A model may have run on another device than the one that verifies.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4


@dataclass(frozen=True)
class Probe:
    """Inputs with the outputs that the live model gave for them.

    Attributes:
        inputs: arrays by name, by signature.
        outputs: likewise.
    """

    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)


def probe(functions: Mapping[str, SignatureFunction]) -> Probe:
    """Runs the functions of the live model on a small batch each.

    One that refuses numbers of no meaning, or has ragged or sparse outputs, is left out.

    Args:
        functions: what signatures call, by key.
    """
    made = Probe()
    for key, function in functions.items():
        inputs = {x.name: _example(x) for x in function.inputs}
        simple = all(len(output.positions) == 1 for output in function.outputs)
        if not simple or any(value is None for value in inputs.values()):
            continue
        try:
            made.outputs[key] = _called(function, inputs)
        except (tf.errors.OpError, ValueError, TypeError):
            continue
        made.inputs[key] = inputs
    return made


def _example(wanted: SignatureInput) -> Any:
    if wanted.spec.shape.rank is None:
        return None
    sizes = wanted.spec.shape.as_list()
    shape = [(_SIZE if place else _EXAMPLES) if x is None else x for place, x in enumerate(sizes)]
    dtype = wanted.spec.dtype
    if dtype == tf.string:
        return np.full(shape, b"", object)
    if np.prod(shape) * dtype.size > _MAX_INPUT_BYTES:
        return None
    if dtype.is_floating:
        return np.random.default_rng(0).standard_normal(shape).astype(dtype.as_numpy_dtype)
    return np.zeros(shape, dtype.as_numpy_dtype)  # which may be an index


def _called(function: SignatureFunction, inputs: Mapping[str, Any]) -> dict[str, Any]:
    concrete = function.concrete
    specs = concrete.structured_input_signature
    flat = tf.nest.flatten(specs)
    for wanted in function.inputs:
        flat[wanted.position] = tf.constant(inputs[wanted.name], wanted.spec.dtype)
    args, kwargs = tf.nest.pack_sequence_as(specs, flat)
    results = tf.nest.flatten(concrete(*args, **kwargs))
    return {output.name: results[output.positions[0]].numpy() for output in function.outputs}


def refuse_unsound(new: str, target: str, live: Probe) -> list[str]:
    """Loads an artifact in a clean process and compares what it gives.

    Args:
        new: path of the artifact that is to be published.
        target: where.
        live: what it must give.

    Returns:
        What could not be checked.

    Raises:
        CheckpointError: something is wrong; all that is, is listed.
    """
    report = verification.verify(
        new, inputs=live.inputs, outputs=live.outputs, rtol=_RELATIVE, atol=_ABSOLUTE
    )
    if report.ok:
        return list(report.notes)
    expected = "an artifact that is whole and gives what the model gives"
    received = "; ".join(str(problem) for problem in report.problems)
    raise CheckpointError(failure(f"export to {target}", expected, received))


def refuse_other_signatures(new: str, old: str, target: str) -> None:
    """Raises if clients of one artifact could not call another in the same way.

    Args:
        new: path of the artifact that is to be published.
        old: path of the one that its clients know.
        target: where it is to be published.

    Raises:
        SignatureError: a signature, or a name, dtype or shape of one, differs; all that does is
            listed.
    """
    differences = list(_differences(_facts(new), _facts(old)))
    if not differences:
        return
    received = "others: " + "; ".join(differences)
    mend = "Export to another folder, or leave out signature_lock to publish it."
    raise SignatureError(failure(f"export to {target}", f"the signatures of {old}", received, mend))


def _facts(path: str) -> dict[tuple[str, ...], str]:
    """Every input and output by key, kind and name, as text."""
    signatures = inspection.inspect(path).signatures
    return {
        (key, kind, name): str(spec)
        for key, signature in signatures.items()
        for kind, specs in (("input", signature.inputs), ("output", signature.outputs))
        for name, spec in specs.items()
    }


def _differences(new: dict[tuple[str, ...], str], old: dict[tuple[str, ...], str]) -> Iterator[str]:
    for fact in sorted(new.keys() | old.keys()):
        key, kind, name = fact
        now, before = new.get(fact), old.get(fact)
        if now is None:
            yield f"{key} lacks {kind} {name} ({before})"
        elif before is None:
            yield f"{key} has a new {kind} {name} ({now})"
        elif now != before:
            yield f"{key} has {kind} {name} as {now}, not {before}"
