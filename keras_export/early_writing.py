"""The values of an object, written while its graph is being made.

In: where an export goes, and the tracked objects. Out: a staging directory that holds the tensor
bundle already. The invariant: it is used only if it holds what would be written now; otherwise it
is discarded, and nothing but time is lost.

Tracing and assembling keep one processor busy with Python, and writing another with copying. What
takes long to write is begun before the trace; the rest after it, when hardly anything can be
refused any more.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from types import TracebackType

import tensorflow as tf

from keras_export import held_values, publishing, sharing, targets, variables
from keras_export.errors import ExportError, TargetError
from keras_export.export_requests import ExportRequest
from keras_export.staging import Staging
from keras_export.tracking import TrackedGraph

# Below, writing takes less time than assembling, and what a trace refuses needs no folder.
_LARGE = 16 << 20


class EarlyBundle:
    """Writes the values of an export in a thread of its own, from before the trace.

    Leaving its context discards what nobody took.

    Args:
        export_dir: where the export goes.
    """

    def __init__(self, export_dir: str | os.PathLike[str]) -> None:
        self._export_dir = export_dir
        self._stack = ExitStack()
        self._staging: Staging | None = None
        self._checkpoint: variables.CheckpointPlan | None = None
        self._values: held_values.Values | None = None
        self._thread: threading.Thread | None = None
        self._failed = False
        self._is_traced = False

    def __enter__(self) -> EarlyBundle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wait()
        self._values = None
        self._stack.close()

    def begin(
        self, request: ExportRequest, tracked: TrackedGraph, root: str
    ) -> variables.CheckpointPlan | None:
        """Before the trace: starts to write much.

        Args:
            request: what is wanted.
            tracked: what is exported.
            root: how messages call it.

        Returns:
            The plan of its checkpoint, if one was made.

        Raises:
            TargetError: nothing can be written there.
        """
        if self._thread is not None or not self._is_plain(request):
            return None
        try:
            checkpoint = variables.plan_checkpoint(tracked, root)
            if _is_written_in_one_piece(checkpoint) and checkpoint.byte_count >= _LARGE:
                self._start(checkpoint)
        except TargetError:
            raise
        except ExportError:  # the trace may mend it, or find more to complain of
            return None
        return checkpoint

    def go_on(self, request: ExportRequest, checkpoint: variables.CheckpointPlan) -> bool:
        """After the trace: starts to write, if that has not begun.

        Args:
            request: what is wanted.
            checkpoint: the plan of what will be written.

        Returns:
            Whether its variables were seen to have values.

        Raises:
            TargetError: nothing can be written there.
            UninitializedError: a variable has no value.
        """
        is_new = self._thread is None and self._is_plain(request)
        if is_new and _is_written_in_one_piece(checkpoint):
            self._start(checkpoint)
            self._is_traced = True
        return checkpoint is self._checkpoint

    def values_of(self, checkpoint: variables.CheckpointPlan) -> held_values.Values | None:
        """The values of a plan, if they were read after the trace."""
        return self._values if self._is_traced and checkpoint is self._checkpoint else None

    def take(
        self, checkpoint: variables.CheckpointPlan, values: held_values.Values
    ) -> Staging | None:
        """The staging directory with `variables/` in it, if that holds these values.

        Args:
            checkpoint: the plan by which they would be written.
            values: of now.
        """
        self._wait()
        if self._staging is None or self._failed or checkpoint is not self._checkpoint:
            return None
        if values is self._values:
            return self._staging
        assert self._values is not None
        written = (entry for group in self._values.groups for entry in group)
        wanted = (entry for group in values.groups for entry in group)
        if all(
            sharing.same(one.tensor, other.tensor)
            for one, other in zip(written, wanted, strict=True)
        ):
            return self._staging
        return None

    def _is_plain(self, request: ExportRequest) -> bool:
        options = request.options
        return (
            tf.executing_eagerly()
            and targets.is_local(self._export_dir)
            and not tf.distribute.has_strategy()
            and request.weights is None
            and request.variables_dtype is None
            and getattr(options, "experimental_io_device", None) is None
            and getattr(options, "experimental_sharding_callback", None) is None
        )

    def _start(self, checkpoint: variables.CheckpointPlan) -> None:
        values = held_values.read_values(checkpoint)
        ((_, *entries),) = values.groups
        variables.refuse_uninitialized(checkpoint, [entry.tensor for entry in entries])
        self._staging = self._stack.enter_context(publishing.stage(self._export_dir))
        self._checkpoint, self._values = checkpoint, values
        self._thread = threading.Thread(target=self._write, name="keras_export values")
        self._thread.start()

    def _write(self) -> None:
        assert self._staging is not None and self._values is not None
        try:
            prefix = os.path.join(self._staging.path, sharing.BUNDLE)
            folder = os.path.dirname(prefix)
            os.mkdir(folder)
            held_values.write_bundle(prefix, self._values)
            for name in os.listdir(folder):  # so that publication finds them on disk
                with open(os.path.join(folder, name), "rb") as file:
                    os.fsync(file)
        except Exception:  # met again, and explained, when the values are written in their turn
            self._failed = True

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()


def _is_written_in_one_piece(checkpoint: variables.CheckpointPlan) -> bool:
    """Whether its values are those of ordinary variables alone, which are read at no cost."""
    return not checkpoint.savers and all(source.by == "variable" for source in checkpoint.sources)
