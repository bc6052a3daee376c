"""Find the plugins that come with sark_mw: in the wheel, or in the repository of an editable install."""

from __future__ import annotations

from pathlib import Path

from sark_mw.errors import ConfigurationError

BUILTIN_PLUGINS = (
    "adaptive_rate_limit",
    "allow_list",
    "anomaly",
    "approval",
    "business_hours",
    "cost_aware",
    "network",
    "rate_limit",
    "size_guard",
)
_PACKAGE = Path(__file__).parent.parent


def builtin_plugin_path(name: str) -> Path:
    """Return the file of a plugin that comes with sark_mw, for `load_from_file`; raise `ConfigurationError` if there is none."""
    if name not in BUILTIN_PLUGINS:
        raise ConfigurationError(f"no plugin {name!r} comes with sark_mw: one of {', '.join(BUILTIN_PLUGINS)}")
    folders = (_PACKAGE / "_plugins", _PACKAGE.parent / "plugins")
    for folder in folders:
        path = folder / f"{name}.py"
        if path.is_file():
            return path
    looked = " and ".join(str(folder) for folder in folders)
    raise ConfigurationError(f"the file of the plugin {name!r} is missing from this installation (looked in {looked})")


def is_builtin(path: Path) -> bool:
    """Tell whether a file is one of the plugins that come with sark_mw: they are trusted like the rest of it."""
    folders = (_PACKAGE / "_plugins", _PACKAGE.parent / "plugins")
    return path.stem in BUILTIN_PLUGINS and path.suffix == ".py" and path.resolve().parent in [each.resolve() for each in folders]
