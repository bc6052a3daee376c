"""One call to the server: EVALSHA with an EVAL fallback, a deadline, retries that are safe by id, and a breaker."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis import exceptions as redis_errors

from sark_mw.errors import StoreError, StoreUnavailableError
from sark_mw.store.base import StoreObserver
from sark_mw.store.breaker import Breaker
from sark_mw.store.scripts import load_script

Answer = TypeVar("Answer")

#: The server is there and will be able to soon: loading its file, between masters, a slot on the move.
_PASSING = (
    redis_errors.BusyLoadingError,
    redis_errors.ReadOnlyError,
    redis_errors.TryAgainError,
    redis_errors.ClusterDownError,
    redis_errors.MasterDownError,
    redis_errors.ConnectionError,
    # No RedisError, though it says that no node of a cluster answers, or none has the slot.
    redis_errors.RedisClusterException,
)
_BACK_OFF_S = 0.02
_DEEPEST_CAUSE = 8
#: In the reasons that OpenSSL gives for a certificate which one side does not take (`CERTIFICATE_VERIFY_FAILED`, alerts).
_CERTIFICATE = ("CERTIFICATE", "UNKNOWN_CA")


def _is_final(error: BaseException) -> bool:
    """Tell a server that refuses us, or that we refuse, from one that will be able to soon.

    redis-py says `ConnectionError` of both, and a cluster's client wraps that: the reason is further down.
    """
    link: BaseException | None = error
    for _ in range(_DEEPEST_CAUSE):
        if link is None:
            break
        if isinstance(link, redis_errors.AuthenticationError | redis_errors.AuthorizationError):
            return True
        if isinstance(link, ssl.SSLError) and any(word in str(link.reason) for word in _CERTIFICATE):
            return True
        link = link.__cause__ or link.__context__
    return False


def _is_torn(error: AttributeError) -> bool:
    """Tell a connection that redis-py closed under a call (its streams are None) from a fault of ours."""
    return error.obj is None


class Commands:
    """Send scripts and commands through one redis-py client (single, Sentinel, Cluster or fakeredis)."""

    def __init__(
        self,
        client: Any,
        *,
        deadline_s: float,
        breaker: Breaker,
        max_in_flight: int = 32,
        observer: StoreObserver | None = None,
        wait_replicas: int = 0,
        wait_timeout_ms: int = 100,
        prepare: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.client = client
        self._prepare = prepare
        self.deadline_s = deadline_s
        self.breaker = breaker
        self.observer = observer
        self._wait = (wait_replicas, wait_timeout_ms)
        # The pools of Sentinel and Cluster do not queue, they raise: a burst of calls must not look like a dead server.
        self._slots = asyncio.Semaphore(max_in_flight)

    async def script(
        self, name: str, keys: Sequence[str], args: Sequence[str | int], *, items: int = 1, durable: bool = False
    ) -> Any:
        """Run a script; `durable` waits for replicas where the settings ask for it. Raises `StoreUnavailableError`."""
        script = load_script(name)

        async def once() -> Any:
            try:
                return await self._send(("EVALSHA", script.sha, len(keys), *keys, *args), keys[0], durable)
            except (redis_errors.NoScriptError, redis_errors.NoPermissionError):
                return await self._send(("EVAL", script.source, len(keys), *keys, *args), keys[0], durable)

        return await self.run(name, once, items=items)

    async def _send(self, command: tuple[Any, ...], meta: str, durable: bool) -> Any:
        wanted, timeout_ms = self._wait
        if not (durable and wanted):
            return await self.client.execute_command(*command)
        # WAIT speaks of its own connection's writes: all three go down the same one, in one round trip. A repeated call
        # changes nothing, so without a write of its own it would not wait for what the first one wrote on another connection.
        async with self.client.pipeline(transaction=False) as pipe:
            pipe.execute_command(*command)
            pipe.hincrby(meta, "waits", 1)
            pipe.execute_command("WAIT", wanted, timeout_ms)
            reply, _, reached = await pipe.execute()
        if int(reached) < wanted:
            raise StoreUnavailableError(f"only {reached} of {wanted} replicas confirmed within {timeout_ms} ms")
        return reply

    async def run(self, name: str, call: Callable[[], Awaitable[Answer]], *, items: int = 1) -> Answer:
        """Call until it answers or the deadline is over; anything it sends must be safe to repeat."""
        if not self.breaker.allows():
            self._note(name, 0.0, "open", items)
            raise StoreUnavailableError("the store's circuit breaker is open")
        started = time.monotonic()
        refusals: list[Exception] = []
        try:
            async with asyncio.timeout(self.deadline_s):
                answer = await self._persist(call, refusals)
        except (TimeoutError, redis_errors.TimeoutError) as error:
            self.breaker.failed()
            self._note(name, time.monotonic() - started, "timeout", items)
            why = f"; what it said last: {refusals[-1]}" if refusals else ""
            raise StoreUnavailableError(f"the store did not answer {name} within {self.deadline_s} s{why}") from error
        except (redis_errors.RedisError, redis_errors.RedisClusterException, OSError) as error:
            self.breaker.failed()
            self._note(name, time.monotonic() - started, "error", items)
            raise StoreUnavailableError(f"the store refused {name}: {error}") from error
        except StoreError:
            self._note(name, time.monotonic() - started, "error", items)
            raise
        self.breaker.succeeded()
        self._note(name, time.monotonic() - started, "ok", items)
        return answer

    async def _persist(self, call: Callable[[], Awaitable[Answer]], refusals: list[Exception]) -> Answer:
        """Try again where the fault is passing; a lost answer gets half of the deadline, the repetition the other half.

        The last fault that passes is left in `refusals`: the deadline may end in the middle of the next try.
        """
        ends = time.monotonic() + self.deadline_s
        async with self._slots:
            patience = max((ends - time.monotonic()) / 2, 0.001)
            while True:
                try:
                    async with asyncio.timeout(patience):
                        if self._prepare is not None:
                            await self._prepare()
                            self._prepare = None
                        return await call()
                except AttributeError as error:
                    # redis-py's cluster client closes all connections when it reads the slots anew, also those in use.
                    if not _is_torn(error):
                        raise
                    if time.monotonic() + _BACK_OFF_S >= ends:
                        raise redis_errors.ConnectionError(f"connection closed while in use: {error}") from error
                    await asyncio.sleep(_BACK_OFF_S)
                except (TimeoutError, redis_errors.TimeoutError):
                    patience = max(ends - time.monotonic(), 0.001)
                    if time.monotonic() + _BACK_OFF_S >= ends:
                        raise
                except _PASSING as error:
                    refusals[:] = [error]
                    if _is_final(error) or time.monotonic() + _BACK_OFF_S >= ends:
                        raise
                    await asyncio.sleep(_BACK_OFF_S)

    def _note(self, name: str, seconds: float, outcome: str, items: int) -> None:
        if self.observer is not None:
            self.observer.on_store_call(name, seconds, outcome, items)
