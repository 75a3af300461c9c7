"""`SavedModelCheckpoint`: a servable version at each moment that `ModelCheckpoint` would save at.

In: the events of `fit` with their logs. Out: published SavedModels, an `ExportReport` for each.
The invariant: a model is traced once however often it is exported, whatever stands at a path is
complete and holds the weights of one moment, and a model that was to be ranked and cannot be is
not exported. What the writing thread finds out is told on the thread that trains.
"""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import keras
import tensorflow as tf

from keras_export import callback_arguments as arguments
from keras_export import contracts, keras_models, recorded_calls, summaries, targets
from keras_export import tf_internals as tfi
from keras_export.background import Worker
from keras_export.batches import BatchCount
from keras_export.exporter import Exporter, Snapshot
from keras_export.outcomes import Outcomes
from keras_export.ranking import Ranking
from keras_export.reports import ExportReport
from keras_export.sharing import SharedFiles
from keras_export.templates import Template, listed
from keras_export.trainings import TrainingReport
from keras_export.version_writing import PendingExport, VersionWriter
from keras_export.versions import Version, VersionFolder

_MONITOR = "val_loss"


class MissingMetricWarning(UserWarning):
    """The logs lack the metric that a callback was told to monitor."""


class SavedModelCheckpoint(keras.callbacks.Callback):
    """Exports the model in training as a SavedModel, at each epoch or every few batches.

    The arguments that `keras.callbacks.ModelCheckpoint` has too mean what they mean there. The
    model is traced at the first export; the later ones write the weights of their moment. Each
    artifact appears complete or not at all. It holds the model in inference mode, without its
    optimizer. One object may serve several `fit`s: the best value, the count of batches and the
    reports go on.

    Weights that do not train are written once: a version links what it shares with an earlier one,
    where the file system has hard links, and is whole without it.

    Under a strategy of `tf.distribute` with several workers the chief alone publishes; each worker
    must have the callback, since all take part in reading the weights.

    Training waits only until the weights of the moment are held by reference; another thread
    writes them. As long as an export is pending, a weight that training changes is copied by
    TensorFlow first: each pending export costs the memory of one more set of weights at most. A
    weight that training updates sparsely, such as a trained `Embedding`, is copied at once. `fit`
    returns when all exports are complete; if it raises, the program finishes them before it ends.

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
        keep_last: how many of the newest exports stay; the others are deleted. All stay if neither
            this nor `keep_best` is given. Needs a placeholder in `filepath`.
        keep_best: how many of the best by `monitor` stay, beside those of `keep_last`. NaN is
            worse than everything. Needs a placeholder likewise.
        verify: load each version in a clean process before it is published, as
            `keras_export.verify` does, and refuse it unless it gives what the model gives. Training
            waits for one more call of the model on a batch of two. With `weights` or
            `variables_dtype`, which mean other outputs, Python's and the C++ loader are compared
            with each other alone.
        signature_lock: refuse to publish what clients of the version before could not call in the
            same way: other signatures, or names, dtypes or shapes of inputs and outputs.
        pointers: keep the symlinks `<folder>-latest` and `<folder>-best` beside the folder of the
            versions, to the newest and the best of them; files with the path in it where there
            are no symlinks.
        tensorboard: a writer of `tf.summary.create_file_writer`, which gets the seconds, the stall
            and the bytes of each export, and the monitored value, by epoch, or by batch where
            exports go by batches.
        background: write in another thread while training goes on.
        max_pending: how many exports may wait for that thread or be under way in it.
        when_busy: what a further one does: `"wait"` lets training wait for a place, `"skip"`
            leaves the export out and counts it.
        signatures: as in `keras_export.export`, like the following.
        input_signature: as in `keras_export.export`.
        names: as in `keras_export.export`.
        output_names: as in `keras_export.export`.
        weights: as in `keras_export.export`.
        variables_dtype: as in `keras_export.export`.
        include_optimizer: as in `keras_export.export`.
        state_updates: as in `keras_export.export`.
        options: `tf.saved_model.SaveOptions`.
        target: as in `keras_export.export`.
        warmup: as in `keras_export.export`; requests are tried on each version, which takes the
            thread that writes the time of loading it.
        on_export: called with the report of each export after it is published, by the thread that
            wrote it and before `fit` returns. What it raises counts as an error of the export.
        on_error: `"raise"` ends the training with the first error, at the next event or at the
            end of training; `"warn"` makes it a `FailedExportWarning`, one for all in a row that
            fail alike. What was exported before stays as it is either way.

    Attributes:
        best: the best monitored value so far, or `initial_value_threshold`; kept for
            `save_best_only` alone.
        reports: an `ExportReport` for each export, with `epoch`, `batch`, `version`, `logs` and
            `stall_seconds`, the time that training waited for it.
        skipped: how many exports `when_busy="skip"` left out.
        report: a `TrainingReport` of all exports so far: `print` it, or `report.plot()`.

    Raises:
        ArgumentError, ArgumentTypeError: an argument cannot be used. In `fit`: a placeholder
            names what the logs lack, or `mode="auto"` does not know the metric.
        ExportError: in `fit`, as in `keras_export.export`. A `TargetError` names the path that
            cannot be written; a `CheckpointError` the export that failed for another reason,
            which is its cause.

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
        keep_last: int | None = None,
        keep_best: int | None = None,
        background: bool = True,
        max_pending: int = 1,
        when_busy: Literal["wait", "skip"] = "wait",
        verify: bool = False,
        signature_lock: bool = False,
        on_export: Callable[[ExportReport], object] | None = None,
        on_error: Literal["raise", "warn"] = "raise",
        pointers: bool = False,
        tensorboard: tf.summary.SummaryWriter | None = None,
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
    ):
        super().__init__()
        # Keras 3.4 sets it in `fit` alone, and others drive callbacks, too.
        self.params: dict[str, Any] | None = None
        arguments.refuse_weights_only(save_weights_only)
        arguments.check_on_export(on_export)
        arguments.check_tensorboard(tensorboard)
        arguments.check_choice("when_busy", when_busy, ("wait", "skip"))
        arguments.check_choice("on_error", on_error, ("raise", "warn"))
        self.save_freq = arguments.checked_frequency(save_freq)
        self._template = Template(filepath, with_batch=self.save_freq != "epoch")
        self._ranking = Ranking(monitor, mode, initial_value_threshold)
        self._versions = _versions_of(self._template, self._ranking, keep_last, keep_best, pointers)
        self._writer = VersionWriter(
            self._template, self._versions, locks_signatures=signature_lock
        )
        self._verifies = verify
        self._gives_other_outputs = weights is not None or variables_dtype is not None
        self._tensorboard = tensorboard
        self._points = pointers
        self._is_ranked = save_best_only or keep_best is not None
        self.filepath = self._template.text
        self.monitor = monitor
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.reports: list[ExportReport] = []
        self.skipped = 0
        # Keras may call the events of batches from other threads then: nothing happens in them.
        self.async_safe = self.save_freq == "epoch"
        self._export_options: dict[str, Any] = {
            "signatures": signatures,
            "options": options,
            "input_signature": input_signature,
            "names": names,
            "output_names": output_names,
            "weights": weights,
            "variables_dtype": variables_dtype,
            "include_optimizer": include_optimizer,
            "state_updates": state_updates,
            "target": target,
            "warmup": warmup,
        }
        self._when_busy = when_busy
        self._on_export = on_export
        self._worker = Worker(arguments.count("max_pending", max_pending)) if background else None
        self._outcomes = Outcomes(on_error)
        self._batches = BatchCount()
        self._shared = SharedFiles()
        self._must_look_for_frozen = True
        self._exporter: Exporter | None = None
        self._exporter_model: Any = None
        self._recorded_model: Any = None
        self._epoch = 0
        self._warned = False

    @property
    def best(self) -> float | None:
        return self._ranking.best

    @property
    def report(self) -> TrainingReport:
        """All exports so far, as a table and a plot."""
        versions, best = self._versions, self._versions.best
        return TrainingReport(
            tuple(self.reports),
            frozenset(targets.resolved(versions.path_of(x)) for x in versions.kept),
            self.monitor,
            None if best is None else targets.resolved(versions.path_of(best)),
            self.skipped,
        )

    def set_model(self, model: Any) -> None:
        if model is not self._exporter_model:
            self._exporter = self._exporter_model = None
            self._shared = SharedFiles()
        super().set_model(model)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._warned = False
        self._must_look_for_frozen = True
        self._tell()
        with self._outcomes.of_a_failure():
            if self._strategy.extended.should_checkpoint:
                targets.check_target(self._template.fixed_folder)
                self._versions.open()
        self._start_recording()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._recorded_model is not None:
            recorded_calls.stop_recording(self._recorded_model)
            self._recorded_model = None
        if self._worker is not None:
            self._worker.wait()
        self._tell()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._batches.begin_epoch()
        self._tell()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self.save_freq == "epoch":
            return
        self._tell()
        before = self._batches.total
        self._batches.advance(batch, (self.params or {}).get("steps"))
        if self._batches.total // self.save_freq > before // self.save_freq:
            self._save(self._epoch + 1, self._batches.in_epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._tell()
        if self.save_freq == "epoch":
            self._save(epoch + 1, None, logs)

    # -- on the thread that trains -----------------------------------------------------------------

    def _save(self, epoch: int, batch: int | None, logs: Mapping[str, Any] | None) -> None:
        started = time.perf_counter()
        metrics = _as_floats(logs or {})
        with self._outcomes.of_a_failure():
            # To read some variables takes all workers, and only the chief knows what is wanted.
            together = isinstance(self._strategy, tf.distribute.MultiWorkerMirroredStrategy)
            snapshot = self._snapshot() if together else None
            is_chief = self._strategy.extended.should_checkpoint
            if is_chief and self._is_wanted(metrics) and self._has_place():
                self._hand_over(snapshot, epoch, batch, metrics, started)
        if self._worker is None:
            self._tell()

    def _tell(self) -> None:
        self._outcomes.tell(in_progress=(self.params or {}).get("verbose") == 1)

    def _is_wanted(self, metrics: Mapping[str, float]) -> bool:
        value = metrics.get(self.monitor)
        # Who only ever took the default did not ask for the metric.
        if value is None and (self._is_ranked or self.monitor != _MONITOR):
            self._warn_of_missing(metrics)
        if (self._is_ranked or self._points) and value is not None:
            self._ranking.learn_direction(self.model)
        if not self.save_best_only:
            return True
        return value is not None and self._ranking.is_better(value)

    def _has_place(self) -> bool:
        if self._worker is None:
            return True
        if self._when_busy == "wait":
            self._worker.wait_for_place()
        elif self._worker.is_busy:
            self.skipped += 1
            return False
        return True

    def _hand_over(
        self,
        snapshot: Snapshot | None,
        epoch: int,
        batch: int | None,
        metrics: Mapping[str, float],
        started: float,
    ) -> None:
        counts = {"epoch": epoch} if batch is None else {"epoch": epoch, "batch": batch}
        values = {**metrics, **counts}
        self._template.check(values)
        snapshot = snapshot or self._snapshot()
        export = PendingExport(
            snapshot,
            self._shared,
            values,
            epoch,
            batch,
            metrics,
            self._reason(metrics),
            epoch if batch is None else self._batches.total,
            self._probe(snapshot),
        )
        if self.save_best_only:
            self._ranking.claim(metrics[self.monitor])
        export.stall_seconds = time.perf_counter() - started
        if self._worker is not None:
            self._worker.submit(lambda: self._finish(export))
            return
        self._finish(export, started)

    def _probe(self, snapshot: Snapshot) -> contracts.Probe | None:
        if not self._verifies:
            return None
        is_same = not self._gives_other_outputs
        return contracts.probe(snapshot.functions) if is_same else contracts.Probe()

    def _warn_of_missing(self, metrics: Mapping[str, float]) -> None:
        if self._warned:
            return
        self._warned = True
        effect = "; nothing is exported where it is missing" if self.save_best_only else ""
        warnings.warn(
            f"SavedModelCheckpoint monitors {self.monitor!r}, which the logs "
            f"{self._moment} lack{effect}. They have: {listed(metrics)}.",
            MissingMetricWarning,
            stacklevel=2,
        )

    @property
    def _moment(self) -> str:
        return "at the end of an epoch" if self.save_freq == "epoch" else "at the end of a batch"

    @property
    def _strategy(self) -> tf.distribute.Strategy:
        found = getattr(self.model, "distribute_strategy", None)
        return found or tf.distribute.get_strategy()

    def _start_recording(self) -> None:
        """Lets a model without symbolic inputs remember what it is called with, for its export."""
        has_inputs = isinstance(self.model, (keras.Sequential, tfi.keras_functional_class()))
        # One that records already, as `with_export` arranged, goes on after the training.
        if not has_inputs and not getattr(self.model.call, "_records_calls", False):
            recorded_calls.start_recording(self.model)
            self._recorded_model = self.model

    def _snapshot(self) -> Snapshot:
        if self._exporter is None:
            self._exporter = Exporter(self.model, **self._export_options)
            self._exporter_model = self.model
        if self._must_look_for_frozen:
            self._must_look_for_frozen = False
            self._shared.expect(keras_models.frozen_variables(self.model))
        return self._exporter.snapshot()

    def _reason(self, metrics: Mapping[str, float]) -> str:
        value = metrics.get(self.monitor)
        if value is None:
            return ""
        if not self.save_best_only:
            return f"{self.monitor} is {value:.5f}, "
        since = "" if self.best is None else f"from {self.best:.5f} "
        return f"{self.monitor} improved {since}to {value:.5f}, "

    # -- on the thread that writes -----------------------------------------------------------------

    def _finish(self, export: PendingExport, started: float | None = None) -> None:
        """Writes and publishes an export, and takes note of what came of it."""
        published = False
        try:
            report, version = self._writer.write(export)
            published = True
            stall = export.stall_seconds if started is None else time.perf_counter() - started
            self._published(dataclasses.replace(report, stall_seconds=stall), export, version)
        except BaseException as error:  # whatever ends a thread would be lost with it
            self._outcomes.add_error(error, export.path or self.filepath)
        finally:
            if self.save_best_only:
                self._ranking.settle(export.metrics[self.monitor], exported=published)

    def _published(self, report: ExportReport, export: PendingExport, version: Version) -> None:
        """Takes note of an export that readers can see now."""
        self.reports.append(report)
        if self.verbose:
            batch = "" if report.batch is None else f", batch {report.batch}"
            line = f"Epoch {report.epoch}{batch}: {export.reason}exported {report.export_dir}"
            self._outcomes.add_line(line)
        try:
            self._versions.published(version)
        finally:  # the export is there, whatever became of the others
            if self._on_export is not None:
                self._on_export(report)
        if self._tensorboard is not None:
            summaries.log(report, self._tensorboard, self.monitor, export.step)
        self._outcomes.add_success()


def _versions_of(
    template: Template, ranking: Ranking, last: Any, best: Any, pointers: bool
) -> VersionFolder:
    counts = {"keep_last": last, "keep_best": best}
    for name, value in {**counts, "pointers": pointers or None}.items():
        if value is not None and template.is_fixed:
            mend = "An export replaces the one before where the path has no placeholder."
            raise arguments.wrong("a placeholder in filepath", f"{name}={value!r}", mend)
    kept = {k: None if value is None else arguments.count(k, value) for k, value in counts.items()}
    return VersionFolder(template, ranking, **kept, pointers=pointers)


def _as_floats(logs: Mapping[str, Any]) -> dict[str, float]:
    """The log values that are single numbers."""
    metrics = {}
    for name, value in logs.items():
        with suppress(TypeError, ValueError):
            metrics[name] = float(value)
    return metrics
