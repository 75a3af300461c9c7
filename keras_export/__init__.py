"""Exports Keras 3 models and TensorFlow trackables as SavedModels.

Importing this package is light: TensorFlow is imported with the first use of a name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keras_export.errors import ConversionError as ConversionError
from keras_export.errors import DamagedFileError as DamagedFileError
from keras_export.errors import ExportError as ExportError
from keras_export.errors import UnsafeFileError as UnsafeFileError

if TYPE_CHECKING:
    from keras_export.archive import ExportArchive as ExportArchive
    from keras_export.attributes import StrippedAttributes as StrippedAttributes
    from keras_export.attributes import strip_default_attributes as strip_default_attributes
    from keras_export.callbacks import SavedModelCheckpoint as SavedModelCheckpoint
    from keras_export.comparison import LayerChange as LayerChange
    from keras_export.comparison import SavedModelDiff as SavedModelDiff
    from keras_export.comparison import VariableChange as VariableChange
    from keras_export.comparison import diff as diff
    from keras_export.compatibility import CompatibilityReport as CompatibilityReport
    from keras_export.compatibility import check as check
    from keras_export.conversion import convert as convert
    from keras_export.endpoints import Endpoint as Endpoint
    from keras_export.endpoints import from_examples as from_examples
    from keras_export.endpoints import from_image_bytes as from_image_bytes
    from keras_export.endpoints import from_text as from_text
    from keras_export.endpoints import with_top_classes as with_top_classes
    from keras_export.exporter import Exporter as Exporter
    from keras_export.exporter import Snapshot as Snapshot
    from keras_export.exporter import export as export
    from keras_export.exporter import save as save
    from keras_export.inspection import SavedModelInfo as SavedModelInfo
    from keras_export.inspection import inspect as inspect
    from keras_export.mixin import ExportMixin as ExportMixin
    from keras_export.mixin import Model as Model
    from keras_export.mixin import Sequential as Sequential
    from keras_export.mixin import with_export as with_export
    from keras_export.reports import ExportReport as ExportReport
    from keras_export.reports import Signature as Signature
    from keras_export.reweighting import WeightsReport as WeightsReport
    from keras_export.reweighting import extract_weights as extract_weights
    from keras_export.reweighting import reweight as reweight
    from keras_export.trainings import TrainingReport as TrainingReport
    from keras_export.verification import Problem as Problem
    from keras_export.verification import VerificationReport as VerificationReport
    from keras_export.verification import verify as verify

__version__ = "0.1.0"

# Public name -> module that defines it; imported on first use (PEP 562).
_HOMES = {
    "CompatibilityReport": "keras_export.compatibility",
    "Endpoint": "keras_export.endpoints",
    "ExportArchive": "keras_export.archive",
    "ExportMixin": "keras_export.mixin",
    "ExportReport": "keras_export.reports",
    "Exporter": "keras_export.exporter",
    "LayerChange": "keras_export.comparison",
    "Model": "keras_export.mixin",
    "Problem": "keras_export.verification",
    "SavedModelCheckpoint": "keras_export.callbacks",
    "SavedModelDiff": "keras_export.comparison",
    "SavedModelInfo": "keras_export.inspection",
    "Sequential": "keras_export.mixin",
    "Signature": "keras_export.reports",
    "Snapshot": "keras_export.exporter",
    "StrippedAttributes": "keras_export.attributes",
    "TrainingReport": "keras_export.trainings",
    "VariableChange": "keras_export.comparison",
    "VerificationReport": "keras_export.verification",
    "WeightsReport": "keras_export.reweighting",
    "check": "keras_export.compatibility",
    "convert": "keras_export.conversion",
    "diff": "keras_export.comparison",
    "export": "keras_export.exporter",
    "extract_weights": "keras_export.reweighting",
    "from_examples": "keras_export.endpoints",
    "from_image_bytes": "keras_export.endpoints",
    "from_text": "keras_export.endpoints",
    "inspect": "keras_export.inspection",
    "reweight": "keras_export.reweighting",
    "save": "keras_export.exporter",
    "strip_default_attributes": "keras_export.attributes",
    "verify": "keras_export.verification",
    "with_export": "keras_export.mixin",
    "with_top_classes": "keras_export.endpoints",
}

_ERRORS = ["ConversionError", "DamagedFileError", "ExportError", "UnsafeFileError"]

__all__ = ["SaveOptions", "__version__", *_ERRORS, *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "SaveOptions":
        import tensorflow as tf

        return tf.saved_model.SaveOptions
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
