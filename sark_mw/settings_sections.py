"""The sections of the settings: what each table of `sark.toml` may hold, its default, and what it does.

The descriptions are the text of docs/configuration.md, so none may lack one.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from sark_mw.limit import DEFAULT_ROOT, Limit


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreSettings(_Section):
    """Where reservations live."""

    url: str = Field(
        "memory://",
        description="memory:// (one process), embedded:///directory (one host), redis://, rediss://, unix://, redis+cluster://, redis+sentinel://",
    )
    shards: int = Field(
        16, ge=1, le=16_384, description="Number of hash tags that roots are spread over; must never change once in use."
    )
    prefix: str = Field("sark", pattern=r"^[A-Za-z0-9_.-]+$", description="Begins every key.")
    deadline_ms: int = Field(500, ge=1, description="Longest that any call to the store may take, retries included.")
    max_connections: int = Field(32, ge=1, description="Connections of one process.")
    breaker_failures: int = Field(5, ge=1, description="Failures in a row that open the circuit breaker.")
    breaker_cooldown_ms: int = Field(1000, ge=1, description="How long an open breaker waits before it probes.")
    wait_replicas: int = Field(0, ge=0, description="Replicas that must confirm a reserve or settle (WAIT).")
    wait_timeout_ms: int = Field(100, ge=1, description="How long to wait for them.")
    retention_s: int = Field(3600, ge=60, description="How long a resolved reservation is remembered against repeated calls.")
    on_store_failure: Literal["deny", "allow", "leased"] = Field(
        "deny",
        description="What happens while the store is out of reach: deny (503), allow (journalled, booked later), "
        "leased (spend what was leased before).",
    )
    lease_usd: Decimal = Field(
        Decimal("1"),
        gt=0,
        description="With leased: what one process holds in advance per set of limits; the ceiling of what it may spend blind.",
    )
    lease_requests: int = Field(100, ge=1, description="With leased: requests (and concurrent requests) held in advance.")
    lease_tokens: int = Field(1_000_000, ge=1, description="With leased: tokens held in advance.")
    lease_share: int = Field(
        10,
        ge=1,
        description="With leased: all leases of one process together hold at most this fraction (1/n) of what a limit has left.",
    )
    journal: Path = Field(Path("sark-journal.jsonl"), description="Where bookings wait that the store could not take yet.")


class LedgerSettings(_Section):
    """Where costs are kept for good."""

    url: SecretStr = Field(
        SecretStr("sqlite:///:memory:"), description="sqlite:///path or postgresql://user:password@host/database"
    )
    flush: bool = Field(
        True, description="Flush from within the gateway; off where `sark-mw flush` runs as a process of its own."
    )
    flush_interval_ms: int = Field(1000, ge=10, description="Pause between two flushes.")
    batch: int = Field(500, ge=1, le=10_000, description="Entries per flush and shard.")
    deadline_ms: int = Field(10_000, ge=100, description="Longest that one statement may take.")
    migrate: bool = Field(True, description="Bring the schema up to date at start.")

    @property
    def lasts(self) -> bool:
        """Tell whether it outlives the process that opens it."""
        return self.url.get_secret_value() != "sqlite:///:memory:"


class ReservationSettings(_Section):
    """How long holds live."""

    lease_s: float = Field(
        120, ge=0.05, le=86_400, description="How long a hold lives without renewal; a dead process's holds end after that."
    )
    sweep_interval_ms: int = Field(1000, ge=10, description="Pause between two background sweeps of expired holds.")


class HttpSettings(_Section):
    """How requests are read and refused."""

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


class KeySettings(_Section):
    """A known API key."""

    key_hash: str = Field(pattern=r"^[0-9a-f]{16,64}$", description="From `sark-mw hash-key`.")
    principal: str = Field(description="Who pays: `user:alice`.")
    scopes: tuple[str, ...] = Field((), description="What else its requests touch: `team:ml`, `org:acme`.")
    root: str = Field(DEFAULT_ROOT, description="The root whose limits apply.")


class PrincipalSettings(_Section):
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
    anonymous: str | None = Field(None, description="Principal of requests that name none; without it they are refused (401).")
    default_scopes: tuple[str, ...] = Field((), description="Scopes that every request touches: `org:acme`.")
    root: str = Field(DEFAULT_ROOT, description="Root of requests that name none.")


class RouteSettings(_Section):
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


class LimitSettings(_Section):
    """A limit that is set at start."""

    scope: str = Field(
        description="What is limited, `kind:name`: `org:acme`, `team:ml`, `user:alice`, `key:…`, `model:gpt-4o`, "
        "`provider:openai`. A name of `*` gives each member a counter of its own: `user:*`."
    )
    amount: Decimal = Field(ge=0, description="Dollars for `usd`, a whole number for the other units.")
    unit: str = Field(
        "usd", description="What is counted: `usd`, `requests`, `tokens`, `input_tokens`, `output_tokens` or `concurrency`."
    )
    window: str = Field(
        "day",
        description="When it begins anew: `minute`, `hour`, `day`, `week`, `month`, `total` (never) or `rolling:<seconds>` "
        "(the last so many seconds, up to 366 days). Concurrency is always over `total`.",
    )
    timezone: str = Field("UTC", description="IANA name of the zone whose hours, days, weeks and months count: `Europe/Berlin`.")
    mode: str = Field(
        "enforce", description="`enforce` refuses what exceeds it; `shadow` only counts and reports what it would refuse."
    )
    root: str = Field(DEFAULT_ROOT, description="The root (tenant) that it belongs to: only requests of this root touch it.")

    def to_limit(self) -> Limit:
        """Make the limit; raises `ConfigurationError`."""
        return Limit(**self.model_dump())


class ModelPriceSettings(_Section):
    """A price that overrides or adds to the price list."""

    provider: str = Field(description="Provider whose model it is: `openai`, `anthropic`, `gemini` ….")
    model: str = Field(description="Name of the model; a `*` at its end stands for any rest.")
    input_usd_per_million: Decimal = Field(ge=0, description="Dollars for a million tokens of input.")
    output_usd_per_million: Decimal = Field(ge=0, description="Dollars for a million tokens of output.")
    cache_read_usd_per_million: Decimal | None = Field(
        None, ge=0, description="Dollars for a million tokens of input read from the provider's cache; that of input if absent."
    )
    max_output_tokens: int | None = Field(
        None, ge=1, description="Most that it can put out, held for a request without an output limit."
    )


class PricingSettings(_Section):
    """What things cost."""

    on_unknown_model: Literal["dearest", "deny"] = Field(
        "dearest", description="Price an unknown model as the provider's dearest, or refuse it."
    )
    max_output_tokens_cap: int | None = Field(
        None, ge=1, description="Holds for a request without an output limit reckon with at most this."
    )
    default_max_output_tokens: int = Field(
        16_384, ge=1, description="Output of a model of which the price list knows no maximum."
    )
    opaque_tokens: int | None = Field(
        None,
        ge=0,
        description="Held for each input whose size is not in the body (a file id, a URL, an earlier response, what a "
        "search finds); without it, the model's whole context window.",
    )
    default_service_tier: str | None = Field(
        None,
        description="Service tier of OpenAI requests that name none, where the project's is known: default, flex, priority; "
        "without it, the hold is at the dearest that the project may have.",
    )
    tool_calls: int = Field(
        16, ge=0, description="Calls of a provider's own tools (searches) held for a request that does not bound them."
    )
    web_search_usd_per_thousand: Decimal | None = Field(
        None, ge=0, description="Fee for searches of the web, in place of the published one."
    )
    file_search_usd_per_thousand: Decimal | None = Field(None, ge=0, description="Fee for searches of stored files, likewise.")
    code_session_usd_per_thousand: Decimal | None = Field(
        None, ge=0, description="Fee for containers of the code interpreter, likewise."
    )
    models: tuple[ModelPriceSettings, ...] = Field((), description="Prices of your own, before the price list.")


class PluginSettings(_Section):
    """A policy plugin."""

    name: str | None = Field(None, description="A built-in one: business_hours, rate_limit, cost_aware.")
    path: Path | None = Field(None, description="Or a file; it runs in this process, so it must be trusted.")
    enabled: bool = Field(True, description="Loaded but not asked if false.")
    options: dict[str, Any] = Field(
        default_factory=dict, description='What it is built with, by name: `{start_hour = 8, timezone = "Europe/Berlin"}`.'
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.name is None) == (self.path is None):
            raise ValueError("a plugin has either a name or a path")
        return self


class PolicySettings(_Section):
    """Policies that decide before the budget does."""

    timeout_s: float = Field(5.0, gt=0, description="Longest that one plugin may take.")
    plugins: tuple[PluginSettings, ...] = Field((), description="The plugins, each asked until one denies; by their priority.")


class ObserveSettings(_Section):
    """What is shown."""

    metrics: bool = Field(True, description="Count for Prometheus, and serve `/metrics`.")
    audit_log: bool = Field(True, description="One structured log event per decision.")
    log_format: Literal["json", "console"] = Field("json", description="How audit events are written: for machines or for eyes.")
    drift_interval_s: float = Field(60, gt=0, description="Pause between two comparisons of counters and ledger.")


class UpstreamSettings(_Section):
    """Where `sark-mw serve` sends requests."""

    url: str = Field(
        pattern=r"^https?://", description="Scheme, host and perhaps a path that is put in front: `https://api.openai.com`."
    )
    prefix: str = Field("/", pattern=r"^/", description="Paths below this go here; the longest prefix wins.")
    strip_prefix: bool = Field(False, description="Take the prefix off before sending.")


class ServeSettings(_Section):
    """The ready gateway."""

    host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` is every one of this machine.")
    port: int = Field(8080, ge=0, le=65_535, description="Port to listen on; 0 takes any that is free.")
    upstreams: tuple[UpstreamSettings, ...] = Field((), description="Where requests go; at least one, here or by `--upstream`.")
    connect_timeout_s: float = Field(
        10, gt=0, description="Longest that connecting to an upstream, or waiting for a free connection, may take."
    )
    read_timeout_s: float = Field(600, gt=0, description="Longest silence of an upstream.")
    max_upstream_connections: int = Field(1000, ge=1, description="Connections of one process to all upstreams together.")
