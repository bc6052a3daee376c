"""The sections of the settings about HTTP: how requests are read, who pays for them, and what happens instead of a refusal.

The descriptions are the text of docs/configuration.md, so none may lack one.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from sark_mw.limit import DEFAULT_ROOT


class Section(BaseModel):
    """A table of the settings file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpSettings(Section):
    """How requests are read and refused.

    A request may say in headers what it belongs to, beside what its principal touches: `x-sark-run` (the id of a run, shared by
    all its calls) with `x-sark-run-budget` (dollars that the run may spend; each call states it, and after a day without any the
    run begins anew), `x-sark-end-user` (else OpenAI's `safety_identifier` or `user`, Anthropic's `metadata.user_id`), and
    `x-sark-tags` (comma-separated, at most 8 of 64 characters). A run is the scope `run:<principal>/<id>`; `end_user:…`, `tag:…`
    and `resource:…` (an MCP server's path, or what the route is called) are touched where a limit is about them. None of it lets
    a request spend more.
    """

    max_body_bytes: int = Field(
        32 * 1024 * 1024, ge=1, description="Longest body of a metered request; a longer one is refused with 413."
    )
    body_timeout_s: float = Field(60, gt=0, description="Longest that a metered request's body may take to arrive.")
    budget_status: Literal[402, 429] = Field(402, description="Status of a refusal for lack of budget.")
    inject_stream_usage: bool = Field(
        True, description="Ask OpenAI streams for usage where the client did not, and take the extra chunk out again."
    )
    drain_on_disconnect: bool = Field(
        True,
        description="When a client leaves mid-stream, keep reading the response for its usage, so that it is booked exactly.",
    )
    drain_timeout_s: float = Field(30, gt=0, description="Longest that a response without a client is read.")
    metered_only: bool = Field(
        False,
        description="Refuse (404) what no route meters and no rule ignores, instead of passing it. "
        "Set it where the gateway faces providers: without it, what "
        "they charge for in ways that are not known here passes unmetered.",
    )
    me_path: str = Field(
        "/sark/me",
        pattern=r"^(/.*)?$",
        description="Path at which a caller reads (GET) its own limits and what is left of them; empty: nowhere.",
    )
    idempotency: Literal["on", "off"] = Field(
        "on",
        description="Whether an `Idempotency-Key` of a metered POST counts: a second request with it is not sent to the provider "
        "nor paid again, but answered with the first one's response where this process still has it, else with 409; with another "
        "body it is refused with 422. The official clients send no key of their own accord: give one per request "
        "(`extra_headers`), and their retries repeat it. Their `x-stainless-retry-count` alone names no first request, so it "
        "changes nothing. A key does nothing for callers under `principal.anonymous`, who cannot be told apart, nor for requests "
        "that pass while the store is out of reach (`store.on_store_failure` is allow or leased).",
    )
    idempotency_keep_bytes: int = Field(
        64 * 1024 * 1024,
        ge=0,
        description="Most memory that one process keeps responses to requests with a key in; 0: none. One longer than a mebibyte "
        "is not kept. Where it is full, principals with more than a sixteenth of it lose their oldest responses first.",
    )
    idempotency_keep_s: float = Field(600, gt=0, description="How long it keeps them.")


class KeySettings(Section):
    """A known API key."""

    key_hash: str = Field(pattern=r"^[0-9a-f]{16,64}$", description="From `sark-mw hash-key`.")
    principal: str = Field(description="Who pays: `user:alice`.")
    scopes: tuple[str, ...] = Field((), description="What else its requests touch: `team:ml`, `org:acme`.")
    root: str = Field(DEFAULT_ROOT, description="The root whose limits apply.")


