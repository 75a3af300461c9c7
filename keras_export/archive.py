"""`ExportArchive`: endpoints put together by hand, with the methods of Keras's own archive.

In: layers, models and other trackables, and functions that use them. Out: an artifact whose
loaded object has each endpoint as a method and the variables in lists. The invariant: a refused
call leaves the archive as it was, and nothing is traced before `write_out`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from keras_export import input_specs, keras_models, keras_objects, portability, tracking
from keras_export import tf_internals as tfi
from keras_export.errors import (
    ArgumentError,
    ArgumentTypeError,
    NotTrackableError,
    UntrackedCaptureError,
    failure,
)
from keras_export.exporter import Exporter
from keras_export.reports import ExportReport
from keras_export.served_functions import SERVE_KEY
from keras_export.signatures import DEFAULT_KEY

_FORMAT = "saved_model"
_LISTS = ("variables", "trainable_variables", "non_trainable_variables")
# What the loaded object holds beside the endpoints and collections of the user.
_TAKEN = frozenset({*_LISTS, "signatures", "_all_variables", "_misc_assets"})
_OF_OTHER_BACKENDS = ("is_static", "jax2tf_kwargs")


class ExportArchive:
    """Collects endpoints that share variables, and writes them as one SavedModel.

    All variables that an endpoint uses are exported. Tables and files are found in what was
    tracked; so are the lists `variables`, `trainable_variables` and `non_trainable_variables` of
    the loaded object.

    Args:
        format: `"saved_model"`, the one format there is.

    Raises:
        ArgumentError: another format (`ValueError`).
        BackendError: Keras runs on another backend than TensorFlow.

    Example:
        >>> import tempfile, keras, keras_export as ke
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> archive = ke.ExportArchive()
        >>> archive.track(model)
        >>> spec = keras.InputSpec(shape=(None, 3), dtype="float32")
        >>> _ = archive.add_endpoint("score", lambda x: {"y": model(x)}, [spec])
        >>> print(archive.write_out(tempfile.mkdtemp()).signatures["score"])
        (x: float32[?, 3]) -> (y: float32[?, 1])
    """

    def __init__(self, format: str = _FORMAT):
        if format != _FORMAT:
            raise ArgumentError(
                failure("make an ExportArchive", f"format={_FORMAT!r}", f"format={format!r}")
            )
        keras_models.is_keras_model(None)  # refuses another backend
        self._tracked: list[Any] = []
        self._lists: dict[str, list[Any]] = {name: [] for name in _LISTS}
        self._endpoints: dict[str, Any] = {}
        self._collections: set[str] = set()
        # Subclasses of Keras's archive reach the exported object by this name.
        self._tf_trackable = tfi.AutoTrackable()

    @property
    def variables(self) -> list[Any]:
        """The variables of the tracked layers and models."""
        return self._lists["variables"]

    @property
    def trainable_variables(self) -> list[Any]:
        """Those of `variables` that are trained."""
        return self._lists["trainable_variables"]

    @property
    def non_trainable_variables(self) -> list[Any]:
        """Those of `variables` that are not trained."""
        return self._lists["non_trainable_variables"]

    def track(self, resource: Any) -> None:
        """Takes in the variables, tables and files of a resource.

        Args:
            resource: a built Keras layer or model, or any TensorFlow trackable.

        Raises:
            ArgumentError: the layer is not built (`ValueError`).
            NotTrackableError: it is neither (`ValueError`).
        """
        is_layer = keras_objects.is_keras_layer(resource)
        if is_layer and not resource.built:
            raise ArgumentError(
                failure(
                    f"track the layer {resource.name!r}",
                    "a built layer",
                    "one without variables yet",
                    "Build it first: call it once, or `layer.build(input_shape)`.",
                )
            )
        if not is_layer and not isinstance(resource, tfi.Trackable):
            raise NotTrackableError(
                failure(
                    "track a resource",
                    "a Keras layer or model, or a TensorFlow trackable",
                    f"resource={resource!r} ({type(resource).__name__})",
                    "Hold it as an attribute of a tf.Module and track the module.",
                )
            )
        self._tracked.append(resource)
        if is_layer:
            for name, variables in self._lists.items():
                variables.extend(getattr(resource, name))

    def add_endpoint(
        self, name: str, fn: Callable[..., Any], input_signature: Any = None, **kwargs: Any
    ) -> Any:
        """Registers a function that the artifact serves under a name.

        Tensors that share one argument of `fn` are named as Keras names them, `xs`, `xs_1`, …
        unless their specs have names.

        Args:
            name: the endpoint's name: key of its signature, and method of the loaded object.
            fn: any callable, or a `tf.function` that was called before.
            input_signature: one spec, or nested specs, for each positional argument of `fn`:
                `tf.TensorSpec`, `keras.InputSpec`, KerasTensor or arrays. None if `fn` is a
                `tf.function` that was called before; its first trace is exported then.
            **kwargs: none; what Keras takes here is for other backends.

        Returns:
            The `tf.function` that is exported; other endpoints may call it.

        Raises:
            ArgumentError: the name is taken; `fn` has no trace and `input_signature` is missing; a
                keyword of another backend (`ValueError`).
            ArgumentTypeError: a spec without shape or dtype, or no spec at all (`TypeError`).
        """
        self._refuse_name(name)
        _refuse_keywords(kwargs)
        if input_signature is None:
            function = _called_before(name, fn)
        else:
            specs = tf.nest.map_structure(_spec_of, _plain(input_signature))
            specs = specs if isinstance(specs, (list, tuple)) else [specs]
            function = tf.function(fn, input_signature=_named(fn, specs), autograph=False)
        self._endpoints[name] = function
        setattr(self._tf_trackable, name, function)
        return function

    def track_and_add_endpoint(
        self, name: str, resource: Any, input_signature: Any, **kwargs: Any
    ) -> Any:
        """Tracks a layer or model and registers its call as an endpoint.

        Args:
            name: as in `add_endpoint`.
            resource: as in `track`.
            input_signature: as in `add_endpoint`, for the arguments of the call.
            **kwargs: as in `add_endpoint`.

        Returns:
            As `add_endpoint`.

        Raises:
            ExportError: as `track` and `add_endpoint`.
        """
        self._refuse_name(name)
        _refuse_keywords(kwargs)
        self.track(resource)
        return self.add_endpoint(name, resource.__call__, input_signature)

    def add_variable_collection(self, name: str, variables: Any) -> None:
        """Gives the loaded object a list of variables as an attribute.

        Args:
            name: the attribute's name.
            variables: a list, tuple or set of `keras.Variable` or `tf.Variable`.

        Raises:
            ArgumentError: the name is taken, or `variables` holds something else (`ValueError`).
        """
        if not isinstance(variables, (list, tuple, set)):
            raise ArgumentError(
                failure(
                    f"add the variable collection {name!r}",
                    "a list, tuple or set",
                    f"variables={variables!r} ({type(variables).__name__})",
                )
            )
        for variable in variables:
            if not (isinstance(variable, tf.Variable) or keras_objects.is_keras_variable(variable)):
                raise ArgumentError(
                    failure(
                        f"add the variable collection {name!r}",
                        "variables of Keras or TensorFlow",
                        f"{variable!r} ({type(variable).__name__})",
                    )
                )
        if name in _TAKEN or name in self._endpoints:
            raise ArgumentError(_taken("add the variable collection", name))
        unwrapped = [tracking.unwrap_variable(variable, (name,)) for variable in variables]
        setattr(self._tf_trackable, name, unwrapped)
        self._collections.add(name)

    def write_out(
        self,
        filepath: str | os.PathLike[str],
        options: tf.saved_model.SaveOptions | None = None,
        verbose: bool | None = None,
    ) -> ExportReport:
        """Traces the endpoints and writes the SavedModel.

        The first endpoint is also the signature `serving_default`, unless one has that name.

        Args:
            filepath: where to write, as in `keras_export.save`.
            options: `tf.saved_model.SaveOptions`.
            verbose: print the report. Unlike Keras, silent by default.

        Returns:
            What was written and how to call it.

        Raises:
            ArgumentError: there is no endpoint (`ValueError`).
            ExportError: as in `keras_export.save`. What stood at `filepath` is as it was.
        """
        if not self._endpoints:
            raise ArgumentError(
                "Cannot write the archive: it has no endpoint. Add one: "
                f"`archive.add_endpoint({SERVE_KEY!r}, model.call, input_signature=[...])`."
            )
        with tf.device(None), portability.portable_kernels(*self._tracked):
            traces = {name: _trace_of(function) for name, function in self._endpoints.items()}
        signatures = {DEFAULT_KEY: next(iter(traces.values())), **traces}
        self._attach_variables(traces)
        try:
            report = Exporter(self._tf_trackable, signatures, options).write(filepath)
        except UntrackedCaptureError as error:
            # The user holds an archive: the attribute that the core asks for is not theirs to set.
            raise UntrackedCaptureError(f"{error} In an archive: `archive.track(...)`.") from error
        if verbose:
            print(report)
        return report

    def _refuse_name(self, name: str) -> None:
        if not isinstance(name, str):
            raise ArgumentTypeError(
                failure("add an endpoint", "a name of type str", f"name={name!r}")
            )
        if name in _TAKEN or name in self._endpoints or name in self._collections:
            raise ArgumentError(_taken("add the endpoint", name))

    def _attach_variables(self, traces: Mapping[str, Any]) -> None:
        """Gives the exported object what its endpoints use: variables, tables and files."""
        root = self._tf_trackable
        for name, variables in self._lists.items():
            setattr(root, name, [tracking.unwrap_variable(x, (name,)) for x in variables])
        used = {id(x): x for trace in traces.values() for x in trace.variables}
        root._all_variables = list(used.values())
        root._misc_assets = [
            node.obj
            for resource in self._tracked
            for node in tracking.track(resource).of_kind("resource", "asset")
        ]


def _taken(what: str, name: str) -> str:
    return failure(f"{what} {name!r}", "a name that is free", "one that is taken", "Rename it.")


def _refuse_keywords(given: Mapping[str, Any]) -> None:
    for name in given:
        mend = "It is for Keras on JAX." if name in _OF_OTHER_BACKENDS else ""
        error = ArgumentError if mend else ArgumentTypeError
        raise error(failure("add an endpoint", "no further keyword", f"{name}=...", mend))


def _called_before(name: str, fn: Any) -> Any:
    if isinstance(fn, tfi.PolymorphicFunction) and (
        fn.input_signature is not None or fn._list_all_concrete_functions()
    ):
        return fn
    received = (
        "a tf.function that was never called"
        if isinstance(fn, tfi.PolymorphicFunction)
        else f"fn={fn!r} ({type(fn).__name__})"
    )
    raise ArgumentError(
        failure(
            f"add the endpoint {name!r} without input_signature",
            "a tf.function that was called at least once",
            received,
            f"Write `archive.add_endpoint({name!r}, fn, "
            "input_signature=[keras.InputSpec(shape=(None, 3), dtype='float32')])`.",
        )
    )


def _trace_of(function: Any) -> Any:
    if function.input_signature is not None:
        return function.get_concrete_function()
    return function._list_all_concrete_functions()[0]


def _spec_of(value: Any) -> Any:
    spec = input_specs.spec_of(value)
    name = getattr(value, "name", None)
    if isinstance(spec, tf.TensorSpec) and spec.name is None and isinstance(name, str):
        return tf.TensorSpec(spec.shape, spec.dtype, name)
    return spec


def _plain(structure: Any) -> Any:
    """The lists, tuples and dicts that an attribute of a Keras model wraps, unwrapped."""
    if isinstance(structure, Mapping):
        return {key: _plain(value) for key, value in structure.items()}
    if isinstance(structure, list):
        return [_plain(value) for value in structure]
    return structure


def _named(fn: Callable[..., Any], specs: Sequence[Any]) -> list[Any]:
    """Names the tensors that share an argument: several without a name have no fixed order."""
    named = []
    for argument, structure in zip(input_specs.argument_names(fn, len(specs)), specs, strict=True):
        leaves = tf.nest.flatten(structure)
        if len(leaves) > 1:
            leaves = [_with_name(x, argument, index) for index, x in enumerate(leaves)]
        named.append(tf.nest.pack_sequence_as(structure, leaves))
    return named


def _with_name(spec: Any, argument: str, index: int) -> Any:
    if not isinstance(spec, tf.TensorSpec) or spec.name is not None:
        return spec
    return tf.TensorSpec(spec.shape, spec.dtype, f"{argument}_{index}" if index else argument)
