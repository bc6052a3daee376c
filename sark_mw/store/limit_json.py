"""Limits as they lie in the store: one JSON object each."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

from sark_mw.limit import Limit
from sark_mw.limit_options import limit_options, options_of_limit

_RULE = ("scope", "unit", "window", "timezone", "mode", "root", "since_ms")


def limit_field(root: str, limit_id: str) -> str:
    """Name a limit's field in the hash of limits."""
    return f"{root}|{limit_id}"


def limit_to_json(limit: Limit, *, since: bool = False) -> str:
    """Write a limit; `since_ms` and `carries_since_ms` are left to the script unless asked for."""
    fields: dict[str, object] = {"since_ms": limit.since_ms} if since else {}
    fields |= {
        "scope": limit.scope,
        "unit": limit.unit,
        "amount": str(limit.amount),
        "window": limit.window,
        "timezone": limit.timezone,
        "mode": limit.mode,
        "root": limit.root,
    }
    fields |= options_of_limit(limit if since else replace(limit, carries_since_ms=0))
    return json.dumps(fields, separators=(",", ":"))


def limit_from_json(text: str) -> Limit:
    """Read a limit."""
    fields = json.loads(text)
    rule = {name: fields[name] for name in _RULE if name in fields}
    return Limit(amount=Decimal(fields["amount"]), **rule, **limit_options(fields))
