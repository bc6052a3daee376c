"""The file of a plugin: what it is made of, whether that has changed, and how it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sark_mw.errors import ConfigurationError
from sark_mw.policy.base import PolicyPlugin
from sark_mw.policy.loading import forget_module, load_plugin
from sark_mw.policy.packages.admission import Packages, require_agreement, require_sark_mw
from sark_mw.policy.packages.bounded import content_of, toml_of
from sark_mw.policy.packages.inspection import check_options
from sark_mw.policy.packages.manifest import MANIFEST_NAME, Contents, Manifest, is_plugin_file, manifest_beside, package_file

if TYPE_CHECKING:
    from sark_mw.policy.isolated import IsolationOptions


#: Of a plugin's source; of a policy's in Rego or WebAssembly, which are bounded again where they are used.
_MOST_BYTES, _MOST_POLICY_BYTES = 1 << 20, 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginFile:
    """Where a plugin comes from. `isolation` None: it runs in this process, trusted.

    `options_path` is a TOML file of further options, read again with each new version. `packages` are the rules of the manager
    that loads it; a manifest beside it names the class and the options that are not given here. `package` is the folder of a
    package, which is nothing without its manifest. `builtin`: it was named as one that comes with sark_mw, and needs no pin.
    """

    path: Path
    class_name: str | None = None
    isolation: IsolationOptions | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    options_path: Path | None = None
    packages: Packages | None = None
    package: Path | None = None
    builtin: bool = False

    @property
    def place(self) -> Path:
        """What must be gone for the plugin to be gone: its package's folder, whatever the files in it are called, or its file."""
        return self.package or self.path

    def stamp(self) -> tuple[tuple[int, ...], ...]:
        """Tell, at little cost, whether the files may have changed; a missing one has no stamp."""
        lock = None if self.packages is None or self.packages.lock is None else self.packages.lock.path
        paths = (self.path, self.path.with_name(MANIFEST_NAME), self.options_path, lock)
        return tuple(stamp_of(path) for path in paths if path is not None)

    def contents(self) -> Contents:
        """Read the files, believing nothing of them; raises `ConfigurationError`."""
        if not (self.path.name.isprintable() and self.path.parent.name.isprintable()):
            # It would be written to logs and terminals.
            raise ConfigurationError(f"the name of the plugin file {str(self.path)!a} is not printable")
        told = _read(self.options_path) if self.options_path is not None and self.options_path.exists() else None
        now = Contents(source=_read(self.path), manifest=manifest_beside(self.path), options=told)
        if self.package is not None and now.manifest is None:
            raise ConfigurationError(f"the plugin package {self.package} has no {MANIFEST_NAME} any more")
        return now

    def options_beside(self) -> dict[str, Any]:
        """Read the options file beside it, as far as there is one; raises `ConfigurationError`."""
        return _options(self.contents().options or b"", self.options_path)

    def read(self) -> PluginSource:
        """Read what the plugin is made of, as far as the rules let it in; raises `ConfigurationError`."""
        now = self.contents()
        if self.packages is not None and not self.builtin:
            self.packages.admit(self.path, now)
        digest = blake2b(now.source, digest_size=16)
        digest.update(b"\0" + (now.options or b"") + (b"" if now.manifest is None else b"\0" + now.manifest.content))
        manifest = None if now.manifest is None else now.manifest.parse()
        told = _options(now.options or b"", self.options_path)
        options = {**({} if manifest is None else manifest.options), **told, **self.options}
        return PluginSource(file=self, source=now.source, options=options, digest=digest.hexdigest(), manifest=manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSource:
    """One version of a plugin's file, with the hash of everything in it."""

    file: PluginFile
    source: bytes
    options: Mapping[str, Any]
    digest: str
    manifest: Manifest | None = None

    async def build(self) -> PolicyPlugin:
        """Make the plugin, here or in a process of its own; raises `ConfigurationError` with the file and the reason."""
        file = self.file
        if self.manifest is not None:
            require_sark_mw(self.manifest, file.path)
        plugin = await self._built(file.class_name or (None if self.manifest is None else self.manifest.class_name))
        try:
            if self.manifest is not None:
                require_agreement(plugin, self.manifest, file.path, renamed="name" in self.options)
                if file.packages is not None:
                    file.packages.accept(self.manifest, file.path)
        except BaseException:
            forget_module(type(plugin))
            raise
        return plugin

    async def _built(self, class_name: str | None) -> PolicyPlugin:
        file = self.file
        if file.isolation is None:
            return load_plugin(file.path, self.source, class_name, self.options)
        from sark_mw.policy.isolated import isolate

        options = {name: _plain(value) for name, value in self.options.items()}
        await check_options(self.source, class_name, options, str(file.path), file.isolation)
        try:
            return await isolate(self.source, file.path.stem, class_name, options, file.isolation)
        except ConfigurationError as error:
            if str(file.path) in str(error):
                raise
            raise ConfigurationError(f"{file.path}: {error}") from error


def plugin_files(folder: Path, isolation: IsolationOptions | None) -> list[PluginFile]:
    """List the plugins of a folder, in the order of their names: files, each with the options of the TOML file beside it, and
    packages, which are folders with a manifest.

    Names that begin with `_` or `.` are no plugins. Raises `ConfigurationError` for what is no folder.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigurationError(f"cannot read the plugin folder {folder}: {error.strerror or error}") from error
    found = []
    for path in paths:
        if is_plugin_file(path):
            options = path.with_suffix(".toml")
            options_path = None if options.name == MANIFEST_NAME else options
            found.append(PluginFile(path=path, isolation=isolation, options_path=options_path))
        elif path.name[0] not in "_." and (path / MANIFEST_NAME).is_file():
            found.append(PluginFile(path=package_file(path), isolation=isolation, package=path))
    return found


def _read(path: Path) -> bytes:
    try:
        return content_of(path, _MOST_BYTES if path.suffix in (".py", ".toml") else _MOST_POLICY_BYTES)
    except OSError as error:
        raise ConfigurationError(f"cannot read the plugin file {path}: {error.strerror or error}") from error


def stamp_of(path: Path) -> tuple[int, ...]:
    """Tell, at little cost, whether a file may have changed."""
    try:
        found = path.stat()
    except OSError:
        return (0, -1)
    # Which file it is, too: of releases with fixed times another one of the same size may be behind a link by now.
    return (found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)


def _options(text: bytes, path: Path | None) -> dict[str, Any]:
    try:
        return toml_of(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _plain(value: Any) -> Any:
    """Write what settings are made of as it crosses to another process: their decimals are numbers there."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
