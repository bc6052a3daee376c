"""Policies without Python, tier by tier: CEL, OPA, Rego, WebAssembly; and beside each other the engines for CEL on PyPI."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Options, p50_p99, percentile
from sark_mw import PolicyContext, PolicyPlugin, PolicyServices
from sark_mw.policy.base import LimitFigures
from sark_mw.policy.cel import CelPlugin
from sark_mw.policy.opa import OpaPlugin
from sark_mw.policy.rego import RegoPlugin
from sark_mw.policy.wasm import WasmPlugin

_PLUGINS = Path(__file__).parent.parent / "plugins"
_ISSUE = 'request.model.startsWith("gpt-4") && budget("team").used > 0.8'
_PATIENCE_S = 3.0


class _Limits:
    async def read(self, root: str, scopes: Sequence[str], request_id: str = "") -> Sequence[LimitFigures]:
        return [LimitFigures(scope="team:ml", unit="usd", window="day", amount=10**11, spent=85 * 10**9, held=0)]


def _context() -> PolicyContext:
    scopes = ("user:1", "team:ml")
    environment = {"provider": "openai", "model": "gpt-4o", "root": "acme", "scopes": scopes, "estimated_nanos": 1000}
    return PolicyContext("user:1", "gpt-4o", "chat", "invoke", {"model": "gpt-4o", "max_tokens": 100}, environment)


async def run(options: Options) -> list[Figure]:
    """Measure each tier, then the engines."""
    return [*await _tiers(options), *_engines(options)]


async def _tiers(options: Options) -> list[Figure]:
    figures = []
    rules = [{"when": 'request.model == "o1" && request.estimated_usd > 1.0', "deny": "no", "name": str(n)} for n in range(10)]
    figures += await _time("a rule in CEL", CelPlugin(rules[:1]), options.count(5000))
    figures += await _time("a rule with a budget", CelPlugin([{"when": _ISSUE, "deny": "no"}]), options.count(5000))
    figures += await _time("10 rules", CelPlugin(rules), options.count(2000))
    cost = RegoPlugin(path=_PLUGINS / "rego/cost.rego", query="data.sark.cost.decision", deadline_s=5)
    figures += await _time("the cost policy in Rego", cost, options.count(2000))
    guest = WasmPlugin(_PLUGINS / "wasm/small_model.wat", deadline_s=5)
    figures += await _time("a WebAssembly guest", guest, options.count(2000))
    server = await asyncio.start_server(_opa, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    figures += await _time("OPA over HTTP", OpaPlugin(f"http://127.0.0.1:{port}", timeout=5), options.count(1000))
    server.close()
    figures.append(await _worst(options))
    figures += await _largest(options)
    figures.append(await _restart())
    return figures


async def _time(name: str, plugin: PolicyPlugin, times: int) -> list[Figure]:
    plugin.bind(PolicyServices(limits=_Limits()))
    await plugin.on_load()
    context, took = _context(), []
    for _ in range(times):
        started = time.perf_counter()
        await plugin.evaluate(context)
        took.append(time.perf_counter() - started)
    await plugin.on_unload()
    return p50_p99(name, took, most_p99=100_000)


async def _opa(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    answer = json.dumps({"result": True}).encode()
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()
            return
        size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(size.split(b":")[1]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)


async def _worst(options: Options) -> Figure:
    """Time the costliest rules that are let in, on the largest request that is."""
    context = _context()
    context.arguments["a"] = ["a" * 120] * 256
    context.environment["scopes"] = ["a" * 500 + str(n) for n in range(64)]
    worst = 0.0
    for when in (
        'request.arguments.a.exists(x, x.matches("(a?){18}b$") || x.contains("zz"))',
        'scopes.exists(s, scopes.exists(t, s == t && s == ""))',
        "request.arguments.a.filter(x, x != 'b').size() < 0 || request.arguments.a.map(x, x.size()).size() < 0",
    ):
        plugin = CelPlugin([{"when": when, "deny": "no"}])
        for _ in range(options.count(50)):
            started = time.perf_counter()
            await plugin.evaluate(context)
            worst = max(worst, time.perf_counter() - started)
    return Figure(name="the costliest rules let in, worst", value=worst * 1e3, unit="ms", most=100)


async def _largest(options: Options) -> list[Figure]:
    """Take the processor time of the largest documents that Rego is sent: written here, judged in its process."""
    source = 'package sark\ndefault decision := true\ndecision := false if input.principal == "user:2"'
    plugin = RegoPlugin(source, limits=False, deadline_s=5)
    await plugin.on_load()
    written = judged = 0.0
    for value in (
        {f"{n} {'x' * 260}": "y" * 260 for n in range(950)},
        {f"{n} " + '"' * 250: 1 for n in range(950)},
        "\\" * 260_000,
        [[]] * 1900,
    ):
        context = _context()
        context.arguments["x"] = value
        for _ in range(options.count(5)):
            before, judged_before = time.process_time(), _used_by(plugin.pids[0])
            await plugin.evaluate(context)
            written = max(written, time.process_time() - before)
            judged = max(judged, _used_by(plugin.pids[0]) - judged_before)
    await plugin.on_unload()
    return [
        Figure(name="the largest documents for Rego, written, worst", value=written * 1e3, unit="ms", most=100),
        Figure(name="the largest documents for Rego, judged, worst", value=judged * 1e3, unit="ms", most=250),
    ]


def _used_by(pid: int) -> float:
    return time.clock_gettime((~pid << 3) | 2)  # the processor time of a process, as Linux numbers its clocks


async def _restart() -> Figure:
    """Time from a killed process to the next answer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "loop.wat"
        path.write_text(
            '(module (memory (export "memory") 1) (func (export "alloc") (param i32) (result i32) (i32.const 0))'
            ' (func (export "evaluate") (param i32 i32) (result i64) (loop $l (br $l)) (i64.const 0)))'
        )
        plugin = WasmPlugin(path, fuel=2**60, deadline_s=0.1)
        plugin.bind(PolicyServices(limits=_Limits()))
        await plugin.on_load()
        old = plugin.pids
        try:
            await plugin.evaluate(_context())
        except Exception:  # noqa: BLE001  # late, as it should be
            started = time.perf_counter()
        while not plugin.pids or plugin.pids == old:
            await asyncio.sleep(0.001)
        took = time.perf_counter() - started
        await plugin.on_unload()
    return Figure(name="a new process after a kill", value=took * 1e3, unit="ms", note="with the first pause of 50 ms")


