"""Read what a worker says, believing nothing: JSON of a bounded size, known fields of known types, and no more."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.base import Obligation, ObligationKind, PolicyDecision
from sark_mw.policy.isolated.inside.answers import MAX_OBLIGATION_CHARS, MAX_OBLIGATIONS, MAX_REASON_CHARS, MAX_VALUES, cut
from sark_mw.policy.isolated.inside.bounds import has_more_values
from sark_mw.policy.isolated.options import Hardening
from sark_mw.policy.unsendable import UnsendableRequestError

_DEPTH = 14
#: Those of the largest number that is taken, and a sign.
_DIGITS = 20
_JUDGED = frozenset({"id", "allowed", "reason", "metadata", "obligations"})
_FAILED = frozenset({"id", "error", "text"})
_UNREAD = frozenset({"id", "unread"})
_MEMBERS = frozenset({"name", "version", "description", "priority", "timeout", "on_error", "needs"})
#: What ends a line or steers a terminal, wherever a reason is shown.
_CONTROLS = dict.fromkeys((*range(32), 127, *range(128, 160), 0x2028, 0x2029), " ")


class MalformedReplyError(Exception):
    """A worker said what no worker of ours says."""


class Answer:
    """A reply that is well-formed: the request it is for, and the decision or the failure: the plugin's, or to read it at all."""

    __slots__ = ("decision", "failure", "number")

    def __init__(self, number: int, decision: PolicyDecision | None, failure: PolicyEvaluationError | None) -> None:
        self.number = number
        self.decision = decision
        self.failure = failure


def _no_constant(name: str) -> NoReturn:
    raise MalformedReplyError(f"{name} in a reply")


def _whole_number(digits: str) -> int:
    # The time that an int takes to be read grows by the square of its digits.
    if len(digits) > _DIGITS:
        raise MalformedReplyError("a number out of bounds in a reply")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise MalformedReplyError("a reply with a key twice")
    return content


_decode = json.JSONDecoder(parse_constant=_no_constant, parse_int=_whole_number, object_pairs_hook=_unique).decode


def read_message(frame: bytes) -> dict[str, Any]:
    """Parse a frame into an object, unless it would take the event loop too long."""
    if has_more_values(frame, MAX_VALUES):
        raise MalformedReplyError(f"a reply of more than {MAX_VALUES} values")
    try:
        message = _decode(frame.decode())
    except (ValueError, RecursionError) as error:
        raise MalformedReplyError(f"a reply that is no JSON: {type(error).__name__}") from None
    if type(message) is not dict:
        raise MalformedReplyError("a reply that is no object")
    return message


def read_answer(frame: bytes) -> Answer:
    """Read the answer to a request; raises `MalformedReplyError`."""
    message = read_message(frame)
    number = message.get("id")
    if type(number) is not int:
        raise MalformedReplyError("a reply without a number")
    if message.keys() == _JUDGED:
        return Answer(number, _decision(message), None)
    if message.keys() == _UNREAD:
        return Answer(number, None, UnsendableRequestError("its worker could not read it"))
    if message.keys() != _FAILED:
        raise MalformedReplyError("a reply with other fields")
    error, text = (
        _string(message[name], most).translate(_CONTROLS) for name, most in (("error", 100), ("text", MAX_REASON_CHARS))
    )
    return Answer(number, None, PolicyEvaluationError(text or error, error=error))


def _decision(message: Mapping[str, Any]) -> PolicyDecision:
    allowed, metadata, obligations = message["allowed"], message["metadata"], message["obligations"]
    if type(allowed) is not bool:
        raise MalformedReplyError("allowed is neither true nor false")
    if type(metadata) is not dict or type(obligations) is not list or len(obligations) > MAX_OBLIGATIONS:
        raise MalformedReplyError("metadata or obligations of another kind")
    _check(metadata)
    reason = _string(message["reason"], MAX_REASON_CHARS).translate(_CONTROLS)
    return PolicyDecision(allowed, reason, metadata, obligations=tuple(map(_obligation, obligations)))


def _obligation(given: object) -> Obligation:
    if type(given) is not dict or given.keys() != {"kind", "value"}:
        raise MalformedReplyError("an obligation of another shape")
    kind, value = _string(given["kind"], 100), given["value"]
    if kind not in tuple(ObligationKind):
        raise MalformedReplyError("an unknown obligation")
    if type(value) is str:
        return Obligation(kind, _string(value, MAX_OBLIGATION_CHARS))
    if type(value) is int and abs(value) < 2**63:
        return Obligation(kind, value)
    raise MalformedReplyError("an obligation to another kind of value")


def _string(value: object, most: int) -> str:
    if type(value) is not str or len(value) > most:
        raise MalformedReplyError("a text that is none, or too long")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise MalformedReplyError("a text that nobody can encode") from None
    return value


def _check(root: object) -> None:
    pending = [(root, 0)]
    while pending:
        value, depth = pending.pop()
        kind = type(value)
        if depth > _DEPTH:
            raise MalformedReplyError("a reply that is nested too deep")
        if kind is dict:
            for key, each in value.items():  # type: ignore[attr-defined]  # its exact type is known
                _string(key, 200)
                pending.append((each, depth + 1))
        elif kind is list:
            pending.extend((each, depth + 1) for each in value)  # type: ignore[attr-defined]  # its exact type is known
        elif kind is str:
            _string(value, 1 << 20)
        elif (kind is int and abs(value) >= 2**63) or (kind is float and not math.isfinite(value)):  # type: ignore[arg-type]  # exact types
            raise MalformedReplyError("a number out of bounds")


def read_layers(message: Mapping[str, Any], *, pidfd: bool) -> Hardening:
    """Read which layers a worker has put on; said before any plugin source is there, so by our own code."""
    layers = message.get("locked")
    if type(layers) is not dict:
        raise MalformedReplyError("a worker that does not tell how it is locked down")
    killable = True if pidfd else "this system has no pidfd, or forbids it"
    return Hardening(layers={**layers, "pidfd": killable})


class Description:
    """What a plugin says about itself, bounded."""

    __slots__ = ("description", "name", "needs", "on_error", "priority", "timeout", "version")

    def __init__(self, message: Mapping[str, Any]) -> None:
        refusal = message.get("refused")
        if type(refusal) is str:
            raise ConfigurationError(cut(refusal, 2000).translate(_CONTROLS))
        members = message.get("ready")
        if type(members) is not dict or members.keys() != _MEMBERS:
            raise MalformedReplyError("a worker that does not say that it is ready")
        self.name = _string(members["name"], 200).translate(_CONTROLS)
        self.version = _string(members["version"], 100).translate(_CONTROLS)
        self.description = _string(members["description"], 1000).translate(_CONTROLS)
        priority, timeout, needs = members["priority"], members["timeout"], members["needs"]
        if not self.name:
            raise ConfigurationError("its name is empty")
        if type(priority) is not int or abs(priority) >= 2**31:
            raise ConfigurationError("its priority must be a whole number")
        if timeout is not None and not (type(timeout) in (int, float) and 0 < timeout <= 3600):
            raise ConfigurationError("its timeout must be a number of seconds above 0, or None")
        if members["on_error"] not in ("deny", "allow", "skip"):
            raise ConfigurationError("its on_error must be 'deny', 'allow' or 'skip'")
        if needs is not None and (type(needs) is not list or len(needs) > 100):
            raise ConfigurationError("its needs must be a set of names")
        self.priority: int = priority
        self.timeout: float | None = timeout
        self.on_error: str = members["on_error"]
        self.needs = None if needs is None else frozenset(_string(each, 200) for each in needs)
