"""Which plugin files a manager takes: by the lock, by what their manifests require, and by what they then turn out to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from packaging.specifiers import SpecifierSet

from sark_mw.errors import ConfigurationError
from sark_mw.policy.base import PolicyPlugin
from sark_mw.policy.packages.lock import Lock
from sark_mw.policy.packages.manifest import Contents, Manifest


class UnmetRequirementsError(ConfigurationError):
    """Plugins would require of each other what is not there."""


class Registered(Protocol):
    """What is to be known of a plugin that its manager has."""

    @property
    def version(self) -> str: ...
    @property
    def manifest(self) -> Manifest | None: ...
    @property
    def enabled(self) -> bool: ...


class Packages:
    """The rules of one manager: `present` are its plugins, by name, at any time."""

    def __init__(self, lock: Lock | None, present: Mapping[str, Registered]) -> None:
        self.lock = lock
        self._present = present
        #: A plugin is tried by itself: what it requires of others is not looked at.
        self.alone = False
        self._together = 0

    def admit(self, path: Path, contents: Contents) -> None:
        """Raise `ConfigurationError` for a file that the lock does not have as it is."""
        if self.lock is not None:
            self.lock.check(path, contents)

    def accept(self, manifest: Manifest, path: Path) -> None:
        """Raise `ConfigurationError` where others that the manifest requires are not there."""
        if not (self._together or self.alone) and (unmet := _unmet(manifest, self._present)):
            raise UnmetRequirementsError(f"{path}: {'; '.join(unmet)}")

    def accept_successor(self, name: str, new: Registered) -> None:
        """Raise `ConfigurationError` for a new version of a plugin with which others that are there do not get along, or it not.

        What it requires has to be asked, too, if it is.
        """
        there = {**self._present, name: new}
        unmet = [each for manifest in self._requiring(name).values() for each in _unmet(manifest, there, only=name)]
        if new.manifest is not None and not (self._together or self.alone):
            unmet += _unmet(new.manifest, there, asked=new.enabled)
        if unmet:
            raise UnmetRequirementsError("; ".join(unmet))

    def unmet(self) -> list[str]:
        """List what plugins that are there require of others and do not find."""
        manifests = [each.manifest for each in self._present.values()]
        return [each for manifest in manifests if manifest is not None for each in _unmet(manifest, self._present)]

    def requiring(self, name: str) -> list[str]:
        """Name the plugins that are there and require this one."""
        return list(self._requiring(name))

    def required(self, name: str) -> list[str]:
        """Name the plugins that this one requires."""
        there = self._present.get(name)
        return [] if there is None or there.manifest is None else list(there.manifest.plugins)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Load several in any order: what they require of each other is looked at when all are there."""
        self._together += 1
        try:
            yield
        finally:
            self._together -= 1
        if not self._together and (unmet := self.unmet()):
            raise UnmetRequirementsError("; ".join(unmet))

    def _requiring(self, name: str) -> dict[str, Manifest]:
        present = {other: each.manifest for other, each in self._present.items() if other != name}
        return {other: manifest for other, manifest in present.items() if manifest is not None and name in manifest.plugins}


def _unmet(manifest: Manifest, present: Mapping[str, Registered], only: str | None = None, *, asked: bool = False) -> list[str]:
    unmet = []
    for other, wanted in manifest.plugins.items():
        there = present.get(other)
        if only not in (None, other):
            continue
        if there is None or not wanted.contains(there.version, prereleases=True):
            found = "it is not there" if there is None else f"version {there.version} is there"
        elif asked and not there.enabled:
            found = "it is switched off"
        else:
            continue
        unmet.append(f"plugin {manifest.name!r} requires plugin {other!r} {_shown(wanted)}: {found}")
    return unmet


def require_agreement(plugin: PolicyPlugin, manifest: Manifest, path: Path, *, renamed: bool) -> None:
    """Raise `ConfigurationError` for a plugin that is not what its manifest says; `renamed`: its name was an option."""
    said = (manifest.name if renamed else plugin.name, str(plugin.version))
    if said != (manifest.name, manifest.version):
        raise ConfigurationError(
            f"{path} is {said[0]!r} version {said[1]!r}, its manifest says {manifest.name!r} version {manifest.version!r}"
        )


def require_sark_mw(manifest: Manifest, path: Path) -> None:
    """Raise `ConfigurationError` for a plugin that is made for other versions of sark_mw."""
    have = version("sark-mw")
    if not manifest.sark_mw.contains(have, prereleases=True):
        raise ConfigurationError(f"{path}: plugin {manifest.name!r} requires sark-mw {manifest.sark_mw}, this is {have}")


def _shown(wanted: SpecifierSet) -> str:
    return str(wanted) or "of any version"
