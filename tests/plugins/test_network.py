from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from plugins.network import NetworkPlugin
from sark_mw import ConfigurationError
from tests.policy.samples import a_context


async def allowed(plugin: NetworkPlugin, client: object) -> bool:
    return (await plugin.evaluate(a_context(environment={"client": client}))).allowed


async def test_only_networks_of_the_list_are_allowed_and_denials_win() -> None:
    plugin = NetworkPlugin(allow=["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"], deny=["10.9.0.0/16"])
    clients = ["10.1.2.3", "10.9.2.3", "2001:db8::5", "192.0.2.7", "192.0.2.8", "2001:db9::1"]
    assert [await allowed(plugin, client) for client in clients] == [True, False, True, True, False, False]


async def test_an_ipv4_client_of_a_socket_for_both_is_the_ipv4_client() -> None:
    plugin = NetworkPlugin(allow=["10.0.0.0/8"])
    assert await allowed(plugin, "::ffff:10.1.2.3") and not await allowed(plugin, "::ffff:11.1.2.3")


async def test_an_ipv4_network_written_as_ipv6_is_the_ipv4_network() -> None:
    clients = ["10.1.2.3", "::ffff:10.1.2.3", "11.1.2.3", "::ffff:192.0.2.7", "192.0.2.8"]
    networks = ["::ffff:10.0.0.0/104", "::ffff:192.0.2.7", "::FFFF:0a05:0/112"]
    assert [await allowed(NetworkPlugin(allow=networks), client) for client in clients] == [True, True, False, True, False]
    assert [await allowed(NetworkPlugin(deny=networks), client) for client in clients] == [False, False, True, False, True]
    everyone = NetworkPlugin(deny=["::ffff:0:0/96"])
    assert not await allowed(everyone, "203.0.113.1") and await allowed(everyone, "2001:db8::1")


@pytest.mark.parametrize("client", [None, "", "unix", "10.0.0.300"])
async def test_a_client_that_cannot_be_placed_is_denied_where_a_list_would_have_to_know_it(client: object) -> None:
    assert not await allowed(NetworkPlugin(allow=["0.0.0.0/0", "::/0"]), client)
    assert not await allowed(NetworkPlugin(deny=["10.0.0.0/8"]), client)
    assert await allowed(NetworkPlugin(), client)


@pytest.mark.parametrize(
    "options",
    [
        {"allow": "10.0.0.0/8"},
        {"deny": ["10.0.0.0/40"]},
        {"deny": ["::ffff:10.0.0.0/8"]},
        {"allow_countries": ["DE"]},
        {"deny_countries": "US", "country_database": "x"},
        {"allow_countries": "DE", "country_database": "x"},
    ],
)
def test_lists_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        NetworkPlugin(**options)


@pytest.fixture
def countries(tmp_path: Path) -> Path:
    writer = MMDBWriter(6, "Test-Country", languages=["en"], ipv4_compatible=True)
    writer.insert_network(IPSet(["192.0.2.0/24"]), {"country": {"iso_code": "DE"}})
    writer.insert_network(IPSet(["198.51.100.0/24"]), {"country": {"iso_code": "US"}})
    writer.insert_network(IPSet(["203.0.113.0/24"]), {"registered_country": {"iso_code": "FR"}})
    path = tmp_path / "countries.mmdb"
    writer.to_db_file(str(path))
    return path


async def loaded(path: Path, **options: Any) -> NetworkPlugin:
    plugin = NetworkPlugin(country_database=path, **options)
    await plugin.on_load()
    return plugin


async def test_countries_are_allowed_or_denied_by_the_database(countries: Path) -> None:
    plugin = await loaded(countries, allow_countries=["de", "FR"])
    clients = ["192.0.2.1", "198.51.100.1", "203.0.113.1", "10.1.1.1", "::ffff:192.0.2.1"]
    assert [await allowed(plugin, client) for client in clients] == [True, False, True, False, True]
    decision = await plugin.evaluate(a_context(environment={"client": "198.51.100.1"}))
    assert decision.reason == "requests from US are not allowed" and decision.metadata["country"] == "US"
    await plugin.on_unload()
    denying = await loaded(countries, deny_countries=["US"])
    assert [await allowed(denying, client) for client in clients[:4]] == [True, False, True, False]
    await denying.on_unload()


async def test_a_database_that_is_none_and_a_library_that_is_missing_are_told_at_load(
    tmp_path: Path, countries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        await loaded(tmp_path / "none.mmdb", deny_countries=["US"])
    (tmp_path / "text.mmdb").write_text("no database")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        await loaded(tmp_path / "text.mmdb", deny_countries=["US"])
    monkeypatch.setitem(sys.modules, "maxminddb", None)
    with pytest.raises(ConfigurationError, match=r"sark-mw\[geo\]"):
        await loaded(countries, deny_countries=["US"])


@pytest.fixture
def ipv4_countries(tmp_path: Path) -> Path:
    writer = MMDBWriter(4, "Test-Country", languages=["en"])
    writer.insert_network(IPSet(["192.0.2.0/24"]), {"country": {"iso_code": "DE"}})
    path = tmp_path / "ipv4.mmdb"
    writer.to_db_file(str(path))
    return path


@pytest.mark.parametrize(
    "lists",
    [
        {"allow_countries": ["DE"]},
        {"deny_countries": ["US"]},
        {"deny_countries": ["US"], "allow": ["192.0.2.0/24", "::/0"]},
    ],
)
async def test_a_file_of_ipv4_addresses_leaves_ipv6_clients_without_a_country(
    ipv4_countries: Path, lists: dict[str, Any]
) -> None:
    plugin = await loaded(ipv4_countries, **lists)
    assert await allowed(plugin, "192.0.2.1")
    for client in ("2001:db8::1", "fe80::1%eth0", "::"):
        decision = await plugin.evaluate(a_context(environment={"client": client}))
        assert (decision.allowed, decision.reason) == (False, "requests from an unknown country are denied")
    await plugin.on_unload()


@pytest.mark.parametrize("client", ["10.1.1.1", "2001:db8::1", "unix"])
async def test_where_no_list_is_about_countries_nobody_asks_for_one(ipv4_countries: Path, countries: Path, client: str) -> None:
    for path in (ipv4_countries, countries):
        plugin = await loaded(path)
        assert await allowed(plugin, client)
        await plugin.on_unload()


async def test_a_network_that_is_allowed_by_name_need_not_be_in_the_file(countries: Path) -> None:
    plugin = await loaded(countries, allow=["10.0.0.0/8"], deny_countries=["US"])
    assert await allowed(plugin, "10.1.1.1") and not await allowed(plugin, "11.1.1.1")
    await plugin.on_unload()


@pytest.mark.parametrize("code", ["Germany", "D", "D1", "ÄÖ", ""])
def test_what_is_no_code_of_a_country_is_refused(code: str) -> None:
    for field in ("allow_countries", "deny_countries"):
        with pytest.raises(ConfigurationError, match="codes of two letters"):
            NetworkPlugin(**{field: [code]}, country_database="any.mmdb")  # type: ignore[arg-type]
