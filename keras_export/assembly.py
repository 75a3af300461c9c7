"""The order of the steps from a live object to an assembled artifact.

In: an `ExportRequest`, what the user asked for. Out: a `Plan`, everything that an artifact needs
but the values: the bytes of `saved_model.pb`, the keys of the checkpoint, the assets. The
invariant: all that can be refused is refused here, before a file is touched.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from keras_export import (
    averages,
    canonical,
    effects,
    endpoints,
    forward_traces,
    functions,
    gradients,
    halves,
    keras_models,
    main_graph,
    metagraph,
    portability,
    recorded_calls,
    resources,
    signatures,
    tracking,
    variables,
    wrappers,
)
from keras_export import tf_internals as tfi
from keras_export.contents import Asset, Contents, PythonFunction
from keras_export.errors import (
    ArgumentError,
    ArgumentTypeError,
    GraphModeError,
    InsideFunctionError,
    MissingAssetError,
    NotTrackableError,
    failure,
)
from keras_export.reports import Signature

SERVE_KEY = "serve"

BeforeTrace = Callable[[tracking.TrackedGraph, str], variables.CheckpointPlan | None]

# What the loaded object of a model has beside its endpoints.
_LISTS = ("variables", "trainable_variables", "non_trainable_variables")
_ROOT_NAMES = frozenset({*_LISTS, "signatures"})


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported, and how; `exporter` documents each field.

    Attributes:
        for_serving: whether the loaded object is flat: endpoints and lists of variables alone.
    """

    obj: Any
    signatures: Any = None
    options: Any = None
    for_serving: bool = False
    input_signature: Any = None
    names: str = "layers"
    output_names: Any = None
    weights: str | None = None
    variables_dtype: Any = None
    include_optimizer: bool = False
    state_updates: str = "report"


@dataclass(frozen=True)
class Plan:
    """An assembled artifact without its values.

    Attributes:
        meta_graph: the bytes of `saved_model.pb` and the assets.
        checkpoint: where the values come from and what they are called.
        signatures: how to call the artifact.
        notes: what the user should know.
        seconds: time of `trace` and `assemble`.
        options: the options that concern writing.
        debug_info: the bytes of `debug/saved_model_debug_info.pb`, if they are wanted.
        stored_as: the dtype of each value that is stored in another than its own, by its key.
        held: objects that must live as long as the plan.
        functions: the `SignatureFunction`s of the live object, by key.
    """

    meta_graph: metagraph.MetaGraph
    checkpoint: variables.CheckpointPlan
    signatures: Mapping[str, Signature]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    options: Any
    debug_info: bytes | None = field(repr=False, default=None)
    stored_as: Mapping[str, tf.DType] = field(repr=False, default_factory=dict)
    held: Any = field(repr=False, default=None)
    functions: Mapping[str, Any] = field(repr=False, default_factory=dict)


def assemble(request: ExportRequest, before_trace: BeforeTrace | None = None) -> Plan:
    """Traces what is not traced yet and assembles the artifact.

    Args:
        request: what is wanted.
        before_trace: is called with the tracked objects and the name of the root, and may return
            the plan of their checkpoint, which saves making it.

    Raises:
        ExportError: one of its kinds, for anything that cannot be exported.
    """
    options = _checked_options(request.options)
    _refuse_context()
    _refuse_untrackable(request.obj)
    with _COLLECTOR.paused(), _portable(request.obj), recorded_calls.not_recording():
        return _assemble(request, options, before_trace)


def _assemble(request: ExportRequest, options: Any, before_trace: BeforeTrace | None) -> Plan:
    root = "model" if tracking.is_keras_layer(request.obj) else "obj"
    started = time.perf_counter()
    if not (tf.distribute.has_strategy() or tracking.is_distributed(request.obj)):
        tracked = _track(request)
        if not _was_traced_for_replicas(request, tracked):
            return _assemble_tracked(request, options, root, tracked, started, before_trace)
    # Functions trace again inside it, so nobody else enters it.
    with tfi.save_context(options):
        return _assemble_tracked(request, options, root, _track(request), started)


