"""What the doctor says a request would be charged is what the enforcer then holds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from sark_mw.doctor import Forecast, Question, examine
from sark_mw.enforcement.admission import Admission
from sark_mw.enforcer import Invocation
from sark_mw.limit import Limit
from sark_mw.money import from_nanos
from sark_mw.pricing.base import InvocationRequest
from sark_mw.sark import Sark
from sark_mw.settings import Settings
from tests.doctor.test_checks import settings_for
from tests.servers.redis_server import RedisHandle


@pytest.fixture
async def running(tmp_path: Path, valkey_server: RedisHandle) -> AsyncIterator[Sark]:
    settings = settings_for(tmp_path, valkey_server.url, principal={"default_scopes": ["org:acme"]})
    async with Sark.open(settings) as opened:
        yield opened


async def ask(settings: Settings, question: Question) -> Forecast:
    found = (await examine(settings, question)).forecast
    assert found is not None
    return found


async def test_what_is_foretold_is_what_is_held(running: Sark) -> None:
    await running.limits.set(
        Limit(scope="user:*", amount=Decimal(1)),
        Limit(scope="org:acme", amount=Decimal(2), window="month"),
        Limit(scope="model:gpt-4o", unit="requests", amount=Decimal(3)),
        Limit(scope="team:other", amount=Decimal(4)),
    )
    question = Question(model="gpt-4o", principal="alice", input_tokens=100, max_tokens=50)
    told = await ask(running.settings, question)
    assert told.principal == "user:alice"
    touched = {limit.scope: limit for limit in told.limits}
    assert {scope: limit.amount for scope, limit in touched.items()} == {"user:alice": 1, "org:acme": 2, "model:gpt-4o": 3}
    assert told.passes and told.max_output_tokens == 50
    assert all(limit.held == limit.spent == 0 for limit in told.limits), "asking reserves nothing"
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "word " * 100}], "max_tokens": 50}
    request = InvocationRequest("chat", "user:alice", body)
    held = await running.enforcer.admit(
        Invocation(request=request, estimator=running.estimators["openai"], root="default", scopes=told.scopes, request_id="r")
    )
    assert isinstance(held, Admission)
    assert from_nanos(held.estimate.ceiling_nanos) == told.ceiling_usd
    again = await ask(running.settings, question)
    assert {limit.scope: limit.held for limit in again.limits} == {
        "user:alice": told.ceiling_usd,
        "org:acme": told.ceiling_usd,
        "model:gpt-4o": 1,
    }
    assert {limit.scope: limit.remaining for limit in again.limits}["user:alice"] == 1 - told.ceiling_usd
    await held.release()


async def test_a_request_that_does_not_fit_would_be_refused_and_by_whom(running: Sark) -> None:
    await running.limits.set(
        Limit(scope="user:*", amount=Decimal("0.0001")), Limit(scope="org:acme", amount=Decimal("0.0001"), mode="shadow")
    )
    told = await ask(running.settings, Question(model="gpt-4o", max_tokens=1000))
    assert not told.passes
    assert {limit.scope: limit.verdict for limit in told.limits} == {
        "user:example": "refuses",
        "org:acme": "would refuse (shadow)",
    }


async def test_a_shadow_limit_alone_refuses_nothing(running: Sark) -> None:
    await running.limits.set(Limit(scope="user:*", amount=Decimal("0.0001"), mode="shadow"))
    assert (await ask(running.settings, Question(model="gpt-4o", max_tokens=1000))).passes


async def test_a_request_without_an_output_limit_is_told_to_hold_all_that_the_model_can_say(running: Sark) -> None:
    open_ended = await ask(running.settings, Question(model="gpt-4o"))
    capped = await ask(running.settings, Question(model="gpt-4o", max_tokens=10))
    assert open_ended.max_output_tokens > 1000 > capped.max_output_tokens
    assert open_ended.ceiling_usd > capped.ceiling_usd
    assert any("no output limit" in note for note in open_ended.notes)


async def test_an_unknown_model_passes_as_the_dearest_or_not_at_all(tmp_path: Path) -> None:
    lenient = await ask(settings_for(tmp_path), Question(model="nobodys-model", max_tokens=10))
    strict = await ask(
        settings_for(tmp_path, pricing={"on_unknown_model": "deny"}), Question(model="nobodys-model", max_tokens=10)
    )
    assert lenient.passes and not strict.passes
    assert any("dearest" in note for note in lenient.notes) and any("refused" in note for note in strict.notes)


async def test_limits_of_the_settings_answer_where_the_store_lives_in_another_process(tmp_path: Path) -> None:
    settings = Settings(**{**settings_for(tmp_path).model_dump(), "limits": [{"scope": "user:*", "amount": "0.00001"}]})
    told = await ask(settings, Question(model="claude-haiku-4-5", max_tokens=1000))
    assert told.provider == "anthropic" and not told.passes
    assert [limit.scope for limit in told.limits] == ["user:example"]
    assert any("memory://" in note for note in told.notes)
