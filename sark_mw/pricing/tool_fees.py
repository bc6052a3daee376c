"""Fees for calls of the providers' own tools: from the price data where it has them, else the published ones of 2026-11-20."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from sark_mw.errors import ConfigurationError
from sark_mw.pricing.rates import Fees, yoctos_per_token

#: Dollars per thousand calls, where the price data is silent. A session of the code interpreter is a container of 1 GB.
#: https://openai.com/api/pricing, https://www.anthropic.com/pricing (an hour of code execution, in five-minute steps, is billed
#: apart from the response, and not counted here), https://ai.google.dev/gemini-api/docs/pricing
_USD_PER_THOUSAND: dict[str, tuple[str, str, str]] = {
    "openai": ("10", "2.5", "30"),
    "azure": ("14", "2.5", "30"),
    "anthropic": ("10", "0", "0"),
    "google": ("35", "0", "0"),
}
KINDS = ("web_search", "file_search", "code_session")
#: The older search tool costs more with models that do not reason.
PREVIEW_SEARCH = Decimal(25)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCalls:
    """How many calls of each kind one request may make."""

    web_searches: int = 0
    file_searches: int = 0
    code_sessions: int = 0


NO_CALLS = ToolCalls()


def per_call(usd_per_thousand: Decimal) -> int:
    """Convert a price per thousand calls to yocto-dollars per call."""
    return yoctos_per_token(usd_per_thousand) * 1000


def fees_of(provider: str, web_searches: object = None, file_searches: object = None) -> Fees:
    """Return a provider's fees; the prices per thousand that the data names for a model come before the published ones."""
    published = [Decimal(price) for price in _USD_PER_THOUSAND.get(provider, ("0", "0", "0"))]
    for index, price in enumerate((web_searches, file_searches)):
        if isinstance(price, Decimal):
            published[index] = price
    return Fees(*map(per_call, published))


def own_fees(fees: Fees, own: Mapping[str, Decimal]) -> Fees:
    """Put the settings' fees (dollars per thousand calls, by kind) in the place of the published ones."""
    if unknown := set(own) - set(KINDS):
        raise ConfigurationError(f"there is no fee for {min(unknown)!r}, only for {', '.join(KINDS)}")
    return fees._replace(**{kind: per_call(price) for kind, price in own.items()})