def _was_traced_for_replicas(request: ExportRequest, tracked: tracking.TrackedGraph) -> bool:
    """Whether a trace can be saved only if it is made again as for a single device."""
    signatures = request.signatures
    given = signatures.values() if isinstance(signatures, Mapping) else [signatures]
    functions = [*given, *(node.obj for node in tracked.of_kind("function"))]
    return any(
        not concrete.graph.saveable
        for function in functions
        if isinstance(function, tfi.PolymorphicFunction)
        # To list those of a function that was never traced would trace it.
        if function.experimental_get_tracing_count()
        for concrete in function._list_all_concrete_functions()
    )


def _assemble_tracked(
    request: ExportRequest,
    options: Any,
    root: str,
    tracked: tracking.TrackedGraph,
    started: float,
    before_trace: BeforeTrace | None = None,
) -> Plan:
    signatures.refuse_reserved_attribute(tracked, root)
    if tracking.uses_keras():
        keras_models.refuse_torch(tracked, root)
    checkpoint = None if before_trace is None else before_trace(tracked, root)
    found = _find_signatures(request, tracked)
    idle = _idle_tables(tracked, found) if request.for_serving else set()
    if idle or any(trace.built_model for trace in found.traces.values()):
        tracked, checkpoint = _track(request, idle), None
    traced = time.perf_counter()
    contents, stored_as = _contents(request, tracked, found, options, root, checkpoint)
    assembled = metagraph.assemble(contents)
    return Plan(
        assembled,
        contents.checkpoint,
        {key: _described(signature) for key, signature in sorted(found.signatures.items())},
        tuple(dict.fromkeys([*tracked.notes, *found.notes, *_notes(contents)])),
        {"trace": traced - started, "assemble": time.perf_counter() - traced},
        options,
        contents.debug_info,
        stored_as,
        tracked,
        found.signatures,
    )


def _portable(obj: Any) -> contextlib.AbstractContextManager[None]:
    # A program that never imported Keras has no layer to trace.
    return portability.portable_kernels(obj) if tracking.uses_keras() else contextlib.nullcontext()


# Ops that look their function up in the Python of the process that traced them.
_PYTHON_OPS = frozenset({"EagerPyFunc", "PyFunc", "PyFuncStateless"})


def _notes(contents: Contents) -> list[str]:
    notes = [
        "not callable after loading, since never called and without input_signature: "
        + tracking.path_text(node.path)
        for node in contents.saved
        if node.kind == "function" and not contents.traces[id(node)]
    ]
    for definition in contents.library.definitions.values():
        found = sorted({node.op for node in definition.node_def if node.op in _PYTHON_OPS})
        if found:
            name = functions.stem_of(definition.signature.name)
            notes.append(
                f"works in this process alone: {name} calls Python code ({', '.join(found)}), "
                "which an artifact does not hold; write it with TensorFlow's ops"
            )
    return notes


