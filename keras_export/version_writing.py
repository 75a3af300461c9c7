"""One version: from the values of a moment to an artifact under a number of its own.

In: a `PendingExport`, which the thread that trains has filled. Out: its report, and the `Version`
that stands now. The invariant: a number is never given to two versions, and a version that breaks
a promise to clients, or does not load, is not published.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Mapping

from keras_export import contracts, targets
from keras_export.errors import TargetError
from keras_export.exporter import Snapshot
from keras_export.reports import ExportReport
from keras_export.sharing import SharedFiles
from keras_export.templates import Template
from keras_export.versions import Version, VersionFolder


@dataclasses.dataclass
class PendingExport:
    """An export on its way: the values of a moment, and what is known of the moment.

    Attributes:
        snapshot: the values.
        shared: the files that it may have in common with earlier versions.
        values: what fills the placeholders of the path, all but the version.
        epoch: counted from 1.
        batch: counted from 1, if it is exported at a batch.
        metrics: the logs, as numbers.
        reason: why it is exported, as the start of a sentence.
        step: where it stands in TensorBoard.
        live: what the model gives for a batch, to compare with; None if nothing is compared.
        path: where it goes, as soon as that is known.
        stall_seconds: how long training waited for it.
    """

    snapshot: Snapshot
    shared: SharedFiles
    values: Mapping[str, float]
    epoch: int
    batch: int | None
    metrics: Mapping[str, float]
    reason: str
    step: int
    live: contracts.Probe | None
    path: str | None = None
    stall_seconds: float = 0.0


class VersionWriter:
    """Writes exports into the folder of a template.

    Args:
        template: of the paths.
        versions: gives numbers, and knows the version before.
        locks_signatures: refuse a version that clients of the one before could not call alike.
    """

    def __init__(
        self, template: Template, versions: VersionFolder, *, locks_signatures: bool
    ) -> None:
        self._template, self._versions = template, versions
        self._locks_signatures = locks_signatures

    def write(self, export: PendingExport) -> tuple[ExportReport, Version]:
        """Writes and publishes an export.

        Raises:
            ExportError: it cannot be written, or was refused. What stood before is as it was.
        """
        for attempt in range(1, targets.ATTEMPTS + 1):
            number = self._versions.next_number(export.values)
            export.path = self._template.filled({**export.values, "version": number})
            place = self._template.relative(export.path)
            version = Version(place, number, export.epoch, export.batch, export.metrics)
            try:
                return self._write_version(export, version), version
            except TargetError as error:
                taken = self._template.is_numbered and error.errno == errno.EEXIST
                if not taken or attempt == targets.ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _write_version(self, export: PendingExport, version: Version) -> ExportReport:
        is_numbered, path = self._template.is_numbered, str(export.path)

        def check(staged: str) -> list[str]:
            return self._check(staged, path, export.live)

        report = export.snapshot.write(
            path,
            exclusive=is_numbered,
            extras=self._versions.record(version),
            shared=export.shared,
            above=self._template.folder,
            check=check if self._locks_signatures or export.live is not None else None,
        )
        return dataclasses.replace(
            report,
            version=version.number if is_numbered else None,
            epoch=export.epoch,
            batch=export.batch,
            logs=export.metrics,
        )

    def _check(self, staged: str, path: str, live: contracts.Probe | None) -> list[str]:
        """Looks at a version before it is published."""
        previous = self._versions.newest() if self._locks_signatures else None
        if previous is not None:
            contracts.refuse_other_signatures(staged, previous, path)
        return [] if live is None else contracts.refuse_unsound(staged, path, live)
