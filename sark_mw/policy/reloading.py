"""Take up changed plugin files while the gateway runs, without losing a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from sark_mw.errors import ConfigurationError
from sark_mw.policy.files import PluginFile
from sark_mw.policy.packages import Packages, UnmetRequirementsError

logger = logging.getLogger(__name__)


class NameTakenError(ValueError):
    """Another plugin has the name already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"plugin {name!r} is already registered")
        self.name = name


class OvertakenError(ConfigurationError):
    """The plugin was replaced or removed while its new version was loaded."""


class Reloadable(Protocol):
    """What the watch does with what it finds: a `PolicyPluginManager`."""

    #: Tells which plugins require which.
    packages: Packages

    def loaded_files(self) -> Mapping[str, tuple[PluginFile, str]]:
        """Name the plugins that came from files, with the hash of what each was made of."""

    async def reload_plugin(self, name: str, file: PluginFile | None = None) -> None:
        """Make the plugin anew from its file, or from another one; raises `ConfigurationError`, having told of it."""

    async def load_file(self, file: PluginFile, enabled: bool = True) -> object:
        """Load a file that is new."""

    async def unregister_plugin(self, name: str) -> None:
        """Let a plugin go whose file is gone."""

    def load_failed(self, name: str, error: BaseException) -> None:
        """Say that a file could not be loaded."""


