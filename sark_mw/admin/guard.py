"""Who may use the admin API: whoever has its token and comes from where it may be used. No principal's key opens it."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address, ip_network
from typing import Any

from starlette.types import ASGIApp

from sark_mw.admin.problem import ProblemError, answer_problem, problem_of
from sark_mw.errors import ConfigurationError, LedgerError, StoreError
from sark_mw.sark import Sark

_log = logging.getLogger(__name__)

_Message = MutableMapping[str, Any]
_MIN_TOKEN = 16
_CHALLENGE = {"www-authenticate": 'Bearer realm="sark admin"'}


class Guard:
    """Let in who may come in, and start the system if nobody has; everybody else learns nothing but that."""

    def __init__(self, app: ASGIApp, sark: Sark) -> None:
        settings = sark.settings.admin
        token = settings.token.get_secret_value()
        if len(token) < _MIN_TOKEN:
            raise ConfigurationError(f"the admin API needs a token of at least {_MIN_TOKEN} characters: set SARK_ADMIN__TOKEN")
        self._app = app
        self._sark = sark
        self._token = token.encode("utf-8")
        self._networks = [ip_network(each, strict=False) for each in settings.allowed_networks]

    async def __call__(
        self, scope: _Message, receive: Callable[[], Awaitable[_Message]], send: Callable[[_Message], Awaitable[None]]
    ) -> None:
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] == "http":
            try:
                self._let_in(scope)
                await self._start()
            except ProblemError as error:
                return await answer_problem(error)(scope, receive, send)
        return await self._app(scope, receive, send)

    def _let_in(self, scope: _Message) -> None:
        if self._networks and not self._is_near(scope):
            raise ProblemError(403, "The admin API may not be used from this address.")
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            raise ProblemError(401, "The admin API needs its token: authorization: Bearer …", headers=_CHALLENGE)
        kind, _, token = given[0].partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            _log.warning("admin: a request with a wrong token was refused")
            raise ProblemError(
                401,
                "This is not the admin API's token.",
                headers={"www-authenticate": f'{_CHALLENGE["www-authenticate"]}, error="invalid_token"'},
            )

    def _is_near(self, scope: _Message) -> bool:
        client = scope.get("client")
        try:
            address = ip_address(str(client[0])) if client else None
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None) or address
        return mapped is not None and any(mapped in network for network in self._networks)

    async def _start(self) -> None:
        if self._sark.started:
            return
        try:
            await self._sark.start()
        except (StoreError, LedgerError) as error:
            raise problem_of(error) from error
