"""Policy plugins over HTTP: what there is, switched on and off everywhere, and loaded anew in the process that answers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field

from sark_mw.admin import inputs
from sark_mw.admin.operation import Asked, Operation
from sark_mw.admin.problem import ProblemError
from sark_mw.enforcement.grants import Why
from sark_mw.enforcement.shared_policies import Action
from sark_mw.errors import ConfigurationError
from sark_mw.limit_answers import Answer
from sark_mw.policy.base import PolicyPlugin
from sark_mw.policy.files import PluginFile
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.policy.packages.lock import hash_of
from sark_mw.sark import Sark

LockState = Literal["locked", "changed", "unlisted", ""]


class PluginAnswer(Answer):
    """A policy plugin."""

    name: str
    version: str
    description: str
    source: str = Field(description="Its file, or its class.")
    tier: Literal["isolated", "in process"]
    enabled: bool
    switched: Literal["on", "off", ""] = Field(
        description="As an administrator switched it, for all processes; empty: nobody did."
    )
    priority: int
    on_error: Literal["deny", "allow", "skip"]
    timeout_s: float | None = Field(description="Longest that it may take; null: as the settings say.")
    hash: str = Field(description="Of its file as it lies there now.")
    lock: LockState = Field(description="How its file as it lies there now stands to `policy.lock`; empty: nothing pins it.")
    missing_layers: tuple[str, ...] = Field(description="Layers of isolation that it runs without.")
    last_error: str = Field(description="Why it failed last, or its new version did not load.")


class PluginsAnswer(Answer):
    """The plugins of one process, in the order in which they are asked."""

    process: int = Field(description="The process id of the gateway that answers; each has plugins of its own.")
    plugins: tuple[PluginAnswer, ...]


class PluginDoneAnswer(Answer):
    """A plugin as it is after what was asked."""

    process: int
    plugin: PluginAnswer


def described_plugins(policies: PolicyPluginManager, switches: Mapping[str, bool]) -> list[PluginAnswer]:
    """Describe the plugins of a manager in the order in which they are asked; reads their files."""
    files = policies.loaded_files()
    return [
        _answer(policies, each, files.get(each["name"], (None, ""))[0], switches.get(each["name"]))
        for each in policies.list_plugins()
    ]


def _answer(
    policies: PolicyPluginManager, told: Mapping[str, Any], file: PluginFile | None, switched: bool | None
) -> PluginAnswer:
    plugin = policies.get_plugin(told["name"])
    hash_now, state = ("", "") if file is None else file_state(policies, file)
    hardening = getattr(plugin, "hardening", None)
    lacking = getattr(hardening, "lacking", ())
    return PluginAnswer(
        name=told["name"],
        version=_utf8(told["version"]),
        description=_utf8(told["description"]),
        source=_utf8(told.get("source") or "") or f"{type(plugin).__module__}:{type(plugin).__qualname__}",
        tier="isolated" if hardening is not None else "in process",
        enabled=told["enabled"],
        switched="" if switched is None else "on" if switched else "off",
        priority=told["priority"],
        on_error=told["on_error"],
        timeout_s=told["timeout"],
        hash=hash_now,
        lock=state,
        missing_layers=tuple(lacking),
        last_error=_utf8(told.get("last_error") or ""),
    )


def _utf8(said: object) -> str:
    """Spell what a plugin says of itself so that it can be sent."""
    return str(said).encode(errors="replace").decode()


def file_state(policies: PolicyPluginManager, file: PluginFile) -> tuple[str, LockState]:
    """Tell the hash of a plugin's file as it lies there now, and how it stands to the lock."""
    lock = policies.packages.lock
    try:
        now = file.contents()
        state: LockState = "" if lock is None or file.builtin else lock.state(file.path, now).value
    except ConfigurationError:
        return "", "changed" if lock is not None else ""
    return hash_of(now.source), state


async def list_plugins(sark: Sark, asked: Asked) -> PluginsAnswer:
    """List the plugins."""
    return PluginsAnswer(process=os.getpid(), plugins=tuple(await _described(sark)))


async def enable_plugin(sark: Sark, asked: Asked) -> PluginDoneAnswer:
    """Ask a plugin again, if those are asked that it requires."""
    _may_be_on(sark, asked)
    return await _switched(sark, asked, "enable")


async def disable_plugin(sark: Sark, asked: Asked) -> PluginDoneAnswer:
    """Ask a plugin no more, unless others that are asked require it."""
    _may_be_off(sark, asked)
    return await _switched(sark, asked, "disable")


