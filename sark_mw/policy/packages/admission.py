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


class Registered(Protocol):
    """What is to be known of a plugin that its manager has."""

    @property
    def version(self) -> str: ...


class Packages:
    """The rules of one manager: `present` are its plugins, by name, at any time."""

    def __init__(self, lock: Lock | None, present: Mapping[str, Registered]) -> None:
        self.lock = lock
        self._present = present
        self._manifests: dict[str, Manifest] = {}
        #: A plugin is tried by itself: what it requires of others is not looked at.
        self.alone = False
        self._together = 0

    def admit(self, path: Path, contents: Contents) -> None:
        """Raise `ConfigurationError` for a file that the lock does not have as it is."""
        if self.lock is not None:
            self.lock.check(path, contents)

    def accept(self, plugin: PolicyPlugin, manifest: Manifest, path: Path) -> None:
        """Raise `ConfigurationError` where others that the manifest requires are not there."""
        if not (self._together or self.alone) and (unmet := self._unmet(manifest)):
            raise ConfigurationError(f"{path}: {'; '.join(unmet)}")
        self._manifests[plugin.name] = manifest

    def unmet(self) -> list[str]:
        """List what plugins that are there require of others and do not find."""
        return [each for name in self._present if name in self._manifests for each in self._unmet(self._manifests[name])]

    def requiring(self, name: str) -> list[str]:
        """Name the plugins that are there and require this one."""
        return [other for other in self._present if other in self._manifests and name in self._manifests[other].plugins]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Load several in any order: what they require of each other is looked at when all are there."""
        self._together += 1
        try:
            yield
        finally:
            self._together -= 1
        if not self._together and (unmet := self.unmet()):
            raise ConfigurationError("; ".join(unmet))

    def _unmet(self, manifest: Manifest) -> list[str]:
        unmet = []
        for other, wanted in manifest.plugins.items():
            there = self._present.get(other)
            if there is None or not wanted.contains(there.version, prereleases=True):
                found = "it is not there" if there is None else f"version {there.version} is there"
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
