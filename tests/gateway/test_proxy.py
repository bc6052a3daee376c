"""The proxy passes bytes on as they are, in both directions, and says plainly when it cannot."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from sark_mw.errors import ConfigurationError
from sark_mw.gateway import ReverseProxy
from sark_mw.settings import PrincipalSettings, UpstreamSettings
from tests.gateway.upstreams import Upstream, proxied, said, settings_for
from tests.wire.serving import serve

pytestmark = pytest.mark.wall_clock


async def test_compressed_bytes_stay_as_the_upstream_sent_them() -> None:
    zipped = gzip.compress(b"a story " * 500, mtime=1)
    upstream = Upstream(
        headers=[(b"content-encoding", b"gzip"), (b"content-type", b"text/plain")], chunks=(zipped[:7], zipped[7:])
    )
    async with proxied(upstream) as url, httpx2.AsyncClient() as client, client.stream("GET", url) as response:
        raw = b"".join([chunk async for chunk in response.aiter_raw()])
    assert raw == zipped
    assert response.headers["content-encoding"] == "gzip"


async def test_path_and_query_reach_the_upstream_to_the_byte() -> None:
    upstream = Upstream()
    target = b"/v1/a%2Fb/../c;d/%7Euser/%e2%82%ac?q=%2f|x&empty=&plus=a+b"
    async with proxied(upstream, path="/base/") as url:
        answer = await said(url, b"GET " + target + b" HTTP/1.1\r\nhost: me\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    scope = upstream.scopes[0]
    assert scope["raw_path"] + b"?" + scope["query_string"] == b"/base" + target


async def test_headers_of_the_connection_and_of_the_principal_stay_behind_and_keys_go_on() -> None:
    upstream = Upstream(
        headers=[(b"keep-alive", b"timeout=9"), (b"x-kept", b"1"), (b"x-named", b"2"), (b"connection", b"x-named")]
    )
    sent = {
        "authorization": "Bearer sk-1",
        "x-api-key": "sk-2",
        "te": "trailers",
        "proxy-authorization": "Basic eA==",
        "connection": "x-mine",
        "x-mine": "1",
        "x-sark-principal": "user:eve",
        "x-sark-scopes": "team:x",
        "x-sark-root": "other",
    }
    async with proxied(upstream) as url, httpx2.AsyncClient() as client:
        response = await client.post(url, content=b"{}", headers=sent)
    seen = upstream.seen
    assert (seen[b"authorization"], seen[b"x-api-key"]) == (b"Bearer sk-1", b"sk-2")
    withheld = {b"te", b"proxy-authorization", b"x-mine", b"x-sark-principal", b"x-sark-scopes", b"x-sark-root"}
    assert not withheld & set(seen)
    assert seen[b"host"] != url.removeprefix("http://").encode(), "the upstream must be named, not the gateway"
    assert response.headers["x-kept"] == "1" and "x-named" not in response.headers and "keep-alive" not in response.headers


@pytest.mark.parametrize("forward", [True, False])
async def test_what_callers_say_to_us_stays_here_and_their_keys_go_on_if_they_may(forward: bool) -> None:
    upstream = Upstream()
    sent = {f"x-sark-{name}": "acme" for name in ("run", "run-budget", "end-user", "tags", "actor")}
    async with proxied(upstream, forward_idempotency_key=forward) as url, httpx2.AsyncClient() as client:
        await client.post(url, content=b"{}", headers={**sent, "idempotency-key": "k-1", "x-other": "1"})
    assert not [name for name in upstream.seen if name.startswith(b"x-sark-")]
    assert upstream.seen[b"x-other"] == b"1" and upstream.seen.get(b"idempotency-key") == (b"k-1" if forward else None)


async def test_nothing_is_added_to_what_the_client_says() -> None:
    upstream = Upstream()
    async with proxied(upstream) as url:
        await said(url, b"GET / HTTP/1.1\r\nhost: me\r\nx-one: 1\r\n\r\n".replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    assert set(upstream.seen) == {b"host", b"x-one"}


async def test_the_longest_prefix_wins_and_is_taken_off_only_where_asked() -> None:
    general, claude = Upstream(chunks=(b"general",)), Upstream(chunks=(b"claude",))
    async with serve(general) as one, serve(claude) as two:
        proxy = ReverseProxy(
            settings_for(
                UpstreamSettings(url=one),
                UpstreamSettings(url=two + "/api", prefix="/anthropic", strip_prefix=True),
                UpstreamSettings(url=two, prefix="/anthropic/keep/"),
            ),
            PrincipalSettings(),
        )
        async with serve(proxy) as url, httpx2.AsyncClient(base_url=url) as client:
            paths = ("/v1/x", "/anthropicx", "/anthropic", "/anthropic/v1/messages", "/anthropic/keep/y")
            answers = [(await client.get(path)).text for path in paths]
        await proxy.aclose()
    assert answers == ["general", "general", "claude", "claude", "claude"]
    assert [scope["path"] for scope in claude.scopes] == ["/api", "/api/v1/messages", "/anthropic/keep/y"]


async def test_a_path_that_no_upstream_serves_is_not_found() -> None:
    async with proxied(Upstream(), prefix="/only") as url, httpx2.AsyncClient() as client:
        response = await client.get(url + "/other")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


async def test_an_upstream_that_is_not_there_is_a_bad_gateway() -> None:
    async with serve(Upstream()) as gone:
        pass
    proxy = ReverseProxy(settings_for(UpstreamSettings(url=gone)), PrincipalSettings())
    async with serve(proxy) as url, httpx2.AsyncClient() as client:
        response = await client.post(url, json={})
    await proxy.aclose()
    assert response.status_code == 502
    assert gone.rpartition(":")[2] not in response.text, "callers need not know where the upstream lives"


async def test_an_upstream_that_stays_silent_is_a_gateway_timeout() -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async with proxied(silent, read_timeout_s=0.05) as url, httpx2.AsyncClient() as client:
        assert (await client.get(url)).status_code == 504


async def test_an_answer_that_breaks_off_looks_broken_off_to_the_client() -> None:
    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async with proxied(breaks) as url, httpx2.AsyncClient() as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get(url)


async def test_a_client_that_leaves_takes_the_upstream_request_along() -> None:
    begun, left = asyncio.Event(), asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        begun.set()
        await receive()
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with proxied(endless) as url, httpx2.AsyncClient() as client:
        async with client.stream("GET", url):
            await begun.wait()
        async with asyncio.timeout(10):
            await left.wait()


async def test_a_client_that_leaves_before_the_answer_takes_the_upstream_request_along() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def thinking(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        asked.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with proxied(thinking) as url, httpx2.AsyncClient() as client:
        waiting = asyncio.ensure_future(client.post(url, json={}))
        await asked.wait()
        waiting.cancel()
        async with asyncio.timeout(10):
            await left.wait()


async def test_a_body_streams_through_while_it_is_still_being_sent() -> None:
    first = asyncio.Event()
    received: list[bytes] = []

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            received.append(message.get("body", b""))
            more = message.get("more_body", False)
            first.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"".join(received)})

    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        async with asyncio.timeout(10):
            await first.wait()  # the upstream has it before the second part exists
        yield b"two"

    async with proxied(listening) as url, httpx2.AsyncClient() as client:
        response = await client.post(url, content=body())
    assert response.content == b"onetwo"


async def test_expect_continue_is_answered_here_and_not_passed_on() -> None:
    upstream = Upstream()
    async with proxied(upstream) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 100")
        writer.write(b"hi")
        rest = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert b"200 OK" in rest and upstream.bodies == [b"hi"] and b"expect" not in upstream.seen


async def test_cookies_of_one_caller_never_go_with_another() -> None:
    upstream = Upstream(headers=[(b"set-cookie", b"session=alice; Path=/")])
    async with proxied(upstream) as url, httpx2.AsyncClient() as alice, httpx2.AsyncClient() as bob:
        assert (await alice.get(url)).cookies["session"] == "alice"
        await bob.get(url)
    assert b"cookie" not in upstream.seen


async def test_redirects_are_the_clients_business() -> None:
    upstream = Upstream(status=307, headers=[(b"location", b"http://elsewhere.example/")])
    async with proxied(upstream) as url, httpx2.AsyncClient() as client:
        response = await client.post(url, content=b"x")
    assert (response.status_code, response.headers["location"]) == (307, "http://elsewhere.example/")


async def test_a_websocket_is_refused_and_not_half_relayed() -> None:
    upstream = Upstream()
    headers = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-key": "x", "sec-websocket-version": "13"}
    proxy = ReverseProxy(settings_for(UpstreamSettings(url="http://127.0.0.1:9")), PrincipalSettings())
    transport = httpx2.ASGITransport(app=proxy)  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
        response = await client.get("/", headers=headers)
    assert response.status_code == 501 and upstream.scopes == []


@pytest.mark.parametrize(
    ("upstreams", "complaint"),
    [
        ((), "needs an upstream"),
        ((UpstreamSettings(url="http://a"), UpstreamSettings(url="http://b")), "same prefix"),
        ((UpstreamSettings(url="http://a?x=1"),), "nothing more"),
        ((UpstreamSettings(url="http://user:secret@a"),), "nothing more"),
    ],
)
def test_upstreams_that_cannot_work_are_said_at_start(upstreams: tuple[UpstreamSettings, ...], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        ReverseProxy(settings_for(*upstreams), PrincipalSettings())
    assert "secret" not in str(caught.value)