async def reset_plugin(sark: Sark, asked: Asked) -> PluginDoneAnswer:
    """Let the settings say again whether a plugin is asked; what they say must be possible as if it were asked for."""
    if sark.policies.asked_by_default(asked.name):
        _may_be_on(sark, asked)
    else:
        _may_be_off(sark, asked)
    return await _switched(sark, asked, "reset")


async def reload_plugin(sark: Sark, asked: Asked) -> PluginDoneAnswer:
    """Take up a plugin's file as it is now; where that cannot be, the old version stays."""
    plugin = _known(sark, asked)
    # Recorded first: nothing is changed of which nobody can tell who did it.
    await sark.shared_policies.record_reload(asked.name, _why(asked), version=str(plugin.version), process=str(os.getpid()))
    try:
        with _still_there(asked.name):
            await sark.plugins.reload(asked.name)
    except ConfigurationError as error:
        await sark.shared_policies.record_reload(asked.name, _why(asked), refused=str(error)[:500], process=str(os.getpid()))
        raise ProblemError(409, f"The version in force stays: {error}", "name") from error
    return await _done(sark, asked)


def _may_be_on(sark: Sark, asked: Asked) -> None:
    switched_on = _switched_on(sark)
    lacking = [name for name in sark.policies.packages.required(asked.name) if name not in switched_on]
    if lacking:
        raise ProblemError(409, f"Plugin {asked.name!r} requires {', '.join(lacking)}, which is not asked.", "name")


def _may_be_off(sark: Sark, asked: Asked) -> None:
    switched_on = _switched_on(sark)
    requiring = [name for name in sark.policies.packages.requiring(asked.name) if name in switched_on]
    if requiring:
        raise ProblemError(409, f"Plugin {asked.name!r} is required by {', '.join(requiring)}.", "name")


def _switched_on(sark: Sark) -> set[str]:
    return {each["name"] for each in sark.policies.list_plugins(enabled_only=True)}


async def _switched(sark: Sark, asked: Asked, action: Action) -> PluginDoneAnswer:
    plugin = _known(sark, asked)
    await sark.shared_policies.switch(asked.name, action, _why(asked), version=str(plugin.version))
    return await _done(sark, asked)


def _known(sark: Sark, asked: Asked) -> PolicyPlugin:
    plugin = sark.policies.get_plugin(asked.name)
    if plugin is None:
        raise ProblemError(404, f"There is no plugin {asked.name!r} in this process.", "name")
    return plugin


def _why(asked: Asked) -> Why:
    assert isinstance(asked.query, inputs.WhyQuery)
    return Why(actor=asked.actor, reason=asked.query.reason)


async def _described(sark: Sark) -> list[PluginAnswer]:
    return await asyncio.to_thread(described_plugins, sark.policies, dict(sark.shared_policies.switches))


@contextmanager
def _still_there(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ProblemError(404, f"Plugin {name!r} has gone meanwhile.", "name") from error


async def _done(sark: Sark, asked: Asked) -> PluginDoneAnswer:
    found = await _described(sark)
    with _still_there(asked.name):
        at = [each.name for each in found].index(asked.name)
    return PluginDoneAnswer(process=os.getpid(), plugin=found[at])


PLUGINS = (
    Operation(
        method="GET",
        path="/plugins",
        summary="List the policy plugins of the process that answers, in the order in which they are asked.",
        query=inputs.NoQuery,
        answer=PluginsAnswer,
        run=list_plugins,
    ),
    Operation(
        method="POST",
        path="/plugins/{name}/enable",
        summary="Ask a plugin again, in every process, for good.",
        query=inputs.WhyQuery,
        answer=PluginDoneAnswer,
        run=enable_plugin,
    ),
    Operation(
        method="POST",
        path="/plugins/{name}/disable",
        summary="Ask a plugin no more, in every process, for good.",
        query=inputs.WhyQuery,
        answer=PluginDoneAnswer,
        run=disable_plugin,
    ),
    Operation(
        method="POST",
        path="/plugins/{name}/reset",
        summary="Let the settings say again whether a plugin is asked.",
        query=inputs.WhyQuery,
        answer=PluginDoneAnswer,
        run=reset_plugin,
    ),
    Operation(
        method="POST",
        path="/plugins/{name}/reload",
        summary="Take up a plugin's file as it is now, in the process that answers; one that does not load leaves the old one.",
        query=inputs.WhyQuery,
        answer=PluginDoneAnswer,
        run=reload_plugin,
    ),
)
