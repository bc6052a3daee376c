"""Have a plugin's source read in a process that the kernel keeps empty-handed: parsing it is work for whoever wrote it.

The parser takes memory by the square of what it parses, a pattern of a schema time without end, its references the network: there
each of these ends the process, and the source is refused.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sark_mw.errors import ConfigurationError, PolicyEvaluationError
from sark_mw.policy.base import PolicyContext
from sark_mw.policy.deadline import DeadlineExceededError

if TYPE_CHECKING:
    from sark_mw.policy.isolated import IsolationOptions

_READER = Path(__file__).with_name("reader.py")
_DEADLINE_S = 5.0
_CPU_S = 2.0
_MEMORY_BYTES = 96 << 20
_REPLY_BYTES, _REQUEST_BYTES = 1 << 20, 4 << 20
#: What a source has in it that has a schema. One that hides it (by an encoding) goes unchecked, which is its own loss.
_MARK = b"options_model"
_TOO_MUCH = "it takes more time or memory to be read than a plugin may"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What the source says; `needs` None: it names none, or none that stands there as a literal."""

    classes: tuple[str, ...]
    imports: tuple[str, ...]
    #: Imports that are neither of Python's library nor sark_mw.
    foreign: tuple[str, ...]
    needs: tuple[str, ...] | None
    options: tuple[str, ...]
    name: str = ""
    version: str = ""
    description: str = ""
    #: Its `options_model`, if that is a JSON Schema.
    schema: dict[str, Any] | None = None


async def inspect_source(source: bytes, class_name: str | None = None, isolation: IsolationOptions | None = None) -> Inspection:
    """Inspect a plugin's source; raises `ConfigurationError` for what is no Python, or takes too much to be read."""
    said = await _read(source, class_name, None, isolation)
    if "invalid" in said:
        raise ConfigurationError(f"it is not valid Python: {_text(said['invalid'])}")
    needs, schema = said.get("needs"), said.get("schema")
    return Inspection(
        classes=_texts(said.get("classes")),
        imports=_texts(said.get("imports")),
        foreign=_texts(said.get("foreign")),
        needs=None if needs is None else _texts(needs),
        options=_texts(said.get("options")),
        name=_text(said.get("name", "")),
        version=_text(said.get("version", "")),
        description=_text(said.get("description", "")),
        schema=schema if isinstance(schema, dict) else None,
    )


async def check_options(
    source: bytes, class_name: str | None, options: Mapping[str, Any], plugin: str, isolation: IsolationOptions
) -> None:
    """Check options against the JSON Schema of a source, if it has one; raises `ConfigurationError` naming what is at fault."""
    if _MARK not in source:
        return
    try:
        said = await _read(source, class_name, dict(options), isolation)
    except ConfigurationError as error:
        raise ConfigurationError(f"{plugin}: {error}") from error
    if said.get("unchecked"):
        raise ConfigurationError(f"options of {plugin} cannot be checked against its JSON Schema: pip install 'sark-mw[schema]'")
    if "unusable" in said:
        raise ConfigurationError(f"options_model of {plugin} is no JSON Schema that can be used: {_text(said['unusable'])}")
    if complaints := _texts(said.get("complaints")):
        raise ConfigurationError(f"options of {plugin}: {'; '.join(complaints)}")


@asynccontextmanager
async def reader_at_hand() -> AsyncIterator[None]:
    """Keep what readers are forked from until several sources are read: it is started by the first of them, if there is one."""
    from sark_mw.policy.isolated.zygote_process import hold_zygote, release_zygote

    held = hold_zygote(_preload(), namespaces=True)
    try:
        yield
    finally:
        await asyncio.to_thread(release_zygote, held)


async def _read(
    source: bytes, class_name: str | None, options: dict[str, Any] | None, isolation: IsolationOptions | None
) -> dict[str, Any]:
    from sark_mw.policy.isolated import IsolationOptions, isolate

    # Nothing of the source is run, so where the caller does not care the best that the system has will do.
    held = replace(
        isolation or IsolationOptions(mode="best-effort"),
        preload=_preload(),
        workers=1,
        timeout_s=_DEADLINE_S,
        cpu_s=_CPU_S,
        memory_bytes=_MEMORY_BYTES,
        reply_bytes=_REPLY_BYTES,
        request_bytes=_REQUEST_BYTES,
    )
    asked = {"source": base64.b64encode(source).decode(), "class_name": class_name, "options": options}
    reader = await isolate(_READER.read_bytes(), "reader", "Reader", isolation=held)
    try:
        await reader.on_load()
        decision = await reader.evaluate(PolicyContext("", "", "", "read", asked))
    except (PolicyEvaluationError, DeadlineExceededError) as error:
        raise ConfigurationError(f"{_TOO_MUCH}: {error}".rstrip(": ")) from error
    finally:
        await reader.on_unload()
    if "unsendable" in decision.metadata:
        raise ConfigurationError(f"{_TOO_MUCH}: {decision.metadata['unsendable']}")
    try:
        return dict(json.loads("".join(decision.metadata["pieces"])))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigurationError("it says more of itself than can be read") from error


def _preload() -> tuple[str, ...]:
    names = ("jsonschema", "jsonschema_specifications")
    return names if all(importlib.util.find_spec(name) is not None for name in names) else ()


def _texts(said: object) -> tuple[str, ...]:
    return tuple(_text(each) for each in said) if isinstance(said, list) else ()


def _text(said: object) -> str:
    """Write what a stranger said for logs and terminals, which nothing in it is to steer."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in str(said))
