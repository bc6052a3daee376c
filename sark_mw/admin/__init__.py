"""The admin API: an ASGI app of its own, with a token of its own. Needs the extra `serve`."""

from __future__ import annotations

from sark_mw.admin.app import admin_app

__all__ = ["admin_app"]
