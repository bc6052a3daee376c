"""What a request says of itself: its run and the run's budget, its end user, its tags. None of it lets the request spend more."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b

from sark_mw.asgi.principal import Principal
from sark_mw.asgi.routes import Route
from sark_mw.asgi.types import RawHeaders, single
from sark_mw.errors import InvalidRequestError, MoneyError
from sark_mw.limit import DEFAULT_ROOT, Limit, run_limit
from sark_mw.wire.base import Call
from sark_mw.wire.body import clean_path, mapping

RUN, RUN_BUDGET, END_USER, TAGS = (b"x-sark-run", b"x-sark-run-budget", b"x-sark-end-user", b"x-sark-tags")
_OURS = b"x-sark-"
MAX_ID_CHARS = 128
MAX_TAGS = 8
MAX_TAG_CHARS = 64
_BUDGET = re.compile(r"[0-9]{1,10}(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asserted:
    """`scopes` are touched whatever limits there are, `asserted` where a limit matches; `limits` are the request's own."""

    scopes: tuple[str, ...] = ()
    asserted: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()


def asserted_by(principal: Principal, route: Route, call: Call, headers: RawHeaders) -> Asserted:
    """Read it off headers and body; raises `InvalidRequestError`."""
    headers = [pair for pair in headers if pair[0].startswith(_OURS)]
    run = _run(principal, single(headers, RUN))
    budget = single(headers, RUN_BUDGET)
    if budget is not None and run is None:
        raise InvalidRequestError("A budget of a run needs its id: send x-sark-run.", param="x-sark-run")
    end_user = _end_user(call, single(headers, END_USER))
    tags = _tags(single(headers, TAGS))
    resource = clean_path(call.path) if call.wire == "mcp" else route.capability or route.fallback_capability
    return Asserted(
        scopes=() if run is None else (run,),
        asserted=tuple(dict.fromkeys((*end_user, *tags, f"resource:{resource}"))),
        limits=() if run is None else (_limit(principal, run, budget),),
    )


def _run(principal: Principal, run_id: str | None) -> str | None:
    """Return the scope of a run; below its principal's name, so that nobody spends another's."""
    if run_id is None:
        return None
    _named(run_id, "x-sark-run")
    # A slash would let the runs of one principal be read as those of another, a * would make a limit on it one on many.
    if "/" in run_id or "*" in run_id:
        raise InvalidRequestError("The id of a run has no / and no *.", param="x-sark-run")
    return f"run:{principal.principal_id}/{run_id}"


def _tags(listed: str | None) -> tuple[str, ...]:
    if not listed:
        return ()
    tags = [tag.strip() for tag in listed.split(",") if tag.strip()]
    if len(tags) > MAX_TAGS:
        raise InvalidRequestError(f"A request may have at most {MAX_TAGS} tags.", param="x-sark-tags")
    return tuple(f"tag:{_named(tag, 'x-sark-tags', MAX_TAG_CHARS)}" for tag in tags)


def _named(name: str, param: str, most: int = MAX_ID_CHARS) -> str:
    if not 0 < len(name) <= most or not name.isprintable():
        raise InvalidRequestError(f"{param} must be 1 to {most} printable characters.", param=param)
    return name


def _limit(principal: Principal, run: str, budget: str | None) -> Limit:
    """Make the run's limit; a call that names no budget counts against the run all the same."""
    if budget is None:
        return run_limit(principal.root or DEFAULT_ROOT, run)
    try:
        amount = Decimal(budget) if _BUDGET.fullmatch(budget) else Decimal(0)
        if amount > 0:
            return run_limit(principal.root or DEFAULT_ROOT, run, amount)
    except MoneyError:
        pass  # above what a limit can be
    raise InvalidRequestError(
        "The budget of a run is an amount of dollars above 0, with at most nine decimals: 2.50.", param="x-sark-run-budget"
    )


def _end_user(call: Call, named: str | None) -> tuple[str, ...]:
    """Return the scope of the person behind the caller: by our header, else by the field that the dialect has for it."""
    if named is not None:
        return (f"end_user:{_named(named, 'x-sark-end-user')}",)
    body = mapping(call.body)
    if call.wire == "openai":
        found = body.get("safety_identifier") or body.get("user")
    else:
        found = mapping(body.get("metadata")).get("user_id") if call.wire == "anthropic" else None
    if not isinstance(found, str) or not found:
        return ()
    if len(found) > MAX_ID_CHARS or not found.isprintable():
        # What the provider takes is not refused here, and must not escape its limit either.
        found = f"~{blake2b(found.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"
    return (f"end_user:{found}",)
