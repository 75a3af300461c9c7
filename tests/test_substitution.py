"""Promises of `substitution`: a name has its own value again, whoever ends last."""

from __future__ import annotations

import threading
import types

import pytest

from keras_export.substitution import is_substituted, substituted


def module() -> types.ModuleType:
    made = types.ModuleType("made")
    made.one, made.other = "own", "own too"
    return made


def test_a_name_has_the_value_for_the_scope_alone() -> None:
    made = module()
    with substituted([(made, "one", "new"), (made, "other", "new too")]):
        assert (made.one, made.other) == ("new", "new too")
        assert is_substituted(made, "one")
    assert (made.one, made.other) == ("own", "own too")
    assert not is_substituted(made, "one")


def test_an_error_changes_it_back() -> None:
    made = module()
    with pytest.raises(ZeroDivisionError), substituted([(made, "one", "new")]):
        _ = 1 / 0
    assert made.one == "own"


def test_a_change_that_cannot_be_made_undoes_those_before_it() -> None:
    made = module()
    changes = [(made, "one", "new"), (made, "missing", "new")]
    with pytest.raises(KeyError, match="missing"), substituted(changes):
        pass
    assert made.one == "own"
    assert not is_substituted(made, "one")
    assert not hasattr(made, "missing")


def test_the_first_value_stands_until_the_last_scope_ends() -> None:
    made = module()
    first = substituted([(made, "one", "first")])
    second = substituted([(made, "one", "second")])
    first.__enter__()
    second.__enter__()
    assert made.one == "first"
    first.__exit__(None, None, None)
    assert made.one == "first"
    second.__exit__(None, None, None)
    assert made.one == "own"


def test_a_class_and_an_object_have_names_too() -> None:
    class Watched:
        kind = "own"

        def __init__(self) -> None:
            self.state = "own"
            self.seen = 0

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__("seen", getattr(self, "seen", 0) + 1)
            super().__setattr__(name, value)

    made = Watched()
    seen = made.seen
    with substituted([(Watched, "kind", "new"), (made, "state", "new")]):
        assert (made.kind, made.state) == ("new", "new")
    assert (made.kind, made.state) == ("own", "own")
    assert made.seen == seen  # an object that tracks what is set does not notice


def test_scopes_of_many_threads_leave_nothing_behind() -> None:
    made = module()
    wrong: list[object] = []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(300):
            with substituted([(made, "one", "new")]):
                if made.one != "new":
                    wrong.append(made.one)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert made.one == "own"
