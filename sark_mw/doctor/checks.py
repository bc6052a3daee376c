"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """`unknown`: it could not be found out, for lack of a permission or because something else is down."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding: what was looked at, how it is, and what to do about it where it is not well."""

    name: str
    status: Status
    sentence: str
    remedy: str = ""


def ok(name: str, sentence: str) -> Check:
    """Say that something is well."""
    return Check(name=name, status=Status.OK, sentence=sentence)


def warn(name: str, sentence: str, remedy: str = "") -> Check:
    """Say that something works, but should be looked at."""
    return Check(name=name, status=Status.WARN, sentence=sentence, remedy=remedy)


def fail(name: str, sentence: str, remedy: str = "") -> Check:
    """Say that something is broken, or puts money at risk."""
    return Check(name=name, status=Status.FAIL, sentence=sentence, remedy=remedy)


def unknown(name: str, sentence: str, remedy: str = "") -> Check:
    """Say that something could not be found out."""
    return Check(name=name, status=Status.UNKNOWN, sentence=sentence, remedy=remedy)


def clock(name: str, ahead_ms: int) -> Check:
    """Judge how far another clock is ahead of this machine's; the network's delay is within the second that is forgiven."""
    said = f"{abs(ahead_ms)} ms {'ahead of' if ahead_ms > 0 else 'behind'} this machine"
    remedy = "synchronise the clocks (NTP); periods follow the store's clock"
    if abs(ahead_ms) > 60_000:
        return fail(name, said, remedy)
    return warn(name, said, remedy) if abs(ahead_ms) > 1_000 else ok(name, said)
