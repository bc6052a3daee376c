from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sark_mw import ConfigurationError, PolicyEvaluationError, PolicyPluginManager
from sark_mw.policy.base import Obligation
from sark_mw.policy.wasm import WasmPlugin
from tests.rules.processes import children, descriptors, loaded, status, until_new
from tests.rules.requests import a_limit, a_request

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the isolation of engines needs Linux"),
    pytest.mark.wall_clock,
]

EXAMPLE = Path(__file__).parents[2] / "plugins/wasm/small_model.wat"


def guest(tmp_path: Path, evaluate: str, *, before: str = "", alloc: str = "(i32.const 4096)", pages: str = "4") -> Path:
    """Write a guest whose `evaluate` has this body."""
    path = tmp_path / "guest.wat"
    path.write_text(
        f'(module {before} (memory (export "memory") {pages}) (global $n (mut i32) (i32.const 0))'
        f' (func (export "alloc") (param i32) (result i32) {alloc})'
        f' (func (export "evaluate") (param $at i32) (param $size i32) (result i64) {evaluate}))'
    )
    return path


def answering(answer: str) -> str:
    """Write the body and data of a guest that always gives the same answer."""
    return f"(i64.const {len(answer.encode())})"


def with_data(tmp_path: Path, answer: str) -> Path:
    escaped = "".join(f"\\{byte:02x}" for byte in answer.encode())
    path = guest(tmp_path, answering(answer))
    path.write_text(path.read_text()[:-1] + f' (data (i32.const 0) "{escaped}"))')
    return path


async def test_the_guest_that_comes_along_decides_by_the_document():
    async with loaded(WasmPlugin(EXAMPLE), a_limit()) as plugin:
        dear, small = await plugin.evaluate(a_request("gpt-4o")), await plugin.evaluate(a_request("claude-haiku"))
        long = await plugin.evaluate(a_request("claude-haiku", note="x" * 300_000))
    assert (dear.allowed, dear.reason) == (False, "use the small model")
    assert small.allowed
    assert long.allowed, "its memory grows for a long document"


async def test_a_compiled_module_is_loaded_as_the_text_is(tmp_path: Path):
    import wasmtime

    path = tmp_path / "guest.wasm"
    path.write_bytes(wasmtime.wat2wasm(EXAMPLE.read_text()))
    async with loaded(WasmPlugin(path)) as plugin:
        assert not (await plugin.evaluate(a_request("gpt-4o"))).allowed


async def test_a_guest_may_give_reasons_and_obligations(tmp_path: Path):
    path = with_data(tmp_path, '{"allow": true, "obligations": [{"kind": "add_tag", "value": "wasm"}], "metadata": {"é": 1}}')
    async with loaded(WasmPlugin(path)) as plugin:
        decision = await plugin.evaluate(a_request())
    assert (decision.allowed, decision.obligations, decision.metadata) == (True, (Obligation("add_tag", "wasm"),), {"é": 1})


async def test_no_decision_denies(tmp_path: Path):
    async with loaded(WasmPlugin(guest(tmp_path, "(i64.const 0)"))) as plugin:
        decision = await plugin.evaluate(a_request())
    assert (decision.allowed, decision.metadata) == (False, {"undefined": True})


@pytest.mark.parametrize(
    "evaluate",
    [
        pytest.param("(loop $l (br $l)) (i64.const 0)", id="a loop without end"),
        pytest.param("(unreachable)", id="a trap"),
        pytest.param("(i64.extend_i32_u (i32.div_u (local.get $size) (i32.const 0)))", id="a division by zero"),
        pytest.param("(i64.load (i32.const 0x7fffffff))", id="a read outside of its memory"),
        pytest.param("(call 1 (local.get $at) (local.get $size))", id="a recursion without end"),
        pytest.param("(i64.const 0xffffffff)", id="a reply of 4 GiB"),
        pytest.param("(i64.const 100000)", id="a reply longer than its memory"),
        pytest.param("(i64.const 0xffffffff00000010)", id="a reply outside of its memory"),
        pytest.param("(i64.const 16)", id="a reply of zeros"),
    ],
)
async def test_a_guest_that_misbehaves_is_an_error_and_the_next_request_is_served(tmp_path: Path, evaluate: str):
    async with loaded(WasmPlugin(guest(tmp_path, evaluate), deadline_s=10)) as plugin:
        pids = plugin.pids
        for _ in range(3):
            with pytest.raises(PolicyEvaluationError):
                await plugin.evaluate(a_request())
        assert plugin.pids == pids, "within its limits it costs no process"


