"""What a provider says (or we counted) that one call used, in one meaning for all providers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one call.

    `input_tokens` is everything that was read, *including* the cached and cache-writing parts below (Anthropic's
    exclusive count is converted when it is read). `output_tokens` includes `reasoning_tokens`.
    `complete` is False while a stream may still add to it.
    """

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    input_audio_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    output_audio_tokens: int = 0
    #: Calls of the provider's own tools that cost a fee each, beside the tokens.
    web_searches: int = 0
    file_searches: int = 0
    code_sessions: int = 0
    model: str | None = None
    service_tier: str | None = None
    estimated: bool = False
    complete: bool = True

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens
