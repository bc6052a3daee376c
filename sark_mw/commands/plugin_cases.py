"""`sark-mw plugins test`: run a policy against cases in a file, as code is run against its tests."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from sark_mw.commands.options import Json, say, table
from sark_mw.commands.plugin_checks import BestEffort, ClassName, files_at, isolation_of
from sark_mw.commands.policy_targets import is_policy, load_policy
from sark_mw.errors import ConfigurationError
from sark_mw.limit import in_units
from sark_mw.policy.base import LimitFigures, PolicyContext, PolicyDecision, PolicyServices
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.policy.packages.bounded import content_of, toml_of

MOST_CASES_BYTES = 1 << 20


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExpectedObligation(_Form):
    """What the decision obliges to."""

    kind: str
    value: str | int


class Expectation(_Form):
    """The decision that is expected; what is not named may be as it likes."""

    allowed: bool
    reason: str = Field("", description="What the reason contains.")
    obligations: tuple[ExpectedObligation, ...] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict, description="What the metadata contains.")
    outcome: Literal["allowed", "denied", "timed_out", "failed", "skipped"] | None = Field(
        None, description="A plugin that fails or times out fails its case, unless that is what the case expects."
    )


class GivenLimit(_Form):
    """Where a limit stands that the request touches; dollars for `usd`."""

    scope: str
    unit: str = "usd"
    window: str = "day"
    amount: Decimal
    spent: Decimal = Decimal(0)
    held: Decimal = Decimal(0)

    def figures(self) -> LimitFigures:
        """Give the figures in the unit's integer."""
        amount, spent, held = (in_units(self.unit, each) for each in (self.amount, self.spent, self.held))
        return LimitFigures(scope=self.scope, unit=self.unit, window=self.window, amount=amount, spent=spent, held=held)


class Case(_Form):
    """A request and the decision that is expected of it."""

    name: str
    principal_id: str = "user:test"
    resource_id: str = "openai"
    capability_id: str = "chat"
    action: str = "invoke"
    arguments: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    limits: tuple[GivenLimit, ...] = Field((), description="For policies that judge by budgets.")
    at: AwareDatetime | None = Field(None, description="The time of the request; now, if absent.")
    expect: Expectation


