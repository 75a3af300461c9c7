"""Which functions an artifact serves, and how sessions and Python call each.

In: an `ExportRequest` and the tracked objects. Out: the signatures by key, traced, and the
functions of the library that serve them. The invariant: a model is traced once, under however many
keys it is served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keras_export import (
    endpoints,
    forward_traces,
    functions,
    keras_models,
    keras_objects,
    signatures,
    tracking,
    wrappers,
)
from keras_export.contents import PythonFunction
from keras_export.errors import ArgumentError
from keras_export.export_requests import ExportRequest
from keras_export.loaded_objects import LISTS

SERVE_KEY = "serve"


_ROOT_NAMES = frozenset({*LISTS, "signatures"})


@dataclass
class Found:
    """The signatures of the artifact.

    Attributes:
        signatures: by key.
        traces: those that were traced here, which Python calls with nested arguments; by key.
        forward: a key of the model's own forward pass, if it is among them.
        notes: what the user should know.
    """

    signatures: dict[str, signatures.SignatureFunction] = field(default_factory=dict)
    traces: dict[str, forward_traces.ForwardTrace] = field(default_factory=dict)
    forward: str | None = None
    notes: list[str] = field(default_factory=list)


def find_signatures(request: ExportRequest, tracked: tracking.TrackedGraph) -> Found:
    """The signatures that the user gave, or that the object has; what was not traced is.

    Raises:
        ExportError: one of its kinds, for a signature that cannot be served.
    """
    if request.for_serving:
        return _serving_signatures(request)
    if request.signatures is not None:
        return _noted(Found(signatures.canonicalize(request.signatures)))
    is_model = keras_objects.is_keras_layer(request.obj) and keras_models.is_keras_model(
        request.obj
    )
    search = signatures.find_signature(tracked)
    if search.signature is not None:
        found = {search.signature.key: search.signature}
        lost = signatures.lost_note(request.obj, found)
        return _noted(Found(found, notes=[*search.notes, *lost]))
    if not is_model or search.several:
        return Found(notes=[*search.notes, *signatures.lost_note(request.obj, ())])
    try:
        return _forward_signature(request, (signatures.DEFAULT_KEY,), search.notes)
    except ArgumentError as error:
        return Found(notes=[*search.notes, f"no signature: {error}"])


def _serving_signatures(request: ExportRequest) -> Found:
    """The model's forward pass and what the user wants beside it; the user's keys win."""
    keras_models.is_keras_model(request.obj)  # refuses another backend
    given = endpoints.by_key(request.signatures)
    own = [key for key in (SERVE_KEY, signatures.DEFAULT_KEY) if key not in given]
    if SERVE_KEY in given and own:
        given, own = {signatures.DEFAULT_KEY: given[SERVE_KEY], **given}, []
    found = _given_signatures(request, given)
    if not own:
        return found
    try:
        forward = _forward_signature(request, own, [])
    except ArgumentError as error:
        if not given:
            raise
        found.notes.append(f"no signature {own[0]!r}: {error}")
        return found
    found.signatures.update(forward.signatures)
    found.traces.update(forward.traces)
    return Found(found.signatures, found.traces, own[0], [*forward.notes, *found.notes])


def _given_signatures(request: ExportRequest, given: Mapping[str, Any]) -> Found:
    found = Found()
    known: dict[int, forward_traces.ForwardTrace] = {}
    for key, function in given.items():
        forward = endpoints.forward_of(key, function)
        if forward is None:
            (found.signatures[key],) = signatures.canonicalize({key: function}).values()
            found.notes.extend(found.signatures[key].notes)
            continue
        if id(function) not in known:
            known[id(function)] = _traced(request, forward, wrappers.identifier(key))
        found.traces[key] = known[id(function)]
        found.signatures[key] = found.traces[key].signature(key)
        found.notes.extend(found.traces[key].notes)
    return found


def _noted(found: Found) -> Found:
    found.notes.extend(note for x in found.signatures.values() for note in x.notes)
    return found


def _forward_signature(request: ExportRequest, keys: Sequence[str], notes: list[str]) -> Found:
    forward = keras_models.forward_of(
        request.obj, request.input_signature, request.names, request.output_names
    )
    trace = _traced(request, forward)
    return Found(
        {key: trace.signature(key) for key in keys},
        dict.fromkeys(keys, trace),
        keys[0],
        [*notes, *trace.notes],
    )


def _traced(
    request: ExportRequest, forward: forward_traces.Forward, name: str = "serve"
) -> forward_traces.ForwardTrace:
    keep_lines = bool(getattr(request.options, "save_debug_info", False))
    return forward_traces.trace(forward, name, keep_lines=keep_lines)


def bind_signatures(
    library: functions.FunctionLibrary, found: Found, inner: Mapping[str, Any]
) -> list[tuple[signatures.SignatureFunction, functions.BoundFunction]]:
    """Each signature with the function that serves it; equal ones share it."""
    bound, wrapped = [], {}
    for key, signature in sorted(found.signatures.items()):
        names = [*(x.name for x in signature.inputs), *(x.name for x in signature.outputs)]
        same = (inner[key].name, *names)
        if same not in wrapped:
            wrapped[same] = _serve_by_name(library, found, inner[key], signature)
        bound.append((signature, wrapped[same]))
    return bound


def _serve_by_name(
    library: functions.FunctionLibrary,
    found: Found,
    inner: functions.BoundFunction,
    signature: signatures.SignatureFunction,
) -> functions.BoundFunction:
    trace = found.traces.get(signature.key)
    if trace is not None and trace.takes_named_inputs:
        # The traced function itself: nothing else calls it, so it may have this structure.
        inner.input_signature, inner.output_signature = wrappers.named_structures(signature)
        return inner
    return wrappers.wrap_signature(library, inner, signature)


def python_functions_of(
    library: functions.FunctionLibrary,
    found: Found,
    request: ExportRequest,
    inner: Mapping[str, functions.BoundFunction],
) -> list[PythonFunction]:
    """The methods of the loaded root: a call of each trace with nested arguments."""
    if not request.for_serving:
        return []
    return [
        _python_function(library, key, trace, inner[key])
        for key, trace in sorted(found.traces.items())
        if key != signatures.DEFAULT_KEY and key.isidentifier() and key not in _ROOT_NAMES
    ]


def _python_function(
    library: functions.FunctionLibrary,
    key: str,
    trace: forward_traces.ForwardTrace,
    inner: functions.BoundFunction,
) -> PythonFunction:
    specs = trace.argument_specs
    wrapper = wrappers.wrap(
        library,
        inner,
        f"__inference_{key}_call",
        trace.argument_order,
        trace.result_order,
        (specs, {}),
        trace.results,
    )
    names = tuple(argument.name for argument in trace.arguments)
    return PythonFunction(key, wrapper, names, specs)
