"""Loads an artifact and runs its signatures, in a process of its own that has nothing else.

In: a request, pickled, as `python -m keras_export.trial REQUEST RESULT` is given it. Out: problems
and notes, as JSON. The invariant: the process sees no GPU, and where the system can do it no file
but those of Python, of the system and of the artifact; the graph runs here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from keras_export import isolation
from keras_export.inspection import Spec
from keras_export.invocation import as_array, as_tensors, first_line
from keras_export.reports import Signature

# By number of absl::StatusCode.
_NOT_FOUND, _PERMISSION_DENIED = 5, 7
_INPUTS_AT_FAULT = (3, 11)  # invalid argument, out of range
_OUTSIDE = re.compile(r"(?<![\w.])(/[^\s;:'\"]+)[^/]*(?:Permission denied|No such file)")
_UNINITIALIZED = re.compile(
    r"[Uu]ninitialized|not initialized|Could not find variable|Container localhost does not exist"
)
# Sizes that are tried for what a signature leaves open: of the batch, of any other dimension.
_SIZES = ((2, 8), (1, 32), (1, 1), (1, 224), (3, 3))
_UNKNOWN_RANKS = (1, 2, 0, 4)
_MAX_BYTES = 64 << 20  # of a generated input
_SHOWN_VALUES = 5


@dataclasses.dataclass
class Request:
    """What is to be tried.

    Attributes:
        export_dir: a local directory.
        tags: of its graph.
        signatures: as `inspect` gives them.
        inputs: arrays by name, by signature; others are generated.
        outputs: what is expected, likewise.
        rtol: how far a float may be off, relative to what is expected.
        atol: and beside that.
    """

    export_dir: str
    tags: tuple[str, ...]
    signatures: Mapping[str, Signature]
    inputs: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    outputs: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    rtol: float = 1e-5
    atol: float = 1e-6


@dataclasses.dataclass
class Outcome:
    """What came of it; `problems` are kind, place and message."""

    problems: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    ran: list[str] = dataclasses.field(default_factory=list)
    compared: list[str] = dataclasses.field(default_factory=list)
    hashes: dict[str, int] = dataclasses.field(default_factory=dict)
    tensorflow: str = ""


class _Trial:
    def __init__(self, request: Request) -> None:
        self.request = request
        self.outcome = Outcome()
        self.inputs: dict[str, dict[str, Any]] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def run(self) -> Outcome:
        import tensorflow as tf

        self.outcome.tensorflow = tf.version.VERSION
        self._hash()
        if self._by_cpp() and self._by_python():
            self._compare()
        return self.outcome

    def _hash(self) -> None:
        from keras_export import tf_internals as tfi

        try:
            content = tfi.fingerprinting.CreateFingerprintDef(self.request.export_dir)
            proto = tfi.fingerprint_pb2.FingerprintDef.FromString(content)
        except Exception as error:
            self.outcome.notes.append(f"TensorFlow computes no fingerprint: {error}")
            return
        names = ("graph_def_program_hash", "signature_def_hash", "saved_object_graph_hash")
        self.outcome.hashes = {name: getattr(proto, name) for name in names}

    def _by_cpp(self) -> bool:
        from keras_export import cpp_loader

        try:
            session = cpp_loader.Session(self.request.export_dir, self.request.tags)
        except (OSError, AttributeError) as error:
            self.outcome.notes.append(f"not tried with the C++ loader: {error}")
            return True
        except cpp_loader.CppError as error:
            self._failed("the C++ loader", "load", error.code, str(error))
            return False
        with session:
            for key, signature in self.request.signatures.items():
                if any(spec.kind != "tensor" for spec in signature.inputs.values()):
                    continue
                defaults = _defaults(session.signatures[key])

                def call(inputs: Mapping[str, Any], key: str = key) -> dict[str, Any]:
                    return {name: as_array(x) for name, x in session.run(key, inputs).items()}

                self._attempt(key, "the C++ loader", defaults, call)
        return not self.outcome.problems

    def _by_python(self) -> bool:
        import tensorflow as tf

        try:
            loaded = tf.saved_model.load(self.request.export_dir, tags=list(self.request.tags))
        except Exception as error:
            self._failed("tf.saved_model.load", "load", _code(error), first_line(error))
            return False
        for key in self.request.signatures:
            if key not in getattr(loaded, "signatures", {}):
                continue
            function, expected = loaded.signatures[key], self.results.get(key)

            def call(inputs: Mapping[str, Any], function: Any = function) -> dict[str, Any]:
                fed = as_tensors(inputs, function.structured_input_signature[1])
                return {name: as_array(value) for name, value in function(**fed).items()}

            self._attempt(key, "tf.saved_model.load", {}, call)
            if expected is not None and key in self.results:
                self._agree(key, expected, call)
        return not self.outcome.problems

    def _attempt(self, key: str, reader: str, defaults: Mapping[str, Any], call: Any) -> None:
        given = self.request.inputs.get(key)
        if given is None and key in self.inputs:
            given = self.inputs[key]  # what the other reader ran on
        candidates = iter([given]) if given is not None else self._candidates(key, defaults)
        failure: Exception | None = None
        for inputs in candidates:
            try:
                self.results[key] = call(inputs)
            except Exception as error:
                failure = failure or error
                if _code(error) not in (*_INPUTS_AT_FAULT, None):
                    break
            else:
                self.inputs[key] = dict(inputs)
                if key not in self.outcome.ran:
                    self.outcome.ran.append(key)
                return
        self.results.pop(key, None)
        if failure is not None:
            self._not_run(key, reader, failure, given is not None)

    def _candidates(self, key: str, defaults: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        inputs = self.request.signatures[key].inputs
        seen: set[str] = set()
        for rank, (batch, other) in itertools.product(_UNKNOWN_RANKS, _SIZES):
            shapes = {name: _shape(spec, rank, batch, other) for name, spec in inputs.items()}
            if repr(shapes) not in seen:
                seen.add(repr(shapes))
                yield {
                    name: defaults.get(name, _generated(spec, shapes[name]))
                    for name, spec in inputs.items()
                }

    def _not_run(self, key: str, reader: str, error: Exception, given: bool) -> None:
        code = _code(error)
        if not given and code in (*_INPUTS_AT_FAULT, None):
            self.outcome.notes.append(
                f"signature {key!r} refuses generated inputs ({first_line(error)}): it was not "
                "run; give it inputs"
            )
            return
        self._failed(reader, f"run signature {key!r}", code, first_line(error))

    def _failed(self, reader: str, what: str, code: int | None, message: str) -> None:
        outside = _OUTSIDE.search(message) if code in (_NOT_FOUND, _PERMISSION_DENIED) else None
        if outside and not outside[1].startswith(self.request.export_dir):
            kind, where = "outside-file", outside[1]
        elif _UNINITIALIZED.search(message):
            kind, where = "missing-variable", what.removeprefix("run ")
        else:
            kind, where = ("unloadable" if what == "load" else "unservable"), reader
        said = "load it" if what == "load" else "run it"
        self.outcome.problems.append((kind, where, f"{reader} cannot {said}: {message}"))

    def _agree(self, key: str, expected: Mapping[str, Any], call: Any) -> None:
        """The readers must agree, unless the signature gives something else at each call."""
        found = self.results[key]
        difference = _difference(found, expected, 1e-3, 1e-4)
        if difference is None:
            return
        if _difference(call(self.inputs[key]), found, 0.0, 0.0) is not None:
            self.outcome.notes.append(f"signature {key!r} gives something else at each call")
            return
        self.outcome.problems.append(
            (
                "readers-disagree",
                f"signature {key!r}",
                f"Python's and the C++ loader give different results: {difference}",
            )
        )

    def _compare(self) -> None:
        for key, expected in self.request.outputs.items():
            if key not in self.results:
                continue
            difference = _difference(
                self.results[key], expected, self.request.rtol, self.request.atol
            )
            self.outcome.compared.append(key)
            if difference is not None:
                self.outcome.problems.append(
                    ("different-outputs", f"signature {key!r}", f"it gives {difference}")
                )


def _defaults(signature: Any) -> dict[str, Any]:
    import tensorflow as tf

    return {name: tf.make_ndarray(proto) for name, proto in signature.defaults.items()}


def _shape(spec: Spec, rank: int, batch: int, other: int) -> tuple[int, ...]:
    shape = (None,) * rank if spec.shape is None else spec.shape
    return tuple(
        (batch if axis == 0 else other) if size is None else size for axis, size in enumerate(shape)
    )


def _generated(spec: Spec, shape: tuple[int, ...]) -> Any:
    """Zeros where a number may be an index; small numbers around zero otherwise."""
    import numpy as np
    import tensorflow as tf

    if spec.dtype == "string":
        return np.full(shape, b"", object)
    dtype = np.dtype(tf.as_dtype(spec.dtype).as_numpy_dtype)
    count = int(np.prod(shape, dtype=np.int64))
    if count * dtype.itemsize > _MAX_BYTES:
        raise ValueError(f"an input of shape {shape} is too large to be generated")
    if dtype.kind in "iub":
        return np.zeros(shape, dtype)
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def _difference(
    found: Mapping[str, Any], expected: Mapping[str, Any], rtol: float, atol: float
) -> str | None:
    """What differs, in words; None if nothing does."""
    import numpy as np

    if set(found) != set(expected):
        return f"the outputs {sorted(found)} instead of {sorted(expected)}"
    for name in sorted(expected):
        ours, theirs = np.asarray(found[name]), np.asarray(expected[name])
        if ours.shape != theirs.shape:
            return f"{name!r} of shape {list(ours.shape)} instead of {list(theirs.shape)}"
        # The only kinds that have an order of magnitude; bfloat16 and its like are of kind V.
        if ours.dtype.kind in "fcV" and theirs.dtype.kind in "fcV":
            wide = np.complex128 if ours.dtype.kind == "c" else np.float64
            ours, theirs = ours.astype(wide), theirs.astype(wide)
            if not np.allclose(ours, theirs, rtol, atol, equal_nan=True):
                return f"{name!r} up to {np.nanmax(abs(ours - theirs)):.3g} away"
        elif not np.array_equal(_text(ours), _text(theirs)):
            return f"{name!r} as {_shown(ours)} instead of {_shown(theirs)}"
    return None


def _shown(values: Any) -> str:
    return str(values.ravel()[:_SHOWN_VALUES].tolist())


def _text(values: Any) -> Any:
    return values.astype("U") if values.dtype.kind in "SU" else values


def _code(error: Exception) -> int | None:
    """The absl::StatusCode of an error of TensorFlow; None for any other."""
    code = getattr(error, "error_code", None)
    return code if code is not None else getattr(error, "code", None)


def main(request_path: str, result_path: str) -> None:
    """Tries what the request says, and writes the outcome."""
    with open(request_path, "rb") as file:
        request, folder = pickle.load(file)
    confined = isolation.restrict(
        [*isolation.folders_of_python(), request.export_dir], [folder, "/dev/null"]
    )
    outcome = _Trial(request).run()
    if not confined:
        outcome.notes.append("run with all files in sight: this system has no Landlock")
    with open(result_path, "w") as file:
        json.dump(dataclasses.asdict(outcome), file)


if __name__ == "__main__":
    main(*sys.argv[1:3])
