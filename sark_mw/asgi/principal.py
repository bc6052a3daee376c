"""Who pays for a request: the first source that names somebody, in the configured order.

Headers count only from trusted proxies, by the address that the server reports. A server that itself rewrites that address from
`X-Forwarded-For` (uvicorn's `--proxy-headers`, which is its default for local peers) reports the client's and not the proxy's:
switch that off where the principal's header is used.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import parse_qsl

from sark_mw.asgi.types import RawHeaders, Scope, client_address, once, single
from sark_mw.enforcement.members import MAX_NAME_CHARS, MAX_SCOPES, Memberships, checked_scope, with_kind
from sark_mw.errors import ConfigurationError, InvalidRequestError
from sark_mw.instrumentation.keys import hash_key
from sark_mw.limit import clean_scope
from sark_mw.settings import KeySettings, PrincipalSettings

_log = logging.getLogger(__name__)

MAX_KEY_CHARS = 4096
# API keys are long and random, so a hash under a public secret still hides them; a short one of an own scheme it does not.
_PUBLIC_SECRET = b"sark_mw: no principal.key_secret is set"
_KEYS_REMEMBERED = 4096
_MAX_QUERY_FIELDS = 100
_BEARER, _QUERY = b"authorization", b"?key"
#: Where the key stands that a provider reads, should there be several; elsewhere the configured order holds.
_READ_FIRST = {
    "openai": (_BEARER, b"api-key"),
    "anthropic": (b"x-api-key", _BEARER),
    "gemini": (b"x-goog-api-key", _QUERY, _BEARER),
}
_KEY_FIELDS = ("key", "access_token")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who pays, which further scopes its requests touch, and the root whose limits apply (None: the configured one).

    `anonymous`: it stands for all who do not say who they are, so one of them must not be answered with what another was.
    """

    principal_id: str
    scopes: tuple[str, ...] = ()
    root: str | None = None
    anonymous: bool = False


class Unnamed:
    """Nobody pays for this request: `reason` says why it is refused with 401."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


PrincipalSource = Callable[[Scope], "Principal | str | Awaitable[Principal | str | None] | None"]


def key_secret(settings: PrincipalSettings) -> bytes:
    """Return what API keys are hashed with, here and by `sark-mw hash-key`; raises `ConfigurationError` for a short one."""
    secret = settings.key_secret.get_secret_value().encode()
    hash_key(secret or _PUBLIC_SECRET, "")
    return secret or _PUBLIC_SECRET


class PrincipalResolver:
    """Name the principal of a request; made once, raises `ConfigurationError`. `source`, a user's callable, is asked first."""

    def __init__(self, settings: PrincipalSettings, source: PrincipalSource | None = None) -> None:
        self._settings = settings
        self._source = source
        self._keys = {key.key_hash: key for key in settings.keys}
        self._networks = tuple(_network(text) for text in settings.trusted_proxies)
        self._api_key_headers = tuple(name.lower().encode("latin-1") for name in settings.api_key_headers)
        names = (settings.header, settings.scopes_header, settings.root_header)
        self._header, self._scopes_header, self._root_header = (name.lower().encode("latin-1") for name in names)
        secret = key_secret(settings)
        self._hash = lru_cache(maxsize=_KEYS_REMEMBERED)(lambda key: hash_key(secret, key))
        self.is_trusted = lru_cache(maxsize=1024)(self._is_trusted)
        for key_hash in self._keys:
            if len(key_hash) != len(self._hash("")):
                raise ConfigurationError("principal.keys: a key_hash has 32 hex digits, as `sark-mw hash-key` prints them")
        for scope in (*settings.default_scopes, *(scope for key in settings.keys for scope in key.scopes)):
            checked_scope(scope)
        self._members = Memberships(settings.members)

    async def resolve(self, scope: Scope, wire: str = "plain") -> Principal | Unnamed:
        """Name the principal of a request in the dialect `wire`.

        Raises `InvalidRequestError` for names that cannot be used, and for credentials that name several principals.
        """
        principal = await self._asked(scope) if self._source else None
        if principal is None:
            found = self._found(scope, wire)
            if isinstance(found, Unnamed):
                return found
            principal = found
        return self._complete(principal)

    def _found(self, scope: Scope, wire: str) -> Principal | Unnamed:
        headers: RawHeaders = scope["headers"]
        found: Principal | Unnamed | None
        for source in self._settings.sources:
            if source == "scope":
                found = _from_scope(scope)
            elif source == "header":
                found = self._from_header(scope, headers)
            else:
                found = self._from_credentials(scope, headers, wire)
            if found is not None:
                return found
        if self._settings.anonymous is not None:
            return Principal(self._settings.anonymous, anonymous=True)
        return Unnamed("The request does not say who pays for it: send an API key or a bearer token.")

    async def _asked(self, scope: Scope) -> Principal | None:
        assert self._source is not None
        found = self._source(scope)
        if inspect.isawaitable(found):
            found = await found
        return Principal(found) if isinstance(found, str) else found

    def _from_header(self, scope: Scope, headers: RawHeaders) -> Principal | None:
        if not self._networks or not self.is_trusted(client_address(scope)):
            return None
        name = single(headers, self._header)
        if not name:
            return None
        scopes = single(headers, self._scopes_header) or ""
        listed = tuple(part.strip() for part in scopes.split(",") if part.strip())
        return Principal(name, listed, single(headers, self._root_header) or None)

    def _is_trusted(self, address: str | None) -> bool:
        if address is None:
            return False
        try:
            peer = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        # A socket that listens on both families reports an IPv4 peer as ::ffff:a.b.c.d.
        peer = getattr(peer, "ipv4_mapped", None) or peer
        return any(peer.version == network.version and peer in network for network in self._networks)

    def _from_credentials(self, scope: Scope, headers: RawHeaders, wire: str) -> Principal | Unnamed | None:
        """Name the principal of the credential that the provider reads; a second one may only name the same."""
        named = [self._from_key(key) for key in self._credentials(scope, headers, wire)]
        if not named:
            return None
        first = named[0]
        if first is None:
            return Unnamed("The API key is not known here.")
        if any(each is None or (each.principal_id, each.root) != (first.principal_id, first.root) for each in named[1:]):
            # A header that the provider does not read would name the payer, and another one open the door.
            raise InvalidRequestError("The request has several credentials, and they name different principals: send one.")
        return first

    def _credentials(self, scope: Scope, headers: RawHeaders, wire: str) -> list[str]:
        """List the keys that a request carries, that which its provider reads first."""
        found: dict[bytes, str | None] = {}
        for source in self._settings.sources:
            if source == "api_key":
                found |= {name: _key_in(headers, name) for name in self._api_key_headers}
                if wire == "gemini":
                    found[_QUERY] = _query_key(scope)
            elif source == "bearer":
                found[_BEARER] = _bearer(headers)
        read_first = [name for name in _READ_FIRST.get(wire, ()) if name in found]
        return [key for name in dict.fromkeys((*read_first, *found)) if (key := found[name])]

    def _from_key(self, key: str) -> Principal | None:
        if len(key) > MAX_KEY_CHARS:
            raise InvalidRequestError("The API key is too long.")
        digest = self._hash(key)
        known: KeySettings | None = self._keys.get(digest)
        if known is not None:
            return Principal(known.principal, (f"key:{digest}", *known.scopes), known.root)
        return None if self._settings.require_known_key else Principal(f"key:{digest}")

    def _complete(self, principal: Principal) -> Principal:
        name = _check(with_kind(principal.principal_id))
        named = (name, *(_check(scope) for scope in principal.scopes), *self._settings.default_scopes)
        scopes = self._members.of(named)
        if len(scopes) > MAX_SCOPES:
            raise InvalidRequestError(f"A request may touch at most {MAX_SCOPES} scopes.")
        root = principal.root or self._settings.root
        if len(root) > MAX_NAME_CHARS or clean_scope(root) != root:
            raise InvalidRequestError("The root must be a name without spaces or control characters.")
        return Principal(name, scopes, root, principal.anonymous)


