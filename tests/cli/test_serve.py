"""`sark-mw serve` as a user runs it: official clients, budgets that hold, workers that share them, a drain at SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
from decimal import Decimal
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.running import Stage

MESSAGES: Any = [{"role": "user", "content": "tell me a story of a coin and a lamp, please"}]
CALL = {"model": "gpt-4o", "messages": MESSAGES, "max_tokens": 20}


def budget(amount: str, extra: str = "") -> str:
    return f'{extra}\n[[limits]]\nscope = "org:acme"\namount = "{amount}"\n'


def requests_by_outcome(url: str) -> dict[str, float]:
    """Read the gateway's own count off its metrics."""
    families = {family.name: family for family in text_string_to_metric_families(httpx2.get(f"{url}/metrics").text)}
    found: dict[str, float] = {}
    for sample in families["sark_requests"].samples:
        if sample.name == "sark_requests_total":
            found[sample.labels["outcome"]] = found.get(sample.labels["outcome"], 0) + sample.value
    return found


async def test_official_clients_work_through_it_and_the_ledger_has_what_they_were_told(stage: Stage) -> None:
    stage.settings(budget("5"))
    process, url = stage.gateway()
    async with (
        openai.AsyncOpenAI(api_key="sk-a", base_url=f"{url}/v1", max_retries=0) as chat,
        anthropic.AsyncAnthropic(api_key="sk-b", base_url=url, max_retries=0) as claude,
    ):
        whole = await chat.chat.completions.with_raw_response.create(**CALL)
        stream = await chat.chat.completions.create(**CALL, stream=True)
        chunks = [chunk async for chunk in stream]
        message = await claude.messages.create(model="claude-haiku-4-5", max_tokens=20, messages=MESSAGES)
        async with claude.messages.stream(model="claude-haiku-4-5", max_tokens=20, messages=MESSAGES) as events:
            final = await events.get_final_message()
    assert all(chunk.choices for chunk in chunks), "the client did not ask for the usage chunk, so it must not see it"
    assert message.usage.output_tokens and final.usage.output_tokens
    process.end(signal.SIGTERM)
    books = stage.report("--by", "model")
    assert books["requests"] == books["entries"] == 4
    assert Decimal(whole.headers["x-sark-cost"]) > 0
    assert {group["model"] for group in books["groups"]} == {"gpt-4o", "claude-haiku-4-5"}
    by_day = stage.report("--by", "day")
    assert sum(Decimal(group["usd"]) for group in by_day["groups"]) == Decimal(books["usd"]) > 0


async def test_an_exhausted_budget_is_refused_once_and_typed(stage: Stage) -> None:
    stage.settings(budget("0.0000001"))
    _, url = stage.gateway()
    async with openai.AsyncOpenAI(api_key="sk-a", base_url=f"{url}/v1") as chat:
        with pytest.raises(openai.APIStatusError) as refused:
            await chat.chat.completions.create(**CALL)
    assert refused.value.status_code == 402
    assert requests_by_outcome(url) == {"refused_budget": 1}, "a client that retries a spent budget only loads everybody"


async def test_sigterm_lets_a_stream_end_and_books_it_before_the_process_goes(slow_stage: Stage) -> None:
    slow_stage.settings(budget("5"))
    process, url = slow_stage.gateway()
    async with openai.AsyncOpenAI(api_key="sk-a", base_url=f"{url}/v1", max_retries=0) as chat:
        stream = await chat.chat.completions.create(**CALL, stream=True, stream_options={"include_usage": True})
        chunks = [await anext(stream)]
        os.kill(process.pid, signal.SIGTERM)
        chunks += [chunk async for chunk in stream]
    usage = chunks[-1].usage
    assert usage is not None and usage.completion_tokens == 20
    process.end(signal.SIGTERM)
    assert "Traceback" not in process.output
    books = slow_stage.report()
    assert (books["requests"], books["tokens"]) == (1, usage.total_tokens)


async def test_two_workers_share_one_budget_and_exactly_what_it_pays_for_passes(stage: Stage) -> None:
    fixed = '[[routes]]\npath = "/v1/chat/completions"\nprice_usd = "0.01"\n'
    stage.settings(budget("0.25", fixed))
    process, url = stage.gateway("--workers", "2")

    async def call(number: int) -> int:
        # A connection each, so that the kernel spreads them over both workers.
        async with httpx2.AsyncClient(timeout=60) as client:
            response = await client.post(
                f"{url}/v1/chat/completions", json=CALL, headers={"authorization": f"Bearer sk-{number % 7}"}
            )
        return response.status_code

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(call(number)) for number in range(80)]
    statuses = [each.result() for each in calls]
    assert (statuses.count(200), statuses.count(402)) == (25, 55)
    assert requests_by_outcome(url) == {"admitted": 25, "refused_budget": 55}, "one page speaks for all workers"
    process.end(signal.SIGTERM)
    assert process.output.count("http.metered_only is off") == 1, "workers do not repeat what their parent has said"
    assert stage.report()["usd"] == "0.25"


@pytest.mark.parametrize(("ledger", "warnings"), [("sqlite:///:memory:", 1), (None, 0)])
def test_a_ledger_in_memory_is_warned_of_once_at_start(stage: Stage, ledger: str | None, warnings: int) -> None:
    stage.settings(store="memory://", ledger=ledger)
    process, _ = stage.gateway()
    process.end(signal.SIGTERM)
    warned = [line for line in process.output.splitlines() if "after a restart every budget is handed out again" in line]
    assert len(warned) == warnings


def test_the_fake_provider_lists_its_models(stage: Stage) -> None:
    answer = httpx2.get(f"{stage.provider_url}/v1/models")
    assert answer.status_code == 200 and "gpt-4o" in [model["id"] for model in answer.json()["data"]]
    models = openai.OpenAI(api_key="sk-a", base_url=f"{stage.provider_url}/v1", max_retries=0).models.list()
    assert [model.id for model in models.data] == [model["id"] for model in answer.json()["data"]]


async def test_an_upstream_that_is_away_costs_nothing(stage: Stage) -> None:
    stage.settings(budget("1"))
    process, url = stage.gateway("--upstream", f"http://127.0.0.1:{stage.free_port()}")
    async with openai.AsyncOpenAI(api_key="sk-a", base_url=f"{url}/v1", max_retries=0) as chat:
        with pytest.raises(openai.InternalServerError) as failed:
            await chat.chat.completions.create(**CALL)
    assert failed.value.status_code == 502
    process.end(signal.SIGTERM)
    assert stage.report()["usd"] == "0.00"


def test_its_own_pages_are_not_metered_and_not_passed_on(stage: Stage) -> None:
    _, url = stage.gateway()
    assert httpx2.get(f"{url}/healthz").json() == {"alive": True}
    ready = httpx2.get(f"{url}/readyz").json()
    assert (ready["ready"], ready["store"], ready["ledger"], ready["outbox_entries"]) == (True, "ok", "ok", 0)
    assert requests_by_outcome(url) == {}, "asking about the gateway is no request to it"


def test_readiness_goes_with_the_store_and_life_does_not(stage: Stage, fresh_valkey: Any) -> None:
    server = fresh_valkey(tcp=True)
    stage.settings(store=f"{server.url}/0")
    _, url = stage.gateway()
    server.stop()
    waits = httpx2.get(f"{url}/readyz", timeout=30)
    while waits.status_code == 200:  # the last answer is remembered for a second
        waits = httpx2.get(f"{url}/readyz", timeout=30)
    assert (waits.status_code, waits.json()["store"]) == (503, "StoreUnavailableError")
    assert httpx2.get(f"{url}/healthz").status_code == 200
