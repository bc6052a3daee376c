"""`sark-mw plugins add`: take a plugin of others into one's own folder, checked and pinned."""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tomli_w
import typer

from sark_mw.commands.options import Config, say, warn
from sark_mw.commands.plugin_cases import MOST_CASES_BYTES
from sark_mw.commands.plugin_checks import (
    BestEffort,
    ClassName,
    NoScan,
    OptionsFile,
    Severity,
    examine,
    files_at,
    isolation_of,
    known_severity,
    options_of,
    print_report,
)
from sark_mw.errors import ConfigurationError
from sark_mw.policy.files import PluginFile
from sark_mw.policy.packages import LOCK_NAME, MANIFEST_NAME, Lock, ManifestFile, pin_of
from sark_mw.policy.packages.bounded import content_of, toml_of
from sark_mw.policy.packages.lock import hash_of
from sark_mw.settings import Settings

#: What is taken of a package beside the plugin and its manifest: the cases that it is tested by.
CASES_NAME = "cases.toml"


def add(
    source: Annotated[Path, typer.Argument(help="A plugin's file, or the folder of a package.")],
    to: Annotated[Path, typer.Option(help="The folder of plugins that it goes to, as `policy.folder` names it.")] = Path(
        "plugins"
    ),
    config: Config = None,
    class_name: ClassName = None,
    options: OptionsFile = None,
    severity: Severity = "medium",
    no_scan: NoScan = False,
    best_effort: BestEffort = False,
    upgrade: Annotated[bool, typer.Option("--upgrade", help="Replace the version that is there.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Add it although the check refuses it.")] = False,
    lock: Annotated[Path | None, typer.Option(help=f"Default: policy.lock of the settings, or {LOCK_NAME}.")] = None,
) -> None:
    """Check a plugin, copy it with its manifest into a folder of its own below --to, and pin it in the lock."""
    known_severity(severity)
    chosen = Lock(path=lock or Settings.load(config).policy.lock or Path(LOCK_NAME))
    (found, *others) = files_at(source)
    if others:
        raise ConfigurationError(f"{source} has several plugins in it: add one after the other")
    isolation = isolation_of(best_effort=best_effort)
    # Read once: what was checked is what is written.
    built_with = {**found.options_beside(), **options_of(options)}
    file = replace(found, class_name=class_name, options=built_with, isolation=isolation, options_path=None)
    report = asyncio.run(examine(file, severity=severity, scanned=not no_scan))
    print_report(report)
    if report.faults and not force:
        warn(f"{source} is not added: {'; '.join(report.faults)} (--force adds it all the same)")
        sys.exit(1)
    content = file.contents()
    if hash_of(content.source) != report.hash:
        raise ConfigurationError(f"{file.path} changed while it was checked")
    manifest = _manifest(file, report.loaded, class_name) if content.manifest is None else _with_options(content.manifest, file)
    said = ManifestFile(path=source / MANIFEST_NAME, content=manifest).parse()
    folder = to / said.name
    if folder.exists() and not upgrade:
        raise ConfigurationError(f"{folder} is there already: --upgrade replaces it")
    path = folder / f"{said.name}.py"
    _write(folder, {path.name: content.source, MANIFEST_NAME: manifest, **(_cases(file.path) if content.manifest else {})})
    added = PluginFile(path=path).contents()
    pins = chosen.read() if chosen.path.exists() else {}
    pin = pin_of(chosen.key(path), said.name, said.version, added)
    chosen.write({**pins, pin.path: pin}.values())
    say(f"added {said.name} {said.version} as {path}, pinned in {chosen.path}")


def _manifest(file: PluginFile, loaded: dict[str, object], class_name: str | None) -> bytes:
    """Write the manifest that a single file lacks, by what the plugin says of itself."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", str(loaded.get("name") or file.path.stem))
    said = {"name": name, "version": loaded.get("version") or "0.0.0", "description": loaded.get("description") or ""}
    if class_name is not None:
        said["class"] = class_name
    if file.options:
        said["options"] = file.options
    return tomli_w.dumps(said).encode()


def _with_options(manifest: ManifestFile, file: PluginFile) -> bytes:
    """Write what the plugin was checked with into the manifest that it has; byte by byte as it was where there is nothing."""
    if not file.options:
        return manifest.content
    options = {**manifest.parse().options, **file.options}
    return tomli_w.dumps({**toml_of(manifest.content), "options": options}).encode()


def _cases(path: Path) -> dict[str, bytes]:
    cases = path.with_name(CASES_NAME)
    return {CASES_NAME: content_of(cases, MOST_CASES_BYTES)} if cases.is_file() else {}


def _write(folder: Path, files: dict[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if old.suffix == ".py" and old.name not in files:
                old.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ConfigurationError(f"{folder}: {error.strerror or error}") from error
