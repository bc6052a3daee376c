"""Allow requests from certain networks and countries only."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sark_mw import ConfigurationError, PolicyContext, PolicyDecision, PolicyPlugin

if TYPE_CHECKING:
    import maxminddb

_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network
#: Bits that stand before an IPv4 address where it is written as an IPv6 one (`::ffff:10.0.0.0`).
_MAPPED_BITS = 96


class NetworkPlugin(PolicyPlugin):
    """Allow clients of `allow` (addresses or networks; none: all) that are not of `deny`, likewise by country.

    Countries ("DE") are looked up in `country_database`, a file in MaxMind's format (GeoLite2 Country, DB-IP lite, …), with the
    library `maxminddb`, if a list names any. A client that cannot be placed is denied wherever a list would have to know it, and
    with a file of IPv4 addresses alone that is every IPv6 client. The client is the peer of the connection: behind a proxy, let
    the server take it from the proxy's header (`uvicorn --forwarded-allow-ips`).
    """

    version = "1.0.0"
    description = "Allow certain networks and countries only"
    priority = 5

    def __init__(
        self,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        country_database: str | Path | None = None,
        allow_countries: Iterable[str] = (),
        deny_countries: Iterable[str] = (),
        *,
        name: str = "network",
    ) -> None:
        self._name = name
        self._allow, self._deny = _networks("allow", allow), _networks("deny", deny)
        self._allow_countries = _countries("allow_countries", allow_countries)
        self._deny_countries = _countries("deny_countries", deny_countries)
        self._asks_countries = bool(self._allow_countries or self._deny_countries)
        self._path = country_database
        self._countries: maxminddb.Reader | None = None
        #: The newest version of IP that the file knows addresses of.
        self._ip_version = 0
        if self._asks_countries and country_database is None:
            raise ConfigurationError("countries need a country_database: the path of a file in MaxMind's format")

    @property
    def name(self) -> str:
        return self._name

    async def on_load(self) -> None:
        if self._path is None:
            return
        try:
            import maxminddb
        except ImportError:
            raise ConfigurationError("countries need an extra: pip install 'sark-mw[geo]'") from None
        try:
            self._countries = maxminddb.open_database(self._path)
        except (OSError, maxminddb.InvalidDatabaseError) as error:
            raise ConfigurationError(f"the country_database cannot be read: {error}") from None
        self._ip_version = self._countries.metadata().ip_version

    async def on_unload(self) -> None:
        if self._countries is not None:
            self._countries.close()

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        address = _address(context.environment.get("client"))
        if address is None:
            if self._allow or self._deny or self._asks_countries:
                return PolicyDecision(False, "the client's address is not known")
            return PolicyDecision(True, "no list is about addresses")
        metadata: dict[str, Any] = {"client": str(address)}
        if any(address in network for network in self._deny):
            return PolicyDecision(False, "the client's network is denied", metadata)
        if self._allow and not any(address in network for network in self._allow):
            return PolicyDecision(False, "the client's network is not among those allowed", metadata)
        refused = self._refused_country(address, metadata) if self._asks_countries else None
        return refused or PolicyDecision(True, "an allowed network", metadata)

    def _refused_country(self, address: _Address, metadata: dict[str, Any]) -> PolicyDecision | None:
        if self._countries is None or address.version > self._ip_version:
            # Of a file that has IPv4 alone all of IPv6 is unknown: too much for a network of `allow` to speak for.
            return PolicyDecision(False, "requests from an unknown country are denied", metadata | {"country": None})
        country = metadata["country"] = _country(self._countries.get(address))
        if country in self._deny_countries or (country is None and not self._allow):
            return PolicyDecision(False, f"requests from {country or 'an unknown country'} are denied", metadata)
        if self._allow_countries and country not in self._allow_countries:
            return PolicyDecision(False, f"requests from {country or 'an unknown country'} are not allowed", metadata)
        return None


def _address(client: object) -> _Address | None:
    try:
        address = ip_address(str(client))
    except ValueError:
        return None
    # An IPv4 client of a socket that takes both.
    return getattr(address, "ipv4_mapped", None) or address


def _country(found: object) -> str | None:
    for field in ("country", "registered_country"):
        country = found.get(field) if isinstance(found, dict) else None
        if isinstance(country, dict) and isinstance(country.get("iso_code"), str):
            return str(country["iso_code"])
    return None


def _countries(field: str, codes: Iterable[str]) -> frozenset[str]:
    if isinstance(codes, str):
        raise ConfigurationError(f"{field} must be a list of codes such as 'DE', not {codes!r}")
    found = frozenset(str(code).upper() for code in codes)
    for code in found:
        if len(code) != 2 or not code.isascii() or not code.isalpha():
            raise ConfigurationError(f"{field} must be codes of two letters such as 'DE', not {code!r}")
    return found


def _networks(field: str, values: Iterable[str]) -> tuple[_Network, ...]:
    if isinstance(values, str):
        raise ConfigurationError(f"{field} must be a list of addresses or networks, not {values!r}")
    try:
        return tuple(_network(value) for value in values)
    except ValueError as error:
        raise ConfigurationError(f"{field}: {error}") from None


def _network(value: str) -> _Network:
    """Read a network; one of IPv4 addresses written as IPv6 ones is that of IPv4, since clients are looked at as such."""
    given = ip_interface(value)
    mapped = getattr(given.ip, "ipv4_mapped", None)
    if mapped is None:
        return given.network
    bits = given.network.prefixlen - _MAPPED_BITS
    if bits < 0:
        raise ValueError(f"{value!r} is wider than all of IPv4: '::ffff:10.0.0.0/104' is '10.0.0.0/8'")
    return IPv4Network((mapped, bits), strict=False)