class Cases(_Form):
    """A file of cases: they are run in their order by one plugin, built with `options`."""

    options: dict[str, Any] = Field(default_factory=dict)
    obligation_models: frozenset[str] = frozenset()
    cases: tuple[Case, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one case ended; no complaints is the good end."""

    name: str
    decision: PolicyDecision
    complaints: tuple[str, ...]


def test(
    target: Annotated[
        Path,
        typer.Argument(
            help="A plugin's file or package, a policy (.rego, .wasm, .wat), or settings (.toml) whose rules are meant."
        ),
    ],
    cases: Annotated[Path | None, typer.Option(help="The file of cases; by default cases.toml beside the plugin.")] = None,
    class_name: ClassName = None,
    in_process: Annotated[bool, typer.Option("--in-process", help="In this process: only a file that you trust.")] = False,
    best_effort: BestEffort = False,
    as_json: Json = False,
) -> None:
    """Ask a plugin about each case and compare its decisions with what is expected; 1 where one differs."""
    if is_policy(target):
        wanted = read_cases(cases or (target if target.is_dir() else target.parent) / "cases.toml")
        results = asyncio.run(run_cases(partial(load_policy, target, wanted.options, best_effort=best_effort), wanted))
    else:
        (file, *others) = files_at(target)
        if others:
            raise ConfigurationError(f"{target} has several plugins in it: test one after the other")
        cases = cases or file.path.with_name("cases.toml")
        wanted = read_cases(cases)
        isolation = None if in_process else isolation_of(best_effort=best_effort)
        chosen = replace(file, class_name=class_name, isolation=isolation, options=wanted.options)
        if file.options_path is not None and file.options_path.resolve() == cases.resolve():
            chosen = replace(chosen, options_path=None)  # cases that are named as the plugin are no options
        results = asyncio.run(run_cases(lambda manager: manager.load_file(chosen), wanted))
    if as_json:
        say(json.dumps([_as_json(each) for each in results], indent=2, default=str))
    else:
        _print(results)
    if any(each.complaints for each in results):
        sys.exit(1)


def read_cases(path: Path) -> Cases:
    """Read a file of cases; raises `ConfigurationError` naming what is wrong in it."""
    try:
        return Cases.model_validate(toml_of(content_of(path, MOST_CASES_BYTES), MOST_CASES_BYTES))
    except (OSError, ConfigurationError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{path}: {where}: {first['msg']}") from error


async def run_cases(load: Callable[[PolicyPluginManager], Awaitable[object]], wanted: Cases) -> list[Result]:
    """Load what is tested as a gateway does and ask it about each case, in their order."""
    manager = PolicyPluginManager(obligation_models=wanted.obligation_models)
    manager.packages.alone = True
    reader = _Given()
    manager.bind(PolicyServices(limits=reader))
    await load(manager)
    try:
        results = []
        for case in wanted.cases:
            reader.figures = [each.figures() for each in case.limits]
            results.append(_judged(case, await manager.evaluate_all(_context(case))))
        return results
    finally:
        for each in manager.list_plugins():
            await manager.unregister_plugin(each["name"])


class _Given:
    """Where the limits of a case stand."""

    def __init__(self) -> None:
        self.figures: Sequence[LimitFigures] = ()

    async def read(self, root: str, scopes: Sequence[str], request_id: str = "") -> Sequence[LimitFigures]:
        """Return them."""
        return self.figures


def _context(case: Case) -> PolicyContext:
    at: Mapping[str, datetime] = {} if case.at is None else {"timestamp": case.at}
    return PolicyContext(
        principal_id=case.principal_id,
        resource_id=case.resource_id,
        capability_id=case.capability_id,
        action=case.action,
        arguments=case.arguments,
        environment=_environment(case),
        **at,
    )


def _environment(case: Case) -> dict[str, Any]:
    if not case.limits or "limits" in case.environment:
        return case.environment
    figures = [each.figures() for each in case.limits]
    return {**case.environment, "limits": [{**asdict(each), "used": each.used} for each in figures]}


def _judged(case: Case, decisions: list[PolicyDecision]) -> Result:
    # Of several rules all that allow oblige; one that denies ends the round.
    obligations = tuple(dict.fromkeys(each for decision in decisions for each in decision.obligations))
    decision, expect = replace(decisions[-1], obligations=obligations), case.expect
    complaints = []
    outcome = str(decision.outcome)
    wanted_outcome = expect.outcome or ("allowed" if expect.allowed else "denied")
    if outcome != wanted_outcome:
        complaints.append(f"it is {outcome}, not {wanted_outcome}")
    elif decision.allowed is not expect.allowed:
        complaints.append(f"allowed is {decision.allowed}")
    if expect.reason not in decision.reason:
        complaints.append(f"the reason does not contain {expect.reason!r}")
    obliged = sorted((each.kind, str(each.value)) for each in decision.obligations)
    if expect.obligations is not None and obliged != sorted((each.kind, str(each.value)) for each in expect.obligations):
        complaints.append(f"it obliges to {', '.join(f'{kind} {value}' for kind, value in obliged) or 'nothing'}")
    for name, value in expect.metadata.items():
        if name not in decision.metadata or not _same(decision.metadata[name], value):
            complaints.append(f"metadata {name} is {decision.metadata.get(name)!r}")
    return Result(name=case.name, decision=decision, complaints=tuple(complaints))


def _same(found: object, expected: object) -> bool:
    return str(found) == str(expected) if isinstance(found, Decimal) else found == expected


def _print(results: list[Result]) -> None:
    rows = [
        ["ok" if not each.complaints else "FAIL", each.name, str(each.decision.outcome), each.decision.reason[:80]]
        for each in results
    ]
    table(["", "case", "decision", "reason"], rows)
    for each in results:
        for complaint in each.complaints:
            say(f"{each.name}: {complaint}")
    failed = sum(bool(each.complaints) for each in results)
    say(f"{len(results) - failed} of {len(results)} cases passed")


def _as_json(each: Result) -> dict[str, Any]:
    decision = each.decision
    return {
        "name": each.name,
        "passed": not each.complaints,
        "complaints": each.complaints,
        "allowed": decision.allowed,
        "outcome": str(decision.outcome),
        "reason": decision.reason,
        "metadata": decision.metadata,
        "obligations": [{"kind": one.kind, "value": one.value} for one in decision.obligations],
    }