def _check(scope: str) -> str:
    try:
        return checked_scope(scope)
    except ConfigurationError as error:
        raise InvalidRequestError(str(error)) from None


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise ConfigurationError(f"principal.trusted_proxies: {error}") from error


def _query_key(scope: Scope) -> str | None:
    """Return the API key in the query, where Gemini's callers may put it; no other dialect has one there."""
    query: bytes = scope.get("query_string", b"")
    if not query:
        return None
    try:
        # The encoding of header values, so that a key is the same wherever it stands.
        fields = parse_qsl(query.decode("latin-1"), max_num_fields=_MAX_QUERY_FIELDS, encoding="latin-1")
    except ValueError:
        raise InvalidRequestError(f"The query must have at most {_MAX_QUERY_FIELDS} fields.") from None
    keys = {value.strip() for name, value in fields if name in _KEY_FIELDS} - {""}
    if len(keys) > 1:
        # Which of them the provider takes is not known here.
        raise InvalidRequestError("The query must not have several keys.")
    return keys.pop() if keys else None


def _bearer(headers: RawHeaders) -> str | None:
    # Split at any white space: whoever reads the header behind us may do so too.
    kind, *token = (once(headers, b"authorization") or b"").split(None, 1) or [b""]
    return token[0].decode("latin-1").strip() or None if token and kind.lower() == b"bearer" else None


def _key_in(headers: RawHeaders, name: bytes) -> str | None:
    return (once(headers, name) or b"").decode("latin-1").strip() or None


def _from_scope(scope: Scope) -> Principal | None:
    """Read what an outer middleware has put into the scope: a principal of ours, or an authenticated user."""
    state = scope.get("state")
    named = scope.get("sark.principal") or (state.get("sark_principal") if isinstance(state, dict) else None)
    if isinstance(named, Principal):
        return named
    if isinstance(named, str) and named:
        return Principal(named)
    user = scope.get("user")
    if user is None or not getattr(user, "is_authenticated", False):
        return None
    for attribute in ("identity", "display_name"):
        try:
            value = getattr(user, attribute, None)
        except NotImplementedError:  # what starlette's base class does
            continue
        if isinstance(value, str) and value:
            return Principal(value)
    return None
