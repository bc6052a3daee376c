"""Make a plugin from a Python file, in this process: for files that are trusted like the gateway's own code."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from sark_mw.errors import ConfigurationError
from sark_mw.policy.base import PolicyPlugin
from sark_mw.policy.options import checked_options

_PREFIX = "sark_mw_loaded_plugin_"
_serial = itertools.count(1)


def load_plugin(path: Path, source: bytes, class_name: str | None, options: Mapping[str, Any]) -> PolicyPlugin:
    """Run a file's source, find its plugin class and build it; raise `ConfigurationError` and leave no module on failure."""
    module = _run(path, source)
    try:
        return built(_plugin_class(module, path, class_name), str(path), options)
    except BaseException:
        sys.modules.pop(module.__name__, None)
        raise


def forget_module(plugin_class: type[PolicyPlugin]) -> None:
    """Drop the module that was made for a loaded plugin; any other module stays."""
    if plugin_class.__module__.startswith(_PREFIX):
        sys.modules.pop(plugin_class.__module__, None)


def _run(path: Path, source: bytes) -> ModuleType:
    try:
        code = compile(source, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise ConfigurationError(f"the plugin file {path} is not valid Python: {error}") from error
    stem = "".join(c if c.isalnum() else "_" for c in path.stem)
    module = ModuleType(f"{_PREFIX}{next(_serial)}_{stem}")
    module.__file__ = str(path)
    # Dataclasses and annotations look their module up by name. No import machinery: it would leave bytecode beside the file.
    sys.modules[module.__name__] = module
    try:
        exec(code, module.__dict__)  # noqa: S102  # running this file is what the user asked for
    except (Exception, SystemExit) as error:  # the plugin boundary: whatever the file raises
        del sys.modules[module.__name__]
        raise ConfigurationError(f"the plugin file {path} failed to run: {type(error).__name__}: {error}") from error
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _plugin_class(module: ModuleType, path: Path, class_name: str | None) -> type[PolicyPlugin]:
    found = {
        value.__name__: value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, PolicyPlugin) and value.__module__ == module.__name__
    }
    usable = {name: value for name, value in found.items() if not inspect.isabstract(value)}
    if class_name is not None:
        if class_name not in usable:
            raise ConfigurationError(f"{path} defines no usable PolicyPlugin class {class_name!r}; {_listed(found)}")
        return usable[class_name]
    if len(usable) > 1:
        raise ConfigurationError(f"{path} defines several PolicyPlugin classes; name one (class_name): {_listed(found)}")
    if not usable:
        raise ConfigurationError(f"{path} defines no usable PolicyPlugin class; {_listed(found)}")
    return next(iter(usable.values()))


def _listed(found: Mapping[str, type[PolicyPlugin]]) -> str:
    if not found:
        return "it defines none at all"
    return "it defines " + ", ".join(
        f"{name} (without {', '.join(sorted(value.__abstractmethods__))})" if inspect.isabstract(value) else name
        for name, value in sorted(found.items())
    )


def built(plugin_class: type[PolicyPlugin], origin: str, options: Mapping[str, Any]) -> PolicyPlugin:
    """Build a plugin with its options, checked by its `options_model`; raises `ConfigurationError` naming `origin`."""
    checked = checked_options(
        plugin_class.options_model, options, f"{plugin_class.__name__} of {origin}", _required(plugin_class)
    )
    try:
        return plugin_class(**checked)
    except ConfigurationError as error:
        raise ConfigurationError(f"{plugin_class.__name__} of {origin}: {error}") from error
    except (Exception, SystemExit) as error:  # the plugin boundary: its own constructor
        given = ", ".join(sorted(options)) or "none"
        raise ConfigurationError(
            f"{plugin_class.__name__} of {origin} cannot be built with the options given ({given}): "
            f"{type(error).__name__}: {error}"
        ) from error


def _required(plugin_class: type[PolicyPlugin]) -> frozenset[str]:
    """Name the options without which a plugin cannot be built."""
    try:
        parameters = inspect.signature(plugin_class).parameters.values()
    except (TypeError, ValueError):  # one that cannot be read asks for nothing that is known
        return frozenset()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(each.name for each in parameters if each.kind in by_name and each.default is inspect.Parameter.empty)
