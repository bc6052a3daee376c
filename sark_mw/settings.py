"""Settings: TOML and environment, checked here once, handed to the rooms as plain values.

Every setting can come from `sark.toml`, from the environment (`SARK_STORE__URL`, two underscores for a dot) or from code;
the environment wins over the file. Unknown keys are refused. The sections are in `settings_sections.py` and `settings_http.py`;
docs/configuration.md is made from them.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from sark_mw.errors import ConfigurationError, MoneyError
from sark_mw.settings_http import (
    CheaperModelSettings,
    HttpSettings,
    InsteadSettings,
    KeySettings,
    PrincipalSettings,
    RouteSettings,
)
from sark_mw.settings_policy import PluginSettings
from sark_mw.settings_sections import (
    AdminSettings,
    LedgerSettings,
    LimitSettings,
    ModelPriceSettings,
    ObserveSettings,
    PolicySettings,
    PricingSettings,
    ReservationSettings,
    ServeSettings,
    StoreSettings,
    UpstreamSettings,
    WebhookSettings,
)

__all__ = [
    "AdminSettings",
    "AnySettings",
    "CheaperModelSettings",
    "HttpSettings",
    "InsteadSettings",
    "KeySettings",
    "LedgerSettings",
    "LimitSettings",
    "ModelPriceSettings",
    "ObserveSettings",
    "PluginSettings",
    "PolicySettings",
    "PricingSettings",
    "PrincipalSettings",
    "ReservationSettings",
    "RouteSettings",
    "ServeSettings",
    "Settings",
    "StoreSettings",
    "UpstreamSettings",
    "WebhookSettings",
    "as_settings",
    "explain",
]


class Settings(BaseSettings):
    """All settings; each section is a table of `sark.toml`."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="SARK_", env_nested_delimiter="__")

    store: StoreSettings = StoreSettings()
    ledger: LedgerSettings = LedgerSettings()
    reservation: ReservationSettings = ReservationSettings()
    http: HttpSettings = HttpSettings()
    instead: InsteadSettings = InsteadSettings()
    principal: PrincipalSettings = PrincipalSettings()
    pricing: PricingSettings = PricingSettings()
    policy: PolicySettings = PolicySettings()
    observe: ObserveSettings = ObserveSettings()
    serve: ServeSettings = ServeSettings()
    admin: AdminSettings = AdminSettings()
    routes: tuple[RouteSettings, ...] = ()
    limits: tuple[LimitSettings, ...] = ()
    webhooks: tuple[WebhookSettings, ...] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over what the file (or code) says."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _limits_are_limits(self) -> Self:
        for n, limit in enumerate(self.limits):
            try:
                limit.to_limit()
            except (ConfigurationError, MoneyError) as error:
                raise ValueError(f"limits[{n}]: {error}") from error
        return self

    @classmethod
    def load(cls, path: str | Path | None = None) -> Settings:
        """Read a TOML file (none: environment and defaults only); raises `ConfigurationError` naming the key at fault."""
        values: dict[str, Any] = {}
        if path is not None:
            try:
                values = tomllib.loads(Path(path).read_text("utf-8"), parse_float=Decimal)
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                raise ConfigurationError(f"{path}: {error}") from error
        return cls.of(values, str(path or "settings"))

    @classmethod
    def of(cls, values: Mapping[str, Any], named: str = "settings") -> Settings:
        """Make settings of parsed values; raises `ConfigurationError` that begins with `named` and names the key at fault."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigurationError(f"{named}: {explain(error)}") from error


AnySettings = Annotated[
    Settings | Mapping[str, Any] | str | Path | None,
    "a Settings object, a mapping of its sections, the path of a TOML file, or None: that of SARK_CONFIG, or the defaults",
]


def explain(error: ValidationError) -> str:
    """Say what is wrong with settings, without repeating values (one may be a secret)."""
    return "; ".join(_complaint(each["loc"], each["msg"]) for each in error.errors(include_input=False))


def _complaint(location: tuple[int | str, ...], message: str) -> str:
    where = ".".join(str(part) for part in location)
    said = message.removeprefix("Value error, ")
    return f"{where}: {said}" if where else said


def as_settings(settings: AnySettings) -> Settings:
    """Accept what `SarkMiddleware` and `Sark.open` accept; raises `ConfigurationError`."""
    if isinstance(settings, Settings):
        return settings
    if isinstance(settings, Mapping):
        return Settings.of(settings)
    if settings is None or isinstance(settings, str | Path):
        # The commands read the same variable.
        return Settings.load(settings or os.environ.get("SARK_CONFIG") or None)
    raise ConfigurationError(
        "settings are a Settings object, a mapping such as {'store': {'url': …}}, the path of a TOML file, or None for the "
        f"environment and the defaults, not {type(settings).__name__}"
    )
