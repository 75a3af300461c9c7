"""The arguments of the callback that are not those of an export, checked before training starts.

In: what a user gave. Out: the value to go on with, or an error that names the argument. The
invariant: nothing is looked up, made or written.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from keras_export.errors import ArgumentError, ArgumentTypeError, failure

_SETTING_UP = "set up SavedModelCheckpoint"


def refuse_weights_only(save_weights_only: bool) -> None:
    """Refuses what a SavedModel cannot be."""
    if save_weights_only:
        raise wrong(
            "save_weights_only=False",
            f"save_weights_only={save_weights_only!r}",
            "A SavedModel holds the graph as well; keras.callbacks.ModelCheckpoint writes weights.",
        )


def check_on_export(on_export: Any) -> None:
    """Refuses what cannot be called."""
    if on_export is not None and not callable(on_export):
        expected, received = "a function of a report", f"on_export={on_export!r}"
        raise ArgumentTypeError(failure(_SETTING_UP, expected, received))


def check_tensorboard(writer: Any) -> None:
    """Refuses what is no summary writer, such as the path of its folder."""
    if writer is not None and not hasattr(writer, "as_default"):
        expected = "a writer of tf.summary.create_file_writer"
        raise ArgumentTypeError(failure(_SETTING_UP, expected, f"tensorboard={writer!r}"))


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuses a value that is not among those of the argument."""
    if value not in choices:
        expected = f"{name}={' or '.join(map(repr, choices))}"
        raise wrong(expected, f"{name}={value!r}")


def checked_frequency(save_freq: Any) -> Any:
    """`"epoch"`, or a number of batches."""
    if save_freq == "epoch":
        return save_freq
    return count("save_freq", save_freq, "'epoch' or a positive number of batches")


def count(name: str, value: Any, expected: str = "a positive integer") -> int:
    """The value of an argument that counts something."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < 1:
        raise wrong(expected, f"{name}={value!r}")
    return int(value)


def wrong(expected: str, received: str, mend: str = "") -> ArgumentError:
    """The error of an argument."""
    return ArgumentError(failure(_SETTING_UP, expected, received, mend))
