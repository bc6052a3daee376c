"""Metric labels that an attacker cannot multiply: model and plugin names come from outside."""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "other"
#: Longer values are cut: labels are names, not texts.
MAX_LABEL_LENGTH = 80


def clean_label(value: str) -> str:
    """Cut a value and replace what would break the exposition format or a terminal: controls, lone surrogates."""
    cut = value[:MAX_LABEL_LENGTH]
    if cut.isascii() and cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else "_" for c in cut)


class BoundedLabel:
    """Let at most so many distinct values of one label through; the rest become `other`.

    `allowed` values always pass. Of the others the first `limit` pass, per process; with `allowed` the default is none, so that
    nobody can use the places up before honest callers come.
    """

    def __init__(self, *, allowed: Iterable[str] = (), limit: int | None = None) -> None:
        self._known = {value: clean_label(value) for value in allowed}
        self._places = limit if limit is not None else (0 if self._known else 50)

    def __call__(self, value: str | None) -> str:
        """Return the label for a value: itself, cleaned, or `other`; nothing stays the empty label."""
        if not value:
            return ""
        known = self._known.get(value)
        if known is not None:
            return known
        if self._places <= 0:
            return OTHER
        # Keyed by the cleaned value too, so that long values which only differ past the cut take one place.
        label = clean_label(value)
        if label not in self._known:
            self._places -= 1
            self._known[label] = label
        return label


def status_class(status: int | None) -> str:
    """Return `2xx` … `5xx`, or `none` where no status was sent."""
    return f"{status // 100}xx" if status is not None and 100 <= status <= 599 else "none"
