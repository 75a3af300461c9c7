"""The order of the steps from a live object to an assembled artifact.

In: an `ExportRequest`, what the user asked for. Out: a `Plan`, everything that an artifact needs
but the values: the bytes of `saved_model.pb`, the keys of the checkpoint, the assets. The
invariant: all that can be refused is refused here, before the target is touched.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import tensorflow as tf

from keras_export import (
    averages,
    canonical,
    collecting,
    effects,
    export_requests,
    functions,
    gradients,
    halves,
    keras_models,
    keras_objects,
    loaded_objects,
    main_graph,
    metagraph,
    portability,
    recorded_calls,
    resources,
    served_functions,
    signatures,
    tracking,
    variables,
)
from keras_export import tf_internals as tfi
from keras_export.assets import assets_of
from keras_export.contents import Contents
from keras_export.errors import ArgumentError, ArgumentTypeError, failure
from keras_export.export_requests import ExportRequest
from keras_export.reports import Signature


class Early(Protocol):
    """What is told while an artifact is assembled, to begin with writing."""

    def begin(
        self, request: ExportRequest, tracked: tracking.TrackedGraph, root: str
    ) -> variables.CheckpointPlan | None:
        """Before the trace; may return the plan of the checkpoint, which saves making it."""

    def go_on(self, request: ExportRequest, checkpoint: variables.CheckpointPlan) -> bool:
        """After the trace, when little is left that could be refused; whether all have values."""


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


def assemble(request: ExportRequest, early: Early | None = None) -> Plan:
    """Traces what is not traced yet and assembles the artifact.

    Args:
        request: what is wanted.
        early: who may write while this lasts.

    Raises:
        ExportError: one of its kinds, for anything that cannot be exported.
    """
    options = export_requests.checked_options(request.options)
    export_requests.refuse_unsaveable(request.signatures)
    export_requests.refuse_context()
    export_requests.refuse_untrackable(request.obj)
    with collecting.young_only(), _portable(request.obj), recorded_calls.not_recording():
        return _assemble(request, options, early)


def _assemble(request: ExportRequest, options: Any, early: Early | None) -> Plan:
    root = "model" if keras_objects.is_keras_layer(request.obj) else "obj"
    started = time.perf_counter()
    listing = tracking.Listing()
    if not (tf.distribute.has_strategy() or tracking.is_distributed(request.obj, listing)):
        tracked = loaded_objects.track(request, listing=listing)
        if not _was_traced_for_replicas(request, tracked):
            return _assemble_tracked(request, options, root, tracked, started, early)
    # Functions trace again inside it, so nobody else enters it.
    with tfi.save_context(options):
        return _assemble_tracked(request, options, root, loaded_objects.track(request), started)


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
    early: Early | None = None,
) -> Plan:
    signatures.refuse_reserved_attribute(tracked, root)
    if keras_objects.uses_keras():
        keras_models.refuse_torch(tracked, root)
    checkpoint = None if early is None else early.begin(request, tracked, root)
    found = served_functions.find_signatures(request, tracked)
    idle = (
        loaded_objects.idle_tables(tracked, found.signatures.values())
        if request.for_serving
        else set()
    )
    if idle or any(trace.built_model for trace in found.traces.values()):
        tracked, checkpoint = loaded_objects.track(request, idle), None
    traced = time.perf_counter()
    contents, stored_as = _contents(request, tracked, found, options, root, checkpoint, early)
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
    return (
        portability.portable_kernels(obj)
        if keras_objects.uses_keras()
        else contextlib.nullcontext()
    )


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


def _described(signature: signatures.SignatureFunction) -> Signature:
    return Signature(
        {item.name: item.spec for item in signature.inputs},
        {item.name: item.spec for item in signature.outputs},
        {item.name: item.default for item in signature.inputs if item.default is not None},
    )


def _contents(
    request: ExportRequest,
    tracked: tracking.TrackedGraph,
    found: served_functions.Found,
    options: Any,
    root: str,
    checkpoint: variables.CheckpointPlan | None,
    early: Early | None,
) -> tuple[Contents, dict[str, tf.DType]]:
    checkpoint = checkpoint or variables.plan_checkpoint(tracked, root)
    if request.weights is not None:
        checkpoint = averages.read_averages(checkpoint, request.obj)
        found.notes.append(averages.NOTE)
    saved = loaded_objects.saved_nodes(request, tracked)
    assets = assets_of(tracked, root)
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
    bound = served_functions.bind_signatures(library, found, inner)
    python_functions = served_functions.python_functions_of(library, found, request, inner)
    initializers = _initializers(tracked, traces)
    if early is None or not early.go_on(request, checkpoint):
        variables.refuse_uninitialized(checkpoint)
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
        keep_given_names=not keras_objects.is_keras_layer(request.obj),
        keep_read_shapes=not request.for_serving,
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
    found: served_functions.Found,
) -> dict[str, tf.DType]:
    """Lets the artifact hold the model's variables in half precision; returns the keys of those."""
    dtype = halves.checked_dtype(request.variables_dtype)
    if dtype is None:
        return {}
    keys = {id(x.node): x.names[0][1] for x in checkpoint.sources if x.by == "variable"}
    # An optimizer tracks the model's variables, too.
    optimizers = [node.obj for node in tracked.nodes if keras_objects.is_keras_optimizer(node.obj)]
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