async def test_an_answer_above_the_bound_denies_whatever_on_error_says(tmp_path: Path):
    large = guest(tmp_path, "(drop (memory.grow (i32.const 64))) (i64.const 2100000)")
    async with loaded(WasmPlugin(large, on_error="allow", limits=False)) as plugin:
        manager = PolicyPluginManager()
        await manager.register_plugin(plugin)
        (decision,) = await manager.evaluate_all(a_request())
        assert (decision.allowed, decision.reason) == (False, "the guest's answer of 2,100,000 bytes is too long")
        await manager.unregister_plugin("wasm")


@pytest.mark.parametrize(
    "answer",
    [
        '"yes"',
        "1",
        "null",
        "[true]",
        '{"allow": 1}',
        '{"allow": "true"}',
        '{"allow": true, "isAdmin": true}',
        "{",
        "NaN",
        "[" * 2000,
    ],
)
async def test_an_answer_that_is_no_decision_never_allows(tmp_path: Path, answer: str):
    async with loaded(WasmPlugin(with_data(tmp_path, answer))) as plugin:
        with pytest.raises(PolicyEvaluationError):
            await plugin.evaluate(a_request())


async def test_a_guest_with_fuel_for_hours_is_killed_at_the_deadline(tmp_path: Path):
    before, open_before = children(), descriptors()
    plugin = WasmPlugin(guest(tmp_path, "(loop $l (br $l)) (i64.const 0)"), fuel=2**62, deadline_s=0.2)
    async with loaded(plugin):
        for _ in range(3):
            old = plugin.pids
            with pytest.raises(PolicyEvaluationError, match="no answer within"):
                await plugin.evaluate(a_request())
            await until_new(plugin, old)
    assert children() == before
    assert descriptors() == open_before


async def test_memory_grows_to_its_limit_and_no_further(tmp_path: Path):
    # Grows by a page until that fails, and says by how many: as the length of its answer of zeros, which is none.
    grow = """
        (local $n i32)
        (loop $more
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
        (if (i32.gt_u (local.get $n) (i32.const 40)) (then (unreachable)))
        (i64.const 0)
    """
    async with loaded(WasmPlugin(guest(tmp_path, grow, pages="1"), memory_bytes=32 << 20, deadline_s=10)) as plugin:
        for _ in range(3):
            assert (await plugin.evaluate(a_request())).metadata == {"undefined": True}
        (pid,) = plugin.pids
        assert int(status(pid)["VmHWM"].split()[0]) < 200_000, "kilobytes"


async def test_a_guest_that_wants_more_memory_than_it_may_have_is_an_error(tmp_path: Path):
    async with loaded(WasmPlugin(guest(tmp_path, "(i64.const 0)", pages="1000"), memory_bytes=1 << 20)) as plugin:
        with pytest.raises(PolicyEvaluationError):
            await plugin.evaluate(a_request())


async def test_nothing_is_carried_from_one_request_to_the_next(tmp_path: Path):
    # Denies by a trap if it has been called before.
    counts = "(if (i32.ne (global.get $n) (i32.const 0)) (then (unreachable))) (global.set $n (i32.const 1)) (i64.const 0)"
    async with loaded(WasmPlugin(guest(tmp_path, counts))) as plugin:
        for _ in range(3):
            assert (await plugin.evaluate(a_request())).metadata == {"undefined": True}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"before": '(import "env" "system" (func (param i32)))'}, "imports env.system: it gets nothing of the host"),
        ({"before": '(import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))'}, "gets nothing of the host"),  # noqa: E501
    ],
)  # fmt: skip
async def test_calls_of_the_host_are_refused_at_the_start(tmp_path: Path, options: dict[str, str], told: str):
    before = children()
    with pytest.raises(ConfigurationError, match=told):
        await PolicyPluginManager().register_plugin(WasmPlugin(guest(tmp_path, "(i64.const 0)", **options)))
    assert children() == before


async def test_with_wasi_there_is_still_no_file_no_argument_and_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SARK_SECRET", "leaked")
    wasi = """
        (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
    """
    # Traps unless the environment is empty, no folder is open, and random numbers can be had.
    evaluate = """
        (if (call $environ (i32.const 0) (i32.const 8)) (then (unreachable)))
        (if (i32.load (i32.const 0)) (then (unreachable)))
        (if (i32.eqz (call $prestat (i32.const 3) (i32.const 16))) (then (unreachable)))
        (if (call $random (i32.const 32) (i32.const 8)) (then (unreachable)))
        (i64.const 0)
    """
    async with loaded(WasmPlugin(guest(tmp_path, evaluate, before=wasi), wasi=True, deadline_s=10)) as plugin:
        assert (await plugin.evaluate(a_request())).metadata == {"undefined": True}


