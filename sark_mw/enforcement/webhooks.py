"""Webhooks: events of limits, sent from the ledger to whoever the settings name.

Which event still has to be sent stands in the ledger, so a restart loses none, and several processes share the work. Each
receiver gets an event at least once: again only where it did not answer 2xx in time, or where a process died before it noted the
answer. An event that some have and others lack is sent to these only. Attempts come further apart, from 30 seconds to six hours,
and end three days after the event.

Nobody waits for another's receiver: what is due goes on being claimed while one is slow, and one that does not answer is left
alone for a while, which is no attempt of the events that it lacks meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from sark_mw.errors import ConfigurationError
from sark_mw.instrumentation.base import Instrumentation
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.events import CLAIMED_FOR_MS, RecordedEvent
from sark_mw.settings_sections import WebhookSettings

if TYPE_CHECKING:
    from sark_mw.enforcement.webhook_sender import WebhookSender

#: Events of one claim, how many of them one receiver is sent at once, and how many may wait for it.
_BATCH = 24
_AT_ONCE = 8
_MOST_WAITING = 64
#: How long the next claim waits for receivers that still have a batch before them.
_PATIENCE_S = 1.0
_FIRST_RETRY_MS = 30_000
_LONGEST_RETRY_MS = 6 * 3_600_000


class Sent(StrEnum):
    """How sending an event ended. `NOT_NOW`: it was not tried, as the receiver does not answer, or too many wait for it."""

    TAKEN = "taken"
    REFUSED = "refused"
    NOT_ANSWERED = "not_answered"
    NOT_NOW = "not_now"


class Webhooks:
    """Deliver events round by round; nothing that serves requests waits for it.

    Raises `ConfigurationError` where a webhook is configured and its client is not installed, or one address stands twice.
    """

    def __init__(self, ledger: Ledger, settings: Sequence[WebhookSettings], instrumentation: Instrumentation) -> None:
        self._ledger = ledger
        self._instrumentation = instrumentation
        self._senders = _senders(settings)
        self._kinds = tuple(sorted({kind for sender in self._senders for kind in sender.kinds}))
        # Nobody else may take an event over while it is sent: the last of a batch, to a receiver that lets all attempts time out.
        slowest_s = max((one.timeout_s for one in settings), default=0.0)
        self._claim_ms = round(-(-_MOST_WAITING // _AT_ONCE) * slowest_s * 1000) + 30_000

    async def round(self) -> None:
        """Deliver until nothing is due and nothing under way; raises `LedgerError`."""
        under_way: set[asyncio.Task[bool]] = set()
        try:
            while True:
                now_ms = int(time.time() * 1000)
                claimed = await self._claim(now_ms)
                under_way |= {asyncio.ensure_future(self._deliver(one, now_ms)) for one in claimed}
                if not under_way:
                    return
                under_way = await self._let_some_end(under_way, more=len(claimed) == _BATCH)
        finally:
            for each in under_way:
                each.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _let_some_end(self, under_way: set[asyncio.Task[bool]], *, more: bool) -> set[asyncio.Task[bool]]:
        """Wait for all, but only for a while; where more is due, until every receiver has room for it. Return who is left."""
        until = time.monotonic() + _PATIENCE_S
        while under_way and (left := until - time.monotonic()) > 0:
            if more and len(under_way) + _BATCH <= _MOST_WAITING:
                break
            done, under_way = await asyncio.wait(under_way, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        return under_way

    async def _claim(self, now_ms: int) -> list[RecordedEvent]:
        return await self._ledger.claim_events(self._kinds, now_ms, self._claim_ms, _BATCH) if self._senders else []

    async def deliver_once(self, now_ms: int) -> int:
        """Send one batch of what is due; return how many events every receiver has now. Raises `LedgerError`."""
        claimed = await self._claim(now_ms)
        ended = await asyncio.gather(*(self._deliver(one, now_ms) for one in claimed), return_exceptions=True)
        for each in ended:
            if isinstance(each, BaseException):
                raise each
        return sum(each is True for each in ended)

    async def _deliver(self, recorded: RecordedEvent, now_ms: int) -> bool:
        event = recorded.event
        lacking = [one for one in self._senders if event.kind in one.kinds and one.name not in recorded.done]
        sent = dict(zip(lacking, await asyncio.gather(*(one.send(event, now_ms) for one in lacking)), strict=True))
        done = [one.name for one in lacking if sent[one] is Sent.TAKEN]
        passed_over = [one for one in lacking if sent[one] is Sent.NOT_NOW]
        failed = len(lacking) - len(done) - len(passed_over)
        for outcome in ["delivered"] * len(done) + ["failed"] * failed:
            self._instrumentation.webhook_delivered(outcome)
        if len(done) == len(lacking):
            await self._ledger.delivered([recorded.seq])
            return True
        due_ms = now_ms + retry_ms(recorded.attempts)
        if not failed:
            due_ms = min(one.next_try_ms(now_ms) for one in passed_over)
        await self._ledger.postpone(recorded.seq, due_ms, (*recorded.done, *done), tried=bool(failed))
        if due_ms > event.at_ms + CLAIMED_FOR_MS:
            self._instrumentation.webhook_delivered("given_up")
        return False

    async def aclose(self) -> None:
        """Close the connections; end the rounds before."""
        for sender in self._senders:
            await sender.aclose()


def retry_ms(attempts: int) -> int:
    """Say how long after so many failed attempts the next one is made."""
    return int(min(_LONGEST_RETRY_MS, _FIRST_RETRY_MS * 2 ** min(attempts - 1, 20)))


def _senders(settings: Sequence[WebhookSettings]) -> list[WebhookSender]:
    if not settings:
        return []
    if len({one.url for one in settings}) < len(settings):
        raise ConfigurationError("a webhook's url stands twice: name all of its events in one")
    try:
        from sark_mw.enforcement.webhook_sender import WebhookSender
    except ImportError as error:
        raise ConfigurationError(f"webhooks need their client: pip install 'sark-mw[serve]' ({error})") from error
    return [WebhookSender(one, at_once=_AT_ONCE, most_waiting=_MOST_WAITING) for one in settings]
