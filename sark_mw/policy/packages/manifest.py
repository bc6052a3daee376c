"""`plugin.toml`: the manifest of a plugin package, which is a folder with it and the plugin's Python file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Not by hand: versions and their order (PEP 440) are what this library is for.
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from sark_mw.errors import ConfigurationError
from sark_mw.policy.packages.bounded import MOST_TOML_BYTES, content_of, toml_of

MANIFEST_NAME = "plugin.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_FIELDS = frozenset({"name", "version", "description", "class", "requires", "options"})
_MAX_DESCRIPTION = 1000
_MAX_NAME, _MAX_SPECIFIER = 100, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a package says of itself; `name` and `version` are those that the plugin in it must say, too."""

    name: str
    version: str
    description: str = ""
    class_name: str | None = None
    sark_mw: SpecifierSet = field(default_factory=SpecifierSet)
    plugins: Mapping[str, SpecifierSet] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """A manifest's file and its bytes, not yet believed."""

    path: Path
    content: bytes

    def parse(self) -> Manifest:
        """Read the manifest; raises `ConfigurationError` naming the file and the field at fault."""
        try:
            return _manifest(toml_of(self.content))
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.path}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """All that a plugin is made of: its source, its manifest and the options file beside it."""

    source: bytes
    manifest: ManifestFile | None = None
    options: bytes | None = None


def is_plugin_file(path: Path) -> bool:
    """Tell whether a file in a folder of plugins is one, by its name."""
    return path.suffix == ".py" and path.name[0] not in "_."


def package_file(folder: Path) -> Path:
    """Tell which file of a package is the plugin: the only Python file of the folder, or the one that is named as it.

    Where there is neither it is the latter, which cannot be read then: whoever loads it says so.
    """
    named = folder / f"{folder.resolve().name}.py"
    try:
        found = [path for path in folder.iterdir() if is_plugin_file(path)]
    except OSError as error:
        raise ConfigurationError(f"cannot read the plugin package {folder}: {error.strerror or error}") from error
    return found[0] if len(found) == 1 else named


def manifest_beside(path: Path) -> ManifestFile | None:
    """Read the manifest of a plugin's file; None for a file without one. Raises `ConfigurationError`."""
    beside = path.with_name(MANIFEST_NAME)
    try:
        content = content_of(beside, MOST_TOML_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"cannot read the manifest {beside}: {error.strerror or error}") from error
    plugin = package_file(path.parent)
    if plugin.name == path.name:
        return ManifestFile(path=beside, content=content)
    if plugin.exists():
        return None
    raise ConfigurationError(
        f"{beside} is the manifest of one plugin, but several files lie beside it and none is {plugin.name}: "
        "give each plugin with a manifest a folder of its own"
    )


def _manifest(said: Mapping[str, Any]) -> Manifest:
    unknown = ", ".join(map(_shown, sorted(said.keys() - _FIELDS)))
    if unknown:
        raise ConfigurationError(f"there is no field {unknown}: one of {', '.join(sorted(_FIELDS))}")
    name, version = _text(said, "name", most=_MAX_NAME), _text(said, "version", most=_MAX_NAME)
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"name: letters, digits, '_', '.' and '-' are expected, not {name!r}")
    try:
        Version(version)
    except InvalidVersion as error:
        raise ConfigurationError(f"version: {version!r} is none (as 1.4.0)") from error
    requires = _table(said, "requires")
    if requires.keys() - {"sark-mw", "plugins"}:
        raise ConfigurationError("requires: it may name sark-mw and plugins")
    return Manifest(
        name=name,
        version=version,
        description=_text(said, "description", "")[:_MAX_DESCRIPTION],
        class_name=_text(said, "class", most=_MAX_NAME) if "class" in said else None,
        sark_mw=_specifier(requires.get("sark-mw", ""), "requires.sark-mw"),
        plugins={
            other: _specifier(text, f"requires.plugins.{_shown(other)}") for other, text in _table(requires, "plugins").items()
        },
        options=_table(said, "options"),
    )


def _shown(key: str) -> str:
    return key[:_MAX_NAME] if key.isprintable() else ascii(key[:_MAX_NAME])


def _text(said: Mapping[str, Any], name: str, default: str | None = None, most: int | None = None) -> str:
    value = said.get(name, default)
    if not isinstance(value, str) or (default is None and not value):
        raise ConfigurationError(f"{name}: a text is expected")
    if most is not None and len(value) > most:
        raise ConfigurationError(f"{name}: {most} characters are the most")
    return value


def _table(said: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = said.get(name, {})
    if not isinstance(value, dict):
        raise ConfigurationError(f"{name}: a table is expected")
    return value


def _specifier(text: object, name: str) -> SpecifierSet:
    if len(str(text)) > _MAX_SPECIFIER:
        raise ConfigurationError(f"{name}: {_MAX_SPECIFIER} characters are the most")
    try:
        return SpecifierSet(text if isinstance(text, str) else repr(text))
    except InvalidSpecifier as error:
        raise ConfigurationError(f'{name}: {text!r} does not name versions (as ">=1.2,<2")') from error
