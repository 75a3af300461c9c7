"""Counts the batches of a training, which Keras counts anew in each epoch.

In: the numbers that Keras tells at the end of batches. Out: how many there were, in all and in the
present epoch. The invariant: an execution of several steps counts as what it was, also the last of
an epoch, which may be shorter.
"""

from __future__ import annotations


class BatchCount:
    """How many batches there were.

    Attributes:
        total: over all epochs.
        in_epoch: in the present one.
    """

    def __init__(self) -> None:
        self.total = self.in_epoch = 0

    def begin_epoch(self) -> None:
        """Starts counting an epoch."""
        self.in_epoch = 0

    def advance(self, batch: int, steps: int | None) -> None:
        """Goes on to the end of the batch with the index `batch`, of `steps` if that is known."""
        # With steps_per_execution, Keras numbers the last execution as if it were a full one.
        ended = min(batch + 1, steps or batch + 1)
        if ended <= self.in_epoch:  # a training loop that does not announce its epochs
            self.in_epoch = 0
        self.total += ended - self.in_epoch
        self.in_epoch = ended