class PrincipalSettings(Section):
    """Who pays for a request."""

    sources: tuple[Literal["scope", "header", "api_key", "bearer"], ...] = Field(
        ("scope", "header", "api_key", "bearer"), description="Where to look, in this order."
    )
    key_secret: SecretStr = Field(
        SecretStr(""), description="Keys the hash of API keys; set it (SARK_PRINCIPAL__KEY_SECRET) in production."
    )
    trusted_proxies: tuple[str, ...] = Field((), description="Addresses or networks whose principal header counts.")
    header: str = Field("x-sark-principal", description="Header with the principal, from trusted proxies only.")
    scopes_header: str = Field(
        "x-sark-scopes", description="Header with further scopes, comma-separated, from trusted proxies only."
    )
    root_header: str = Field("x-sark-root", description="Header with the root, from trusted proxies only.")
    api_key_headers: tuple[str, ...] = Field(
        ("x-api-key", "api-key", "x-goog-api-key"), description="Headers that carry an API key."
    )
    keys: tuple[KeySettings, ...] = Field((), description="Known API keys.")
    require_known_key: bool = Field(False, description="Refuse (401) keys that are not listed.")
    anonymous: str | None = Field(
        None,
        description="Principal of requests that name none; without it they are refused (401). Their idempotency keys do nothing.",
    )
    default_scopes: tuple[str, ...] = Field((), description="Scopes that every request touches: `org:acme`.")
    members: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description='Which scopes a scope belongs to, over any number of steps: `"user:alice" = ["team:ml"]`, '
        '`"team:ml" = ["org:acme"]`. A request that touches the one touches the others.',
    )
    root: str = Field(DEFAULT_ROOT, description="Root of requests that name none.")


class RouteSettings(Section):
    """A rule that says how requests are metered; the first that matches counts, before the built-in ones.

    Known paths that providers charge for and that nothing here prices (images, audio, batches …) are refused with 400 unless a
    rule prices, frees or ignores them.
    """

    path: str = Field(description="Path pattern: `*` within a segment, `**` over segments.")
    methods: tuple[str, ...] = Field(("POST",), description="Methods it applies to; `*` for any.")
    price_usd: Decimal | None = Field(None, ge=0, description="Fixed price of one call.")
    free: bool = Field(False, description="Metered at no cost: counts requests and concurrency only.")
    ignore: bool = Field(False, description="Passed without being read, with `http.metered_only` too.")
    wire: Literal["openai", "anthropic", "gemini", "mcp", "plain"] | None = Field(None, description="Dialect to read it as.")
    provider: str | None = Field(None, description="Provider whose prices apply.")
    estimator: str | None = Field(None, description="Own estimator: `package.module:name`.")
    capability: str | None = Field(None, description="Name in ledger and policies; the path if absent.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum([self.price_usd is not None, self.free, self.ignore, self.estimator is not None]) > 1:
            raise ValueError("a route has one of price_usd, free, ignore and estimator")
        return self


class CheaperModelSettings(Section):
    """Models to use in place of a dearer one of the same provider, in the same dialect; the first rule that matches counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    from_model: str = Field(
        alias="from",
        pattern=r"^(\*|[^\s*]+\*?)$",
        description="Name of the model that was asked for; a `*` at its end stands for any rest.",
    )
    to: tuple[Annotated[str, Field(pattern=r"^[^\s*]{1,256}$")], ...] = Field(
        min_length=1,
        description="Models to try in its place, in this order: each is priced, limited and put to the policies as if it had "
        "been asked for.",
    )
    at_percent: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Also try them once this share of a budget is spent or held, before it refuses. If none of them is admitted, "
        "the model that was asked for is.",
    )


class InsteadSettings(Section):
    """What happens instead of a refusal for lack of budget.

    In this order, until something is admitted: the cheaper models, with the output that was asked for; the model that was asked
    for, with less output; the cheaper models, with less output. The response tells: `x-sark-model` and `x-sark-requested-model`,
    `x-sark-max-output-tokens`. Where nothing is admitted, the caller is refused for the model that it asked for.
    """

    clamp: bool = Field(
        False,
        description="Lower the output limit of a request to what the budget still allows, under the name that the caller gave it "
        "(without one: `max_completion_tokens` in chat completions). It is not lowered to or below a `thinking` budget.",
    )
    clamp_min_output_tokens: int = Field(16, ge=1, description="Refuse rather than answer with at most fewer tokens than this.")
    models: tuple[CheaperModelSettings, ...] = Field((), description="Cheaper models.")
