"""The admin API in front of an app, below a path of its own; its token passes nowhere else."""

from __future__ import annotations

import hmac

from sark_mw.asgi.types import App, Receive, Scope, Send
from sark_mw.errors import ConfigurationError
from sark_mw.sark import Sark


class Administration:
    """Serves the admin API where the settings enable it; raises `ConfigurationError` where it cannot be."""

    def __init__(self, sark: Sark) -> None:
        self._path = sark.settings.admin.path
        self._token = sark.settings.admin.token.get_secret_value().encode()
        self._key_headers = frozenset(
            (b"authorization", *(name.lower().encode("latin-1") for name in sark.settings.principal.api_key_headers))
        )
        self._app: App | None = None
        if sark.settings.admin.enabled:
            try:
                from sark_mw.admin import admin_app
            except ImportError as error:
                raise ConfigurationError(f"the admin API needs an extra: pip install 'sark-mw[serve]' ({error})") from error
            self._app = admin_app(sark)

    def takes(self, scope: Scope) -> bool:
        """Tell whether a request is for the admin API, by its path with and without the mount's."""
        return self._app is not None and self._below(scope) is not None

    def is_betrayed_by(self, scope: Scope) -> bool:
        """Tell whether a request bears the administrator's token as its key: elsewhere that is a slip, and must go no further."""
        if not self._token:
            return False
        given = [value for name, value in scope["headers"] if name in self._key_headers]
        # `Bearer` and the like in front of it, or not.
        given += [parts[1] for parts in [value.split(None, 1) for value in given] if len(parts) == 2]
        if query := scope.get("query_string"):
            given += [field.partition(b"=")[2] for field in query.split(b"&")]
        return any(hmac.compare_digest(value.strip(), self._token) for value in given)

    def _below(self, scope: Scope) -> str | None:
        path: str = scope["path"]
        root = (scope.get("root_path") or "").rstrip("/")
        for start in dict.fromkeys((root + self._path, self._path)):
            if path == start or path.startswith(start + "/"):
                return path[len(start) :]
        return None

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that `takes` takes."""
        assert self._app is not None
        root = (scope.get("root_path") or "").rstrip("/") + self._path
        await self._app({**scope, "root_path": root, "path": f"{root}{self._below(scope)}"}, receive, send)
