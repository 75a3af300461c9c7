"""What clients of one version rely on in the next.

In: two artifacts. Out: nothing, or an error that lists what a client would notice. The invariant:
signatures are compared as they stand in the files, whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Iterator

from keras_export import inspection
from keras_export.errors import SignatureError, failure


def refuse_other_signatures(new: str, old: str, target: str) -> None:
    """Raises if clients of one artifact could not call another in the same way.

    Args:
        new: path of the artifact that is to be published.
        old: path of the one that its clients know.
        target: where it is to be published.

    Raises:
        SignatureError: a signature, or a name, dtype or shape of one, differs; all that does is
            listed.
    """
    differences = list(_differences(_facts(new), _facts(old)))
    if not differences:
        return
    received = "others: " + "; ".join(differences)
    mend = "Export to another folder, or leave out signature_lock to publish it."
    raise SignatureError(failure(f"export to {target}", f"the signatures of {old}", received, mend))


def _facts(path: str) -> dict[tuple[str, ...], str]:
    """Every input and output by key, kind and name, as text."""
    signatures = inspection.inspect(path).signatures
    return {
        (key, kind, name): str(spec)
        for key, signature in signatures.items()
        for kind, specs in (("input", signature.inputs), ("output", signature.outputs))
        for name, spec in specs.items()
    }


def _differences(new: dict[tuple[str, ...], str], old: dict[tuple[str, ...], str]) -> Iterator[str]:
    for fact in sorted(new.keys() | old.keys()):
        key, kind, name = fact
        now, before = new.get(fact), old.get(fact)
        if now is None:
            yield f"{key} lacks {kind} {name} ({before})"
        elif before is None:
            yield f"{key} has a new {kind} {name} ({now})"
        elif now != before:
            yield f"{key} has {kind} {name} as {now}, not {before}"
