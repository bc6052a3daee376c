"""`sark-plugins.lock`: the files that may be loaded, each pinned by the hash of what it is made of.

Pins without a signature: who may write the lock may write the settings. Keep both where only the administrator writes.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any

from sark_mw.errors import ConfigurationError
from sark_mw.policy.packages.manifest import Contents

LOCK_NAME = "sark-plugins.lock"
_FORM = 1
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_HEAD = "# Written by `sark-mw plugins lock`: what may be loaded where `policy.lock` names this file.\n"


class PinState(StrEnum):
    """How a file stands to a lock."""

    LOCKED = "locked"
    CHANGED = "changed"
    UNLISTED = "unlisted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One version of a plugin: the hashes of its source, of its manifest and of the options file beside it; "" where none is.

    `path` is relative to the lock's folder. `name` and `version` are for people.
    """

    path: str
    name: str
    source: str
    version: str = ""
    manifest: str = ""
    options: str = ""

    @property
    def hashes(self) -> Mapping[str, str]:
        """What must be the same."""
        return {"source": self.source, "manifest": self.manifest, "options": self.options}


def hash_of(content: bytes) -> str:
    """Write the hash of a file as a lock has it."""
    return f"sha256:{sha256(content).hexdigest()}"


def pin_of(path: str, name: str, version: str, now: Contents) -> Pin:
    """Pin what a plugin is made of now."""
    return Pin(
        path=path,
        name=name,
        version=version,
        source=hash_of(now.source),
        manifest="" if now.manifest is None else hash_of(now.manifest.content),
        options="" if now.options is None else hash_of(now.options),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """A lock and its file, which is read anew whenever a plugin is loaded: a new version comes with a new pin."""

    path: Path

    def key(self, plugin: Path) -> str:
        """Write the path of a plugin as this lock names it."""
        return Path(os.path.relpath(plugin.resolve(), self.path.resolve().parent)).as_posix()

    def read(self) -> dict[str, Pin]:
        """Read the pins by their paths; raises `ConfigurationError`."""
        try:
            said = tomllib.loads(self.path.read_text("utf-8"))
        except OSError as error:
            raise ConfigurationError(f"cannot read the plugin lock {self.path}: {error.strerror or error}") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"{self.path} is no plugin lock: {error}") from error
        if said.get("form") != _FORM or not isinstance(said.get("plugins", []), list):
            raise ConfigurationError(f"{self.path} is no plugin lock of form {_FORM}: write it with `sark-mw plugins lock`")
        pins = [self._pin(each) for each in said.get("plugins", [])]
        by_path = {pin.path: pin for pin in pins}
        if len(by_path) != len(pins):
            raise ConfigurationError(f"{self.path} names a file twice")
        return by_path

    def write(self, pins: Iterable[Pin]) -> None:
        """Write the pins, all or nothing; raises `ConfigurationError`."""
        fresh = self.path.with_name(f"{self.path.name}.new")
        try:
            fresh.write_text(_HEAD + _written(pins), "utf-8")
            fresh.replace(self.path)
        except OSError as error:
            raise ConfigurationError(f"cannot write the plugin lock {self.path}: {error.strerror or error}") from error

    def state(self, plugin: Path, now: Contents) -> PinState:
        """Tell how a plugin as it is now stands to the lock."""
        return self._compared(plugin, now)[0]

    def check(self, plugin: Path, now: Contents) -> None:
        """Raise `ConfigurationError` with the reason for what may not be loaded."""
        state, fault = self._compared(plugin, now)
        if state is not PinState.LOCKED:
            raise ConfigurationError(f"the plugin file {plugin} is refused: {fault}; if it is meant: sark-mw plugins lock")

    def _compared(self, plugin: Path, now: Contents) -> tuple[PinState, str]:
        pin = self.read().get(self.key(plugin))
        if pin is None:
            return PinState.UNLISTED, f"it is not in {self.path}"
        hashes = pin_of(pin.path, pin.name, pin.version, now).hashes
        changed = [part for part, pinned in pin.hashes.items() if hashes[part] != pinned]
        if not changed:
            return PinState.LOCKED, ""
        return (
            PinState.CHANGED,
            f"it is not what {self.path} pins (differs in {', '.join(changed)})",
        )

    def _pin(self, said: Any) -> Pin:
        if not isinstance(said, dict) or said.keys() - set(Pin.__slots__) or not all(isinstance(v, str) for v in said.values()):
            raise ConfigurationError(f"{self.path}: a pin has {', '.join(Pin.__slots__)}, each a text")
        try:
            pin = Pin(**said)
        except TypeError as error:
            raise ConfigurationError(f"{self.path}: a pin lacks something: {error}") from error
        if not _HASH.fullmatch(pin.source) or not all(_HASH.fullmatch(each) for each in pin.hashes.values() if each):
            raise ConfigurationError(f"{self.path}: a hash of {pin.path} is none (sha256:…)")
        return pin


def _written(pins: Iterable[Pin]) -> str:
    # By hand: the lock is to be written by a base install, whose Python reads TOML and does not write it.
    blocks = [f"form = {_FORM}\n"]
    for pin in sorted(pins, key=lambda pin: pin.path):
        values = {name: getattr(pin, name) for name in ("path", "name", "version", "source", "manifest", "options")}
        lines = [f"{name} = {_quoted(value)}" for name, value in values.items() if value]
        blocks.append("[[plugins]]\n" + "\n".join(lines) + "\n")
    return "\n".join(blocks)


def _quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(c):08X}" if not c.isprintable() or c in '"\\' else c for c in text) + '"'
