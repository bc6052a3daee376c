"""Bring the real servers to every test, and make the search for counterexamples repeatable where it decides about landing."""

from __future__ import annotations

import os

from hypothesis import settings

pytest_plugins = ["tests.servers.fixtures"]

# CI looks at the same examples each time, so that it fails for a change and not by luck; at home the search goes on.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
