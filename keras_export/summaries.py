"""What TensorBoard shows of the exports of a training.

In: the report of an export and a summary writer. Out: scalars in the writer's log. The invariant:
TensorBoard itself need not be installed.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_export.reports import ExportReport

_SCALAR = tf.compat.v1.SummaryMetadata()
_SCALAR.plugin_data.plugin_name = "scalars"
_SCALAR.data_class = 1  # DATA_CLASS_SCALAR of tensorflow/core/framework/summary.proto


def log(report: ExportReport, writer: Any, monitor: str, step: int) -> None:
    """Writes the seconds, the stall and the bytes of an export, and the monitored value.

    Args:
        report: of the export.
        writer: of `tf.summary.create_file_writer`.
        monitor: the name of the value in `report.logs`; left out where it is not there.
        step: the epoch, or the batch where exports go by batches.
    """
    values = {
        "seconds": sum(report.seconds.values()),
        "stall_seconds": report.stall_seconds,
        "bytes_written": report.bytes_written,
        "bytes_shared": report.bytes_shared,
        monitor: report.logs.get(monitor),
    }
    with writer.as_default(step=step):
        for name, value in values.items():
            if value is not None:
                # tf.summary.scalar is a part of TensorBoard, which need not be here.
                tf.summary.write(f"export/{name}", tf.constant(value, "float32"), metadata=_SCALAR)
    writer.flush()
