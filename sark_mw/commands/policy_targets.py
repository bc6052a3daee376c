"""What `sark-mw plugins test` takes besides plugins: policies in Rego and WebAssembly, and the rules of a settings file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sark_mw.errors import ConfigurationError
from sark_mw.plugin_loading import load_plugins
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.rule_files import make_rules
from sark_mw.settings import PluginSettings, PolicySettings, Settings

_KINDS = {".rego": "rego", ".wasm": "wasm", ".wat": "wasm"}


def is_policy(target: Path) -> bool:
    """Tell a policy, or a settings file, from a plugin in Python."""
    return target.suffix == ".toml" or _kind(target) is not None


async def load_policy(target: Path, options: Mapping[str, Any], manager: PolicyPluginManager, *, best_effort: bool) -> None:
    """Load a policy with these options, or the rules of a settings file; raises `ConfigurationError`."""
    kind = _kind(target)
    if kind is None:
        settings = Settings.load(target).policy
        if not any(rule.enabled for rule in settings.rules):
            raise ConfigurationError(f"{target} has no [[policy.rules]]{' that is enabled' if settings.rules else ''}")
        manager.obligation_models |= frozenset(settings.obligation_models)  # beside those of the cases
        await load_plugins(manager, PolicySettings(rules=settings.rules))
        return
    if best_effort:
        options = {"hardening": "best-effort", **options}
    await manager.register_plugin(make_rules(manager, PluginSettings(name=kind, options={**options, "path": str(target)})))


def _kind(target: Path) -> str | None:
    if target.is_dir():
        has_rego = any(target.glob("*.rego"))
        return "rego" if has_rego and not any(target.glob("*.py")) else None
    return _KINDS.get(target.suffix)