def _engines(options: Options) -> list[Figure]:
    """Give the engines a rule, loops that nest, and a value that grows; each in a process that is given up after 3 s."""
    figures = []
    for name, module, make in (
        ("cel-expr-python", "cel_expr_python", _cel_cpp),
        ("cel-python", "celpy", _cel_python),
        ("common-expression-language", "cel", _cel_rust),
    ):
        if importlib.util.find_spec(module) is None:
            continue
        rule = _told(make, 'request.model.startsWith("gpt-4") && request.usd > 0.4', options.count(800))
        figures.append(Figure(name=f"{name}: a rule, p50", value=rule if isinstance(rule, float) else -1, unit="µs"))
        for what, expression in (("loops 9 deep", _nested(9)), ("a value that grows", _growing(10))):
            ended = _told(make, expression, 1)
            value = 0.0 if ended is None else 1.0
            figures.append(Figure(name=f"{name}: {what}, ends by itself", value=value, unit="", note="1: yes, 0: no"))
    return figures


def _nested(depth: int) -> str:
    body = "true"
    for at in range(depth):
        body = f"[0,1,2,3,4,5,6,7,8,9].all(x{at}, {body})"
    return body


def _growing(times: int) -> str:
    return '["aaaaaaaaaa"]' + "".join(f".map(s{n}, {'+'.join([f's{n}'] * 10)})" for n in range(times)) + ".size() == 1"


def _told(make: Callable[[str], Callable[[], object]], expression: str, times: int) -> float | str | None:
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(theirs, make, expression, times))
    process.start()
    theirs.close()
    told: Any = None
    try:
        if ours.poll(_PATIENCE_S):
            told = ours.recv()
    except EOFError:
        told = None
    process.kill()
    process.join()
    return told  # type: ignore[no-any-return]


def _child(pipe: Any, make: Callable[[str], Callable[[], object]], expression: str, times: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    took = []
    try:
        evaluate = make(expression)
        for _ in range(times):
            started = time.perf_counter()
            evaluate()
            took.append(time.perf_counter() - started)
    except MemoryError:
        return  # it would have gone on
    except Exception as error:  # noqa: BLE001  # an engine that says no has ended
        pipe.send(type(error).__name__)
        return
    pipe.send(percentile(took, 50) * 1e6 if len(took) > 1 else 0.0)


_DATA = {"model": "gpt-4o", "usd": 0.5}


def _cel_cpp(expression: str) -> Callable[[], object]:
    from cel_expr_python import cel

    environment = cel.NewEnv(variables={"request": cel.Type.Map(cel.Type.STRING, cel.Type.DYN)})
    program = environment.compile(expression)
    return lambda: program.eval(data={"request": _DATA}).value()


def _cel_python(expression: str) -> Callable[[], object]:
    import celpy  # type: ignore[import-not-found]

    environment = celpy.Environment()
    program = environment.program(environment.compile(expression))
    return lambda: program.evaluate({"request": celpy.json_to_cel(_DATA)})


def _cel_rust(expression: str) -> Callable[[], object]:
    import cel  # type: ignore[import-not-found]

    program = cel.compile(expression)
    return lambda: program.execute({"request": _DATA})
