"""Who pays: every source, in order, and none that a client could forge."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.authentication import SimpleUser, UnauthenticatedUser

from sark_mw._fake_provider import FakeProvider
from sark_mw.asgi.principal import Principal, key_secret
from sark_mw.errors import ConfigurationError
from sark_mw.instrumentation.keys import hash_key
from sark_mw.settings import PrincipalSettings, Settings
from tests.asgi.conftest import MakeGateway
from tests.asgi.driving import Gateway

SECRET = "0123456789abcdef0123"
HASH = hash_key(SECRET.encode(), "sk-known")
PROXY = {"trusted_proxies": ("10.0.0.0/8", "2001:db8::/32"), "sources": ("header",)}


async def payer(gateway: Gateway, headers: dict[str, str] | None = None, **scope: Any) -> tuple[str, ...] | None:
    """Return the scopes that a request touched, its principal first; None if it was refused with 401."""
    answer = await gateway.client(headers=headers, **scope).run()
    if answer.status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json["error"]["type"] == "authentication_error"
        return None
    assert answer.status == 200
    entry = (await gateway.entries())[-1]
    assert entry.scopes[0] == entry.principal_id
    return tuple(scope for scope in entry.scopes if not scope.startswith(("provider:", "model:")))


async def test_nobody_pays_for_a_request_that_names_nobody(make: MakeGateway) -> None:
    provider = FakeProvider()
    gateway = await make(provider, principal={})
    assert await payer(gateway) is None
    assert provider.requests == 0 and gateway.seen.requests[-1].reason == "unauthenticated"
    assert (await gateway.post({}, "/v1/messages")).json["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer sk-1"}, {"authorization": "bearer  sk-1"}, {"x-api-key": "sk-1"}, {"api-key": "sk-1"}],
)
async def test_a_key_pays_by_its_keyed_hash_whatever_header_carries_it(make: MakeGateway, headers: dict[str, str]) -> None:
    gateway = await make(FakeProvider(), principal={"key_secret": SECRET})
    expected = f"key:{hash_key(SECRET.encode(), 'sk-1')}"
    assert await payer(gateway, headers) == (expected,)
    entry = await gateway.entry()
    assert "sk-1" not in repr(entry) and "sk-1" not in repr(gateway.seen.requests)


async def test_a_known_key_names_its_principal_scopes_and_root(make: MakeGateway) -> None:
    key = {"key_hash": HASH, "principal": "user:bo", "scopes": ("team:ml", "org:acme"), "root": "acme"}
    gateway = await make(FakeProvider(), principal={"key_secret": SECRET, "keys": (key,), "default_scopes": ("org:all",)})
    scopes = await payer(gateway, {"x-api-key": "sk-known"})
    assert scopes == ("user:bo", f"key:{HASH}", "team:ml", "org:acme", "org:all")
    assert (await gateway.entry()).root == "acme"


async def test_an_unknown_key_is_refused_where_only_known_ones_count(make: MakeGateway) -> None:
    key = {"key_hash": HASH, "principal": "user:bo"}
    settings = {"key_secret": SECRET, "keys": (key,), "require_known_key": True, "anonymous": "user:a"}
    gateway = await make(FakeProvider(), principal=settings)
    assert await payer(gateway, {"x-api-key": "sk-other"}) is None
    assert await payer(gateway, {"x-api-key": "sk-known"}) == ("user:bo", f"key:{HASH}")
    assert await payer(gateway) == ("user:a",)


@pytest.mark.parametrize(
    ("client", "trusted"),
    [
        (("10.1.2.3", 1), True),
        (("::ffff:10.1.2.3", 1), True),
        (("2001:db8::5", 1), True),
        (("2001:db8::5%eth0", 1), True),
        (("11.1.2.3", 1), False),
        (("::1", 1), False),
        (("testclient", 1), False),
        (("/run/a.sock", 1), False),
        (None, False),
    ],
)
async def test_a_principals_header_counts_from_trusted_proxies_only(
    make: MakeGateway, client: tuple[str, int] | None, trusted: bool
) -> None:
    gateway = await make(FakeProvider(), principal=PROXY)
    headers = {"x-sark-principal": "alice", "x-sark-scopes": "team:ml, org:acme", "x-sark-root": "acme"}
    expected = ("user:alice", "team:ml", "org:acme") if trusted else None
    assert await payer(gateway, headers, client=client) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {"x-sark-scopes": "nonsense"},
        {"x-sark-scopes": ",".join(f"team:{n}" for n in range(40))},
        {"x-sark-scopes": "team:" + "x" * 300},
        {"x-sark-root": "a b"},
        {"x-sark-principal": "user:\x85"},
    ],
)
async def test_names_that_cannot_be_used_are_refused_and_not_left_out(make: MakeGateway, headers: dict[str, str]) -> None:
    gateway = await make(FakeProvider(), principal=PROXY)
    answer = await gateway.post(headers={"x-sark-principal": "alice", **headers}, client=("10.0.0.1", 1))
    assert answer.status == 400 and answer.error is None


async def test_a_repeated_principal_header_is_refused_since_the_first_may_be_the_clients(make: MakeGateway) -> None:
    gateway = await make(FakeProvider(), principal=PROXY)
    client = gateway.client(client=("10.0.0.1", 1))
    client.scope["headers"] += [(b"x-sark-principal", b"victim"), (b"x-sark-principal", b"alice")]
    assert (await client.run()).status == 400


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({"user": SimpleUser("alice")}, "user:alice"),
        ({"user": UnauthenticatedUser()}, None),
        ({"sark.principal": "team:ml"}, "team:ml"),
        ({"sark.principal": Principal("user:x", ("org:y",))}, "user:x"),
        ({"state": {"sark_principal": "bo"}}, "user:bo"),
    ],
)
async def test_an_outer_middleware_may_name_the_payer_in_the_scope(
    make: MakeGateway, scope: dict[str, Any], expected: str | None
) -> None:
    gateway = await make(FakeProvider(), principal={"sources": ("scope",)})
    scopes = await payer(gateway, **scope)
    assert (scopes and scopes[0]) == expected


async def test_sources_are_asked_in_the_configured_order(make: MakeGateway) -> None:
    first = await make(FakeProvider(), principal={"sources": ("bearer", "scope"), "key_secret": SECRET})
    then = await make(FakeProvider(), principal={"sources": ("scope", "bearer"), "key_secret": SECRET})
    headers = {"authorization": "Bearer t"}
    assert (await payer(first, headers, user=SimpleUser("u")) or ("",))[0].startswith("key:")
    assert await payer(then, headers, user=SimpleUser("u")) == ("user:u",)


async def test_a_callable_is_asked_first_and_may_be_async_or_know_nobody(make: MakeGateway) -> None:
    async def slow(scope: Any) -> Principal | None:
        return Principal("user:z", ("run:7",)) if scope["path"] == "/v1/embeddings" else None

    gateway = await make(FakeProvider(), {"principal": slow})
    assert (await gateway.post({"model": "text-embedding-3-small", "input": "x"}, "/v1/embeddings")).status == 200
    assert (await gateway.entry()).scopes[:2] == ("user:z", "run:7")
    assert await payer(gateway) == ("user:a",)
    plain = await make(FakeProvider(), {"principal": lambda scope: "carl"})
    assert await payer(plain) == ("user:carl",)


async def test_a_callable_that_fails_lets_nobody_in_and_the_gateway_lives_on(make: MakeGateway) -> None:
    answers = iter([ValueError("the directory is down"), None])

    def source(scope: Any) -> str:
        error = next(answers)
        if error:
            raise error
        return "carl"

    provider = FakeProvider()
    gateway = await make(provider, {"principal": source})
    assert (await gateway.post()).status == 503 and provider.requests == 0
    assert (await gateway.post()).status == 200


@pytest.mark.parametrize(
    "section",
    [
        {"key_secret": "short"},
        {"trusted_proxies": ("not-an-address",)},
        {"default_scopes": ("nonsense",)},
        {"keys": ({"key_hash": "0123456789abcdef", "principal": "user:a"},)},
    ],
)
async def test_settings_that_cannot_work_are_refused_at_construction(make: MakeGateway, section: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        await make(FakeProvider(), principal=section)


def test_without_a_secret_the_hash_is_stable_so_that_processes_agree() -> None:
    assert key_secret(PrincipalSettings()) == key_secret(Settings().principal)
