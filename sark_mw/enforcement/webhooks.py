"""Webhooks: events of limits, sent from the ledger to whoever the settings name.

Which event still has to be sent stands in the ledger, so a restart loses none, and several processes share the work. Each
receiver gets an event at least once: again only where it did not answer 2xx in time, or where a process died before it noted the
answer. An event that some have and others lack is sent to these only. Attempts come further apart, from 30 seconds to six hours,
and end three days after the event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sark_mw.errors import ConfigurationError
from sark_mw.instrumentation.base import Instrumentation
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.events import CLAIMED_FOR_MS, RecordedEvent
from sark_mw.settings_sections import WebhookSettings

if TYPE_CHECKING:
    from sark_mw.enforcement.webhook_sender import WebhookSender

#: Events of one claim, and how many of them one receiver is sent at once.
_BATCH = 24
_AT_ONCE = 8
_FIRST_RETRY_MS = 30_000
_LONGEST_RETRY_MS = 6 * 3_600_000


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
        self._claim_ms = round(-(-_BATCH // _AT_ONCE) * slowest_s * 1000) + 30_000

    async def round(self) -> None:
        """Deliver what is due now; raises `LedgerError`."""
        while await self.deliver_once(int(time.time() * 1000)) == _BATCH:
            pass

    async def deliver_once(self, now_ms: int) -> int:
        """Send one batch of what is due; return how many events every receiver has now. Raises `LedgerError`."""
        if not self._senders:
            return 0
        claimed = await self._ledger.claim_events(self._kinds, now_ms, self._claim_ms, _BATCH)
        ended = await asyncio.gather(*(self._deliver(one, now_ms) for one in claimed), return_exceptions=True)
        for each in ended:
            if isinstance(each, BaseException):
                raise each
        return sum(each is True for each in ended)

    async def _deliver(self, recorded: RecordedEvent, now_ms: int) -> bool:
        event = recorded.event
        lacking = [one for one in self._senders if event.kind in one.kinds and one.name not in recorded.done]
        taken = await asyncio.gather(*(one.send(event) for one in lacking))
        for each in taken:
            self._instrumentation.webhook_delivered("delivered" if each else "failed")
        if all(taken):
            await self._ledger.delivered([recorded.seq])
            return True
        due_ms = now_ms + retry_ms(recorded.attempts)
        done = [one.name for one, each in zip(lacking, taken, strict=True) if each]
        await self._ledger.postpone(recorded.seq, due_ms, (*recorded.done, *done))
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
    return [WebhookSender(one, at_once=_AT_ONCE) for one in settings]
