"""A worker that sends without end is ended at once: the gateway keeps no more of it than one message is long."""

from __future__ import annotations

from pathlib import Path

import pytest

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.isolated import isolate
from tests.isolation.abuse import whole
from tests.isolation.plugins import asked, loaded
from tests.isolation.processes import runs, until

pytestmark = pytest.mark.wall_clock

#: What stands for a length before the flood. Four zeros are also how the zygote begins to tell of a death.
_HEADS = {
    "empty": "bytes(4)",
    "half a death": "bytes(11)",
    "a death in the middle": "bytes(12) + b'x'",
    "too long": "b'\\x7f\\xff\\xff\\xff'",
    "empty after half a message": "frame('{}') + bytes(4)",
}
_FLOOD_BYTES = 100 << 20
_SOURCE = f"""
    def flood(head):
        say(head)
        for _ in range({_FLOOD_BYTES >> 20}):
            say(b"x" * (1 << 20))

    class Flood(PolicyPlugin):
        name = "flood"
        timeout = 20
        def __init__(self):
            if %(when)r == "loading": flood(%(head)s)
        async def evaluate(self, context):
            if %(when)r == "idle": say(frame(reply(number())))
            flood(%(head)s)
            time.sleep(1000)
"""  # fmt: skip


def _source(when: str, head: str) -> bytes:
    return whole("flood", _SOURCE % {"when": when, "head": head}).source.encode()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("head", _HEADS.values(), ids=_HEADS)
@pytest.mark.parametrize("when", ["asked", "idle"])
async def test_a_worker_that_floods_is_ended_and_not_kept(when: str, head: str) -> None:
    plugin = await loaded(_source(when, head), cpu_s=20)
    try:
        (pid,) = plugin.pids
        before = _resident()
        if when == "idle":
            assert (await plugin.evaluate(asked("x"))).allowed is True
        else:
            with pytest.raises(PolicyEvaluationError, match=r"its worker ended: it (sent|exited|was killed)"):
                await plugin.evaluate(asked("x"))
        await until(lambda: not runs(pid), 5)
        assert _resident() - before < _FLOOD_BYTES // 4
    finally:
        await plugin.on_unload()


@pytest.mark.parametrize("head", _HEADS.values(), ids=_HEADS)
async def test_a_plugin_that_floods_while_it_is_loaded_is_refused_at_once(head: str) -> None:
    before = _resident()
    with pytest.raises(ConfigurationError, match=r"it (sent|exited|was killed|spoke)|that does not say that it is ready"):
        await isolate(_source("loading", head), "flood.py")
    assert _resident() - before < _FLOOD_BYTES // 4
