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


def resolved_builtin(path: Path) -> Path | None:
    """Return where a file that comes with sark_mw really lies, None for any other.

    It is trusted like the rest of sark_mw, if it is read from there: where a link leads may be another place a moment later.
    """
    real = path.resolve()
    folders = (_PACKAGE / "_plugins", _PACKAGE.parent / "plugins")
    own = real.stem in BUILTIN_PLUGINS and real.suffix == ".py" and real.parent in [each.resolve() for each in folders]
    return real if own else None


def names_builtin(path: Path) -> bool:
    """Tell whether a path is, as it is written, that of a plugin that comes with sark_mw: no link is followed."""
    return path.stem in BUILTIN_PLUGINS and path == builtin_plugin_path(path.stem)
