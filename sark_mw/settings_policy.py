"""The section of the settings for rules without code."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
