"""The ready gateway: a streaming reverse proxy behind `SarkMiddleware`, with `/metrics`, `/healthz` and `/readyz` beside it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator

import httpx2

from sark_mw.asgi.exchange import REACHED_UPSTREAM
from sark_mw.asgi.invocation import APPROVAL
from sark_mw.asgi.middleware import SarkMiddleware
from sark_mw.asgi.types import App, Message, RawHeaders, Receive, Scope, Send
from sark_mw.errors import ConfigurationError, LedgerError, StoreError
from sark_mw.instrumentation.metrics_app import metrics_app
from sark_mw.sark import Sark
from sark_mw.settings import AnySettings, PrincipalSettings, ServeSettings, UpstreamSettings, as_settings

_log = logging.getLogger(__name__)

#: Headers of one connection (RFC 9110, 7.6.1); `expect` was answered by our own server when the body was asked for.
_HOP_BY_HOP = frozenset(
    {
        b"connection", b"expect", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
#: What callers say to us: of runs, end users and tags the upstream hears nothing.
_OURS = b"x-sark-"
#: Faults before the request was out whole: it cost nothing. After any other one the provider may have done its work.
_UNREACHED = (
    httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.WriteError, httpx2.WriteTimeout, httpx2.ProxyError,
    httpx2.UnsupportedProtocol, httpx2.LocalProtocolError,
)  # fmt: skip
#: A probe that comes more often than this gets the last answer, so that nobody loads the store by asking.
_READY_S = 1.0


class _ClientGoneError(Exception):
    """The client left while its body was being sent on."""


def build_gateway(settings: AnySettings, *, sark: Sark | None = None, client: httpx2.AsyncClient | None = None) -> App:
    """Make the whole gateway as one ASGI app; its lifespan starts and drains everything.

    `sark` and `client` may be given; they are started and closed with the app all the same. Raises `ConfigurationError`.
    """
    chosen = as_settings(settings)
    sark = sark or Sark(chosen)
    gateway = _Gateway(sark, ReverseProxy(chosen.serve, chosen.principal, client=client))
    if not chosen.http.metered_only:
        _log.warning(
            "http.metered_only is off: what no route meters passes to the upstreams, unmetered and unlimited; set it to true, "
            "and give what may pass a rule in [[routes]]"
        )
    return gateway


class _Gateway:
    """Answer what is about the gateway itself; pass the rest through the middleware to the proxy."""

    def __init__(self, sark: Sark, proxy: ReverseProxy) -> None:
        self._sark = sark
        self._metered = SarkMiddleware(proxy, sark=sark)
        self._pages: dict[str, App] = {"/healthz": self._healthy, "/readyz": self._ready}
        if sark.prometheus is not None:
            self._pages["/metrics"] = metrics_app(sark.prometheus)
        self._asked_at = float("-inf")
        self._answer: tuple[int, dict[str, object]] = (503, {"ready": False})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._metered(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003, "reason": "this gateway does not relay WebSockets"})
        elif scope["type"] == "http" and scope["method"] != scope["method"].upper():
            # Our own client would send it in upper case: another request than the one that was asked for.
            await _problem(send, 400, "Methods are written in upper case.")
        elif scope["type"] == "http":
            await self._pages.get(scope["path"], self._metered)(scope, receive, send)

    async def _ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        if time.monotonic() - self._asked_at > _READY_S:
            self._asked_at = time.monotonic()
            self._answer = await self._ask()
        await _send_json(send, *self._answer)

    async def _healthy(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say that the process answers, and nothing about what it needs; only that plugins run less isolated than they should."""
        await _send_json(send, 200, {"alive": True, **self._isolation()})

    def _isolation(self) -> dict[str, object]:
        return {"policy_isolation": "degraded"} if self._sark.missing_layers else {}

    async def _ask(self) -> tuple[int, dict[str, object]]:
        """Say whether requests can be decided; the ledger is told of but never waited for by a request, so it does not count."""
        sark, said = self._sark, dict[str, object]()
        if not sark.started:
            return 503, {"ready": False, "store": "not started"}
        store_ok = True
        try:
            said["outbox_entries"] = await sark.store.backlog()
            said["store"] = "ok"
        except StoreError as error:
            store_ok = False
            said["store"] = type(error).__name__
        try:
            installed, newest = await sark.ledger.schema_version()
            said["ledger"] = "ok" if installed >= newest else "not migrated"
        except LedgerError as error:
            said["ledger"] = type(error).__name__
        ready = store_ok or sark.settings.store.on_store_failure != "deny"
        return (200 if ready else 503), {"ready": ready, **said, **self._isolation()}


