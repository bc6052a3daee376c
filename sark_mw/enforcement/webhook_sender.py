"""One webhook: what is posted, how it is signed, and whether it was taken. Imported only where webhooks are configured."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from hashlib import blake2b

import httpx2
from standardwebhooks import Webhook

from sark_mw.enforcement.webhooks import Sent
from sark_mw.errors import ConfigurationError
from sark_mw.ledger.events import LimitEvent
from sark_mw.limit import Unit, from_units
from sark_mw.settings_sections import WebhookSettings

_log = logging.getLogger(__name__)
#: An answer is read so that its connection can be used again, but not for ever.
_MOST_ANSWERED = 65_536
#: How long a receiver that did not answer is left alone, at least; with a long time-out twice that.
_LEFT_ALONE_MS = 30_000


class WebhookSender:
    """Post events to one address, at most `at_once` at a time; `name` is the digest by which the ledger knows the receiver.

    At most `most_waiting` events wait for it. One that does not answer is left alone for a while.
    """

    def __init__(self, settings: WebhookSettings, *, at_once: int, most_waiting: int) -> None:
        self.kinds = frozenset[str](settings.events)
        self.name = blake2b(settings.url.encode(), digest_size=8).hexdigest()
        self._timeout_s = settings.timeout_s
        self._signer = Webhook(settings.secret.get_secret_value())
        self._slots = asyncio.Semaphore(at_once)
        self._most_waiting = most_waiting
        self._left_alone_ms = max(_LEFT_ALONE_MS, round(2000 * settings.timeout_s))
        self._again_ms = 0
        self.waiting = 0
        try:
            self._url = httpx2.URL(settings.url)
        except httpx2.InvalidURL as error:
            raise ConfigurationError(f"a webhook's url cannot be read: {error}") from error
        # A redirect is a failure: what was signed for one receiver goes to no other.
        self._client = httpx2.AsyncClient(follow_redirects=False, timeout=settings.timeout_s, headers={"user-agent": "sark-mw"})

    def next_try_ms(self, now_ms: int) -> int:
        """Say from when on something may be sent: when it is left alone no more, or when some of those who wait are done."""
        busy_ms = round(1000 * self._timeout_s) if self.waiting >= self._most_waiting else 0
        return max(self._again_ms, now_ms + busy_ms)

    async def send(self, event: LimitEvent, now_ms: int) -> Sent:
        """Post an event, which was claimed at `now_ms`, once."""
        if self.next_try_ms(now_ms) > now_ms:
            return Sent.NOT_NOW
        self.waiting += 1
        try:
            async with self._slots:
                if self._again_ms > now_ms:
                    return Sent.NOT_NOW  # found out while this one waited
                sent = await self._send(event)
        finally:
            self.waiting -= 1
        if sent is Sent.NOT_ANSWERED:
            self._again_ms = max(self._again_ms, now_ms + self._left_alone_ms)
        return sent

    async def _send(self, event: LimitEvent) -> Sent:
        body, message_id, now = payload(event), message_id_of(event), datetime.now(UTC)
        headers = {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(message_id, now, body),
        }
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._post(body, headers)
        except Exception as error:  # noqa: BLE001  the hook boundary: whatever a receiver answers, the others get theirs
            _log.warning("webhook to %s: %s not delivered: %s", self._url.host, message_id, type(error).__name__)
            return Sent.NOT_ANSWERED
        if 200 <= status <= 299:
            return Sent.TAKEN
        _log.warning("webhook to %s: %s not delivered: answered with %s", self._url.host, message_id, status)
        return Sent.REFUSED

    async def _post(self, body: str, headers: dict[str, str]) -> int:
        async with self._client.stream("POST", self._url, content=body.encode(), headers=headers) as response:
            read = 0
            async for chunk in response.aiter_raw():
                read += len(chunk)
                if read > _MOST_ANSWERED:
                    break
            return response.status_code

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def message_id_of(event: LimitEvent) -> str:
    """Name the message by its event, so that a receiver knows a repeated one; the event's own id may hold any characters."""
    return f"evt_{blake2b(event.event_id.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"


def payload(event: LimitEvent) -> str:
    """Write an event as Standard Webhooks recommends: type, timestamp, data; amounts as decimal strings, dollars for `usd`."""
    return json.dumps(
        {
            "type": f"limit.{event.kind}",
            "timestamp": _instant(event.at_ms),
            "data": {
                "event_id": event.event_id,
                "root": event.root,
                "limit_id": event.limit_id,
                "scope": event.scope,
                "counter": event.counter,
                "unit": event.unit,
                "amount": None if event.amount is None else _amount(event.unit, event.amount),
                "until": None if event.until_ms is None else _instant(event.until_ms),
                "actor": event.actor,
                "reason": event.reason,
                "detail": json.loads(event.detail_json),
            },
        },
        separators=(",", ":"),
    )


def _instant(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _amount(unit: str, amount: int) -> str:
    return f"{from_units(unit, amount):f}" if unit in set(Unit) else str(amount)
