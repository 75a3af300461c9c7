"""Which of two models is better, by the value of a metric.

In: the name of the metric, a mode, and values. Out: whether a value beats all before. The
invariant: NaN beats nothing, and a direction that nobody knows is never guessed.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from keras_export.errors import ArgumentError, ArgumentTypeError, failure

_SETTING_UP = "set up SavedModelCheckpoint"
MODES = ("auto", "min", "max")

# Words in the names of metrics that nobody compiled, such as those of a custom training step.
_RISING = re.compile(
    ".*accuracy|acc|auc|auroc|auprc|precision|recall|sensitivity|specificity|f1|fbeta|fscore|iou|"
    "dice|r2|bleu|rouge|ndcg|mrr|map|psnr|ssim|similarity|correlation|kappa|mcc"
)
_FALLING = re.compile(
    ".*loss|.*error|err|mse|mae|mape|msle|rmse|rmsle|crossentropy|divergence|perplexity|nll|hinge|"
    "logcosh|distance|wer|cer|fid|brier"
)


class Ranking:
    """Compares values of the monitored metric with the best so far; for any thread.

    Args:
        monitor: name of the metric.
        mode: `"min"`, `"max"`, or `"auto"`.
        best: what the first value must beat, if anything.

    Raises:
        ArgumentError, ArgumentTypeError: one of them cannot be used.
    """

    def __init__(self, monitor: Any, mode: Any, best: Any = None) -> None:
        if not isinstance(monitor, str):
            message = failure(_SETTING_UP, "the name of a metric", f"monitor={monitor!r}")
            raise ArgumentTypeError(message)
        if mode not in MODES:
            expected = "mode 'auto', 'min' or 'max'"
            raise ArgumentError(failure(_SETTING_UP, expected, f"mode={mode!r}"))
        self.monitor = monitor
        self.best = _checked_threshold(best)
        self._mode: str = mode
        self._claims: list[float] = []
        self._earlier: set[float] = set()
        self._lock = threading.RLock()

    @property
    def is_decided(self) -> bool:
        """Whether the direction is known."""
        return self._mode != "auto"

    def learn_direction(self, model: Any) -> None:
        """Finds out what `mode="auto"` means, once.

        Not earlier than in training: the metrics of a model are built in its first step.

        Raises:
            ArgumentError: neither the model nor the name of the metric tells.
        """
        if self._mode == "auto":
            self._mode = _inferred_mode(self.monitor, model)
        self.remember(())

    def remember(self, values: Iterable[float]) -> None:
        """Takes values of earlier runs, which count as soon as the direction is known."""
        with self._lock:
            self._earlier.update(values)
            if self.is_decided:
                best = self.best_of(self._earlier)
                self._earlier.clear()
                if best is not None and self.beats(best, self.best):
                    self.best = best

    def best_of(self, values: Iterable[float]) -> float | None:
        """The best of some values; None if none is a number, or the direction is unknown."""
        numbers = [value for value in values if not math.isnan(value)]
        if not numbers or not self.is_decided:
            return None
        return max(numbers) if self._mode == "max" else min(numbers)

    def key(self, value: float | None) -> tuple[bool, float]:
        """Sorts values, the best first; NaN and a missing value come last."""
        if value is None or math.isnan(value):
            return True, 0.0
        return False, -value if self._mode == "max" else value

    def beats(self, value: float, other: float | None) -> bool:
        """Whether one value is better than another; each is better than none and than NaN."""
        if math.isnan(value):
            return False
        if other is None or math.isnan(other):
            return True
        return value > other if self._mode == "max" else value < other

    def is_better(self, value: float) -> bool:
        """Whether a value beats the best, and those that wait for their export."""
        with self._lock:
            return all(self.beats(value, other) for other in (self.best, *self._claims))

    def claim(self, value: float) -> None:
        """Notes that a model of this value is about to be exported."""
        self._claims.append(value)

    def settle(self, value: float, *, exported: bool) -> None:
        """Ends a claim: only what was exported raises the bar."""
        with self._lock:
            self._claims.remove(value)
            if exported and self.beats(value, self.best):
                self.best = value


def _checked_threshold(value: Any) -> float | None:
    if value is None:
        return None
    try:
        threshold = float(value)
    except (TypeError, ValueError) as error:
        received = f"initial_value_threshold={value!r}"
        raise ArgumentTypeError(failure(_SETTING_UP, "a number", received)) from error
    if math.isnan(threshold):
        received = f"initial_value_threshold={value!r}"
        raise ArgumentError(failure(_SETTING_UP, "a number that can be beaten", received))
    return threshold


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
