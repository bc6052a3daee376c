"""`sark-mw doctor`: print what the doctor found."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated

import typer

from sark_mw.commands.options import Config, Json, say, table
from sark_mw.doctor import Check, Examination, Forecast, Question, Status, examine
from sark_mw.settings import Settings

_SIGN = {Status.OK: "ok  ", Status.WARN: "warn", Status.FAIL: "FAIL", Status.UNKNOWN: "?   "}


def doctor(
    config: Config = None,
    model: Annotated[str | None, typer.Option(help="What would a request of this model be charged?")] = None,
    principal: Annotated[str, typer.Option(help="Who pays for it.")] = "user:example",
    scope: Annotated[list[str] | None, typer.Option(help="What else it touches: team:ml; may be repeated.")] = None,
    root: Annotated[str | None, typer.Option(help="Whose limits apply (default: principal.root).")] = None,
    input_tokens: Annotated[int, typer.Option(min=1, max=1_000_000, help="About how long its prompt is.")] = 1000,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Its output limit.")] = None,
    provider: Annotated[str | None, typer.Option(help="openai, anthropic …; found by the model's name if absent.")] = None,
    as_json: Json = False,
) -> None:
    """Examine store, ledger, clocks, prices and settings; with --model, tell what a request would be charged. Changes nothing."""
    settings = Settings.load(config)
    question = None
    if model is not None:
        question = Question(
            model=model,
            principal=principal,
            scopes=tuple(scope or ()),
            root=root,
            input_tokens=input_tokens,
            max_tokens=max_tokens,
            provider=provider,
        )
    found = asyncio.run(examine(settings, question))
    if as_json:
        say(json.dumps(found.as_json(), indent=2))
    else:
        _print(found)
    if found.failed:
        sys.exit(1)


def _print(found: Examination) -> None:
    for check in found.checks:
        _print_check(check)
    if found.forecast is not None:
        say()
        _print_forecast(found.forecast)


def _print_check(check: Check) -> None:
    say(f"{_SIGN[check.status]}  {check.name}: {check.sentence}")
    if check.remedy and check.status is not Status.OK:
        say(f"      → {check.remedy}")


def _print_forecast(forecast: Forecast) -> None:
    say(
        f"A request of {forecast.model} by {forecast.principal} "
        f"({forecast.input_tokens} tokens in, at most {forecast.max_output_tokens} out):"
    )
    say(f"  holds    ${forecast.ceiling_usd:f} until it is done")
    say(f"  expected ${forecast.expected_usd:f}")
    for note in forecast.notes:
        say(f"  {note}")
    if forecast.limits:
        say()
        rows = [
            [
                each.limit,
                each.scope,
                f"{each.amount:f}",
                f"{each.spent:f}",
                f"{each.held:f}",
                f"{each.remaining:f}",
                f"{each.needed:f}",
                each.verdict,
            ]
            for each in forecast.limits
        ]
        table(["limit", "scope", "amount", "spent", "held", "remaining", "needed", ""], rows, right=(2, 3, 4, 5, 6))
    say()
    say("It would pass now." if forecast.passes else "It would be refused now.")
