"""A policy that puts a caller's text into its answer: its denial stays one, and nobody loses its process."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sark_mw import PolicyPluginManager
from sark_mw.policy.engines.child import Child, ChildEndedError, started
from sark_mw.policy.engines.plugin import EnginePlugin
from sark_mw.policy.rego import RegoPlugin
from sark_mw.policy.wasm import WasmPlugin
from tests.rules.requests import a_request, lending
from tests.rules.test_wasm import answering, guest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the isolation of engines needs Linux")

#: Says in reason and metadata what it was asked.
ECHO = """
package sark
import rego.v1
default decision := {"allow": false, "reason": "the input is missing"}
decision := {"allow": true} if input.arguments.user == "good"
decision := {"allow": false, "reason": sprintf("%v may not", [input.arguments.user]), "metadata": {"user": input.arguments.user}}
    if input.arguments.user != "good"
"""
TEXTS: dict[str, Any] = {
    "commas": "," * 2_001,
    "brackets": "[{" * 5_000,
    "not ASCII": "é" * 40_000,
    "emoji": "\U0001f600" * 20_000,
    "long": "x" * 70_000,
    "quotes": '"\\' * 20_000,
    "many": [0] * 1_900,
}


async def _denied(plugin: EnginePlugin, **arguments: Any) -> None:
    manager = PolicyPluginManager()
    manager.bind(lending())
    await manager.register_plugin(plugin)
    try:
        pids = plugin.pids
        for _ in range(3):
            (decision,) = await manager.evaluate_all(a_request(**arguments))
            assert (decision.allowed, decision.outcome) == (False, "denied"), decision.metadata
            assert len(decision.reason) <= 500
        assert plugin.pids == pids
    finally:
        await manager.unregister_plugin(plugin.name)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_a_denial_that_repeats_a_callers_text_is_a_denial_and_costs_no_process(text: Any):
    await _denied(RegoPlugin(ECHO, on_error="allow", deadline_s=5), user=text)


def _echoed(text: object) -> dict[str, str]:
    long = json.dumps(text, ensure_ascii=False)
    return {
        "reason": f'{{"allow": false, "reason": {long if isinstance(text, str) else json.dumps(long)}}}',
        "metadata": f'{{"allow": false, "metadata": {{"user": {long}}}}}',
        "obligations": f'{{"allow": false, "obligations": {{"add_tag": {long}}}}}',
        "odd": f'{{"allow": false, "reason": [{long}], "metadata": 7, "more": {long}}}',
    }


@pytest.mark.parametrize("place", ["reason", "metadata", "obligations", "odd"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_so_is_that_of_a_guest(tmp_path: Path, text: Any, place: str):
    await _denied(_constant(tmp_path, _echoed(text)[place]))


@pytest.mark.parametrize("metadata", ['{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', "[" * 300 + "]" * 300])
async def test_metadata_that_nobody_can_read_undoes_no_denial(tmp_path: Path, metadata: str):
    await _denied(_constant(tmp_path, f'{{"allow": false, "reason": "no", "metadata": {{"x": {metadata}}}}}'))


async def test_metadata_that_is_too_much_is_left_out_and_the_decision_stands(tmp_path: Path):
    plugin = _constant(tmp_path, json.dumps({"allow": True, "reason": "r" * 900, "metadata": {"x": [0] * 5_000}}))
    await plugin.on_load()
    decision = await plugin.evaluate(a_request())
    await plugin.on_unload()
    assert (decision.allowed, decision.reason, decision.metadata) == (True, "r" * 500, {"truncated": True})


def _constant(tmp_path: Path, answer: str) -> WasmPlugin:
    escaped = "".join(f"\\{byte:02x}" for byte in answer.encode())
    # The request lies behind the answer.
    path = guest(tmp_path, answering(answer), alloc="(i32.const 1048576)", pages="32")
    path.write_text(path.read_text()[:-1] + f' (data (i32.const 0) "{escaped}"))')
    return WasmPlugin(path, limits=False, on_error="allow", deadline_s=5)


#: Answers each time with the file that its argument names.
_SAYS = """
import os, sys
body = open(sys.argv[1], "rb").read()
while os.read(0, 9):
    left = memoryview(body)
    while left:
        left = left[os.write(0, left) :]
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"result":[' + b"0," * 3_000 + b"0]}", "a reply of more than"),
        (b'{"result":"' + b"x" * 100_000 + b'"}', "a reply of more than"),
        (b'{"result":' + b"[" * 1_990 + b"1" + b"]" * 1_990 + b"}", "more levels"),
    ],
    ids=["values", "bytes", "levels"],
)
async def test_a_reply_that_is_too_large_fails_its_request_and_no_more(tmp_path: Path, body: bytes, said: str):
    child = _saying(tmp_path, len(body).to_bytes(4, "big") + body)
    for _ in range(2):
        assert said in (await child.ask(b"x", 5))["error"]
    assert not child.ended
    child.end("done")


@pytest.mark.parametrize("reply", [(2 << 20).to_bytes(4, "big"), b"\0\0\0\0", b"\0\0\0\2[]", b"\0\0\0\2{}" * 2])
async def test_a_process_that_says_what_none_of_ours_says_is_ended(tmp_path: Path, reply: bytes):
    child = _saying(tmp_path, reply)
    with pytest.raises(ChildEndedError):
        await child.ask(b"x", 5)
    assert child.ended


def _saying(tmp_path: Path, reply: bytes) -> Child:
    file = tmp_path / "reply"
    file.write_bytes(reply)
    return Child(*started([sys.executable, "-c", _SAYS, str(file)]), lambda _: None, _waited)


def _waited(child: Child) -> None:
    asyncio.get_running_loop().run_in_executor(None, child.popen.wait)
