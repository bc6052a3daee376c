"""Bring the real servers to every test, and make the search for counterexamples repeatable where it decides about landing."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

pytest_plugins = ["tests.servers.fixtures"]

# CI looks at the same examples each time, so that it fails for a change and not by luck; at home the search goes on.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a second and a third try, named in the report, to what says that it needs the machine to keep a deadline."""
    for item in items:
        if item.get_closest_marker("wall_clock"):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=1))
