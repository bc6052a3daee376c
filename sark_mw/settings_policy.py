"""What the settings say of single policies: plugins, and rules without code."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class RuleSettings(BaseModel):
    """A rule without code, in CEL: where `when` is true, it denies or obliges. See docs/policies.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: str = Field(
        min_length=1,
        max_length=2048,
        description='An expression that is true or false: `request.model.startsWith("gpt-4") && budget("team").used > 0.8`. '
        "Checked at the start: names, types and what it may cost.",
    )
    deny: str | None = Field(None, min_length=1, max_length=500, description="The reason that a denied request is told.")
    oblige: dict[Literal["add_tag", "cap_output_tokens", "use_model", "require_scope"], Any] | None = Field(
        None, description="Or what an allowed one is obliged to: `{cap_output_tokens = 500}`."
    )
    name: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Its name in metrics, audit trail and answers; `rule-1`, `rule-2` … if absent.",
    )
    priority: int = Field(
        100, description="Lower ones are asked earlier; equal ones in the order of the settings, after plugins."
    )
    on_error: Literal["deny", "allow", "skip"] = Field(
        "deny", description="What it decides when it cannot be evaluated: a field that the request lacks, no such budget."
    )
    enabled: bool = Field(True, description="Loaded but not asked if false.")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.deny is None) == (not self.oblige):
            raise ValueError("a rule has either deny or oblige")
        return self


_OF_PROCESSES = {"workers", "stateless", "memory_bytes", "preload"}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return float(value) if isinstance(value, Decimal) else value


class PluginSettings(BaseModel):
    """A policy plugin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(
        None,
        description="One that comes along: adaptive_rate_limit, allow_list, anomaly, approval, business_hours, cost_aware, network, rate_limit, size_guard; or what runs rules that are no Python: cel, opa, rego, wasm.",
    )
    path: Path | None = Field(
        None,
        description="Or a file of your own, relative to the working directory; by default it runs in processes that can do nothing but judge.",
    )
    installed: str | None = Field(
        None,
        description="Or what an installed package brings, by its entry point in the group `sark_mw.plugins`; it runs in this process, so it must be trusted.",
    )
    class_name: str | None = Field(None, description="Which class of a file, where it defines several plugins.")
    enabled: bool = Field(True, description="Loaded but not asked if false.")
    isolated: bool | None = Field(
        None,
        description="For a file: whether it runs in processes of its own; if absent, files of your own do and built-in plugins do not. With false it can do whatever the gateway can.",
    )
    workers: int = Field(1, ge=1, le=8, description="For an isolated one: how many processes judge.")
    stateless: bool = Field(
        False, description="For an isolated one: a fresh process for each request, so that it can remember nothing."
    )
    memory_bytes: int = Field(64 * 1024 * 1024, ge=16 * 1024 * 1024, description="For an isolated one: the memory of a process.")
    preload: tuple[str, ...] = Field(
        (), description="For an isolated one: modules beside the standard library that it may import; they are trusted."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description='What it is built with, by name: `{start_hour = 8, timezone = "Europe/Berlin"}`.'
    )

    @field_validator("options", mode="after")
    @classmethod
    def _as_written(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Give plugins the numbers that Python makes of what is written: amounts of ours are exact decimals."""
        return {name: _plain(value) for name, value in options.items()}

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if [self.name, self.path, self.installed].count(None) != 2:
            raise ValueError("a plugin has either a name, a path or installed")
        runs_here = self.isolated is False or self.installed is not None or (self.name is not None and not self.isolated)
        if runs_here and (odd := _OF_PROCESSES & self.model_fields_set):
            raise ValueError(f"{sorted(odd)[0]} is for plugins in processes of their own: isolated = true")
        if self.isolated and self.installed:
            raise ValueError("a plugin that an installed package brings runs in this process; only a file can be isolated")
        return self
