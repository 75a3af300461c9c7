"""What the user asks for, and what of it is refused before anything is looked at.

In: the arguments of `save` and `export`. Out: an `ExportRequest`. The invariant: what passes here
can be walked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from keras_export import functions
from keras_export import tf_internals as tfi
from keras_export.errors import (
    ArgumentTypeError,
    GraphModeError,
    InsideFunctionError,
    NotTrackableError,
    UnsupportedError,
    failure,
)


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


def checked_options(options: Any) -> Any:
    """The options, or TensorFlow's defaults; raises an ArgumentTypeError for anything else."""
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


def refuse_unsaveable(given: Any) -> None:
    """Refuses a trace that says of itself that it cannot be saved, whatever else is wrong."""
    for key, function in (given if isinstance(given, Mapping) else {"": given}).items():
        if isinstance(function, tfi.ConcreteFunction):
            functions.refuse_unsaveable(function, f"the signature {key!r}" if key else "signatures")


def refuse_context() -> None:
    """Refuses where no values can be read.

    Raises:
        InsideFunctionError: a `tf.function` is being traced.
        GraphModeError: there is no eager execution, and no session.
        UnsupportedError: a `keras.StatelessScope` gives variables other values.
    """
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
    if tfi.keras_replaces_values():
        raise UnsupportedError(
            "Cannot export inside a keras.StatelessScope with a state_mapping: its values would be "
            "constants in the graph beside variables with others. Assign them to the variables, "
            "and export outside of the scope."
        )


def refuse_untrackable(obj: Any) -> None:
    """Raises a NotTrackableError for what TensorFlow does not track."""
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
