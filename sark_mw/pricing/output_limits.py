"""The most output tokens that models can produce: published limits, as the price data does not carry them."""

from __future__ import annotations

# Family → tokens; the longest family that a model's name starts with decides. Where a beta header raises a limit, the raised one.
_MAX_OUTPUT_TOKENS = {
    "gpt-3.5-turbo": 4_096,
    "gpt-4": 8_192,
    "gpt-4-32k": 32_768,
    "gpt-4-turbo": 4_096,
    "gpt-4-vision": 4_096,
    "gpt-4.1": 32_768,
    "gpt-4.5": 16_384,
    "gpt-4o": 16_384,
    "gpt-4o-2024-05-13": 4_096,
    "gpt-4o:extended": 65_536,
    "chatgpt-4o": 16_384,
    "gpt-5": 128_000,
    "gpt-6": 128_000,
    "gpt-audio": 16_384,
    "gpt-realtime": 4_096,
    "gpt-oss": 131_072,
    "computer-use": 1_024,
    "o1": 100_000,
    "o1-mini": 65_536,
    "o1-preview": 32_768,
    "o3": 100_000,
    "o4": 100_000,
    "claude-2": 4_096,
    "claude-v1": 4_096,
    "claude-3-haiku": 4_096,
    "claude-3-sonnet": 4_096,
    "claude-3-opus": 4_096,
    "claude-3-5": 8_192,
    "claude-3-7-sonnet": 128_000,
    "claude-haiku": 64_000,
    "claude-haiku-5": 128_000,
    "claude-opus-4-0": 32_000,
    "claude-opus-4-1": 32_000,
    "claude-opus-4-5": 64_000,
    "claude-opus": 128_000,
    "claude-sonnet-4-0": 64_000,
    "claude-sonnet-4-5": 64_000,
    "claude-sonnet": 128_000,
    "claude": 128_000,
    "gemini": 65_536,
    "gemini-1": 8_192,
    "gemini-2.0": 8_192,
    "gemini-2.5-flash-image": 32_768,
    "gemini-flash-1": 8_192,
    "gemini-pro": 8_192,
    "gemini-pro-latest": 65_536,
    "gemma": 32_768,
}


def max_output_tokens(model: str) -> int | None:
    """Return the most that a model can produce in one answer; None where it is not known."""
    name = model.lower().rpartition("/")[2].removeprefix("ft:")
    family = max((f for f in _MAX_OUTPUT_TOKENS if name.startswith(f)), key=len, default=None)
    return None if family is None else _MAX_OUTPUT_TOKENS[family]
