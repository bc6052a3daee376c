"""The sections of the settings: what each table of `sark.toml` may hold, its default, and what it does.

The descriptions are the text of docs/configuration.md, so none may lack one.
"""

from __future__ import annotations

import base64
import binascii
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StrictInt, model_validator

from sark_mw.limit import DEFAULT_ROOT, Limit
from sark_mw.settings_policy import PluginSettings, RuleSettings


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


class LimitSettings(_Section):
    """A limit that is set at start, where it is new here or says something else than when it was set last.

    What administrators did since with a limit that stands here unchanged stays done, deletions too. See docs/admin.md.
    """

    scope: str = Field(
        description="What is limited, `kind:name`: `org:acme`, `team:ml`, `user:alice`, `key:…`, `model:gpt-4o`, "
        "`provider:openai`. A name of `*` gives each member a counter of its own: `user:*`."
    )
    amount: Decimal = Field(ge=0, max_digits=40, description="Dollars for `usd`, a whole number for the other units.")
    unit: str = Field(
        "usd", description="What is counted: `usd`, `requests`, `tokens`, `input_tokens`, `output_tokens` or `concurrency`."
    )
    window: str = Field(
        "day",
        description="When it begins anew: `minute`, `hour`, `day`, `week` (or `week:sunday`), `month` (or `month:15`), `quarter` "
        "(or `quarter:02-01`), `year` (or `year:04-06`), `total` (never), `rolling:<seconds>` (the last so many seconds, up to "
        "366 days) or `idle:<seconds>` (after so long without any use). Concurrency is always over `total`.",
    )
    timezone: str = Field("UTC", description="IANA name of the zone whose hours, days, weeks and months count: `Europe/Berlin`.")
    mode: str = Field(
        "enforce",
        description="`enforce` refuses what exceeds it; `shadow` only counts and reports what it would refuse; `soft` only "
        "tells of its thresholds.",
    )
    root: str = Field(DEFAULT_ROOT, description="The root (tenant) that it belongs to: only requests of this root touch it.")
    parent: str = Field(
        "",
        description="The scope that it is a part of: whoever touches this limit touches the parent's too. Parts of the same unit "
        "and window may not sum up to more than the parent's amount.",
    )
    overcommit: bool = Field(False, description="Its parts may sum up to more than its amount; it still holds.")
    thresholds: tuple[StrictInt, ...] = Field(
        (),
        description="Percents of the amount at which its period tells once: ledger event, log, metric, webhook; "
        "50, 80 and 95 for `soft` if none are named.",
    )
    rollover: Decimal = Field(
        Decimal(0), ge=0, max_digits=40, description="The most of what was not spent that is carried into the next period."
    )

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


class PolicySettings(_Section):
    """Policies that decide before the budget does."""

    timeout_s: float = Field(5.0, gt=0, description="Longest that one plugin may take.")
    chain_timeout_s: float = Field(
        0, ge=0, description="Longest that all plugins together may take for one request; 0: only each one's own time counts."
    )
    plugins: tuple[PluginSettings, ...] = Field((), description="The plugins, each asked until one denies; by their priority.")
    rules: tuple[RuleSettings, ...] = Field((), description="Rules without code, each a plugin of its own.")
    folder: Path | None = Field(
        None, description="A folder of plugins of your own: every `*.py`, with the options of the `.toml` of the same name."
    )
    lock: Path | None = Field(
        None,
        description="Load only plugin files that are in this lock (`sark-plugins.lock`) and are as it pins them; what comes along needs no pin. See `sark-mw plugins lock`.",
    )
    reload_s: float = Field(
        0,
        ge=0,
        description="Look so often for plugin files that have changed, and take them up; 0: never. A version that does not load leaves the old one in place.",
    )
    isolation: Literal["require", "best-effort", "off"] = Field(
        "require",
        description="For plugins from files: `require` refuses to start where the system lacks a layer of isolation, `best-effort` warns and runs without it, `off` runs them in this process.",
    )
    obligation_models: tuple[str, ...] = Field(
        (), description="The models that a policy may choose in place of the one that was asked for."
    )
    blocked_after_s: float = Field(
        0.5, ge=0, description="Name the plugin in this process that keeps it from everything else for so long; 0: do not look."
    )


class ObserveSettings(_Section):
    """What is shown."""

    metrics: bool = Field(True, description="Count for Prometheus, and serve `/metrics`.")
    audit_log: bool = Field(True, description="One structured log event per decision.")
    log_format: Literal["json", "console"] = Field("json", description="How audit events are written: for machines or for eyes.")
    drift_interval_s: float = Field(60, gt=0, description="Pause between two comparisons of counters and ledger.")


class AdminSettings(_Section):
    """The administration of limits over HTTP: what is set, where it stands, who is refused. See docs/admin.md."""

    enabled: bool = Field(False, description="Serve it, in front of the app, wherever `SarkMiddleware` is.")
    token: SecretStr = Field(
        SecretStr(""),
        description="What an administrator sends as `authorization: Bearer …`: at least 16 characters; set it (SARK_ADMIN__TOKEN). No principal's key is ever accepted.",
    )
    path: str = Field("/sark/admin", pattern=r"^(/[A-Za-z0-9._~-]+)+$", description="Path below which it is served.")
    allowed_networks: tuple[str, ...] = Field(
        (), description="Addresses or networks from which alone it may be used, by the peer of the connection; none: any."
    )

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.enabled and len(self.token.get_secret_value()) < 16:
            raise ValueError("an admin API that is enabled needs a token of at least 16 characters: set SARK_ADMIN__TOKEN")
        for each in self.allowed_networks:
            try:
                ip_network(each, strict=False)
            except ValueError:
                raise ValueError(f"allowed_networks: {each!r} is neither an address nor a network") from None
        return self


class WebhookSettings(_Section):
    """Where events of limits are sent, signed by the scheme of Standard Webhooks; each at least once, retried for three days."""

    url: str = Field(pattern=r"^https?://", description="Where each event is posted as JSON; it must answer 2xx.")
    secret: SecretStr = Field(
        description="Signs what is sent: `whsec_` and the base64 of 24 to 64 random bytes, as the receiver has it."
    )
    events: tuple[
        Literal[
            "threshold", "rollover", "set", "delete", "top_up", "override", "release", "repair", "approval", "plugin", "rule"
        ],
        ...,
    ] = Field(
        ("threshold",),
        min_length=1,
        description="Which kinds of events: a `threshold` that fired, a `rollover`, and what administrators do: `set`, `delete`, `top_up`, `override`, `release`, `repair`, `approval`, `plugin`, `rule`.",
    )
    timeout_s: float = Field(10, gt=0, le=60, description="Longest that one attempt may take.")

    @model_validator(mode="after")
    def _secret_is_one(self) -> Self:
        head, _, rest = self.secret.get_secret_value().partition("_")
        try:
            fits = head == "whsec" and 24 <= len(base64.b64decode(rest + "=" * (-len(rest) % 4), validate=True)) <= 64
        except binascii.Error:
            fits = False
        if not fits:
            raise ValueError("the secret must be whsec_ and the base64 of 24 to 64 bytes")
        return self


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
    forward_idempotency_key: bool = Field(
        True, description="Send a caller's `Idempotency-Key` on; providers that know it make a request once, too."
    )
    max_upstream_connections: int = Field(1000, ge=1, description="Connections of one process to all upstreams together.")
