"""Checks of what a gateway makes when it starts: routes with their estimators, principals, plugins."""

from __future__ import annotations

from collections.abc import Mapping

from sark_mw.asgi.principal import PrincipalResolver
from sark_mw.asgi.routes import Router
from sark_mw.doctor.checks import Check, fail, ok, warn
from sark_mw.errors import ConfigurationError
from sark_mw.plugin_loading import load_plugins, make_policies, missing_layers
from sark_mw.policy.base import PolicyServices
from sark_mw.pricing.base import CostEstimator
from sark_mw.settings import PolicySettings, Settings

_REMEDY = "a gateway does not start with these settings"


async def check_start(settings: Settings, estimators: Mapping[str, CostEstimator], services: PolicyServices) -> list[Check]:
    """Make what a gateway makes of its settings, and let it go again; code that they name is imported and run."""
    return [_routes(settings, estimators), _principals(settings), await _plugins(settings.policy, services)]


def _routes(settings: Settings, estimators: Mapping[str, CostEstimator]) -> Check:
    try:
        Router(settings.routes, estimators)
    except ConfigurationError as error:
        return fail("routes", str(error), _REMEDY)
    return ok("routes", f"{len(settings.routes)} of your own, before the built-in ones")


def _principals(settings: Settings) -> Check:
    try:
        PrincipalResolver(settings.principal)
    except ConfigurationError as error:
        return fail("principals", str(error), _REMEDY)
    return ok("principals", f"{len(settings.principal.keys)} keys are listed")


async def _plugins(settings: PolicySettings, services: PolicyServices) -> Check:
    manager = make_policies(settings)
    manager.bind(services)
    try:
        names = await load_plugins(manager, settings)
        missing = missing_layers(manager)
    except ConfigurationError as error:
        return fail("plugins", str(error), _REMEDY)
    except Exception as error:  # noqa: BLE001  # the plugin boundary: `on_load` may raise anything
        return fail("plugins", f"{type(error).__name__}: {error}", _REMEDY)
    finally:
        for each in manager.list_plugins():
            await manager.unregister_plugin(each["name"])
    loaded = f"loaded: {', '.join(names)}" if names else "none"
    if missing:
        remedy = "run on a system that has them, or use rules or WASM for policies that you do not trust"
        return warn("plugins", f"{loaded}; without these layers of isolation: {', '.join(missing)}", remedy)
    if manager.isolation == "off" and (settings.folder is not None or any(each.path is not None for each in settings.plugins)):
        return warn("plugins", f"{loaded}; policy.isolation is off: those from files can do whatever the gateway can")
    return ok("plugins", loaded)
