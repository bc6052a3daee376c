"""Checks of this machine and of the settings: prices, tokenizer, secrets, journal, limits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from sark_mw.doctor.checks import Check, fail, ok, warn
from sark_mw.limit import Limit
from sark_mw.pricing.tokens import tokenizer
from sark_mw.settings import Settings

_OLD_DAYS = 45


def check_settings(settings: Settings) -> Iterator[Check]:
    """Judge what needs nobody else's answer."""
    yield _prices()
    if tokenizer("o200k_base") is None:
        yield warn(
            "tokenizer", "not installed: tokens are estimated from above, so holds are larger", "pip install 'sark-mw[tokenizer]'"
        )
    else:
        yield ok("tokenizer", "installed: OpenAI's tokens are counted exactly")
    yield _secret(settings)
    yield _journal(settings.store.journal)
    if settings.store.on_store_failure == "allow":
        yield warn("on_store_failure", "allow: while the store is away nothing limits spending", "deny, or leased")


def _prices() -> Check:
    try:
        package = distribution("genai-prices")
    except PackageNotFoundError:
        return fail("prices", "genai-prices is not installed", "pip install genai-prices")
    record = next((path for path in package.files or () if path.name == "METADATA"), None)
    if record is None:
        return ok("prices", f"genai-prices {package.version}")
    days = (time.time() - Path(str(record.locate())).stat().st_mtime) / 86_400
    said = f"genai-prices {package.version}, installed {days:.0f} days ago"
    if days > _OLD_DAYS:
        return warn("prices", said, "pip install -U genai-prices: models that it does not know are priced as the dearest")
    return ok("prices", said)


def _secret(settings: Settings) -> Check:
    secret = settings.principal.key_secret.get_secret_value()
    name = "key secret"
    if not secret:
        return warn(name, "empty: API keys are hashed with a value that everybody knows", "set SARK_PRINCIPAL__KEY_SECRET")
    if len(secret.encode()) < 16:
        return fail(name, "shorter than 16 bytes: the gateway does not start with it", "openssl rand -hex 32")
    return ok(name, "set")


def _journal(path: Path) -> Check:
    found = sorted(path.parent.glob(f"{path.stem}.*{path.suffix}")) if path.parent.is_dir() else []
    waiting = sum(len(each.read_bytes().splitlines()) for each in found if each.is_file())
    if waiting:
        remedy = "a gateway with this directory books them when the store answers"
        return warn("journal", f"{waiting} bookings wait in {path.parent}", remedy)
    if path.parent.is_dir():
        return ok("journal", "empty")
    return fail(
        "journal", f"{path.parent} is no directory, so nothing can be kept through an outage", "make it, or set store.journal"
    )


def check_limits(settings: Settings, in_force: Sequence[Limit]) -> Check:
    """Compare the limits of the settings with those in force."""
    wanted = [limit.to_limit() for limit in settings.limits]
    known = {(limit.root, limit.limit_id): replace(limit, since_ms=0) for limit in in_force}
    waiting = [limit for limit in wanted if known.get((limit.root, limit.limit_id)) != limit]
    if waiting:
        names = ", ".join(limit.limit_id for limit in waiting[:5])
        return warn("limits", f"{len(in_force)} in force; {len(waiting)} of the settings are not yet: {names}", "start a gateway")
    if not in_force:
        return warn("limits", "none: nothing is limited", "sark-mw limits set user:* 10, or [[limits]] in the settings")
    return ok("limits", f"{len(in_force)} in force, those of the settings among them" if wanted else f"{len(in_force)} in force")
