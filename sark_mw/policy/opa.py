"""Ask an OPA server, over its data API: POST <url>/v1/data/<decision> with {"input": document} gives {"result": …}."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from weakref import WeakKeyDictionary

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.base import LimitReader, PolicyContext, PolicyDecision, PolicyServices
from sark_mw.policy.document import MAX_REPLY_BYTES, document_of, encode, figures_for, on_one_line, read_answer
from sark_mw.policy.named import NamedPlugin
from sark_mw.policy.unsendable import UnsendableRequestError, denial

if TYPE_CHECKING:
    import httpx2


_MAX_ID = 100


class _TooLongError(PolicyEvaluationError):
    """An answer that is longer than any decision has to be."""


class OpaPlugin(NamedPlugin):
    """Judge by a rule of an OPA server: `decision` is its path below `data`, as `sark/decision`.

    The rule gives `true`, `false` or an object with `allow`, `reason`, `obligations`, `metadata`; an undefined one denies.
    `timeout` (seconds) spans the whole exchange; a server that is late, away, or answers with an error is decided by `on_error`.
    `token` is sent as a bearer token; `ca_file` names certificates (PEM) to trust in place of the system's. Connections are kept
    and reused; OPA's decision id goes into the metadata.
    """

    concurrent = True
    version = "1"

    def __init__(
        self,
        url: str,
        decision: str = "sark/decision",
        *,
        timeout: float = 0.5,
        on_error: str = "deny",
        name: str = "opa",
        priority: int = 100,
        token: str = "",
        headers: Mapping[str, str] | None = None,
        ca_file: str | Path | None = None,
        prompts: Collection[str] = (),
        limits: bool = True,
        max_connections: int = 32,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise ConfigurationError(f"{name}: {url!r} is no address of an OPA server")
        path = decision.replace(".", "/").removeprefix("data/").strip("/")
        if not path:
            raise ConfigurationError(f"{name}: the decision names a rule, as sark/decision does, not {decision!r}")
        if not (math.isfinite(timeout) and 0 < timeout <= 60):
            raise ConfigurationError(f"{name}: timeout must be above 0 and at most 60 seconds, not {timeout!r}")
        self._url = f"{url.rstrip('/')}/v1/data/{quote(path)}"
        self._seconds = timeout
        super().__init__(name, priority, on_error)
        self._headers = _headers(name, token, headers or {})
        self._ca_file = ca_file
        self._prompts = frozenset(prompts)
        self._with_limits = limits
        self._max_connections = max_connections
        self._transport = transport
        self._reader: LimitReader | None = None
        # Connections belong to the loop that they were opened in.
        self._exchanges: set[asyncio.Task[dict[str, Any]]] = set()
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = WeakKeyDictionary()

    @property
    def timeout(self) -> float | None:
        return self._seconds

    def bind(self, services: PolicyServices) -> None:
        self._reader = services.limits

    async def on_load(self) -> None:
        self._client()

    async def on_unload(self) -> None:
        loop = asyncio.get_running_loop()
        here = [each for each in self._exchanges if each.get_loop() is loop]
        for exchange in here:
            exchange.cancel()
        await asyncio.gather(*here, return_exceptions=True)
        client = self._clients.pop(loop, None)
        if client is not None:
            await client.aclose()

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        figures = await figures_for(context, self._reader) if self._with_limits else ()
        try:
            body = b'{"input":' + encode(document_of(context, figures, self._prompts)) + b"}"
        except UnsendableRequestError as error:
            return denial(error)
        try:
            answer = await self._exchange(body)
        except _TooLongError as error:
            # It may be a denial that repeats what the caller wrote: that is not to become a pass by `on_error`.
            return PolicyDecision(False, str(error), {"too_long": True})
        decision_id = answer.get("decision_id")
        told = {"decision_id": on_one_line(decision_id[:_MAX_ID])} if isinstance(decision_id, str) else {}
        if "result" not in answer:
            return PolicyDecision(False, "the policy does not decide this request", {"undefined": True, **told})
        try:
            decision = read_answer(answer["result"], self._name)
        except PolicyEvaluationError as error:
            raise PolicyEvaluationError(f"{error} (decision {told.get('decision_id', 'without an id')})", self._name) from error
        return PolicyDecision(decision.allowed, decision.reason, {**decision.metadata, **told}, obligations=decision.obligations)

    async def _exchange(self, body: bytes) -> dict[str, Any]:
        # In a task of its own: whoever is cancelled leaves at once, and the connection is put in order however long that takes.
        exchange = asyncio.ensure_future(self._post(body))
        self._exchanges.add(exchange)
        exchange.add_done_callback(self._ended)
        try:
            return await asyncio.shield(exchange)
        except asyncio.CancelledError:
            exchange.cancel()
            raise

    def _ended(self, exchange: asyncio.Task[dict[str, Any]]) -> None:
        self._exchanges.discard(exchange)
        if not exchange.cancelled():
            exchange.exception()  # looked at, also where nobody waits any more

    async def _post(self, body: bytes) -> dict[str, Any]:
        import httpx2

        reply = bytearray()
        try:
            async with self._client().stream("POST", self._url, content=body) as response:
                if response.status_code != 200:
                    raise PolicyEvaluationError(f"OPA answered with status {response.status_code}", plugin_name=self._name)
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise PolicyEvaluationError("OPA's answer is packed, which nobody asked for", plugin_name=self._name)
                async for part in response.aiter_raw():
                    reply += part
                    if len(reply) > MAX_REPLY_BYTES:
                        raise _TooLongError("OPA's answer is too long", plugin_name=self._name)
            answer = json.loads(reply)
        except httpx2.HTTPError as error:
            raise PolicyEvaluationError(f"OPA is out of reach: {type(error).__name__}", plugin_name=self._name) from error
        except (ValueError, RecursionError) as error:
            raise PolicyEvaluationError("OPA's answer is no JSON", plugin_name=self._name) from error
        if not isinstance(answer, dict):
            raise PolicyEvaluationError("OPA's answer is no object", plugin_name=self._name)
        return answer

    def _trusted(self) -> ssl.SSLContext | bool:
        if self._ca_file is None:
            return True
        try:
            return ssl.create_default_context(cafile=self._ca_file)
        except OSError as error:  # of the ssl module too
            raise ConfigurationError(f"{self._name}: {self._ca_file} holds no certificates that can be read: {error}") from error

    def _client(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            try:
                import httpx2
            except ImportError as missing:
                raise ConfigurationError(f"{self._name}: OPA needs the package httpx2: install sark-mw[serve]") from missing
            client = self._clients[loop] = httpx2.AsyncClient(
                # Not packed: a small answer could become a large one here.
                headers={"content-type": "application/json", "accept-encoding": "identity", **self._headers},
                verify=self._trusted(),
                timeout=self._seconds,
                limits=httpx2.Limits(max_connections=self._max_connections, max_keepalive_connections=self._max_connections),
                transport=self._transport,
                # The policy's server is named in the settings; a proxy of the environment has no business in between.
                trust_env=False,
                follow_redirects=False,
            )
        return client


def _headers(name: str, token: str, headers: Mapping[str, str]) -> dict[str, str]:
    made = {key.lower(): value for key, value in headers.items()}
    if token:
        if "authorization" in made:
            raise ConfigurationError(f"{name}: the token and a header both say who asks")
        made["authorization"] = f"Bearer {token.strip()}"
    for key, value in made.items():
        if not (f"{key}{value}".isascii() and f"{key}{value}".isprintable()):
            raise ConfigurationError(f"{name}: the header {key!r} is to be printable ASCII")
    return made
