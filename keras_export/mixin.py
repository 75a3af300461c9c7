"""Models with an `.export()` of their own.

In: Keras models, or the wish to define one. Out: the same models, which remember how they are
called and export themselves. The invariant: nothing is known here of how a SavedModel is made,
and Keras's classes stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import keras

from keras_export import exporter, keras_models, recorded_calls
from keras_export import tf_internals as tfi
from keras_export.errors import ArgumentTypeError, failure
from keras_export.reports import ExportReport

_ModelT = TypeVar("_ModelT")
_SAVED_MODEL = "tf_saved_model"
_PACKAGE = "keras_export"


class ExportMixin:
    """Gives a Keras model class `.export()`, and remembers the arguments of its calls.

    Put it before the Keras class: `class Classifier(ExportMixin, keras.Model)`.

    Example:
        >>> import tempfile, keras, tensorflow as tf, keras_export as ke
        >>> class Doubler(ke.ExportMixin, keras.Model):
        ...     def call(self, counts):
        ...         return counts * 2
        >>> model = Doubler()
        >>> _ = model(tf.constant([[1, 2]]))
        >>> print(model.export(tempfile.mkdtemp()).signatures["serve"])
        (counts: int32[?, 2]) -> (output_0: int32[?, 2])
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        results = super().__call__(*args, **kwargs)  # type: ignore[misc]
        recorded_calls.record_call(self, args, kwargs)
        return results

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = _SAVED_MODEL,
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> ExportReport | None:
        """Exports the model; the parameters are those of `keras.Model.export`.

        Args:
            filepath: where to write.
            format: `"tf_saved_model"` is written by keras_export; every other format by Keras.
            verbose: print the report.
            input_signature: specs of the arguments, as in `keras_export.export`.
            **kwargs: for a SavedModel, further keywords of `keras_export.export`; otherwise what
                Keras takes for the format.

        Returns:
            The report of a SavedModel; None for other formats.

        Raises:
            ExportError: as in `keras_export.export`.
        """
        if format != _SAVED_MODEL:
            return super().export(  # type: ignore[misc]
                filepath, format=format, verbose=verbose, input_signature=input_signature, **kwargs
            )
        report = exporter.export(self, filepath, input_signature=input_signature, **kwargs)
        if verbose:
            print(report)
        return report


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Model(ExportMixin, keras.Model):
    """`keras.Model` with `ExportMixin`: for subclasses, and for `Model(inputs, outputs)`.

    Example:
        >>> import tempfile, keras, keras_export as ke
        >>> x = keras.Input((4,), name="x")
        >>> model = ke.Model(x, keras.layers.Dense(5, name="out")(x))
        >>> print(model.export(tempfile.mkdtemp()).signatures["serve"])
        (x: float32[?, 4]) -> (out: float32[?, 5])
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is Model and _is_functional_call(args, kwargs):
            return FunctionalModel.__new__(FunctionalModel, *args, **kwargs)
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if _is_functional_call(args, kwargs) and not isinstance(self, _Functional):
            # Keras would rewrite the bases of every class on the way up, this one included.
            _become_functional(type(self))
            _Functional.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)


_Functional: Any = tfi.keras_functional_class()


@keras.saving.register_keras_serializable(package=_PACKAGE)
class FunctionalModel(Model, _Functional):
    """What `Model(inputs, outputs)` makes."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return _Functional.__new__(cls, *args, **kwargs)

    # Keras writes the layers into a config only of classes with this very constructor.
    __init__ = _Functional.__init__


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Sequential(ExportMixin, keras.Sequential):
    """`keras.Sequential` with `ExportMixin`.

    Example:
        >>> import tempfile, keras, keras_export as ke
        >>> model = ke.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1, name="y")])
        >>> print(model.export(tempfile.mkdtemp()).signatures["serve"])
        (x: float32[?, 3]) -> (y: float32[?, 1])
    """


def with_export(model: _ModelT) -> _ModelT:
    """Gives a model that exists already `.export()`, and lets it remember its calls.

    Args:
        model: a Keras model or layer; it is changed and stays of its class.

    Returns:
        The same model.

    Raises:
        ArgumentTypeError: it is no Keras model or layer.

    Example:
        >>> import tempfile, keras, keras_export as ke
        >>> model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1, name="y")])
        >>> print(ke.with_export(model).export(tempfile.mkdtemp()).signatures["serve"])
        (x: float32[?, 3]) -> (y: float32[?, 1])
    """
    if not keras_models.is_keras_model(model):
        raise ArgumentTypeError(
            failure("add .export()", "a Keras model or layer", f"model={model!r}")
        )
    recorded_calls.start_recording(model)
    # Into the instance's dict: Keras would track an attribute that is assigned.
    vars(model)["export"] = _bound_export(model)
    return model


def _bound_export(model: Any) -> Callable[..., ExportReport | None]:
    original = getattr(type(model), "export", None)

    def export(
        filepath: str | os.PathLike[str],
        format: str = _SAVED_MODEL,
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> ExportReport | None:
        if format != _SAVED_MODEL and original is not None:
            kwargs.update(format=format, verbose=verbose, input_signature=input_signature)
            return original(model, filepath, **kwargs)
        report = exporter.export(model, filepath, input_signature=input_signature, **kwargs)
        if verbose:
            print(report)
        return report

    export.__doc__ = ExportMixin.export.__doc__
    return export


def _is_functional_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return len(args) + len({"inputs", "outputs"} & kwargs.keys()) >= 2


def _become_functional(cls: type) -> None:
    """Puts `FunctionalModel` where `Model` stands among the bases of a subclass."""
    bases = []
    for base in cls.__bases__:
        if base is not Model and issubclass(base, Model) and not issubclass(base, FunctionalModel):
            _become_functional(base)
        bases.append(FunctionalModel if base is Model else base)
    cls.__bases__ = tuple(bases)