class _Collector:
    """Python's cycle collector, which visits all of a growing graph again and again.

    A trace makes no garbage worth collecting while it lasts; several may run at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pauses = 0
        self._was_enabled = True

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        with self._lock:
            if self._pauses == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                if self._pauses == 0 and self._was_enabled:
                    gc.enable()


_COLLECTOR = _Collector()


# -- what is refused --------------------------------------------------------------------------


def _checked_options(options: Any) -> Any:
    options = tf.saved_model.SaveOptions() if options is None else options
    if not isinstance(options, tf.saved_model.SaveOptions):
        raise ArgumentTypeError(
            failure(
                "export",
                "options of type tf.saved_model.SaveOptions",
                f"options={options!r} ({type(options).__name__})",
            )
        )
    return options


def _refuse_context() -> None:
    if tfi.inside_function():
        raise InsideFunctionError(
            "Cannot export from inside a tf.function: it would export while it is being traced. "
            "Call it from eager code."
        )
    if not tf.executing_eagerly() and tf.compat.v1.get_default_session() is None:
        raise GraphModeError(
            "Cannot export without eager execution: the values of variables live in a session, and "
            "none is open. Export inside `with tf.compat.v1.Session():`, or call "
            "`tf.compat.v1.enable_eager_execution()` at the start of the program."
        )


def _refuse_untrackable(obj: Any) -> None:
    if isinstance(obj, tfi.Trackable):
        return
    raise NotTrackableError(
        failure(
            "export",
            "a trackable: a tf.Module, tf.train.Checkpoint, Keras layer or model",
            f"obj={obj!r} ({type(obj).__name__})",
            "Hold it as an attribute of a tf.Module: `m = tf.Module(); m.x = ...`.",
        )
    )


# -- the steps --------------------------------------------------------------------------------


@dataclass
class _Found:
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


def _idle_tables(tracked: tracking.TrackedGraph, found: _Found) -> set[int]:
    """Tables that no signature looks into, as those in which Keras counts words in `adapt`.

    They would keep Python's loader of TensorFlow 2.12 from loading the artifact.
    """
    used = {
        id(captured)
        for signature in found.signatures.values()
        for captured in signature.concrete.captured_inputs
    }
    return {
        id(node.obj)
        for node in tracked.of_kind("resource")
        if variables.saves_by_saveables(node.obj) and id(node.obj.resource_handle) not in used
    }


def _track(request: ExportRequest, idle: Container[int] = ()) -> tracking.TrackedGraph:
    leave_optimizer = request.for_serving and not request.include_optimizer

    def exclude(child: Any) -> bool:
        if isinstance(child, tfi.SignatureMap) or id(child) in idle:
            return True
        return leave_optimizer and tracking.is_keras_optimizer(child)

    uses = endpoints.used_by(request.signatures) if request.for_serving else {}
    tracked = tracking.track(request.obj, exclude, uses)
    if request.for_serving:
        _attach_for_serving(tracked)
    return tracked


def _attach_for_serving(tracked: tracking.TrackedGraph) -> None:
    """Gives the flat root what its own lists do not hold: tables, files, other variables."""
    variables_list = tracked.root.children.get("variables")
    held = {id(node) for node in variables_list.children.values()} if variables_list else set()
    others = [x for x in tracked.of_kind("variable") if id(x) not in held and x.slot_key is None]
    tables = list(tracked.of_kind("resource", "asset"))
    for name, nodes in (("_other_variables", others), ("_resources", tables)):
        if nodes:
            tracking.attach_list(tracked, tracked.root, name, [node.obj for node in nodes])


def _find_signatures(request: ExportRequest, tracked: tracking.TrackedGraph) -> _Found:
    if request.for_serving:
        return _serving_signatures(request)
    if request.signatures is not None:
        return _noted(_Found(signatures.canonicalize(request.signatures)))
    is_model = tracking.is_keras_layer(request.obj) and keras_models.is_keras_model(request.obj)
    search = signatures.find_signature(tracked)
    if search.signature is not None:
        found = {search.signature.key: search.signature}
        lost = signatures.lost_note(request.obj, found)
        return _noted(_Found(found, notes=[*search.notes, *lost]))
    if not is_model or search.several:
        return _Found(notes=[*search.notes, *signatures.lost_note(request.obj, ())])
    try:
        return _forward_signature(request, (signatures.DEFAULT_KEY,), search.notes)
    except ArgumentError as error:
        return _Found(notes=[*search.notes, f"no signature: {error}"])


def _serving_signatures(request: ExportRequest) -> _Found:
    """The model's forward pass and what the user wants beside it; the user's keys win."""
    keras_models.is_keras_model(request.obj)  # refuses another backend
    given = endpoints.by_key(request.signatures)
    own = [key for key in (SERVE_KEY, signatures.DEFAULT_KEY) if key not in given]
    if SERVE_KEY in given and own:
        given, own = {signatures.DEFAULT_KEY: given[SERVE_KEY], **given}, []
    found = _given_signatures(given)
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
    return _Found(found.signatures, found.traces, own[0], [*forward.notes, *found.notes])


def _given_signatures(given: Mapping[str, Any]) -> _Found:
    found = _Found()
    known: dict[int, forward_traces.ForwardTrace] = {}
    for key, function in given.items():
        forward = endpoints.forward_of(key, function)
        if forward is None:
            (found.signatures[key],) = signatures.canonicalize({key: function}).values()
            found.notes.extend(found.signatures[key].notes)
            continue
        if id(function) not in known:
            known[id(function)] = forward_traces.trace(forward, wrappers.identifier(key))
        found.traces[key] = known[id(function)]
        found.signatures[key] = found.traces[key].signature(key)
        found.notes.extend(found.traces[key].notes)
    return found


def _noted(found: _Found) -> _Found:
    found.notes.extend(note for x in found.signatures.values() for note in x.notes)
    return found


def _forward_signature(request: ExportRequest, keys: Sequence[str], notes: list[str]) -> _Found:
    forward = keras_models.forward_of(
        request.obj, request.input_signature, request.names, request.output_names
    )
    trace = forward_traces.trace(forward)
    return _Found(
        {key: trace.signature(key) for key in keys},
        dict.fromkeys(keys, trace),
        keys[0],
        [*notes, *trace.notes],
    )


def _described(signature: signatures.SignatureFunction) -> Signature:
    return Signature(
        {item.name: item.spec for item in signature.inputs},
        {item.name: item.spec for item in signature.outputs},
    )


def _contents(
    request: ExportRequest,
    tracked: tracking.TrackedGraph,
    found: _Found,
    options: Any,
    root: str,
    checkpoint: variables.CheckpointPlan | None,
) -> tuple[Contents, dict[str, tf.DType]]:
    checkpoint = checkpoint or variables.plan_checkpoint(tracked, root)
    if request.weights is not None:
        checkpoint = averages.read_averages(checkpoint, request.obj)
        found.notes.append(averages.NOTE)
    saved = _saved_nodes(request, tracked)
    assets = _assets(tracked, root)
    collector = functions.FunctionCollector(tracked, root)
    traces = _add_traces(collector, saved, root)
    inner = {
        key: collector.add(signature.concrete, f"the signature {key!r}")
        for key, signature in found.signatures.items()
    }
    if found.forward is not None:
        forward = inner[found.forward]
        found.notes.extend(_state_notes(request, tracked, collector.library, forward))
    saving = [
        item
        for source in checkpoint.sources
        for item in resources.trace_save_restore(source, collector, root)
    ]
    savers = [resources.trace_saver(saver, collector) for saver in checkpoint.savers]
    resource_graph = resources.build_resources(tracked, collector, options, root)
    aliases = _add_aliases(collector, options)
    if options.experimental_custom_gradients:
        gradients.add_gradients(collector)
    library = collector.library
    stored_as = _halve(request, tracked, checkpoint, library, found)
    bound = _bind_signatures(library, found, inner)
    python_functions = _python_functions(library, found, request, inner)
    initializers = _initializers(tracked, traces)
    new_names = canonical.canonicalize(
        library,
        [
            *(function.name for _, function in bound),
            *(function.function.name for function in python_functions),
            *library.functions,
            *aliases,
        ],
        resource_graph.nodes,
        keep_names=options.save_debug_info,
        strip_debug_ops=getattr(options, "experimental_debug_stripper", False),
    )
    contents = Contents(
        tracked,
        saved,
        library,
        bound,
        checkpoint,
        options,
        python_functions=python_functions,
        resources=resource_graph,
        initializers=initializers,
        save_restore=saving,
        savers=savers,
        assets=assets,
        aliases={new_names[name]: alias for name, alias in aliases.items()},
        traces=traces,
        debug_info=_debug_info(new_names) if options.save_debug_info else None,
    )
    return contents, stored_as


def _halve(
    request: ExportRequest,
    tracked: tracking.TrackedGraph,
    checkpoint: variables.CheckpointPlan,
    library: functions.FunctionLibrary,
    found: _Found,
) -> dict[str, tf.DType]:
    """Lets the artifact hold the model's variables in half precision; returns the keys of those."""
    dtype = halves.checked_dtype(request.variables_dtype)
    if dtype is None:
        return {}
    keys = {id(x.node): x.names[0][1] for x in checkpoint.sources if x.by == "variable"}
    # An optimizer tracks the model's variables, too.
    optimizers = [node.obj for node in tracked.nodes if tracking.is_keras_optimizer(node.obj)]
    of_optimizers = {id(tracked.find(x)) for optimizer in optimizers for x in optimizer.variables}
    candidates = [
        node
        for node in tracked.of_kind("variable")
        if id(node) in keys.keys() - of_optimizers
        and not isinstance(node.obj, tfi.DistributedVariable)
    ]
    halved, kept = halves.halve(library, candidates, dtype)
    for node in halved:
        node.store_as(dtype)
    found.notes.extend(halves.notes(halved, kept, dtype))
    return {keys[id(node)]: dtype for node in halved}


