"""`sark-mw plugins check`: what a plugin imports and asks for, what a scanner finds, and whether it loads in isolation."""

from __future__ import annotations

import asyncio
import json
import sys
import tomllib
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from sark_mw.commands.options import Json, say
from sark_mw.errors import ConfigurationError
from sark_mw.policy.files import PluginFile, plugin_files
from sark_mw.policy.installed import GROUP
from sark_mw.policy.isolated import IsolationOptions
from sark_mw.policy.packages import MANIFEST_NAME, Contents, package_file
from sark_mw.policy.packages.inspection import Inspection, inspect_source, reader_at_hand
from sark_mw.policy.packages.lock import hash_of
from sark_mw.policy.packages.scan import SEVERITIES, Finding, scan

ClassName = Annotated[str | None, typer.Option("--class", help="Which class, where a file defines several plugins.")]
OptionsFile = Annotated[Path | None, typer.Option("--options", help="A TOML file of the options that it is built with.")]
BestEffort = Annotated[bool, typer.Option("--best-effort", help="Go on where this system lacks a layer of isolation.")]
Severity = Annotated[str, typer.Option(help="Findings from here on fail the check: low, medium or high.")]
NoScan = Annotated[bool, typer.Option("--no-scan", help="Without the scanner (bandit).")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found of one plugin file."""

    path: Path
    hash: str
    inspection: Inspection | None
    findings: tuple[Finding, ...] = ()
    #: What it says of itself in the isolated tier; empty where it was not loaded.
    loaded: dict[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    isolated: bool = True


def check(
    target: Annotated[str, typer.Argument(help="A file, a folder, a package's folder, or the name of an installed plugin.")],
    class_name: ClassName = None,
    options: OptionsFile = None,
    severity: Severity = "medium",
    no_scan: NoScan = False,
    best_effort: BestEffort = False,
    as_json: Json = False,
) -> None:
    """Report what a plugin imports and asks for, scan it, and load it in isolation; 1 where something is wrong with it."""
    known_severity(severity)
    files = _files(target, class_name, options_of(options), best_effort=best_effort)
    reports = asyncio.run(_examined(files, severity=severity, scanned=not no_scan))
    if as_json:
        say(json.dumps([_as_json(each) for each in reports], indent=2, default=str))
    else:
        for each in reports:
            print_report(each)
    if any(each.faults for each in reports):
        sys.exit(1)


def known_severity(severity: str) -> None:
    """Raise `ConfigurationError` for a word that is no severity."""
    if severity not in SEVERITIES:
        raise ConfigurationError(f"--severity is one of {', '.join(SEVERITIES)}, not {severity!r}")


def options_of(path: Path | None) -> dict[str, Any]:
    """Read the options to build a plugin with; raises `ConfigurationError`."""
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error


def files_at(path: Path) -> list[PluginFile]:
    """Find the plugins of a file, a package or a folder, each with the options beside it; raises `ConfigurationError`."""
    if path.is_dir():
        found = [PluginFile(path=package_file(path))] if (path / MANIFEST_NAME).exists() else plugin_files(path, None)
        if not found:
            raise ConfigurationError(f"{path} has no plugin in it")
        return found
    beside = path.with_suffix(".toml")
    return [PluginFile(path=path, options_path=None if beside.name == MANIFEST_NAME else beside)]


def _files(target: str, class_name: str | None, options: dict[str, Any], *, best_effort: bool) -> list[PluginFile]:
    path = Path(target)
    found = files_at(path) if path.exists() else [PluginFile(path=_installed(target))]
    isolation = isolation_of(best_effort=best_effort)
    return [
        PluginFile(
            path=each.path,
            class_name=class_name,
            # What a package brings runs in the gateway's process, with the rest of the package: there is nothing to isolate.
            isolation=isolation if path.exists() else None,
            options=options,
            options_path=each.options_path,
        )
        for each in found
    ]


def isolation_of(*, best_effort: bool) -> IsolationOptions:
    """Make the isolation that a plugin is tried in."""
    return IsolationOptions(mode="best-effort" if best_effort else "require")


def _installed(name: str) -> Path:
    """Find the file of an installed plugin without importing it."""
    for each in entry_points(group=GROUP):
        if each.name == name and each.dist is not None:
            module = each.module.replace(".", "/")
            for relative in (f"{module}.py", f"{module}/__init__.py"):
                path = Path(str(each.dist.locate_file(relative)))
                if path.is_file():
                    return path
            raise ConfigurationError(f"the source of the installed plugin {name!r} is not to be found ({each.value})")
    raise ConfigurationError(f"{name}: there is no such file or folder, and no installed plugin of this name")


async def _examined(files: list[PluginFile], *, severity: str, scanned: bool) -> list[Report]:
    async with reader_at_hand():
        return [await examine(file, severity=severity, scanned=scanned) for file in files]


async def examine(file: PluginFile, *, severity: str, scanned: bool) -> Report:
    """Examine one plugin file; what is wrong with it is in the report, what keeps from looking raises `ConfigurationError`."""
    now: Contents = file.contents()
    try:
        inspection = await inspect_source(now.source, file.class_name, file.isolation)
    except ConfigurationError as error:
        return Report(path=file.path, hash=hash_of(now.source), inspection=None, faults=(str(error),))
    findings = tuple(scan(now.source)) if scanned else ()
    grave = sum(finding.reaches(severity) for finding in findings)
    faults = [f"{grave} {'finding' if grave == 1 else 'findings'} of severity {severity} or above"] if grave else []
    loaded: dict[str, Any] = {}
    try:
        if file.isolation is not None:
            plugin = await file.read().build()
            loaded = plugin.get_metadata() | {"needs": None if plugin.needs is None else sorted(plugin.needs)}
            loaded["hardening"] = dict(getattr(plugin, "hardening").layers)  # noqa: B009  # an isolated plugin has it
    except ConfigurationError as error:
        faults.append(str(error))
    return Report(
        path=file.path,
        hash=hash_of(now.source),
        inspection=inspection,
        findings=findings,
        loaded=loaded,
        faults=tuple(faults),
        isolated=file.isolation is not None,
    )


def print_report(report: Report) -> None:
    """Print what was found, for people."""
    say(f"{report.path}  {report.hash}")
    if report.inspection is not None:
        said = report.inspection
        say(f"  imports   {', '.join(said.imports) or 'nothing'}")
        if said.foreign:
            say(f"            not there in isolation: {', '.join(said.foreign)}")
        needs = report.loaded.get("needs", said.needs)
        everything = "everything but prompts (it names no needs)" if report.isolated else "everything, as it runs in the gateway"
        say(f"  sees      {everything if needs is None else ', '.join(needs) or 'nothing'}")
        say(f"  options   {json.dumps(said.schema) if said.schema else ', '.join(said.options) or 'none'}")
    for finding in report.findings:
        say(f"  {finding.severity:<8}  line {finding.line}: {finding.text} ({finding.test})")
    if report.loaded:
        loaded = report.loaded
        say(f"  loads     {loaded['name']} {loaded['version']}, priority {loaded['priority']}, on_error {loaded['on_error']}")
        held = [name for name, there in loaded["hardening"].items() if there is True]
        missing = [name for name in loaded["hardening"] if name not in held]
        say(f"  held by   {', '.join(held)}" + (f"; without {', '.join(missing)}" if missing else ""))
    for fault in report.faults:
        say(f"  FAULT     {fault}")
    say("  ok" if not report.faults else "  refused")


def _as_json(report: Report) -> dict[str, Any]:
    said = report.inspection
    return {
        "path": str(report.path),
        "hash": report.hash,
        "ok": not report.faults,
        "faults": report.faults,
        "inspection": None if said is None else {name: value for name, value in asdict(said).items() if name != "schema"},
        "findings": [asdict(each) for each in report.findings],
        "loaded": report.loaded or None,
        "options_schema": None if said is None else said.schema,
    }
