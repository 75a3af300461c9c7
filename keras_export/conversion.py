"""`convert`: from a file of Keras to a SavedModel.

In: a `.keras` archive, an HDF5 file, or an architecture with weights, made by anybody. Out: the
`ExportReport` of its SavedModel. The invariant: the file was looked through and its configuration
checked before Keras makes anything of it, and nothing but the SavedModel is left behind.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import keras
import tensorflow as tf

from keras_export import configurations, targets, untrusted
from keras_export.errors import (
    ArgumentError,
    ConversionError,
    ExportError,
    UnsafeFileError,
    failure,
)
from keras_export.exporter import export
from keras_export.hdf5 import stored_layers, stored_variables
from keras_export.layouts import Origin
from keras_export.reports import ExportReport
from keras_export.revival import Reviver
from keras_export.sources import MEGABYTE, SourceFile, refuse
from keras_export.upgrades import LEGACY_CLASSES

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
Progress = Callable[[str, int, int], None]
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
# What a model may hold beside what its file stores: counters, seeds, constants of layers.
_SLACK_BYTES = 64 * MEGABYTE
_MAX_UNROLLED_STEPS = 10_000


def convert(
    source: str | os.PathLike[str],
    export_dir: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
    input_signature: Any = None,
    names: Literal["layers", "keras"] = "layers",
    output_names: Sequence[str] | Mapping[str, str] | None = None,
    options: tf.saved_model.SaveOptions | None = None,
    on_progress: Progress | None = None,
) -> ExportReport:
    """Converts a file of Keras into a SavedModel.

    What the file is, its content says, not its name. It may come from anybody: before any object
    of Keras is made, the file and its configuration are searched for what could run code, read
    other files or exhaust the machine.

    Args:
        source: a `.keras` archive or a whole model in HDF5; or an architecture for `weights`: a
            configuration in JSON, or `"package.module:factory"`, which is imported and called.
        export_dir: as in `export`.
        weights: a `.weights.h5` or any other file above, of which only the weights are taken.
        custom_objects: classes and functions by the names that the file has for them; the
            functions of Lambda layers also by the names of these layers.
        safe_mode: False trusts the file, and lets it run code of its own.
        input_signature: as in `export`.
        names: as in `export`.
        output_names: as in `export`.
        options: as in `export`.
        on_progress: called with `read` and then `write`, bytes of weights done, and bytes in all.

    Returns:
        As `export`; the notes begin with what was done to the model.

    Raises:
        UnsafeFileError: the file is not to be trusted; the message names every layer and member.
        DamagedFileError: the file cannot be read.
        ConversionError: the model cannot be made of it.
        ExportError: as in `export`. Whatever is raised, nothing is left behind.

    Example:
        >>> import os, tempfile, keras, keras_export as ke
        >>> model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1, name="y")])
        >>> path = os.path.join(tempfile.mkdtemp(), "model.keras")
        >>> model.save(path)
        >>> print(ke.convert(path, tempfile.mkdtemp()).signatures["serve"])
        (x: float32[?, 3]) -> (y: float32[?, 1])
    """
    targets.check_target(export_dir)
    progress = on_progress or (lambda *_: None)
    with tempfile.TemporaryDirectory(prefix="keras_export-") as folder:
        revival = _Revival(folder, dict(custom_objects or {}), safe_mode, progress)
        model = revival.model(os.fspath(source), None if weights is None else os.fspath(weights))
    progress("read", revival.bytes_read, revival.bytes_read)
    size = sum(math.prod(x.shape) * tf.as_dtype(x.dtype).size for x in model.variables)
    progress("write", 0, size)
    if safe_mode:
        _check_loops(os.fspath(source), model)
    _check_vocabularies(os.fspath(source), model)
    with _naming(os.fspath(source)):
        report = export(
            model,
            export_dir,
            input_signature=input_signature,
            names=names,
            output_names=output_names,
            options=options,
        )
    progress("write", size, size)
    return dataclasses.replace(report, notes=[*revival.notes, *report.notes])


class _Revival:
    """Makes the model of a file."""

    def __init__(
        self, folder: str, custom: dict[str, Any], safe_mode: bool, progress: Progress
    ) -> None:
        self._folder, self._custom, self._safe_mode = folder, custom, safe_mode
        self._progress, self.bytes_read = progress, 0
        self.notes: list[str] = []

    def model(self, source: str, weights: str | None) -> Any:
        if _FACTORY.fullmatch(source) and not os.path.exists(source):
            model = _made_by(source)
            return self._with_weights(model, self._open(weights)) if weights else model
        opened = self._open(source)
        if opened.config is None:
            raise ArgumentError(
                failure(
                    f"convert {source}",
                    "the architecture of the model",
                    "its weights alone",
                    "Give a JSON configuration or 'package.module:factory' as the source, and this "
                    "file as weights.",
                )
            )
        given = self._open(weights) if weights is not None else None
        if given is None and opened.kind == "config":
            raise ArgumentError(
                failure(f"convert {source}", "its weights too", "weights=None", "Give their file.")
            )
        return self._revived(opened, given)

    def _open(self, path: str) -> SourceFile:
        if _REMOTE.match(path):
            local = os.path.join(tempfile.mkdtemp(dir=self._folder), os.path.basename(path))
            tf.io.gfile.copy(path, local)
            path = local
        folder = tempfile.mkdtemp(dir=self._folder)
        opened = untrusted.open_source(path, folder, self._safe_mode)
        if opened.weight_bytes:
            self.bytes_read = opened.weight_bytes
            self._progress("read", 0, self.bytes_read)
        return opened

    def _revived(self, source: SourceFile, weights: SourceFile | None) -> Any:
        legacy = _is_legacy(source)
        strip = configurations.in_old_form if legacy else configurations.without_training
        config = strip(source.config)
        if self._safe_mode:
            known = LEGACY_CLASSES if legacy else ()
            configurations.check(config, source.path, self._custom, known)
        if legacy:
            return self._upgraded(source, config, weights or source)
        if source.kind != "archive":
            config = configurations.qualified(config, self._custom)
        config, functions, notes = configurations.with_lambdas(config, self._custom)
        self.notes += notes
        custom = {**_with_registered_names(self._custom, config), **functions}
        stored = source.weight_bytes + (weights.weight_bytes if weights else 0)
        with self._loading(source, 2 * stored + _SLACK_BYTES):
            if source.kind == "archive" and weights is None:
                return self._from_archive(source, config, custom)
            model = self._from_config(config, custom)
        if weights is not None or source.weights:
            return self._with_weights(model, weights or source)
        return model

    def _upgraded(self, source: SourceFile, config: Any, weights: SourceFile) -> Any:
        """The model of an old Keras, with weights by layers or in the layout of Keras 3."""
        origin = _origin(source)
        reviver = Reviver(source.path, self._custom, origin)
        with self._loading(source, 2 * weights.weight_bytes + _SLACK_BYTES):
            model = reviver.model(config)
        self.notes += reviver.notes
        return self._with_weights(model, weights, reviver)

    def _from_archive(self, source: SourceFile, config: Any, custom: Mapping[str, Any]) -> Any:
        """Keras loads the folder that we unpacked, with the configuration that we checked."""
        folder = source.folder
        if folder == source.path:
            folder = tempfile.mkdtemp(dir=self._folder)
            for name in os.listdir(source.folder):
                os.symlink(os.path.abspath(os.path.join(source.folder, name)),
                           os.path.join(folder, name))  # fmt: skip
            os.unlink(os.path.join(folder, "config.json"))
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file)
        return keras.saving.load_model(
            folder, custom_objects=custom, compile=False, safe_mode=self._safe_mode
        )

    def _read(self, size: int) -> None:
        self._progress("read", min(size, self.bytes_read), self.bytes_read)

    def _from_config(self, config: Any, custom: Mapping[str, Any]) -> Any:
        return keras.saving.deserialize_keras_object(
            config, custom_objects=custom, safe_mode=self._safe_mode
        )

    def _with_weights(self, model: Any, weights: SourceFile, reviver: Reviver | None = None) -> Any:
        if weights.kind == "config":
            raise ArgumentError(
                failure(f"convert with {weights.path}", "a file of weights", "an architecture")
            )
        if _is_legacy(weights) and weights.kind in ("model", "layers"):
            reviver = reviver or Reviver(weights.path, self._custom, _origin(weights))
            with self._loading(weights, None):
                reviver.load(model, weights.weights, self._read)
            self.notes += [note for note in reviver.notes if note not in self.notes]
            return model
        if reviver is not None and weights.kind == "archive" and _is_legacy(weights):
            with self._loading(weights, None):
                reviver.load_archived(model, weights.weights, self._read)
            return model
        # Keras goes by the ending, the content has told better.
        ending = "weights.h5" if weights.kind in ("weights", "archive") else "h5"
        link = os.path.join(tempfile.mkdtemp(dir=self._folder), f"model.{ending}")
        os.symlink(os.path.abspath(weights.weights), link)
        with self._loading(weights, None):
            if not model.built and _is_empty(weights):
                return model
            if not model.built:
                raise ConversionError(
                    failure(
                        f"load {weights.path}",
                        "a model with variables",
                        "one that is not built",
                        "Let the factory call the model once, or give it an Input.",
                    )
                )
            model.load_weights(link)
        return model

    @contextmanager
    def _loading(self, source: SourceFile, most_bytes: int | None) -> Iterator[None]:
        """Names what Keras stumbled over, and notes what it warned of."""
        limit = _WeightLimit(source.path, most_bytes if self._safe_mode else None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with limit:
                    yield
            except ExportError:
                raise
            except Exception as error:
                limit.raise_if_exceeded(error)
                raise ConversionError(
                    f"Cannot make the model of {source.path}: {_shortened(error)}"
                ) from error
        self.notes += sorted({_shortened(x.message) for x in caught if _matters(x)})


class _WeightLimit:
    """Stops a configuration that asks for more weights than its file can fill (CVE-2026-0897).

    Layers are stopped where they ask for a weight, before there is one; only those that this
    thread makes.
    """

    _lock = threading.Lock()

    def __init__(self, path: str, most_bytes: int | None) -> None:
        self._path, self._most, self._asked = path, most_bytes, 0
        self._thread = threading.get_ident()
        self._refusal: UnsafeFileError | None = None
        self._original: Callable[..., Any] | None = None

    def __enter__(self) -> None:
        if self._most is None:
            return
        self._lock.acquire()
        original = self._original = keras.layers.Layer.add_weight

        def add_weight(layer: Any, shape: Any = None, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == self._thread:
                self._count(layer, shape)
            return original(layer, shape, *args, **kwargs)

        keras.layers.Layer.add_weight = add_weight

    def __exit__(self, *_: Any) -> None:
        if self._original is not None:
            keras.layers.Layer.add_weight = self._original
            self._lock.release()

    def _count(self, layer: Any, shape: Any) -> None:
        sizes = [shape] if isinstance(shape, int) else list(shape or ())
        self._asked += 4 * math.prod(int(size) for size in sizes if size is not None)
        if self._most is not None and self._asked > self._most:
            self._refusal = UnsafeFileError(
                f"Cannot trust {self._path}: layer {layer.name!r} asks for a weight of shape "
                f"{tuple(sizes)}, more than the file has weights for. Pass safe_mode=False if you "
                "trust who made it."
            )
            raise self._refusal

    def raise_if_exceeded(self, error: Exception) -> None:
        """Keras may have wrapped what was raised inside of it."""
        if self._refusal is not None:
            raise self._refusal from error


def _check_loops(source: str, model: Any) -> None:
    """Refuses a graph that would have a node for each of too many steps."""
    unrolled = [x for x in model._flatten_layers() if getattr(x, "unroll", False)]
    tensors = [x for layer in model.layers for x in _tensors_of(layer)] if unrolled else []
    longest = max((x.shape[1] or 0 for x in tensors if len(x.shape) > 2), default=0)
    if longest > _MAX_UNROLLED_STEPS:
        refuse(source, [f"layer {unrolled[0].name!r} is unrolled over {longest} steps"])


def _tensors_of(layer: Any) -> list[Any]:
    try:
        return [*keras.tree.flatten(layer.input), *keras.tree.flatten(layer.output)]
    except (AttributeError, ValueError):  # it was called often, or never
        return []


def _check_vocabularies(source: str, model: Any) -> None:
    """Refuses layers that cannot compute without what HDF5 keeps nothing of."""
    layers = [x for x in model._flatten_layers() if hasattr(x, "lookup_table")]
    without = [repr(x.name) for x in layers if int(x.lookup_table.size()) == 0]
    if without:
        raise ConversionError(
            f"Cannot convert {source}: the file has no vocabulary for {', '.join(without)}. HDF5 "
            "keeps those that were given to a layer, but none that it was adapted to. Save the "
            "model as .keras."
        )


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Names the file whose model cannot be called, whatever its layers raise."""
    try:
        yield
    except (ExportError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ConversionError(f"Cannot run the model of {source}: {_shortened(error)}") from error


def _is_empty(source: SourceFile) -> bool:
    """Whether it has no weights at all."""
    if source.kind in ("model", "layers"):
        with stored_layers(source.weights) as layers:
            return not any(layers.values())
    with stored_variables(source.weights) as variables:
        return not variables


def _is_legacy(source: SourceFile) -> bool:
    """Whether a Keras before 3 wrote it; those before 1.0 and some JSON do not say."""
    if source.keras_version:
        return Origin(source.keras_version).major < 3
    if isinstance(source.config, dict):
        return "module" not in source.config
    return source.kind == "layers"


def _origin(source: SourceFile) -> Origin:
    """JSON holds no attributes, but two keys beside the model's."""
    config = source.config if isinstance(source.config, dict) else {}
    version = source.keras_version or str(config.get("keras_version", ""))
    backend = source.backend or str(config.get("backend", ""))
    return Origin(version, backend or "tensorflow")


def _made_by(factory: str) -> Any:
    module, _, name = factory.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(
            failure(f"convert {factory}", "a function 'package.module:factory'", str(error))
        ) from error
    return found()


def _with_registered_names(custom: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Keras looks for `package>Name` where the caller may have given `Name`."""
    result = dict(custom)
    for name, registered in configurations.custom_names(config):
        if name in custom:
            result.setdefault(registered, custom[name])
        elif registered in custom:
            result.setdefault(name, custom[registered])
    return result


def _matters(warning: warnings.WarningMessage) -> bool:
    """Deprecations inside of Keras and TensorFlow are not the user's to mend."""
    return not issubclass(warning.category, DeprecationWarning | PendingDeprecationWarning)


def _shortened(error: Any) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 500 else f"{text[:500]} …"
