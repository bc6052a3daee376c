"""Marks of the kinds of store that the machines drive."""

from __future__ import annotations

from tests.conformance.conftest import pytest_configure

__all__ = ["pytest_configure"]