class ReverseProxy:
    """Send requests to the upstream with the longest matching prefix; bytes pass in both directions as they are.

    Compressed bodies stay compressed, the path and the query stay spelt as they came. Before an answer has begun, an upstream
    that cannot be reached is a 502 and one that is too slow a 504; after that the client's connection is cut. A 502 or 504 after
    the request was out is marked in the scope (`sark.reached_upstream`): its cost is not known then, the expectation is booked.
    """

    def __init__(self, serve: ServeSettings, principal: PrincipalSettings, *, client: httpx2.AsyncClient | None = None) -> None:
        if not serve.upstreams:
            raise ConfigurationError("a gateway needs an upstream: serve.upstreams in the settings, or --upstream URL")
        self._targets = sorted((_Target(each) for each in serve.upstreams), key=lambda target: -len(target.prefix))
        prefixes = [target.prefix for target in self._targets]
        if len(set(prefixes)) < len(prefixes):
            raise ConfigurationError("serve.upstreams: two upstreams have the same prefix")
        self._serve = serve
        self._client = client
        # Who pays here is nobody's business there, and an upstream must not take it for its own proxy's word.
        own = (principal.header, principal.scopes_header, principal.root_header)
        self._withheld = _HOP_BY_HOP | {b"host", APPROVAL, *(name.lower().encode("latin-1") for name in own)}
        if not serve.forward_idempotency_key:
            self._withheld |= {b"idempotency-key"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        raw = bytes(scope.get("raw_path") or scope["path"].encode("utf-8"))
        target = next((each for each in self._targets if each.takes(raw)), None)
        if target is None:
            return await _problem(send, 404, "No upstream is configured for this path.")
        if any(name == b"upgrade" and value.lower() == b"websocket" for name, value in scope["headers"]):
            return await _problem(send, 501, "WebSockets are not relayed.")
        return await _Relay(self, target.url_of(raw, scope["query_string"]), target, scope, receive, send).run()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    def request(self, method: str, address: bytes, target: _Target, headers: RawHeaders, content: object) -> httpx2.Request:
        """Make the upstream's request: `address` is the request line's target, to the byte."""
        named = {value.strip().lower() for name, values in headers if name == b"connection" for value in values.split(b",")}
        withheld = self._withheld | named if named else self._withheld
        kept = [(b"host", target.host), *(pair for pair in headers if pair[0] not in withheld and not pair[0].startswith(_OURS))]
        # `target` keeps httpx2 from respelling the path; it does not go with a forward proxy, so the environment names none.
        return httpx2.Request(method, target.origin, headers=kept, content=content, extensions={"target": address})  # type: ignore[arg-type]

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request, following no redirect; the response is not read yet."""
        return await self._connections().send(request, stream=True, follow_redirects=False)

    def _connections(self) -> httpx2.AsyncClient:
        if self._client is None:
            serve = self._serve
            most = serve.max_upstream_connections
            self._client = httpx2.AsyncClient(
                limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
                timeout=httpx2.Timeout(serve.read_timeout_s, connect=serve.connect_timeout_s, pool=serve.connect_timeout_s),
                verify=httpx2.create_ssl_context(),
                trust_env=False,
            )
        return self._client

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()


class _Target:
    """One upstream, its address taken apart once."""

    def __init__(self, upstream: UpstreamSettings) -> None:
        try:
            self.origin = httpx2.URL(upstream.url)
        except httpx2.InvalidURL as error:
            raise ConfigurationError(f"serve.upstreams: {upstream.url}: {error}") from error
        if not self.origin.host or self.origin.query or self.origin.fragment or self.origin.userinfo:
            raise ConfigurationError("serve.upstreams: an upstream's url is a scheme, a host and perhaps a path, nothing more")
        self.host = self.origin.netloc
        self.prefix = upstream.prefix.rstrip("/").encode("utf-8")
        self._base = self.origin.raw_path.rstrip(b"/")
        self._strip = upstream.strip_prefix

    def takes(self, path: bytes) -> bool:
        """Tell whether a path lies below the prefix."""
        return path == self.prefix or path.startswith(self.prefix + b"/")

    def url_of(self, path: bytes, query: bytes) -> bytes:
        """Spell the request line's target."""
        rest = path[len(self.prefix) :] if self._strip else path
        return (self._base + rest or b"/") + (b"?" + query if query else b"")


class _Relay:
    """One request on its way to the upstream and its response on the way back."""

    def __init__(self, proxy: ReverseProxy, address: bytes, target: _Target, scope: Scope, receive: Receive, send: Send) -> None:
        self._proxy = proxy
        self._address = address
        self._target = target
        self._scope = scope
        self._receive = receive
        self._send = send
        self._uploaded = asyncio.Event()

    async def run(self) -> None:
        """Relay until the response is out or the client is gone."""
        first = await self._receive()
        if first["type"] == "http.disconnect":
            return
        work = asyncio.ensure_future(self._exchange(first))
        watch = asyncio.ensure_future(self._client_left())
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Whoever leaves first takes the other along; the upstream's connection is closed before the request ends.
            work.cancel()
            watch.cancel()
            await asyncio.wait((work, watch))
        if not work.cancelled():
            work.result()

    async def _client_left(self) -> None:
        await self._uploaded.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _exchange(self, first: Message) -> None:
        body: bytes = first.get("body", b"")
        if first.get("more_body", False):
            content: object = self._upload(body)
        else:
            content = body or None
            self._uploaded.set()
        request = self._proxy.request(self._scope["method"], self._address, self._target, self._scope["headers"], content)
        try:
            response = await self._proxy.send(request)
        except _ClientGoneError:
            return
        except _UNREACHED as error:
            status = 504 if isinstance(error, httpx2.TimeoutException) else 502
            await self._failed(status, "The upstream could not be reached.", error)
        except httpx2.TimeoutException as error:
            self._scope[REACHED_UPSTREAM] = True
            await self._failed(504, "The upstream did not answer in time.", error)
        except httpx2.TransportError as error:
            self._scope[REACHED_UPSTREAM] = True
            await self._failed(502, "The upstream broke off before it answered.", error)
        else:
            try:
                await self._download(response)
            finally:
                await response.aclose()

    async def _upload(self, body: bytes) -> AsyncIterator[bytes]:
        message: Message = {"body": body, "more_body": True}
        while True:
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                self._uploaded.set()
                return
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError

    async def _download(self, response: httpx2.Response) -> None:
        raw = [(name.lower(), value) for name, value in response.headers.raw]
        named = {value.strip().lower() for name, values in raw if name == b"connection" for value in values.split(b",")}
        headers = [pair for pair in raw if pair[0] not in _HOP_BY_HOP and pair[0] not in named]
        await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        try:
            async for chunk in response.aiter_raw():
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        except httpx2.TransportError as error:
            # An answer that stops in the middle must look like one: it is left unended, and the server cuts the connection.
            _log.warning("upstream %s broke off: %s", self._target.host.decode("latin-1"), type(error).__name__)
            return
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _failed(self, status: int, detail: str, error: httpx2.TransportError) -> None:
        _log.warning("upstream %s: %s: %s", self._target.host.decode("latin-1"), type(error).__name__, error)
        await _problem(self._send, status, detail)


async def _problem(send: Send, status: int, detail: str) -> None:
    await _send_json(send, status, {"type": "about:blank", "status": status, "detail": detail}, b"application/problem+json")


async def _send_json(send: Send, status: int, content: dict[str, object], kind: bytes = b"application/json") -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
