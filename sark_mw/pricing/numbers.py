"""Read numbers out of bodies: what a caller sends is not to be trusted."""

from __future__ import annotations

from collections.abc import Mapping

from sark_mw.errors import InvalidRequestError

#: No model produces or reads as much; a larger number is a mistake or an attack.
MAX_TOKENS = 10**9
MAX_CHOICES = 128


def whole_number(body: Mapping[str, object], name: str, least: int = 0, most: int = MAX_TOKENS) -> int | None:
    """Read an optional whole number; anything else (text, a fraction, a bool, out of range) raises `InvalidRequestError`."""
    value = body.get(name)
    if value is None:
        return None
    # NaN and the infinities are no whole numbers, and `is_integer` says so.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (isinstance(value, float) and not value.is_integer()):
        raise InvalidRequestError(f"'{name}' must be a whole number", name)
    if value < least:
        raise InvalidRequestError(f"'{name}' must be at least {least}", name)
    if value > most:
        raise InvalidRequestError(f"'{name}' must be at most {most}", name)
    return int(value)


def reported(usage: Mapping[str, object], name: str) -> int | None:
    """Read a count that a provider reported; None where it is absent or no count."""
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS else None


def nested(body: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return an object inside an object, empty where there is none."""
    value = body.get(name)
    return value if isinstance(value, Mapping) else {}
