"""Bring the real servers to every test."""

from __future__ import annotations

pytest_plugins = ["tests.servers.fixtures"]
