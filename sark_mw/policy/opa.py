"""Ask an OPA server, over its data API: POST <url>/v1/data/<decision> with {"input": document} gives {"result": …}."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from weakref import WeakKeyDictionary

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.base import LimitReader, PolicyContext, PolicyDecision, PolicyPlugin, PolicyServices
from sark_mw.policy.document import MAX_REPLY_BYTES, document_of, encode, figures_for, on_one_line, read_answer
from sark_mw.policy.unsendable import UnsendableRequestError, denial

if TYPE_CHECKING:
    import httpx


class OpaPlugin(PolicyPlugin):
    """Judge by a rule of an OPA server: `decision` is its path below `data`, as `sark/decision`.

    The rule gives `true`, `false` or an object with `allow`, `reason`, `obligations`, `metadata`; an undefined one denies.
    `timeout` (seconds) spans the whole exchange; a server that is late, away, or answers with an error is decided by `on_error`.
    `token` is sent as a bearer token. Connections are kept and reused; OPA's decision id goes into the metadata.
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
        prompts: Collection[str] = (),
        limits: bool = True,
        max_connections: int = 32,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigurationError(f"{name}: {url!r} is no address of an OPA server")
        path = decision.replace(".", "/").removeprefix("data/").strip("/")
        if not path:
            raise ConfigurationError(f"{name}: the decision names a rule, as sark/decision does, not {decision!r}")
        if not (math.isfinite(timeout) and 0 < timeout <= 60):
            raise ConfigurationError(f"{name}: timeout must be above 0 and at most 60 seconds, not {timeout!r}")
        self._url = f"{url.rstrip('/')}/v1/data/{quote(path)}"
        self._seconds = timeout
        self._on_error = on_error
        self._name = name
        self._priority = priority
        self._headers = {**(headers or {}), **({"authorization": f"Bearer {token}"} if token else {})}
        self._prompts = frozenset(prompts)
        self._with_limits = limits
        self._max_connections = max_connections
        self._transport = transport
        self._reader: LimitReader | None = None
        # Connections belong to the loop that they were opened in.
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    @property
    def name(self) -> str:
        return self._name

    @property
    def priority(self) -> int:
        return self._priority

    @property
    def on_error(self) -> str:
        return self._on_error

    @property
    def timeout(self) -> float | None:
        return self._seconds

    def bind(self, services: PolicyServices) -> None:
        self._reader = services.limits

    async def on_load(self) -> None:
        self._client()

    async def on_unload(self) -> None:
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        figures = await figures_for(context, self._reader) if self._with_limits else ()
        try:
            body = b'{"input":' + encode(document_of(context, figures, self._prompts)) + b"}"
        except UnsendableRequestError as error:
            return denial(error)
        answer = await self._post(body)
        decision_id = answer.get("decision_id")
        told = {"decision_id": on_one_line(decision_id[:100])} if isinstance(decision_id, str) else {}
        if "result" not in answer:
            return PolicyDecision(False, "the policy does not decide this request", {"undefined": True, **told})
        decision = read_answer(answer["result"], self._name)
        return PolicyDecision(decision.allowed, decision.reason, {**decision.metadata, **told}, obligations=decision.obligations)

    async def _post(self, body: bytes) -> dict[str, Any]:
        import httpx

        reply = bytearray()
        try:
            async with self._client().stream("POST", self._url, content=body) as response:
                if response.status_code != 200:
                    raise PolicyEvaluationError(f"OPA answered with status {response.status_code}", plugin_name=self._name)
                async for part in response.aiter_bytes():
                    reply += part
                    if len(reply) > MAX_REPLY_BYTES:
                        raise PolicyEvaluationError("OPA's answer is too long", plugin_name=self._name)
            answer = json.loads(reply)
        except httpx.HTTPError as error:
            raise PolicyEvaluationError(f"OPA is out of reach: {type(error).__name__}", plugin_name=self._name) from error
        except (ValueError, RecursionError) as error:
            raise PolicyEvaluationError("OPA's answer is no JSON", plugin_name=self._name) from error
        if not isinstance(answer, dict):
            raise PolicyEvaluationError("OPA's answer is no object", plugin_name=self._name)
        return answer

    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            try:
                import httpx
            except ImportError as missing:
                raise ConfigurationError(f"{self._name}: OPA needs the package httpx: install sark-mw[serve]") from missing
            client = self._clients[loop] = httpx.AsyncClient(
                headers={"content-type": "application/json", **self._headers},
                timeout=self._seconds,
                limits=httpx.Limits(max_connections=self._max_connections, max_keepalive_connections=self._max_connections),
                transport=self._transport,
                # The policy's server is named in the settings; a proxy of the environment has no business in between.
                trust_env=False,
                follow_redirects=False,
            )
        return client
