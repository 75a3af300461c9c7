"""`Exporter`, `Snapshot`, `save` and `export`: from a live object to a published artifact.

In: the object and what the user wants of it. Out: files, and an `ExportReport`. The invariant:
tracing and assembling happen once per `Exporter`; each write costs the values alone, and what it
publishes is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import tensorflow as tf

from keras_export import (
    assembly,
    collecting,
    compatibility,
    digests,
    early_writing,
    fingerprints,
    halves,
    held_values,
    keras_objects,
    publishing,
    staleness,
    targets,
    warmups,
)
from keras_export import signatures as signature_rules
from keras_export import tf_internals as tfi
from keras_export.errors import ArgumentError, failure
from keras_export.export_requests import ExportRequest
from keras_export.reports import ExportReport
from keras_export.sharing import SharedFiles
from keras_export.signatures import SignatureFunction


def save(
    obj: Any,
    export_dir: str | os.PathLike[str],
    signatures: Any = None,
    options: tf.saved_model.SaveOptions | None = None,
) -> ExportReport:
    """Exports a trackable object as a SavedModel, as `tf.saved_model.save` documents it.

    Args:
        obj: a `tf.Module`, `tf.train.Checkpoint`, Keras layer or model, or any other trackable.
        export_dir: where to write; local, or any scheme of `tf.io.gfile`. A SavedModel that is
            there is replaced in one step.
        signatures: a `tf.function` with an input signature, a ConcreteFunction, or a dict from
            names to either. None searches `obj` for the one function that can be the signature;
            a Keras model without one gets its forward pass.
        options: `tf.saved_model.SaveOptions`.

    Returns:
        What was written and how to call it.

    Raises:
        ExportError: `obj` cannot be exported (`ValueError`, `AssertionError`, … as TensorFlow
            raises), or `export_dir` cannot be written (`OSError`). Nothing is left behind.

    Example:
        >>> import tempfile, tensorflow as tf, keras_export as ke
        >>> class Adder(tf.Module):
        ...     @tf.function(input_signature=[tf.TensorSpec(None, tf.float32)])
        ...     def add(self, x):
        ...         return x + x
        >>> report = ke.save(Adder(), tempfile.mkdtemp())
        >>> print(report.signatures["serving_default"])
        (x: float32[...]) -> (output_0: float32[...])
    """
    return _export_once(export_dir, obj, signatures, options, _for_serving=False)


def export(
    model: Any,
    export_dir: str | os.PathLike[str],
    *,
    signatures: Any = None,
    input_signature: Any = None,
    names: Literal["layers", "keras"] = "layers",
    output_names: Sequence[str] | Mapping[str, str] | None = None,
    weights: Literal["ema"] | None = None,
    variables_dtype: Literal["float16", "bfloat16"] | None = None,
    include_optimizer: bool = False,
    state_updates: Literal["report", "refuse"] = "report",
    options: tf.saved_model.SaveOptions | None = None,
    target: str | None = None,
    warmup: Any = None,
) -> ExportReport:
    """Exports a Keras model for serving, with the names that its author gave.

    The artifact has the signatures `serve` and `serving_default`; loaded in Python it has
    `serve(...)`, `variables`, `trainable_variables` and `non_trainable_variables`.

    Args:
        model: a built Keras model or layer.
        export_dir: as in `save`.
        signatures: what is served beside the forward pass, by key: an `Endpoint`, or `(callable,
            specs)`; a layer or model that `model` holds, for its own forward pass; a `tf.function`
            or ConcreteFunction as in `save`. All share the variables and are traced once, and each
            is a method of the loaded object. The keys `serve` and `serving_default` replace the
            model's own; what is no dict is `serving_default`.
        input_signature: specs for the model's arguments, one each: `tf.TensorSpec`,
            `keras.InputSpec`, KerasTensor or arrays, nested as the argument is; None for an
            optional one that is left out.
        names: `"layers"` names inputs and outputs after the layers; `"keras"` as Keras does, with
            the first dimension of every input free and the dtypes that Keras assumes.
        output_names: names for the outputs, in order, or a map from old to new names.
        weights: `"ema"` exports the averages of an optimizer with `use_ema=True` in place of the
            weights. The live model is not touched. The artifact is no checkpoint of the training
            then: restored, it gives the averages.
        variables_dtype: `"float16"` or `"bfloat16"` stores the variables in half the bytes, and the
            graph casts them back, so that inputs, outputs and computations keep their dtypes. What
            the functions do more with than reading it, such as a counter, is stored in full. The
            artifact is no checkpoint of the training then.
        include_optimizer: store the optimizer's variables too.
        state_updates: a forward pass that updates variables even in inference (a counter, a
            stateful RNN) is exported with a note; `"refuse"` makes it an error.
        options: `tf.saved_model.SaveOptions`.
        target: the consumer that must be able to load it, as in `check`: `tensorflow>=2.13`,
            `tf-serving==2.14`, `tflite`. If it cannot, nothing is published.
        warmup: requests that TensorFlow Serving sends to the model before it serves it, in
            `assets.extra/tf_serving_warmup_requests`: `{input name: array}`, or one array for
            signatures with one input; `{signature key: one of these}`; True or a batch size for
            requests of zeros; a list of these for several. Each is run once on the new artifact,
            which takes the time of loading it.

    Returns:
        What was written and how to call it.

    Raises:
        ExportError: as in `save`.
        IncompatibleError: `target` cannot load it, with every reason. Nothing is left behind.

    Example:
        >>> import tempfile, keras, keras_export as ke
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(5, name="out")(x))
        >>> print(ke.export(model, tempfile.mkdtemp()).signatures["serve"])
        (x: float32[?, 4]) -> (out: float32[?, 5])
    """
    return _export_once(
        export_dir,
        model,
        signatures,
        options,
        input_signature=input_signature,
        names=names,
        output_names=output_names,
        weights=weights,
        variables_dtype=variables_dtype,
        include_optimizer=include_optimizer,
        state_updates=state_updates,
        target=target,
        warmup=warmup,
    )


def _export_once(export_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> ExportReport:
    targets.check_target(export_dir)
    with collecting.young_only(), early_writing.EarlyBundle(export_dir) as early:
        exporter = Exporter(*args, **kwargs, _early=early)
        return exporter.snapshot().write(export_dir)


class Exporter:
    """Traces and assembles once, writes any number of times.

    The variables' values may change between writes. So may what the object is made of: a layer or
    variable that is added or replaced, LoRA, quantization, another dtype policy, a table or a
    normalization that `adapt` set anew: the exporter notices and traces again. What is trainable
    may change without that. It cannot see that any other Python attribute changed which the forward
    pass reads; call `retrace()` after such a change.

    Args:
        obj: as in `save`; a Keras layer or model is exported as `export` does.
        signatures: as in `save`; for a Keras layer or model as in `export`.
        options: as in `save`.
        input_signature: as in `export`, for Keras alone, like the following.
        names: as in `export`.
        output_names: as in `export`.
        weights: as in `export`.
        variables_dtype: as in `export`.
        include_optimizer: as in `export`.
        state_updates: as in `export`.
        target: as in `export`.
        warmup: as in `export`, for each write that has none of its own.

    Raises:
        ExportError: as in `save`; no file is touched yet.

    Example:
        >>> import tempfile, keras, keras_export as ke
        >>> model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1)])
        >>> exporter = ke.Exporter(model)
        >>> first = exporter.write(tempfile.mkdtemp())
        >>> second = exporter.write(tempfile.mkdtemp())
        >>> second.seconds["trace"]
        0.0
    """

    def __init__(
        self,
        obj: Any,
        signatures: Any = None,
        options: tf.saved_model.SaveOptions | None = None,
        *,
        input_signature: Any = None,
        names: Literal["layers", "keras"] = "layers",
        output_names: Sequence[str] | Mapping[str, str] | None = None,
        weights: Literal["ema"] | None = None,
        variables_dtype: Literal["float16", "bfloat16"] | None = None,
        include_optimizer: bool = False,
        state_updates: Literal["report", "refuse"] = "report",
        target: str | None = None,
        warmup: Any = None,
        _for_serving: bool = True,
        _early: early_writing.EarlyBundle | None = None,
    ):
        is_model = keras_objects.is_keras_layer(obj)
        for_models = {
            "input_signature": input_signature is not None,
            "names": names != "layers",
            "output_names": output_names is not None,
            "weights": weights is not None,
            "variables_dtype": variables_dtype is not None,
            "include_optimizer": include_optimizer,
            "state_updates": state_updates != "report",
        }
        _refuse_other("state_updates", state_updates, ("report", "refuse"))
        _refuse_other("weights", weights, (None, "ema"))
        halves.checked_dtype(variables_dtype)
        _refuse_for_others(obj, is_model, for_models)
        self._request = ExportRequest(
            obj,
            signatures,
            options,
            for_serving=_for_serving and is_model,
            input_signature=input_signature,
            names=names,
            output_names=output_names,
            weights=weights,
            variables_dtype=variables_dtype,
            include_optimizer=include_optimizer,
            state_updates=state_updates,
        )
        compatibility.parse_target(target)  # a wrong one is refused before the work
        self._target, self._warmup = target, warmup
        self._early = _early
        self._assemble(self._request)

    def retrace(self) -> None:
        """Traces and assembles again, also the `tf.function`s that were passed as signatures.

        A ConcreteFunction is a trace, and stays what it is.

        Raises:
            ExportError: as in `save`; the exporter then keeps its earlier plan.
        """
        fresh = signature_rules.untraced(self._request.signatures)
        self._assemble(dataclasses.replace(self._request, signatures=fresh))

    def _assemble(self, request: ExportRequest) -> None:
        self._plan = assembly.assemble(request, self._early)
        self._stamp = None if self._early is not None else _stamp(self._request)
        self._unreported = dict(self._plan.seconds)

    def write(self, export_dir: str | os.PathLike[str], *, warmup: Any = None) -> ExportReport:
        """Writes the current values.

        Args:
            export_dir: as in `save`.
            warmup: as in `export`, instead of that of the exporter; False for none.

        Returns:
            What was written.

        Raises:
            ExportError: as in `save`.
        """
        targets.check_target(export_dir)
        return self.snapshot().write(export_dir, warmup=warmup)

    def snapshot(self) -> Snapshot:
        """Holds the values of this moment by reference.

        It costs a read of each variable. While it is held, a change of a variable copies that
        variable first, which TensorFlow does by itself.

        Returns:
            The snapshot; it may be written from another thread.

        Raises:
            ExportError: a variable has no value; or the object changed and cannot be traced again.
        """
        if self._stamp is not None and not _stamp(self._request).matches(self._stamp):
            self.retrace()
        seconds, self._unreported = self._unreported, {"trace": 0.0, "assemble": 0.0}
        checkpoint = self._plan.checkpoint
        values = None if self._early is None else self._early.values_of(checkpoint)
        values = values or held_values.read_values(checkpoint)
        return Snapshot(self._plan, values, seconds, self._warmup, self._target, self._early)


class Snapshot:
    """The values of one moment together with the plan of their artifact."""

    def __init__(
        self,
        plan: assembly.Plan,
        values: held_values.Values,
        seconds: Mapping[str, float],
        warmup: Any = None,
        target: str | None = None,
        early: early_writing.EarlyBundle | None = None,
    ):
        self._plan = plan
        self._values = values
        self._seconds = dict(seconds)
        self._warmup, self._target, self._early = warmup, target, early

    @property
    def functions(self) -> Mapping[str, SignatureFunction]:
        """What the signatures call in the live object, by key."""
        return self._plan.functions

    def write(
        self,
        export_dir: str | os.PathLike[str],
        *,
        exclusive: bool = False,
        warmup: Any = None,
        extras: Mapping[str, bytes] | None = None,
        shared: SharedFiles | None = None,
        check: Callable[[str], Sequence[str]] | None = None,
        above: str | os.PathLike[str] | None = None,
    ) -> ExportReport:
        """Writes the artifact and publishes it in one step.

        Args:
            export_dir: as in `save`.
            exclusive: refuse a target that exists.
            warmup: as in `Exporter.write`.
            extras: files for `assets.extra/`, by name.
            shared: what earlier artifacts of the same exporter hold, to be linked where it is the
                same; from one thread at a time.
            check: is called with the path of the complete artifact before it is published, and
                returns notes for the report; what it raises keeps the artifact from that.
            above: a folder above the target that holds the artifact until it is published.

        Returns:
            What was written.

        Raises:
            TargetError: the target cannot be written; it is as it was, and no other file is left.
            ArgumentError: `warmup` does not fit; likewise.
            IncompatibleError: the exporter's `target` cannot load it; likewise.
        """
        chosen = self._warmup if warmup is None else warmup
        requests = warmups.requests_of(chosen, self._plan.signatures)
        started = time.perf_counter()
        shared = shared or SharedFiles()
        staged = None
        if self._early is not None:
            staged = self._early.take(self._plan.checkpoint, self._values)
        values = self._values if staged is None else None
        with contextlib.ExitStack() as stack:
            staging = staged or stack.enter_context(publishing.stage(export_dir, above=above))
            with targets.explained(staging.target):
                files = _write_files(self._plan, values, staging.path, extras or {}, shared)
            if self._target is not None:
                compatibility.refuse(staging.path, self._target)
            with targets.explained(staging.target):
                files |= _write_requests(requests, staging.path)
            written = time.perf_counter()
            notes = [] if check is None else check(staging.path)
            checked = time.perf_counter()
            staging.commit(exclusive=exclusive)
            target = staging.target
        published = time.perf_counter()
        shared.published(target)
        return ExportReport(
            target,
            self._plan.signatures,
            bytes_written=sum(files.values()) - shared.bytes_linked,
            bytes_shared=shared.bytes_linked,
            seconds={
                **self._seconds,
                "write": written - started,
                **({} if check is None else {"check": checked - written}),
                "publish": published - checked,
            },
            notes=[*self._plan.notes, *notes],
            files=files,
        )


def _refuse_other(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        wanted = f"{name}={' or '.join(map(repr, allowed))}"
        raise ArgumentError(failure("export", wanted, f"{name}={value!r}"))


def _refuse_for_others(obj: Any, is_model: bool, given: Mapping[str, bool]) -> None:
    wrong = [name for name, used in given.items() if used]
    if wrong and not is_model:
        raise ArgumentError(
            failure(
                "export",
                f"a Keras layer or model for {', '.join(wrong)}",
                f"obj={obj!r} ({type(obj).__name__})",
                "Describe the signature of other objects with `signatures=`.",
            )
        )


def _stamp(request: ExportRequest) -> staleness.Stamp:
    with_optimizer = request.include_optimizer or not request.for_serving
    return staleness.Stamp(request.obj, with_optimizer or request.weights is not None)


def _write_files(
    plan: assembly.Plan,
    values: held_values.Values | None,
    directory: str,
    extras: Mapping[str, bytes],
    shared: SharedFiles,
) -> dict[str, int]:
    """Writes all files of an artifact; returns the bytes of each."""
    join, gfile = tf.io.gfile.join, tf.io.gfile
    gfile.makedirs(join(directory, "variables"))
    gfile.makedirs(join(directory, "assets"))
    if plan.debug_info is not None:
        gfile.makedirs(join(directory, "debug"))
    shared.write_into(directory, plan, values)
    if extras or plan.meta_graph.assets:
        gfile.makedirs(join(directory, digests.FOLDER))
    for name, content in extras.items():
        _write_file(join(directory, digests.FOLDER, name), content)
    if plan.meta_graph.assets:
        files = [f"assets/{asset.filename}" for asset in plan.meta_graph.assets]
        _write_file(join(directory, digests.FILE), digests.describe(directory, files))
    _write_file(join(directory, "fingerprint.pb"), _fingerprint(directory))
    return _sizes(directory)


def _sizes(directory: str) -> dict[str, int]:
    """The bytes of each file below a directory."""
    join, gfile = tf.io.gfile.join, tf.io.gfile
    if targets.is_local(directory):
        return {
            os.path.relpath(os.path.join(folder, name), directory): os.path.getsize(
                os.path.join(folder, name)
            )
            for folder, _, names in os.walk(directory)
            for name in names
        }
    return {
        join(folder, name).removeprefix(directory).strip("/"): gfile.stat(join(folder, name)).length
        for folder, _, names in gfile.walk(directory)
        for name in names
        if gfile.exists(join(folder, name))  # ram:// lists names that there are not
    }


def _write_requests(requests: Sequence[warmups.Request], directory: str) -> dict[str, int]:
    """Tries the warm-up requests on a written artifact and puts them into it."""
    if not requests:
        return {}
    warmups.try_out(directory, requests)
    folder = tf.io.gfile.join(directory, "assets.extra")
    content = warmups.encode(requests)
    tf.io.gfile.makedirs(folder)
    _write_file(tf.io.gfile.join(folder, warmups.FILE), content)
    return {f"assets.extra/{warmups.FILE}": len(content)}


def _write_file(path: str, content: bytes) -> None:
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content)


def _fingerprint(directory: str) -> bytes:
    """The hashes that TensorFlow computes, with an identifier derived from them.

    Source: tensorflow/core/protobuf/fingerprint.proto.
    """
    proto = tfi.fingerprint_pb2.FingerprintDef.FromString(
        tfi.fingerprinting.CreateFingerprintDef(directory)
    )
    if "uuid" in proto.DESCRIPTOR.fields_by_name:  # TensorFlow 2.16 has none
        proto.uuid = ""
    return fingerprints.identified(proto.SerializeToString(deterministic=True))
