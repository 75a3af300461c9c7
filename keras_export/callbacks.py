"""`SavedModelCheckpoint`: a servable version at each moment that `ModelCheckpoint` would save at.

In: the events of `fit` with their logs. Out: published SavedModels, an `ExportReport` for each.
The invariant: a model is traced once however often it is exported, whatever stands at a path is
complete, and a model that was to be ranked and cannot be is not exported.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import math
import numbers
import os
import re
import string
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import keras
import tensorflow as tf
from rich.console import Console
from rich.text import Text

from keras_export import keras_models, publishing
from keras_export import tf_internals as tfi
from keras_export.errors import ArgumentError, ArgumentTypeError, TargetError, failure
from keras_export.exporter import Exporter, Snapshot
from keras_export.reports import ExportReport

_MONITOR = "val_loss"
_MODES = ("auto", "min", "max")
_ATTEMPTS = 10  # how often others may take a version number between our look and our rename
_MAX_VERSION = 2**63 - 1  # TensorFlow Serving reads version numbers as int64

# Words in the names of metrics that nobody compiled, such as those of a custom training step.
_RISING = re.compile(
    ".*accuracy|acc|auc|auroc|auprc|precision|recall|sensitivity|specificity|f1|fbeta|fscore|iou|"
    "dice|r2|bleu|rouge|ndcg|mrr|map|psnr|ssim|similarity|correlation|kappa|mcc"
)
_FALLING = re.compile(
    ".*loss|.*error|err|mse|mae|mape|msle|rmse|rmsle|crossentropy|divergence|perplexity|nll|hinge|"
    "logcosh|distance|wer|cer|fid|brier"
)


class MissingMetricWarning(UserWarning):
    """The logs lack the metric that a callback was told to monitor."""


class SavedModelCheckpoint(keras.callbacks.Callback):
    """Exports the model in training as a SavedModel, at each epoch or every few batches.

    The arguments that `keras.callbacks.ModelCheckpoint` has too mean what they mean there. The
    model is traced at the first export; the later ones write the weights of their moment. Each
    artifact appears complete or not at all. It holds the model in inference mode, without its
    optimizer. One object may serve several `fit`s: the best value, the count of batches and the
    reports go on.

    Args:
        filepath: the path of the artifacts; local, or any scheme of `tf.io.gfile`. It may have
            the placeholders `{epoch}` and `{batch}`, counted from 1, `{version}`, and the name of
            any log value, each with a format (`{epoch:02d}`). `{version}` is an integer above
            those that stand in its folder and those given out before; `{batch}` needs an integer
            `save_freq`. A path that is there already is replaced in one step, but never a
            numbered version.
        monitor: name of the log value that says which model is better.
        verbose: 1 prints a line for each export, 0 nothing.
        save_best_only: export only what is better than all before. NaN never is; without the
            monitored value nothing is exported. Batches have no validation metrics.
        save_weights_only: stands here to keep the order of the arguments; must be False.
        mode: `"min"` or `"max"`; `"auto"` asks the compiled metrics, then the name.
        save_freq: `"epoch"`, or after how many batches to export, counted across epochs. With
            `steps_per_execution` it is looked at after each execution.
        initial_value_threshold: with `save_best_only`, the value that the first must beat.
        signatures: as in `keras_export.export`, like the following.
        input_signature: as in `keras_export.export`.
        names: as in `keras_export.export`.
        output_names: as in `keras_export.export`.
        include_optimizer: as in `keras_export.export`.
        state_updates: as in `keras_export.export`.
        options: `tf.saved_model.SaveOptions`.
        on_export: called with the report of each export after it is published. What it raises
            ends the training.

    Attributes:
        best: the best monitored value so far, or `initial_value_threshold`; kept for
            `save_best_only` alone.
        reports: an `ExportReport` for each export, with `epoch`, `batch`, `version`, `logs` and
            `stall_seconds`.

    Raises:
        ArgumentError, ArgumentTypeError: an argument cannot be used. In `fit`: a placeholder
            names what the logs lack, or `mode="auto"` does not know the metric.
        ExportError: in `fit`, as in `keras_export.export`; earlier exports stay as they are.

    Example:
        >>> import os, tempfile, keras, numpy as np, keras_export as ke
        >>> model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> folder = tempfile.mkdtemp()
        >>> checkpoint = ke.SavedModelCheckpoint(os.path.join(folder, "{version}"))
        >>> _ = model.fit(np.ones((4, 3)), np.ones(4), epochs=2, verbose=0, callbacks=[checkpoint])
        >>> sorted(os.listdir(folder))
        ['1', '2']
        >>> [report.epoch for report in checkpoint.reports]
        [1, 2]
    """

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = _MONITOR,
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: Literal["auto", "min", "max"] = "auto",
        save_freq: Literal["epoch"] | int = "epoch",
        initial_value_threshold: float | None = None,
        *,
        signatures: Any = None,
        input_signature: Any = None,
        names: Literal["layers", "keras"] = "layers",
        output_names: Sequence[str] | Mapping[str, str] | None = None,
        include_optimizer: bool = False,
        state_updates: Literal["report", "refuse"] = "report",
        options: tf.saved_model.SaveOptions | None = None,
        on_export: Callable[[ExportReport], object] | None = None,
    ):
        super().__init__()
        _refuse_weights_only(save_weights_only)
        _check_on_export(on_export)
        self.save_freq = _checked_frequency(save_freq)
        self._template = _Template(filepath, with_batch=self.save_freq != "epoch")
        self._ranking = _Ranking(monitor, mode, initial_value_threshold)
        self.filepath = self._template.text
        self.monitor = monitor
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.reports: list[ExportReport] = []
        self._export_options: dict[str, Any] = {
            "signatures": signatures,
            "options": options,
            "input_signature": input_signature,
            "names": names,
            "output_names": output_names,
            "include_optimizer": include_optimizer,
            "state_updates": state_updates,
        }
        self._on_export = on_export
        self._batches = _BatchCount()
        self._exporter: Exporter | None = None
        self._exporter_model: Any = None
        self._recorded_model: Any = None
        self._epoch = 0
        self._last_version = 0
        self._warned = False

    @property
    def best(self) -> float | None:
        return self._ranking.best

    def set_model(self, model: Any) -> None:
        if model is not self._exporter_model:
            self._exporter = self._exporter_model = None
        super().set_model(model)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._warned = False
        publishing.check_target(self._template.fixed_folder)
        self._start_recording()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._recorded_model is not None:
            keras_models.stop_recording(self._recorded_model)
            self._recorded_model = None

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._batches.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self.save_freq == "epoch":
            return
        before = self._batches.total
        self._batches.advance(batch, (self.params or {}).get("steps"))
        if self._batches.total // self.save_freq > before // self.save_freq:
            self._save(self._epoch + 1, self._batches.in_epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self.save_freq == "epoch":
            self._save(epoch + 1, None, logs)

    def _save(self, epoch: int, batch: int | None, logs: Mapping[str, Any] | None) -> None:
        started = time.perf_counter()
        metrics = _as_floats(logs or {})
        if not self._wanted(metrics):
            return
        counts = {"epoch": epoch} if batch is None else {"epoch": epoch, "batch": batch}
        report = self._write(self._snapshot(), {**metrics, **counts})
        report = dataclasses.replace(
            report,
            epoch=epoch,
            batch=batch,
            logs=metrics,
            stall_seconds=time.perf_counter() - started,
        )
        self._published(report)

    def _wanted(self, metrics: Mapping[str, float]) -> bool:
        value = metrics.get(self.monitor)
        # Who only ever took the default did not ask for the metric.
        if value is None and (self.save_best_only or self.monitor != _MONITOR):
            self._warn_of_missing(metrics)
        if not self.save_best_only:
            return True
        return value is not None and self._ranking.is_better(value, self.model)

    def _warn_of_missing(self, metrics: Mapping[str, float]) -> None:
        if self._warned:
            return
        self._warned = True
        effect = "; nothing is exported where it is missing" if self.save_best_only else ""
        warnings.warn(
            f"SavedModelCheckpoint monitors {self.monitor!r}, which the logs "
            f"{self._moment} lack{effect}. They have: {_listed(metrics)}.",
            MissingMetricWarning,
            stacklevel=2,
        )

    @property
    def _moment(self) -> str:
        return "at the end of an epoch" if self.save_freq == "epoch" else "at the end of a batch"

    def _start_recording(self) -> None:
        """Lets a model without symbolic inputs remember what it is called with, for its export."""
        has_inputs = isinstance(self.model, (keras.Sequential, tfi.keras_functional_class()))
        # One that records already, as `with_export` arranged, goes on after the training.
        if not has_inputs and not getattr(self.model.call, "_records_calls", False):
            keras_models.start_recording(self.model)
            self._recorded_model = self.model

    def _snapshot(self) -> Snapshot:
        if self._exporter is None:
            self._exporter = Exporter(self.model, **self._export_options)
            self._exporter_model = self.model
        return self._exporter.snapshot()

    def _write(self, snapshot: Snapshot, values: Mapping[str, float]) -> ExportReport:
        if not self._template.is_numbered:
            return snapshot.write(self._template.filled(values))
        return self._write_version(snapshot, values, _ATTEMPTS)

    def _write_version(
        self, snapshot: Snapshot, values: Mapping[str, float], attempts: int
    ) -> ExportReport:
        version = 1 + max(self._last_version, *self._template.versions(values), 0)
        self._last_version = version
        path = self._template.filled({**values, "version": version})
        try:
            return dataclasses.replace(snapshot.write(path, exclusive=True), version=version)
        except TargetError as error:
            if error.errno != errno.EEXIST or attempts == 1:
                raise
        return self._write_version(snapshot, values, attempts - 1)

    def _published(self, report: ExportReport) -> None:
        """Takes note of an export that readers can see now."""
        if self.verbose:
            self._print(
                f"Epoch {report.epoch}{self._batch_text(report)}: "
                f"{self._reason(report)}exported {report.export_dir}"
            )
        if self.save_best_only:
            self._ranking.best = report.logs[self.monitor]
        self.reports.append(report)
        if self._on_export is not None:
            self._on_export(report)

    def _batch_text(self, report: ExportReport) -> str:
        return "" if report.batch is None else f", batch {report.batch}"

    def _reason(self, report: ExportReport) -> str:
        value = report.logs.get(self.monitor)
        if value is None:
            return ""
        if not self.save_best_only:
            return f"{self.monitor} is {value:.5f}, "
        since = "" if self.best is None else f"from {self.best:.5f} "
        return f"{self.monitor} improved {since}to {value:.5f}, "

    def _print(self, line: str) -> None:
        if (self.params or {}).get("verbose") == 1:
            print()  # the progress bar has not ended its line
        console = Console(soft_wrap=True)
        if console.is_terminal:
            console.print(Text(line, style="green"))
        else:
            print(line, flush=True)


class _BatchCount:
    """Counts batches of training, over all epochs and in the present one."""

    def __init__(self) -> None:
        self.total = self.in_epoch = 0

    def begin_epoch(self) -> None:
        self.in_epoch = 0

    def advance(self, batch: int, steps: int | None) -> None:
        """Goes on to the end of the batch with the index `batch`, of `steps` if that is known."""
        # With steps_per_execution, Keras numbers the last execution as if it were a full one.
        ended = min(batch + 1, steps or batch + 1)
        if ended <= self.in_epoch:  # a training loop that does not announce its epochs
            self.in_epoch = 0
        self.total += ended - self.in_epoch
        self.in_epoch = ended


# -- which model is better -------------------------------------------------------------------------


class _Ranking:
    """Compares values of the monitored metric with the best so far."""

    def __init__(self, monitor: str, mode: str, best: float | None) -> None:
        if not isinstance(monitor, str):
            raise _wrong_type("the name of a metric", f"monitor={monitor!r}")
        if mode not in _MODES:
            raise _wrong("mode 'auto', 'min' or 'max'", f"mode={mode!r}")
        self._monitor, self._mode = monitor, mode
        self.best = _checked_threshold(best)

    def is_better(self, value: float, model: Any) -> bool:
        rising = self._is_rising(model)
        if math.isnan(value):
            return False
        return self.best is None or (value > self.best if rising else value < self.best)

    def _is_rising(self, model: Any) -> bool:
        if self._mode == "auto":
            # Not earlier: the metrics of a model are built in its first step of training.
            self._mode = _inferred_mode(self._monitor, model)
        return self._mode == "max"


def _inferred_mode(monitor: str, model: Any) -> str:
    name = monitor.removeprefix("val_")
    mode = _compiled_mode(name, model) or _mode_by_name(name)
    if mode is None:
        raise ArgumentError(
            failure(
                "rank models",
                "a metric whose better direction is known",
                f"monitor={monitor!r}, mode='auto'",
                "Pass mode='max' if more is better, or mode='min' if less is.",
            )
        )
    return mode


def _compiled_mode(name: str, model: Any) -> str | None:
    """The direction that a metric of the model declares, if one of that name does."""
    found = {metric.name: metric for metric in _metrics_of(model) if _direction_of(metric)}
    # A model with several outputs logs `<output>_<metric>`.
    fitting = [known for known in found if name == known or name.endswith(f"_{known}")]
    if not fitting:
        return None
    return "max" if _direction_of(found[max(fitting, key=len)]) == "up" else "min"


def _metrics_of(model: Any) -> Iterator[Any]:
    for metric in getattr(model, "metrics", ()):
        yield from getattr(metric, "metrics", ())  # what `compile` was given, in one container
        yield metric


def _direction_of(metric: Any) -> str | None:
    # Private, but no public attribute tells it; a release without it leaves us the names.
    return getattr(metric, "_direction", None)


def _mode_by_name(name: str) -> str | None:
    words = re.split(r"[^a-z0-9]+", name.lower().replace("io_u", "iou"))
    for word in reversed(words):  # the dice_loss is a loss
        if _FALLING.fullmatch(word):
            return "min"
        if _RISING.fullmatch(word):
            return "max"
    return None


# -- paths -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Placeholder:
    """A placeholder of a path."""

    name: str
    spec: str
    conversion: str | None

    def __str__(self) -> str:
        conversion = f"!{self.conversion}" if self.conversion else ""
        return f"{{{self.name}{conversion}{self.spec and ':'}{self.spec}}}"

    def filled(self, value: float) -> str:
        return format(string.Formatter().convert_field(value, self.conversion), self.spec)


class _Template:
    """A path with placeholders.

    Attributes:
        text: as it was given.
        is_numbered: whether it has `{version}`.
    """

    def __init__(self, filepath: str | os.PathLike[str], *, with_batch: bool) -> None:
        try:
            self.text = os.fsdecode(filepath)
        except TypeError as error:
            raise _wrong_type("a str or os.PathLike", f"filepath={filepath!r}") from error
        self._parts = tuple(_parsed(self.text))
        placeholders = [part for part in self._parts if isinstance(part, _Placeholder)]
        for placeholder in placeholders:
            _check_placeholder(placeholder, self.text, with_batch)
        self.is_numbered = any(placeholder.name == "version" for placeholder in placeholders)

    @property
    def fixed_folder(self) -> str:
        """What is above the first placeholder; the path itself where there is none."""
        literals = list(itertools.takewhile(lambda part: isinstance(part, str), self._parts))
        head = "".join(map(str, literals))
        return head if len(literals) == len(self._parts) else _folder_of(head)

    def filled(self, values: Mapping[str, float]) -> str:
        """The path for the values of a moment.

        Raises:
            ArgumentError: a placeholder has no value.
        """
        return self._joined(lambda placeholder: self._value(placeholder, values))

    def versions(self, values: Mapping[str, float]) -> list[int]:
        """The version numbers that are taken in the folder of `{version}`."""
        path = self._joined(lambda x: "\0" if x.name == "version" else self._value(x, values))
        folder = _folder_of(path.partition("\0")[0])
        matches = map(self._version_pattern.fullmatch, _names_in(folder))
        found = [int(match[1]) for match in matches if match]
        return [number for number in found if number < _MAX_VERSION]

    @property
    def _version_pattern(self) -> re.Pattern[str]:
        shape = self._joined(lambda x: "\0" if x.name == "version" else "\1")
        component = next(part for part in shape.split("/") if "\0" in part)
        if component == "\0":  # as TensorFlow Serving reads names: ` 5` and `+5` are versions
            return re.compile(r"\s*\+?([0-9]+)\s*")
        pattern = re.escape(component).replace("\1", ".*").replace("\0", "([0-9]+)", 1)
        return re.compile(pattern.replace("\0", "[0-9]+"))

    def _joined(self, text_of: Callable[[_Placeholder], str]) -> str:
        return "".join(
            text_of(part) if isinstance(part, _Placeholder) else part for part in self._parts
        )

    def _value(self, placeholder: _Placeholder, values: Mapping[str, float]) -> str:
        if placeholder.name not in values:
            raise ArgumentError(
                failure(
                    f"fill in filepath={self.text!r}",
                    f"the name of a value that there is ({_listed(values)})",
                    str(placeholder),
                    "Metrics of validation need validation data, and the end of a batch has none.",
                )
            )
        return placeholder.filled(values[placeholder.name])


def _parsed(text: str) -> Iterator[str | _Placeholder]:
    try:
        for literal, name, spec, conversion in string.Formatter().parse(text):
            if literal:
                yield literal
            if name is not None:
                yield _Placeholder(name, spec or "", conversion)
    except ValueError as error:
        expected = "placeholders like {epoch}, with {{ and }} for braces"
        raise _wrong(expected, f"filepath={text!r} ({error})") from error


def _check_placeholder(placeholder: _Placeholder, text: str, with_batch: bool) -> None:
    received = f"{placeholder} in filepath={text!r}"
    if not placeholder.name or placeholder.name.isdigit():
        raise _wrong("the name of a value in each placeholder", received)
    if placeholder.name == "batch" and not with_batch:
        raise _wrong("{batch} only with an integer save_freq", received)
    is_count = placeholder.name in ("epoch", "batch", "version")
    try:
        filled = placeholder.filled(12345 if is_count else 0.5)
    except ValueError as error:
        kind = "an integer" if is_count else "a float"
        raise _wrong(f"a format for {kind}", f"{received} ({error})") from error
    if placeholder.name == "version" and filled.lstrip("0") != "12345":
        raise _wrong("a format that gives digits alone", received)
    if "/" in filled:
        raise _wrong("a format that gives a part of a name", received)


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")


def _names_in(folder: str) -> list[str]:
    # A folder that may not be listed: to write exclusively finds a number that is taken, too.
    with suppress(tf.errors.OpError):
        return [name.rstrip("/") for name in tf.io.gfile.listdir(folder)]
    return []


# -- arguments -------------------------------------------------------------------------------------


def _refuse_weights_only(save_weights_only: bool) -> None:
    if save_weights_only:
        raise _wrong(
            "save_weights_only=False",
            f"save_weights_only={save_weights_only!r}",
            "A SavedModel holds the graph as well; keras.callbacks.ModelCheckpoint writes weights.",
        )


def _check_on_export(on_export: Any) -> None:
    if on_export is not None and not callable(on_export):
        raise _wrong_type("a function of a report", f"on_export={on_export!r}")


def _checked_frequency(save_freq: Any) -> Any:
    if save_freq == "epoch":
        return save_freq
    is_integer = isinstance(save_freq, numbers.Integral) and not isinstance(save_freq, bool)
    if not is_integer or save_freq < 1:
        raise _wrong("'epoch' or a positive number of batches", f"save_freq={save_freq!r}")
    return int(save_freq)


def _checked_threshold(value: Any) -> float | None:
    if value is None:
        return None
    try:
        threshold = float(value)
    except (TypeError, ValueError) as error:
        raise _wrong_type("a number", f"initial_value_threshold={value!r}") from error
    if math.isnan(threshold):
        raise _wrong("a number that can be beaten", f"initial_value_threshold={value!r}")
    return threshold


def _wrong(expected: str, received: str, mend: str = "") -> ArgumentError:
    return ArgumentError(failure("set up SavedModelCheckpoint", expected, received, mend))


def _wrong_type(expected: str, received: str) -> ArgumentTypeError:
    return ArgumentTypeError(failure("set up SavedModelCheckpoint", expected, received))


def _as_floats(logs: Mapping[str, Any]) -> dict[str, float]:
    """The log values that are single numbers."""
    metrics = {}
    for name, value in logs.items():
        with suppress(TypeError, ValueError):
            metrics[name] = float(value)
    return metrics


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(sorted(values)) or "nothing"
