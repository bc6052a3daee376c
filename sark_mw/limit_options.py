"""The options of a limit as JSON has them: only those that it has, so that limits without any are written as ever."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TypedDict

from sark_mw.limit import Limit


class LimitOptions(TypedDict, total=False):
    """Arguments of `Limit`."""

    parent: str
    overcommit: bool
    thresholds: tuple[int, ...]
    rollover: Decimal
    carries_since_ms: int


def options_of_limit(limit: Limit) -> dict[str, object]:
    """Write the options that a limit has; `rollover` as a decimal string."""
    options: dict[str, object] = {}
    if limit.parent:
        options["parent"] = limit.parent
    if limit.overcommit:
        options["overcommit"] = True
    if limit.thresholds:
        options["thresholds"] = list(limit.thresholds)
    if limit.rollover:
        options["rollover"] = str(limit.rollover)
    if limit.carries_since_ms:
        options["carries_since_ms"] = limit.carries_since_ms
    return options


def written_options(limit: Limit) -> dict[str, object]:
    """Write the options that somebody gave it, without what the store has put in."""
    return {name: value for name, value in options_of_limit(limit).items() if name != "carries_since_ms"}


def limit_options(written: Mapping[str, object]) -> LimitOptions:
    """Read what `options_of_limit` wrote; what it does not know, from a newer version, is left out.

    A value that is no such option raises `ValueError`, or later what `Limit` raises.
    """
    options = LimitOptions()
    if "parent" in written:
        options["parent"] = str(written["parent"])
    if "overcommit" in written:
        options["overcommit"] = bool(written["overcommit"])
    if "thresholds" in written:
        options["thresholds"] = _percents(written["thresholds"])
    if "rollover" in written:
        options["rollover"] = Decimal(str(written["rollover"]))
    if "carries_since_ms" in written:
        options["carries_since_ms"] = int(str(written["carries_since_ms"]))
    return options


def _percents(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError(f"thresholds are a list, not {value!r}")
    return tuple(value)
