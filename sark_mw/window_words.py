"""A window as people say it: "per day", "per 60 seconds", "per month from the 25th"."""

from __future__ import annotations

from functools import lru_cache

from sark_mw.window import idle_ms, rolling_ms

_SPANS = ((86_400, "day"), (3_600, "hour"), (60, "minute"))


@lru_cache(maxsize=1024)
def per(window: str) -> str:
    """Say in how long an amount may be spent; empty for `total`, which never begins anew."""
    kind, _, start = window.partition(":")
    if kind == "total":
        return ""
    if rolling := rolling_ms(window):
        return f"per {_span(rolling // 1000)}"
    if idle := idle_ms(window):
        return f"until unused for {_span(idle // 1000)}"
    if not start:
        return f"per {kind}"
    return f"per {kind} from the {_nth(int(start))}" if kind == "month" else f"per {kind} from {start.capitalize()}"


def _span(seconds: int) -> str:
    width, name = next(((width, name) for width, name in _SPANS if seconds % width == 0), (1, "second"))
    count = seconds // width
    return f"{count} {name}s" if count > 1 else name


def _nth(number: int) -> str:
    ending = "th" if 10 <= number <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
