"""What a package says of itself is written by anyone: no file of it costs the gateway more than it is worth, or steers it."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from textwrap import dedent
from threading import Thread

import pytest

from sark_mw import ConfigurationError, PolicyPluginManager
from sark_mw.plugin_loading import load_plugins, make_policies
from sark_mw.policy.files import PluginFile
from sark_mw.policy.packages.inspection import inspect_source
from sark_mw.policy.packages.manifest import ManifestFile
from sark_mw.policy.packages.scan import scan
from sark_mw.policy.reloading import FileWatch
from sark_mw.settings import PolicySettings

SOURCE = """
    from sark_mw import PolicyDecision, PolicyPlugin

    class Stranger(PolicyPlugin):
        name = "stranger"
        version = "1"
        options_model = {schema}

        def __init__(self, **options):
            pass

        async def evaluate(self, context):
            return PolicyDecision(True, "")
"""
MANIFEST = 'name = "stranger"\nversion = "1"\n'


def stranger(folder: Path, schema: str = "None", manifest: str | None = None) -> Path:
    path = folder / "stranger.py"
    path.write_text(dedent(SOURCE).format(schema=schema))
    if manifest is not None:
        (folder / "plugin.toml").write_text(manifest)
    return path


async def refusal(path: Path, **options: object) -> str:
    """Load a plugin in isolation, which must be refused, and return the reason."""
    manager = PolicyPluginManager(isolation="best-effort")
    with pytest.raises(ConfigurationError) as refused:
        await manager.load_from_file(path, **options)
    assert manager.list_plugins() == []
    return str(refused.value)


async def longest_stall(during: asyncio.Future[object]) -> float:
    """Return for how long the event loop stood still at most."""
    longest, last = 0.0, time.perf_counter()
    while not during.done():
        await asyncio.sleep(0.005)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    return longest


# --- the schema of its options ---------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A server, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("key", ["$ref", "$dynamicRef", "$schema"])
@pytest.mark.parametrize("isolation", ["best-effort", "off"])
async def test_a_schema_makes_nobody_ask_an_address(
    tmp_path: Path, listener: tuple[str, list[str]], key: str, isolation: str
) -> None:
    url, asked = listener
    path, manager = stranger(tmp_path, repr({key: f"{url}/meta-data"})), PolicyPluginManager(isolation=isolation)  # type: ignore[arg-type]
    try:
        await manager.load_from_file(path)
    except ConfigurationError as refused:
        assert "no JSON Schema that can be used" in str(refused)  # an unknown $schema is none to refuse
    finally:
        await manager.unregister_plugin("stranger")
    assert asked == []


async def test_a_schema_reads_no_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"type": "a secret"}')
    reason = await refusal(stranger(tmp_path, repr({"$ref": secret.as_uri()})))
    assert "no JSON Schema that can be used" in reason and "a secret" not in reason


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"x": {"type": "string", "pattern": "^(a+)+$"}}},
        {
            "$defs": {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)} | {"a40": {}},
            "$ref": "#/$defs/a0",
        },
        {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 2}}, "$ref": "#/$defs/a"},
    ],
    ids=["pattern", "references", "itself"],
)
async def test_a_schema_that_takes_without_end_is_refused_and_the_loop_goes_on(tmp_path: Path, schema: object) -> None:
    path = stranger(tmp_path, repr(schema), f'{MANIFEST}[options]\nx = "{"a" * 40}!"')
    loading = asyncio.ensure_future(refusal(path))
    assert await longest_stall(loading) < 0.5
    assert "stranger.py" in await loading


async def test_a_schema_may_refer_to_what_is_in_it_and_its_patterns_hold(tmp_path: Path) -> None:
    schema = {"$defs": {"word": {"type": "string", "pattern": "^[a-z]+$"}}, "properties": {"x": {"$ref": "#/$defs/word"}}}
    path, manager = stranger(tmp_path, repr(schema)), PolicyPluginManager(isolation="best-effort")
    assert "x: '1' does not match" in await refusal(path, x="1")
    await manager.load_from_file(path, x="word")
    await manager.unregister_plugin("stranger")


# --- its source ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bomb", ["import a" + ".a" * 20_000, "x" + ".a" * 100_000, "x = " + "-" * 200_000 + "1"])
async def test_a_source_that_the_parser_chokes_on_costs_the_gateway_nothing(tmp_path: Path, bomb: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = stranger(tmp_path, "{}")
    path.write_text(f"{path.read_text()}\n{bomb}\n")
    assert "stranger.py" in await refusal(path)
    with pytest.raises(ConfigurationError):
        await inspect_source(path.read_bytes())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


def test_a_source_that_the_scanner_chokes_on_is_refused_in_bounded_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(ConfigurationError, match="bandit"):
        scan(b"import a" + b".a" * 60_000)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before < 1100 << 10  # KiB


async def test_what_a_source_says_of_itself_steers_no_terminal() -> None:
    said = await inspect_source(b"class A(PolicyPlugin):\n    name = '\\x1b[2J\\nok'\n    version = '1\\u202e'\n")
    assert said.name.isprintable() and said.version.isprintable()


# --- its files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stranger.py", "plugin.toml"])
@pytest.mark.parametrize("kind", ["pipe", "device", "huge"])
async def test_a_file_that_is_none_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    path = stranger(tmp_path, manifest=MANIFEST)
    odd = tmp_path / name
    odd.unlink()
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "device":
        odd.symlink_to("/dev/zero")
    else:
        with odd.open("wb") as file:
            file.truncate(1 << 40)
    async with asyncio.timeout(5):
        assert ("longer than" if kind == "huge" else "no regular file") in await refusal(path)


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        (f"x{'.a' * 30_000} = 1", "dots"),
        (f"x = {'[' * 20_000}", "nested too deep"),
        (f"x = {'[' * 60}{']' * 60}", "nested too deep"),
        (f"x = {'9' * 10_000}", "4300 digits"),
        (f"x = 0x{'f' * 10_000}", "64 bits"),
        (f"# {'x' * 70_000}", "longer than"),
        (f'name = "stranger"\nversion = "{"1" * 5000}"', "characters are the most"),
        (f'{MANIFEST}[requires]\nsark-mw = ">={"1" * 5000}"', "characters are the most"),
        ('"\\u001b[2J" = 1', r"there is no field '\x1b[2J'"),
    ],
)
def test_a_manifest_that_takes_too_much_is_refused_in_no_time(tmp_path: Path, manifest: str, complaint: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ConfigurationError) as refused:
        ManifestFile(path=tmp_path / "plugin.toml", content=manifest.encode()).parse()
    assert complaint in str(refused.value) and time.perf_counter() - began < 1


async def test_a_file_of_options_that_cannot_be_parsed_keeps_no_other_plugin_from_being_looked_at(tmp_path: Path) -> None:
    settings = PolicySettings(folder=tmp_path, isolation="off")
    manager = make_policies(settings)
    path = stranger(tmp_path)
    await load_plugins(manager, settings)
    watch = FileWatch(manager, 1)
    (tmp_path / "stranger.toml").write_text("x = " + "[" * 20_000)
    await watch.look()
    assert "nested too deep" in manager.list_plugins()[0]["last_error"]
    (tmp_path / "stranger.toml").unlink()
    path.write_text(path.read_text().replace('version = "1"', 'version = "2"'))
    await watch.look()
    await manager.retired()
    assert manager.list_plugins()[0]["version"] == "2"


async def test_a_plugin_file_whose_name_steers_a_terminal_is_refused(tmp_path: Path) -> None:
    path = stranger(tmp_path).rename(tmp_path / "odd\x1b[2J\n.py")
    reason = await refusal(path)
    assert "is not printable" in reason and reason.isprintable()
    with pytest.raises(ConfigurationError, match="is not printable"):
        PluginFile(path=path).contents()
