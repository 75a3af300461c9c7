"""The exceptions of keras_export, each with how its message is built.

Every exception is an `ExportError` and also the builtin that a caller of TensorFlow or Keras
would expect at that place, so that `except ValueError` written for `tf.saved_model.save` goes on
working:

    ExportError
    ├── NotTrackableError        ValueError      the object cannot be exported at all
    ├── SignatureError           ValueError      `signatures=` or what a signature returns
    ├── ReservedNameError        ValueError      an attribute or key that the format keeps
    ├── ArgumentError            ValueError      any other argument
    ├── ArgumentTypeError        TypeError       an argument of the wrong type
    ├── UntrackedCaptureError    AssertionError, KeyError: a capture that is not tracked
    ├── UninitializedError       ValueError      a variable without a value
    ├── UnsupportedError         ValueError, NotImplementedError: what no SavedModel can hold
    ├── GradientError            ValueError      a custom gradient that cannot be saved
    ├── InsideFunctionError      AssertionError  called while a `tf.function` is traced
    ├── GraphModeError           RuntimeError    eager execution is off
    ├── IncompatibleError        ValueError      the target cannot load what would be exported
    ├── BackendError             RuntimeError    Keras runs on another backend
    ├── CheckpointError          RuntimeError    an export in the background of training
    ├── MissingAssetError        FileNotFoundError   an asset that is not there
    ├── InvocationError          RuntimeError    an artifact that TensorFlow cannot load or run
    ├── DamagedFileError         OSError         a file that cannot be read
    ├── UnsafeFileError          ValueError      a file that may not be read
    ├── ConversionError          ValueError      a model that cannot be converted
    └── TargetError              OSError         the directory to write to
"""

from __future__ import annotations


class ExportError(Exception):
    """Base of every error that keras_export raises on purpose."""

    # AutoGraph raises an error of traced code again under its own type only if it can tell that
    # the type is made from one message: by this very method.
    __init__ = Exception.__init__


class NotTrackableError(ExportError, ValueError):
    """The object to export is not a TensorFlow trackable."""


class SignatureError(ExportError, ValueError):
    """A signature breaks one of the rules of `signatures=`."""


class ReservedNameError(ExportError, ValueError):
    """A name that the SavedModel format keeps for itself is in use."""


class ArgumentError(ExportError, ValueError):
    """An argument has a value that cannot be used."""


class ArgumentTypeError(ExportError, TypeError):
    """An argument has a type that cannot be used."""


class UntrackedCaptureError(ExportError, AssertionError, KeyError):
    """A function uses a variable, table or asset that the exported object does not track.

    TensorFlow raises `AssertionError` at some places and `KeyError` at others; this is both.
    """

    __str__ = Exception.__str__  # KeyError shows the repr of its message


class UninitializedError(ExportError, ValueError):
    """A variable has no value yet."""


class UnsupportedError(ExportError, ValueError, NotImplementedError):
    """The object holds something that a SavedModel cannot hold, or that is not supported yet.

    TensorFlow raises `ValueError` at some places and `NotImplementedError` at others.
    """


class GradientError(ExportError, ValueError):
    """A custom gradient cannot be saved."""


class InsideFunctionError(ExportError, AssertionError):
    """The call was made while a `tf.function` was being traced."""


class GraphModeError(ExportError, RuntimeError):
    """The call was made without eager execution."""


class IncompatibleError(ExportError, ValueError):
    """The consumer that the caller named as `target` cannot load the artifact."""


class BackendError(ExportError, RuntimeError):
    """Keras runs on another backend than TensorFlow."""


class CheckpointError(ExportError, RuntimeError):
    """An export of a model in training failed; the cause says why.

    Keras raises again `from None` what leaves `fit`; the cause is kept nevertheless.
    """

    def __init__(self, message: str, cause: BaseException | None = None) -> None:
        super().__init__(message)
        self._cause = cause

    @property
    def __cause__(self) -> BaseException | None:  # type: ignore[override]
        return self._cause


class MissingAssetError(ExportError, FileNotFoundError):
    """An asset file does not exist or cannot be read."""

    __init__ = FileNotFoundError.__init__


class InvocationError(ExportError, RuntimeError):
    """TensorFlow could not load an artifact, or not run it on what it was given."""


class DamagedFileError(ExportError, OSError):
    """A file cannot be read: it is damaged, or is not what its name says."""

    __init__ = OSError.__init__


class UnsafeFileError(ExportError, ValueError):
    """A file holds what could run code, read other files, or exhaust the machine."""


class ConversionError(ExportError, ValueError):
    """A file's model or its weights have a part that cannot be converted; all are named."""


class TargetError(ExportError, OSError):
    """The target directory cannot be written."""

    __init__ = OSError.__init__


def failure(what: str, expected: str, received: str, mend: str = "") -> str:
    """Builds a message in the house's form.

    Args:
        what: the action that failed with the path of its object, `export model.encoder.table`.
        expected: what should have been there.
        received: what was there, as `name=value` where it has a name.
        mend: one sentence that says what to write instead.

    Returns:
        `Cannot <what>: expected <expected>, received <received>. <mend>`
    """
    message = f"Cannot {what}: expected {expected}, received {received}."
    return f"{message} {mend}" if mend else message