@pytest.mark.parametrize("descriptor", [1, 2])
async def test_what_a_guest_writes_with_wasi_is_taken_and_dropped_and_costs_it_no_process(tmp_path: Path, descriptor: int):
    before = '(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))'
    # Two pieces, of 5 and 7 bytes; traps unless 12 are said to be written.
    evaluate = f"""
        (i32.store (i32.const 20) (i32.const 5)) (i32.store (i32.const 28) (i32.const 7))
        (if (call $write (i32.const {descriptor}) (i32.const 16) (i32.const 2) (i32.const 64)) (then (unreachable)))
        (if (i32.ne (i32.load (i32.const 64)) (i32.const 12)) (then (unreachable)))
        (if (i32.eqz (call $write (i32.const {descriptor}) (i32.const -8) (i32.const 2) (i32.const 64))) (then (unreachable)))
        (if (i32.eqz (call $write (i32.const {descriptor}) (i32.const 16) (i32.const -1) (i32.const 64))) (then (unreachable)))
        (if (i32.eqz (call $write (i32.const 9) (i32.const 16) (i32.const 2) (i32.const 64))) (then (unreachable)))
        (i64.const 0)
    """
    async with loaded(WasmPlugin(guest(tmp_path, evaluate, before=before), wasi=True, deadline_s=10)) as plugin:
        pids = plugin.pids
        for _ in range(2):
            assert (await plugin.evaluate(a_request())).metadata == {"undefined": True}
        assert plugin.pids == pids


@pytest.mark.parametrize("text", ["(module)", "(module", "", '(module (memory (export "memory") 1))', "\x00asm"])
async def test_what_is_no_guest_is_refused_with_the_reason(tmp_path: Path, text: str):
    path = tmp_path / "guest.wat"
    path.write_text(text)
    before = children()
    with pytest.raises(ConfigurationError, match="wasm"):
        await PolicyPluginManager().register_plugin(WasmPlugin(path))
    assert children() == before


@pytest.mark.parametrize("options", [{"fuel": 0}, {"memory_bytes": 1}, {"deadline_s": -1}, {"workers": 0}, {"hardening": "none"}])
def test_settings_that_cannot_work_are_refused(options: dict[str, Any]):
    with pytest.raises(ConfigurationError):
        WasmPlugin(EXAMPLE, **options)


async def test_its_process_is_held_by_the_kernel():
    async with loaded(WasmPlugin(EXAMPLE)) as plugin:
        await plugin.evaluate(a_request())
        (pid,) = plugin.pids
        seen = status(pid)
    assert (seen["NoNewPrivs"], seen["Seccomp"], int(seen["CapEff"], 16)) == ("1", "2", 0)
    if os.getuid() == 0:
        assert set(seen["Uid"].split()) != {"0"}


async def test_a_module_is_compiled_as_nobody_and_in_bounded_memory(tmp_path: Path):
    # One enormous function, with as many values alive: a gigabyte, if one lets it.
    step = "(local.set {0} (i64.add (local.get {1}) (i64.mul (local.get {2}) (i64.const {3})))) (br_if 0 (i32.eqz (local.get 0)))"
    body = "".join(step.format(n % 2000 + 2, n * 7 % 2000 + 2, n * 13 % 2000 + 2, n) for n in range(100_000))
    path = guest(tmp_path, f"(local {' '.join(['i64'] * 2000)}) (block {body}) (i64.const 0)")
    before, most, seen = children(), 0, set()
    loading = asyncio.ensure_future(WasmPlugin(path, memory_bytes=1 << 20).on_load())
    while not loading.done():
        for pid in children() - before:
            with contextlib.suppress(OSError, KeyError, IndexError):
                if b"boot.py" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    continue  # not executed yet, it still shows this process's memory
                shown = status(pid)
                most = max(most, int(shown["VmHWM"].split()[0]))
                if int(shown["VmRSS"].split()[0]) > 150_000:
                    seen.add((shown["NoNewPrivs"], shown["CapEff"].strip("0"), "0" in shown["Uid"].split() and os.getuid() == 0))
        await asyncio.sleep(0.005)
    with pytest.raises(ConfigurationError, match="did not start"):
        await loading
    assert seen == {("1", "", False)}
    assert most < 700_000, "kilobytes: the bound, and the engine"


async def test_no_page_of_its_process_can_be_written_and_run():
    if os.getuid() != 0:
        pytest.skip("only root may look")
    async with loaded(WasmPlugin(EXAMPLE)) as plugin:
        await plugin.evaluate(a_request())
        rights = [line.split()[1] for line in Path(f"/proc/{plugin.pids[0]}/maps").read_text().splitlines()]
    assert rights and not [each for each in rights if "w" in each and "x" in each]


async def test_many_requests_at_once_each_get_their_own_answer():
    async with loaded(WasmPlugin(EXAMPLE, workers=2, deadline_s=10)) as plugin:
        models = ["claude-haiku", "gpt-4o"] * 50
        decisions = await asyncio.gather(*(plugin.evaluate(a_request(model)) for model in models))
    assert [each.allowed for each in decisions] == [True, False] * 50
