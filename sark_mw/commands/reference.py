"""Commands about the settings: what is in force, what there is, and the hash of a key."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version as version_of
from typing import Annotated, Any

import typer

from sark_mw.asgi.principal import key_secret
from sark_mw.commands.markdown import settings_reference
from sark_mw.commands.masking import mask_url
from sark_mw.commands.options import Config, say, warn
from sark_mw.errors import ConfigurationError
from sark_mw.instrumentation.keys import hash_key as hash_of
from sark_mw.settings import Settings


def config(
    config: Config = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the settings.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference of all settings.")] = False,
) -> None:
    """Print the settings in force, without secrets; or what settings there are."""
    if schema:
        say(json.dumps(Settings.model_json_schema(), indent=2))
    elif markdown:
        say(settings_reference())
    else:
        say(json.dumps(effective(Settings.load(config)), indent=2))


def effective(settings: Settings) -> dict[str, Any]:
    """Lay the settings out as JSON; secrets are masked, also where they stand inside an address."""
    found: dict[str, Any] = settings.model_dump(mode="json")
    found["store"]["url"] = mask_url(settings.store.url)
    found["ledger"]["url"] = mask_url(settings.ledger.url.get_secret_value())
    for addressed in (*found["serve"]["upstreams"], *found["webhooks"]):
        addressed["url"] = mask_url(addressed["url"])
    return found


def hash_key(config: Config = None) -> None:
    """Print the hash of an API key, as the settings' `principal.keys` want it; the key is read from stdin or asked for."""
    settings = Settings.load(config)
    if not settings.principal.key_secret.get_secret_value():
        warn("principal.key_secret is not set: this hash changes as soon as it is")
    secret = key_secret(settings.principal)
    key = typer.prompt("API key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    key = key.strip()
    if not key:
        raise ConfigurationError("no key was given: sark-mw hash-key < file")
    say(hash_of(secret, key))


def version() -> None:
    """Print the versions of sark_mw and of what it stands on."""
    say(f"sark-mw {version_of('sark-mw')} (Python {platform.python_version()}, genai-prices {version_of('genai-prices')})")
