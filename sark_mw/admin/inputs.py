"""What the admin API may be asked: bodies and queries. The same models validate requests and make the OpenAPI document."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StrictInt, model_validator

from sark_mw.errors import ConfigurationError
from sark_mw.limit import DEFAULT_ROOT, clean_scope
from sark_mw.settings_policy import RuleSettings
from sark_mw.settings_sections import LimitSettings
from sark_mw.window import canonical


def _root(name: str) -> str:
    if not name or clean_scope(name) != name:
        raise ValueError("a root is a name without spaces or control characters")
    return name


def _scope(name: str) -> str:
    kind, _, rest = name.partition(":")
    if not kind or not rest or not name.isprintable():
        raise ValueError("a scope reads kind:name")
    return name


def _window(window: str) -> str:
    try:
        return canonical(window)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


RootName = Annotated[str, Field(max_length=200, description="The root whose limits are meant."), AfterValidator(_root)]
ScopeName = Annotated[str, Field(max_length=1000, description="`kind:name`: `user:alice`."), AfterValidator(_scope)]
WindowName = Annotated[str, Field(max_length=100), AfterValidator(_window)]
Reason = Annotated[str, Field(max_length=1000, description="Why, for the record.")]
UnitName = Literal["usd", "requests", "input_tokens", "output_tokens", "tokens", "concurrency"]
Kind = Literal["set", "delete", "top_up", "override", "rollover", "threshold", "release", "repair", "approval", "plugin", "rule"]
DryRun = Annotated[bool, Field(description="Change nothing; answer what would be changed.")]
_MAX_OBLIGE = 4000
_MAX_NUMBER = 2**31
Most = Annotated[int, Field(ge=1, le=1000, description="How many at most.")]


def _plain(value: Any) -> Any:
    """Numbers of a body are exact decimals; those that rules take are whole."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    # Only then: written out as an integer, 1E+400000 keeps a processor busy for seconds.
    small = isinstance(value, Decimal) and value.copy_abs() <= _MAX_NUMBER
    return int(value) if small and value == value.to_integral_value() else value


def _is_flat(value: Any) -> bool:
    return not any(isinstance(each, (list, tuple, dict)) for each in (value if isinstance(value, (list, tuple)) else (value,)))


class Input(BaseModel):
    """What is asked; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoQuery(Input):
    """No parameters."""


class LimitsBody(Input):
    """Limits, one or many."""

    limits: tuple[LimitSettings, ...] = Field(max_length=20_000, description="As in the settings' `[[limits]]`.")
    reason: Reason = ""


class _Which(Input):
    scope: ScopeName
    limit_id: str | None = Field(None, max_length=1500, description="Which limit, where several match the scope.")
    unit: UnitName | None = Field(None, description="Or its unit …")
    window: WindowName | None = Field(None, description="… or its window.")
    root: RootName = DEFAULT_ROOT
    reason: Reason = ""


class TopUpBody(_Which):
    """What to add to (negative: take from) what a limit allows in its present period, or for good where it has none."""

    amount: Decimal = Field(max_digits=40, description="Dollars for `usd`, a whole number for the other units; not 0.")

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.amount:
            raise ValueError("a top-up of 0 changes nothing")
        return self


class OverrideBody(_Which):
    """Another amount in the place of a limit's, until then; an amount of null ends the one in force."""

    amount: Decimal | None = Field(ge=0, max_digits=40, description="Null ends the override in force.")
    until: AwareDatetime | None = Field(None, description="Until when; at most 366 days ahead.")
    for_s: StrictInt | None = Field(None, ge=1, le=366 * 86_400, description="Or for how many seconds from now.")

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        given = [self.until is not None, self.for_s is not None].count(True)
        if given != (0 if self.amount is None else 1):
            raise ValueError("an override has an amount and one of until and for_s; to end one, an amount of null and neither")
        return self


class RuleBody(Input):
    """A rule in CEL, with the fields of `[[policy.rules]]`: where `when` is true it denies, or obliges."""

    when: str = Field(
        min_length=1, max_length=2048, description='True or false: `request.model.startsWith("gpt-4") && remaining < 5.0`.'
    )
    deny: str | None = Field(None, min_length=1, max_length=500, description="The reason that a denied request is told.")
    oblige: dict[Literal["add_tag", "cap_output_tokens", "use_model", "require_scope"], Any] | None = Field(
        None, description="Or what an allowed one is obliged to."
    )
    priority: StrictInt = Field(100, ge=-1_000_000, le=1_000_000, description="Lower ones are asked earlier.")
    on_error: Literal["deny", "allow", "skip"] = Field("deny", description="What it decides when it cannot be evaluated.")
    reason: Reason = ""

    @model_validator(mode="after")
    def _is_one_rule(self) -> Self:
        if not all(_is_flat(each) for each in (self.oblige or {}).values()):
            raise ValueError("an obligation takes a name or a number, or a list of them")
        if "\0" in f"{self.when}{self.deny}" or len(json.dumps(self.oblige, default=str)) > _MAX_OBLIGE:
            raise ValueError("a rule has no NUL in it, and obliges to a few things at most")
        self.to_rule()
        return self

    def to_rule(self) -> RuleSettings:
        """Make the rule."""
        said = self.model_dump(exclude={"reason"})
        said["oblige"] = None if self.oblige is None else {kind: _plain(value) for kind, value in self.oblige.items()}
        return RuleSettings(**said)


class ApproveBody(Input):
    """How far the word goes."""

    amount: Decimal | None = Field(
        None, gt=0, max_digits=40, description="Dollars at most; the amount that it waits for if absent."
    )
    valid_s: int = Field(3600, ge=1, le=7 * 86_400, description="For how many seconds the token is good.")
    reason: Reason = ""


class WhyQuery(Input):
    """Why."""

    reason: Reason = ""


class RootQuery(Input):
    """Which root."""

    root: RootName = DEFAULT_ROOT


class PutQuery(Input):
    """How to set."""

    dry_run: DryRun = False


class ImportQuery(Input):
    """How to import."""

    prune: bool = Field(False, description="Drop what is not named, of the roots that are named.")
    dry_run: DryRun = False
    root: RootName | None = Field(None, description="The root of limits that name none; named even without any.")


class DeleteQuery(RootQuery):
    """Which limit of which root, and why."""

    reason: Reason = ""
    dry_run: DryRun = False


class StatusQuery(RootQuery):
    """On which scopes; none: on all that a limit names."""

    scope: tuple[ScopeName, ...] = Field((), max_length=100, description="May be repeated: as one request would touch them.")


class ListQuery(RootQuery):
    """How many of which root."""

    most: Most = 100


class ReleaseQuery(RootQuery):
    """Of which root, and why."""

    reason: Reason = ""


class EventsQuery(Input):
    """Which events."""

    root: RootName | None = None
    kind: tuple[Kind, ...] = Field((), max_length=20, description="May be repeated.")
    limit_id: str | None = Field(None, max_length=1500)
    scope: str | None = Field(None, max_length=1000)
    since: AwareDatetime | None = None
    before_seq: int | None = Field(None, ge=1, le=2**62, description="Older than this one: for the next page.")
    most: Most = 100
