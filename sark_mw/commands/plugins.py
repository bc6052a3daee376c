"""`sark-mw plugins`: see the policy plugins of the settings, check and test what others wrote, add it, and pin all of it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from sark_mw.admin.plugins import PluginAnswer, described_plugins, file_state
from sark_mw.commands.options import Config, Json, say, table, warn
from sark_mw.commands.plugin_adding import add
from sark_mw.commands.plugin_cases import test
from sark_mw.commands.plugin_checks import check, files_at
from sark_mw.errors import ConfigurationError
from sark_mw.plugin_loading import folder_files, load_plugins, make_policies, rule_name
from sark_mw.policy.files import PluginFile
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.policy.packages import LOCK_NAME, Lock, Pin, pin_of
from sark_mw.policy.packages.inspection import inspect_source, reader_at_hand
from sark_mw.rule_files import rule_files
from sark_mw.settings import PolicySettings, Settings

app = typer.Typer(
    no_args_is_help=True, help="Policy plugins and their packages.", pretty_exceptions_enable=False, rich_markup_mode=None
)
app.command("check")(check)
app.command("test")(test)
app.command("add")(add)

_HASH_CHARS = 12


@app.command("list")
def list_plugins(config: Config = None, as_json: Json = False) -> None:
    """List the plugins of the settings: loads each as the gateway would, and fails where one would refuse its start."""
    settings = Settings.load(config).policy
    found, complaints = asyncio.run(_listed(make_policies(settings), settings))
    if as_json:
        say(json.dumps([each.model_dump(mode="json") for each in found], indent=2))
    else:
        heads = ["name", "version", "tier", "enabled", "priority", "on_error", "lock", "hash", "source"]
        table(heads, [_row(each) for each in found], right=(4,))
    for complaint in complaints:
        warn(complaint)
    if complaints:
        sys.exit(1)


def _row(each: PluginAnswer) -> list[str]:
    cells = [each.name, each.version, each.tier, "yes" if each.enabled else "no", str(each.priority), each.on_error]
    return [*cells, each.lock or "-", each.hash.removeprefix("sha256:")[:_HASH_CHARS] or "-", each.source]


async def _listed(manager: PolicyPluginManager, settings: PolicySettings) -> tuple[list[PluginAnswer], list[str]]:
    """Load one after the other, so that each fault is told of and not only the first."""
    failed: list[PluginAnswer] = []
    complaints: list[str] = []
    try:
        with manager.packages.together():
            for part, file, said in _parts(manager, settings):
                try:
                    await (
                        manager.load_file(file) if part is None and file is not None else load_plugins(manager, part or settings)
                    )
                except Exception as error:  # noqa: BLE001  # the plugin boundary: `on_load` may raise anything
                    complaints.append(str(error) or type(error).__name__)
                    failed.append(_failed(manager, file, said, complaints[-1]))
        found = described_plugins(manager, {})
    except ConfigurationError as unmet:
        complaints.append(str(unmet))
        found = described_plugins(manager, {})
    finally:
        for each in manager.list_plugins():
            await manager.unregister_plugin(each["name"])
    return [*found, *failed], complaints


def _parts(
    manager: PolicyPluginManager, settings: PolicySettings
) -> Iterator[tuple[PolicySettings | None, PluginFile | None, str]]:
    """Take the settings apart: each plugin alone, as settings or as the file of a folder."""
    alone = settings.model_copy(update={"plugins": (), "rules": (), "folder": None})
    for plugin in settings.plugins:
        file = None if plugin.path is None else PluginFile(path=plugin.path)
        said = plugin.name or plugin.installed or str(plugin.path)
        yield alone.model_copy(update={"plugins": (plugin,)}), file, said
    for at, rule in enumerate(settings.rules, 1):
        named = rule if rule.name else rule.model_copy(update={"name": rule_name(rule, at)})
        yield alone.model_copy(update={"rules": (named,)}), None, named.name or ""
    for file in folder_files(manager, settings):
        yield None, file, str(file.path)


def _failed(manager: PolicyPluginManager, file: PluginFile | None, said: str, complaint: str) -> PluginAnswer:
    hash_now, state = ("", "") if file is None else file_state(manager, file)
    return PluginAnswer(
        name=said if file is None else file.path.stem,
        version="?",
        description="",
        source=said,
        tier="in process" if file is None else "isolated",
        enabled=False,
        switched="",
        priority=0,
        on_error="deny",
        timeout_s=None,
        hash=hash_now,
        lock=state,
        missing_layers=(),
        last_error=complaint,
    )


@app.command()
def lock(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files or folders to pin beside those of the settings.")] = None,
    config: Config = None,
    file: Annotated[Path | None, typer.Option("--lock", help=f"Default: policy.lock of the settings, or {LOCK_NAME}.")] = None,
    only_check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where the lock is not what it would be.")
    ] = False,
) -> None:
    """Pin the plugin files of the settings, and those that are in the lock already, as they are now."""
    settings = Settings.load(config).policy
    chosen = Lock(path=file or settings.lock or Path(LOCK_NAME))
    before = chosen.read() if chosen.path.exists() or only_check else {}
    pins = asyncio.run(_pinned(chosen, _files(chosen, settings, paths or [], before)))
    changes = [f"+ {pin.path} {pin.name} {pin.version}".rstrip() for path, pin in pins.items() if path not in before]
    changes += [
        f"~ {path} {_difference(before[path], pin)}" for path, pin in pins.items() if path in before and pin != before[path]
    ]
    changes += [f"- {path}" for path in before if path not in pins]
    for change in changes:
        say(change)
    if not only_check:
        chosen.write(pins.values())
    say(f"{chosen.path}: {len(pins)} pinned, {len(changes)} {'would change' if only_check else 'changed'}")
    if only_check and changes:
        sys.exit(1)


def _files(chosen: Lock, settings: PolicySettings, paths: list[Path], before: dict[str, Pin]) -> list[PluginFile]:
    manager = PolicyPluginManager(isolation="off")
    files = [PluginFile(path=plugin.path) for plugin in settings.plugins if plugin.path is not None]
    files += [PluginFile(path=path) for plugin in settings.plugins for path in rule_files(plugin)]
    files += [*folder_files(manager, settings), *(each for path in paths for each in files_at(path))]
    known = {chosen.key(each.path) for each in files}
    kept = (chosen.path.resolve().parent / path for path in before if path not in known)
    return files + [each for path in kept if path.exists() for each in files_at(path)]


async def _pinned(chosen: Lock, files: list[PluginFile]) -> dict[str, Pin]:
    async with reader_at_hand():
        pins = [await pin_file(chosen, file) for file in files]
    return {pin.path: pin for pin in pins}


async def pin_file(chosen: Lock, file: PluginFile) -> Pin:
    """Pin a file as it is now, by the name and version of its manifest, or those that its source says."""
    now = file.contents()
    if now.manifest is not None:
        manifest = now.manifest.parse()
        return pin_of(chosen.key(file.path), manifest.name, manifest.version, now)
    if file.path.suffix != ".py":
        return pin_of(chosen.key(file.path), file.path.stem, "", now)
    said = await inspect_source(now.source, file.class_name)
    return pin_of(chosen.key(file.path), said.name or file.path.stem, said.version, now)


def _difference(before: Pin, now: Pin) -> str:
    parts = [part for part, pinned in before.hashes.items() if now.hashes[part] != pinned]
    return f"{now.name} {before.version} -> {now.version} ({', '.join(parts) or 'name or version'})"