def _debug_info(new_names: Mapping[str, str]) -> bytes:
    """Where in the user's code each node was made, by the function's name in the artifact."""
    builder = tfi.GraphDebugInfoBuilder()
    context = tfi.eager_context()
    for name, new_name in new_names.items():
        if context.has_function(name):
            builder.AppendGraphDebugInfo(new_name, context.get_graph_debug_info(name))
    content: bytes = builder.Build().SerializeToString(deterministic=True)
    return content


def _state_notes(
    request: ExportRequest,
    tracked: tracking.TrackedGraph,
    library: functions.FunctionLibrary,
    bound: functions.BoundFunction,
) -> list[str]:
    """What a model's forward pass updates although it is traced for inference.

    Raises:
        ArgumentError: it updates batch statistics, or anything with `state_updates="refuse"`.
    """
    written = [
        node for node in effects.written_by(library, bound) if isinstance(node, tracking.Node)
    ]
    for node in written:
        layer = keras_models.batch_norm_of(tracked, node)
        if layer is not None:
            raise ArgumentError(
                f"Cannot export: the layer {layer.name!r} updates its batch statistics in the "
                "forward pass, so serving would change the model. Call it with training=False."
            )
    if written and request.state_updates == "refuse":
        listed = ", ".join(main_graph.variable_name(node) for node in written)
        raise ArgumentError(
            failure(
                "export",
                "a forward pass that changes nothing (state_updates='refuse')",
                f"one that updates {listed}",
                "Export with state_updates='report' to keep it.",
            )
        )
    return [
        f"each call updates {main_graph.variable_name(node)!r}: the served state is not shared "
        "between replicas of a server"
        for node in written
    ]


