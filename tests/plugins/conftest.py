"""Gateways that plugins are tried in, over HTTP."""

from __future__ import annotations

from tests.asgi.conftest import books, make

__all__ = ["books", "make"]
