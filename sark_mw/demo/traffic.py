"""The callers at work: official clients, dozens of calls in flight, each caller until its budget is spent."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anthropic
import openai

from sark_mw.demo.cast import Caller

#: A worker goes home after as many refusals, with longer and longer pauses: what others held may have become free by then.
_REFUSALS_PER_WORKER = 3
_PAUSE_S = 0.4
_TOPICS = ("the tides", "old maps", "sourdough", "chess endings", "night trains", "glaciers", "bee dances", "stone bridges")
OPENAI_CHAT, OPENAI_EMBEDDINGS, ANTHROPIC = "gpt-4o", "text-embedding-3-small", "claude-sonnet-4-5"


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one caller saw: calls admitted and refused, of which streams, and answers that should not have come."""

    admitted: int = 0
    streams: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


class Traffic:
    """All callers against one gateway, for at most `seconds`."""

    def __init__(self, gateway: str, callers: tuple[Caller, ...], *, seconds: float) -> None:
        self._gateway = gateway
        self._callers = callers
        self._ends = time.monotonic() + seconds
        self.tallies = {caller.name: Tally() for caller in callers}
        self.in_flight = 0
        self.peak = 0
        self.out_of_time = False

    async def run(self) -> None:
        """Drive until every worker has gone home or the time is up."""
        async with asyncio.TaskGroup() as group:
            for number, caller in enumerate(self._callers):
                group.create_task(self._drive(caller, random.Random(number)))  # noqa: S311 - reproducible, not secret

    async def _drive(self, caller: Caller, rng: random.Random) -> None:
        async with (
            openai.AsyncOpenAI(api_key=caller.key, base_url=f"{self._gateway}/v1", timeout=60) as of_openai,
            anthropic.AsyncAnthropic(api_key=caller.key, base_url=self._gateway, timeout=60) as of_anthropic,
        ):
            calls = _Calls(of_openai, of_anthropic)
            async with asyncio.TaskGroup() as group:
                for _ in range(caller.workers):
                    group.create_task(self._work(caller, calls, random.Random(rng.random())))  # noqa: S311

    async def _work(self, caller: Caller, calls: _Calls, rng: random.Random) -> None:
        tally = self.tallies[caller.name]
        kinds, weights = list(caller.calls), list(caller.calls.values())
        refusals = 0
        while refusals < _REFUSALS_PER_WORKER:
            if time.monotonic() > self._ends:
                self.out_of_time = True
                return
            kind = rng.choices(kinds, weights)[0]
            prompt = f"Write a paragraph about {rng.choice(_TOPICS)}, number {rng.randrange(1000)}, for a curious reader."
            if await self._call(tally, calls.kinds[kind](prompt), stream=kind.endswith("stream")):
                refusals += 1
                await asyncio.sleep(_PAUSE_S * 2**refusals * rng.uniform(0.5, 1.5))

    async def _call(self, tally: Tally, call: Awaitable[None], *, stream: bool) -> bool:
        """Await one call; tells whether it was refused for lack of budget."""
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await call
        except (openai.APIStatusError, anthropic.APIStatusError) as error:
            if error.status_code == 402:
                tally.refused[f"{type(error).__module__.partition('.')[0]}.{type(error).__name__}"] += 1
                return True
            tally.failed[f"{error.status_code} {error.message}"[:200]] += 1
            await asyncio.sleep(_PAUSE_S)
        except (openai.OpenAIError, anthropic.AnthropicError) as error:
            tally.failed[f"{type(error).__name__}: {error}"[:200]] += 1
            await asyncio.sleep(_PAUSE_S)
        else:
            tally.admitted += 1
            tally.streams += stream
        finally:
            self.in_flight -= 1
        return False


class _Calls:
    """The kinds of calls, made with the official clients; each reads its answer to the end."""

    def __init__(self, of_openai: openai.AsyncOpenAI, of_anthropic: anthropic.AsyncAnthropic) -> None:
        self._openai = of_openai
        self._anthropic = of_anthropic
        self.kinds: dict[str, Callable[[str], Awaitable[None]]] = {
            "chat": self._chat,
            "chat_stream": self._chat_stream,
            "embeddings": self._embeddings,
            "messages": self._messages,
            "messages_stream": self._messages_stream,
        }

    async def _chat(self, prompt: str) -> None:
        await self._openai.chat.completions.create(
            model=OPENAI_CHAT, max_tokens=150, messages=[{"role": "user", "content": prompt}]
        )

    async def _chat_stream(self, prompt: str) -> None:
        stream = await self._openai.chat.completions.create(
            model=OPENAI_CHAT, max_tokens=150, messages=[{"role": "user", "content": prompt}], stream=True
        )
        async for _ in stream:
            pass

    async def _embeddings(self, prompt: str) -> None:
        await self._openai.embeddings.create(model=OPENAI_EMBEDDINGS, input=[prompt] * 8)

    async def _messages(self, prompt: str) -> None:
        await self._anthropic.messages.create(model=ANTHROPIC, max_tokens=120, messages=[{"role": "user", "content": prompt}])

    async def _messages_stream(self, prompt: str) -> None:
        async with self._anthropic.messages.stream(
            model=ANTHROPIC, max_tokens=120, messages=[{"role": "user", "content": prompt}]
        ) as stream:
            async for _ in stream:
                pass