def _saved_nodes(request: ExportRequest, tracked: tracking.TrackedGraph) -> list[tracking.Node]:
    """The objects that the loaded object consists of."""
    if not request.for_serving:
        return [node for node in tracked.nodes if not _is_keras_scaffolding(node)]
    flat = [tracked.root]
    for name in (*_LISTS, "_other_variables", "_resources"):
        if name in tracked.root.children:
            flat.append(tracked.root.children[name])
    keep = {id(node) for node in flat}
    for node in tracked.of_kind("variable", "resource", "asset"):
        keep.add(id(node))
        keep.update(id(below) for below in tracking.descendants(node))
    return [node for node in tracked.nodes if id(node) in keep]


def _is_keras_scaffolding(node: tracking.Node) -> bool:
    """Empty containers that Keras keeps for itself, several for each layer."""
    private = bool(node.path) and node.path[-1].startswith("_")
    container = isinstance(node.obj, tfi.TrackableDataStructure)
    return private and container and not node.children


def _add_traces(
    collector: functions.FunctionCollector, saved: Sequence[tracking.Node], root: str
) -> dict[int, list[functions.BoundFunction]]:
    traces = {}
    for node in saved:
        if node.kind in ("function", "concrete_function"):
            described = functions.described(node, root)
            concretes = functions.concrete_functions_of(node)
            traces[id(node)] = [collector.add(concrete, described) for concrete in concretes]
    return traces