class FileWatch:
    """Look at the files of plugins now and then, and at a folder in which they come and go."""

    def __init__(self, plugins: Reloadable, every_s: float, in_folder: Callable[[], list[PluginFile]] | None = None) -> None:
        self._plugins = plugins
        self._every_s = every_s
        self._in_folder = in_folder
        #: Files and package folders that were in the folder; those that the last look did not find; whose names are taken.
        self._from_folder: set[Path] = {file.place for file in in_folder()} if in_folder is not None else set()
        self._missing: set[Path] = set()
        self._taken: dict[Path, str] = {}
        #: New files that do not load: which plugin each is to be nobody knows.
        self._broken: set[Path] = set()
        #: Files whose requirements were not met, and whether a look has taken anything up.
        self._unmet: set[Path] = set()
        self._taken_up = False
        #: Gone files whose plugins stay because of these, which was said.
        self._kept: set[Path] = set()
        self._seen = {file.path: file.stamp() for file, _ in plugins.loaded_files().values()}

    async def run(self) -> None:
        """Look until cancelled; whatever goes wrong, it is looked again."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.look()
            except Exception:
                logger.exception("the files of policy plugins could not be looked at")

    async def look(self) -> None:
        """Look once: take up what is new, what has changed and what is gone."""
        self._taken_up = False
        if self._in_folder is not None:
            await self._look_at_folder(self._in_folder)
        loaded = self._plugins.loaded_files()
        for name in await asyncio.to_thread(self._changed, loaded):
            await self._reload(name)
        if self._taken_up:
            # Perhaps what these require of others: the next look tries them again.
            for path in self._unmet:
                self._seen.pop(path, None)
            self._unmet.clear()

    async def _reload(self, name: str, file: PluginFile | None = None) -> bool:
        try:
            await self._plugins.reload_plugin(name, file)
        except OvertakenError:
            # Perhaps by an older version: the next look compares again.
            current = self._plugins.loaded_files().get(name)
            if current is not None:
                self._seen.pop(current[0].path, None)
            return False
        except UnmetRequirementsError:
            refused = file if file is not None else self._plugins.loaded_files().get(name, (None, ""))[0]
            if refused is not None:
                self._unmet.add(refused.path)
            return False
        except (ConfigurationError, ValueError):
            return False  # told of already; the old version stays, until the file changes again
        self._taken_up = True
        return True

    def _changed(self, loaded: Mapping[str, tuple[PluginFile, str]]) -> list[str]:
        changed = []
        for name, (file, digest) in loaded.items():
            stamp = file.stamp()
            if self._seen.get(file.path) == stamp:
                continue
            self._seen[file.path] = stamp
            try:
                if file.read().digest == digest:
                    continue  # touched, but the same
            except ConfigurationError:
                pass  # the reload fails with the reason
            changed.append(name)
        return changed

    async def _look_at_folder(self, in_folder: Callable[[], list[PluginFile]]) -> None:
        """Take up what came and changed before anything goes: a policy stays until another one has taken its place."""
        there = await asyncio.to_thread(in_folder)
        self._from_folder.update(file.place for file in there)
        gone = {place for place in self._from_folder - {file.place for file in there} if _is_gone(place)}
        names = {file.place: (name, file) for name, (file, _) in self._plugins.loaded_files().items()}
        going = {name for place, (name, _) in names.items() if place in gone}
        for place in gone & names.keys():
            # It goes, or comes back: either way no version of it is to be tried now.
            self._seen[names[place][1].path] = names[place][1].stamp()
        self._broken &= {file.path for file in there}
        for file in there:
            name, old = names.get(file.place, ("", file))
            if name and old.path == file.path:
                continue  # the same file: whether it has changed is seen with all others
            stamp = file.stamp()
            if self._seen.get(file.path) == stamp and self._taken.get(file.path) not in going:
                continue
            self._seen[file.path] = stamp
            if not name:
                await self._come(file, going)
            elif not await self._reload(name, file):
                self._seen[old.path] = old.stamp()  # it stays, and was told of
        await self._go(gone)

    async def _come(self, file: PluginFile, going: set[str]) -> None:
        """Load a file that is new; one that has the name of a plugin whose file is gone takes its place."""
        self._taken.pop(file.path, None)
        self._broken.discard(file.path)
        try:
            await self._plugins.load_file(file)
        except NameTakenError as taken:
            self._taken[file.path] = taken.name
            if taken.name not in going:
                self._plugins.load_failed(file.path.stem, taken)
            elif await self._reload(taken.name, file):
                del self._taken[file.path]
        except Exception as error:  # noqa: BLE001  # the plugin boundary: `on_load` may raise anything
            self._plugins.load_failed(file.path.stem, error)
            self._broken.add(file.path)
            if isinstance(error, UnmetRequirementsError):
                self._unmet.add(file.path)
        else:
            self._taken_up = True

    async def _go(self, gone: set[Path]) -> None:
        """Let go what two looks in a row did not find; what is looked at now may be in the middle of being replaced.

        Nothing goes while a new file does not load: that may be what is to take its place. Nor does what others require.
        """
        names = {file.place: name for name, (file, _) in self._plugins.loaded_files().items()}
        for place in gone:
            if place in names and place not in self._missing:
                logger.warning("policy plugin %r goes with the next look, unless its file %s comes back", names[place], place)
                continue
            if place in names and (why := self._why_kept(names[place], {names[each] for each in gone & names.keys()})):
                if place not in self._kept:
                    logger.warning("policy plugin %r stays without its file %s while %s", names[place], place, why)
                    self._kept.add(place)
                continue
            self._kept.discard(place)
            self._from_folder.discard(place)
            self._seen = {path: stamp for path, stamp in self._seen.items() if path != place and place not in path.parents}
            if place in names:
                logger.warning("policy plugin %r goes: its file %s is gone", names[place], place)
                await self._plugins.unregister_plugin(names[place])
        self._missing = gone & self._from_folder

    def _why_kept(self, name: str, going: set[str]) -> str:
        if self._broken:
            return f"{', '.join(repr(str(each)) for each in sorted(self._broken))} cannot be loaded"
        requiring = sorted(set(self._plugins.packages.requiring(name)) - going)
        return f"{', '.join(requiring)} cannot do without it" if requiring else ""


def _is_gone(place: Path) -> bool:
    """Tell whether there is nothing of this name; what cannot be looked at is not gone."""
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
