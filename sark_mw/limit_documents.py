"""Limits as documents: the `[[limits]]` of a TOML file or the `limits` of a JSON object, read, checked and written.

What is written is read again as the same limits. Amounts are written as text, so that no digit is lost.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Literal

from pydantic import ValidationError

from sark_mw.enforcement.changes import by_root
from sark_mw.enforcement.limits import Changes, LimitRegistry
from sark_mw.errors import ConfigurationError, LimitFieldError, MoneyError
from sark_mw.limit import DEFAULT_ROOT, Limit
from sark_mw.limit_options import written_options
from sark_mw.settings_sections import LimitSettings

Form = Literal["toml", "json"]

#: In the order in which each can be judged once those before it are sound.
_JUDGED = (
    "scope", "root", "unit", "mode", "window", "timezone", "amount", "parent", "overcommit", "thresholds", "rollover",
)  # fmt: skip
_SOUND: dict[str, object] = {"scope": "any:one", "amount": Decimal(0)}


class NamedTwiceError(ValueError):
    """A JSON object has a name twice: which of the two is meant, nobody knows."""


def object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make an object of JSON's pairs, as `object_pairs_hook`; raises `NamedTwiceError`."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names: set[str] = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))  # type: ignore[func-returns-value]
        raise NamedTwiceError(f"{twice[:100]!r} is named twice in one object")
    return found


def read_limits(text: str, form: Form, *, root: str | None = None) -> tuple[Limit, ...]:
    """Read a document; limits that name no root get `root`. Raises `LimitFieldError`, or `ConfigurationError` for no document."""
    try:
        if form == "toml":
            document: object = tomllib.loads(text, parse_float=Decimal)
        else:
            document = json.loads(text, parse_float=Decimal, object_pairs_hook=object_of)
    except NamedTwiceError as error:
        raise ConfigurationError(f"this JSON may mean two things: {error}") from error
    except (ValueError, RecursionError, ArithmeticError) as error:
        raise ConfigurationError(f"this is no {form.upper()}: {error}") from error
    if not isinstance(document, dict) or "limits" not in document or not isinstance(document["limits"], list):
        example = "[[limits]] tables" if form == "toml" else 'an object {"limits": [...]}'
        raise LimitFieldError(f"a list of limits is expected: {example}", "limits")
    for name in document:
        if name != "limits":
            raise LimitFieldError("only limits are read here", str(name))
    return limits_of(document["limits"], root=root)


def limits_of(written: Sequence[object], *, root: str | None = None) -> tuple[Limit, ...]:
    """Make limits of what was written, none of them twice; raises `LimitFieldError` that names `limits[n]` and the field."""
    found: dict[tuple[str, str], int] = {}
    limits = []
    for n, each in enumerate(written):
        where = f"limits[{n}]"
        limit = limit_of_fields(each, where, root=root)
        first = found.setdefault((limit.root, limit.limit_id), n)
        if first != n:
            raise LimitFieldError(f"limits the same as limits[{first}]: {limit.limit_id}", where)
        limits.append(limit)
    return tuple(limits)


def limit_of_fields(written: object, where: str, *, root: str | None = None) -> Limit:
    """Make one limit; `where` is what its errors begin with."""
    try:
        section = written if isinstance(written, LimitSettings) else LimitSettings.model_validate(written)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join([*([where] if where else []), *(str(part) for part in first["loc"])])
        unknown = first["type"] == "extra_forbidden"
        message = "there is no such field" if unknown else first["msg"].removeprefix("Value error, ")
        raise LimitFieldError(message, field) from error
    fields = section.model_dump()
    if root is not None and "root" not in section.model_fields_set:
        fields["root"] = root
    try:
        return Limit(**fields)
    except (ConfigurationError, MoneyError) as error:
        raise LimitFieldError(str(error), f"{where}.{_at_fault(fields)}" if where else _at_fault(fields)) from error


def _at_fault(fields: Mapping[str, object]) -> str:
    """Find the field without which it would be a limit: each is tried with those before it that are sound."""
    sound = dict(_SOUND)
    for name in _JUDGED:
        try:
            Limit(**{**sound, name: fields[name]})  # type: ignore[arg-type]  # of the section's types
        except (ConfigurationError, MoneyError):
            return name
        sound[name] = fields[name]
    return _JUDGED[0]


async def apply_limits(
    registry: LimitRegistry,
    wanted: Sequence[Limit],
    *,
    root: str | None = None,
    prune: bool = False,
    dry_run: bool = False,
    actor: str = "",
    reason: str = "",
) -> list[Changes]:
    """Set the limits that are wanted, each root in one step; with `prune` drop all others of the roots that are named.

    All roots are checked before the first is changed. `root` is one that is named even without any limit. Returns what was done,
    with `dry_run` what would be.
    """
    named = {**({root: []} if root is not None else {}), **by_root(wanted)}
    planned = [(each, await registry.plan(each, own, prune=prune)) for each, own in named.items()]
    for each, changes in planned if not dry_run else ():
        if changes.put or changes.drop:
            ids = [limit.limit_id for limit in changes.drop]
            await registry.change(each, changes.put, ids, actor=actor, reason=reason)
    return [changes for _, changes in planned]


def write_limits(limits: Iterable[Limit], form: Form) -> str:
    """Write a document that `read_limits` takes back, sorted by root and id so that versions of it can be compared."""
    tables = [fields_of(limit) for limit in sorted(limits, key=lambda each: (each.root, each.limit_id))]
    if form == "json":
        return json.dumps({"limits": tables}, indent=2, ensure_ascii=False) + "\n"
    try:
        import tomli_w
    except ImportError as error:
        raise ConfigurationError(f"writing TOML needs an extra: pip install 'sark-mw[serve]' ({error})") from error
    # No limits at all: an empty array, since no table would be no document.
    return "\n".join(f"[[limits]]\n{tomli_w.dumps(table)}" for table in tables) or "limits = []\n"


def fields_of(limit: Limit) -> dict[str, object]:
    """Write a limit's fields as a document has them; options that it does not have are left out."""
    fields: dict[str, object] = {
        "scope": limit.scope,
        "amount": f"{limit.amount:f}",
        "unit": str(limit.unit),
        "window": limit.window,
        "timezone": limit.timezone,
        "mode": str(limit.mode),
        **written_options(limit),
    }
    if limit.rollover:
        fields["rollover"] = f"{limit.rollover:f}"
    if limit.root != DEFAULT_ROOT:
        fields["root"] = limit.root
    return fields