def _bind_signatures(
    library: functions.FunctionLibrary, found: _Found, inner: Mapping[str, Any]
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
    found: _Found,
    inner: functions.BoundFunction,
    signature: signatures.SignatureFunction,
) -> functions.BoundFunction:
    trace = found.traces.get(signature.key)
    if trace is not None and trace.takes_named_inputs:
        # The traced function itself: nothing else calls it, so it may have this structure.
        inner.input_signature, inner.output_signature = wrappers.named_structures(signature)
        return inner
    return wrappers.wrap_signature(library, inner, signature)


def _python_functions(
    library: functions.FunctionLibrary,
    found: _Found,
    request: ExportRequest,
    inner: Mapping[str, functions.BoundFunction],
) -> list[PythonFunction]:
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


def _initializers(
    tracked: tracking.TrackedGraph, traces: Mapping[int, Sequence[functions.BoundFunction]]
) -> list[functions.BoundFunction]:
    return [
        bound
        for node in tracked.of_kind("resource")
        if "_initialize" in node.children
        for bound in traces[id(node.children["_initialize"])]
    ]


def _add_aliases(collector: functions.FunctionCollector, options: Any) -> dict[str, str]:
    aliases: dict[str, str] = {}
    for alias, function in (options.function_aliases or {}).items():
        for concrete in _concrete_functions_of(alias, function):
            name = functions.function_name(concrete)
            if aliases.setdefault(name, alias) != alias:
                raise ArgumentError(
                    f"Cannot export: the function aliases {aliases[name]!r} and {alias!r} mean the "
                    "same function, and the format keeps one alias for each. Drop one of them."
                )
            collector.add_definitions(concrete)
    return aliases


def _concrete_functions_of(alias: str, function: Any) -> list[Any]:
    if isinstance(function, tfi.ConcreteFunction):
        return [function]
    if isinstance(function, tfi.PolymorphicFunction):
        return list(function._list_all_concrete_functions())
    if isinstance(function, (list, tuple)) and all(
        isinstance(x, tfi.ConcreteFunction) for x in function
    ):
        return list(function)
    raise ArgumentTypeError(
        failure(
            "export",
            "a tf.function or ConcreteFunctions for each function alias",
            f"function_aliases[{alias!r}]={function!r} ({type(function).__name__})",
        )
    )


def _assets(tracked: tracking.TrackedGraph, root: str) -> list[Asset]:
    """The files to copy; same-named files of different folders get names of their own."""
    assets: list[Asset] = []
    by_source: dict[str, str] = {}
    for node in tracked.of_kind("asset"):
        source = asset_path_of(node)
        if not tf.io.gfile.exists(source):
            raise MissingAssetError(
                failure(
                    f"export {tracking.path_text(node.path, root)}",
                    "a file that exists",
                    f"asset_path={source!r}",
                )
            )
        if source not in by_source:
            by_source[source] = _free_name(os.path.basename(source), by_source.values())
        assets.append(Asset(node, by_source[source], source))
    return assets


def asset_path_of(node: tracking.Node) -> str:
    """Where an asset's file is."""
    path = functions.constant_of(node.obj.asset_path, tracking.path_text(node.path)).value
    return tf.compat.as_str(path.item())


def _free_name(name: str, taken: Any) -> str:
    stem, suffix = os.path.splitext(name)
    number, candidate = 0, name
    while candidate in taken:
        number += 1
        candidate = f"{stem}_{number}{suffix}"
    return candidate
