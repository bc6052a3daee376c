"""What one request asks for, as it is read off its body: input of every kind, and how much output."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from sark_mw.errors import InvalidRequestError
from sark_mw.pricing.prices import PricingOptions
from sark_mw.pricing.tokens import TextCounter, TokenCount
from sark_mw.pricing.tool_fees import NO_CALLS, ToolCalls

#: Content nests at most this deep in any API; deeper is an attack on the stack.
MAX_DEPTH = 16
#: From here on, one call per message would take milliseconds.
_MANY = 1_000
_PLAIN = {"role", "content"}
#: The largest that any model has, for those of which it is not known.
_LARGEST_WINDOW = 1_050_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """How much output a request wants and how it is to be served.

    `limit` is the request's own output limit per choice, None without one; `extra_output` what may come on top of it.
    `cache_writes` is the dearest cache write that it may cause: "", "5m" or "1h".
    """

    limit: int | None = None
    choices: int = 1
    extra_output: int = 0
    cache_writes: str = ""
    service_tier: str | None = None
    audio_output: bool = False
    no_output: bool = False
    #: It goes on when its response has ended, which then says nothing of what it used.
    detached: bool = False
    #: Calls of the provider's own tools: how many there may be, and how many there are at least that the response does not count.
    calls: ToolCalls = NO_CALLS
    uncounted_calls: ToolCalls = NO_CALLS
    #: The older search tool is among the tools.
    preview_search: bool = False


class InputTally:
    """Add up the input of one request, in tokens: an upper bound and a probable figure."""

    __slots__ = ("_ceiling", "_expected", "_options", "_texts", "audio_ceiling", "audio_expected", "opaque")

    def __init__(self, texts: TextCounter, options: PricingOptions) -> None:
        self._texts = texts
        self._options = options
        self._ceiling = 0
        self._expected = 0
        self.audio_ceiling = 0
        self.audio_expected = 0
        self.opaque = 0

    def text(self, text: str) -> None:
        """Count a text."""
        self._texts.add(text)

    def all_but_plain(self, messages: list[dict[str, object]], per_message: int) -> Iterable[tuple[int, dict[str, object]]]:
        """Return (index, message) of those left to count: of very many, those that are plain text are counted at once."""
        if len(messages) <= _MANY:
            return enumerate(messages)
        plain = [text for message in messages if _is_plain(message) and isinstance(text := message["content"], str)]
        self._texts.add("\n".join(plain))
        self.add(len(plain) * per_message)
        return [(i, m) for i, m in enumerate(messages) if not _is_plain(m)]

    def data(self, value: object, param: str) -> None:
        """Count something structured (tools, schemas, tool calls) as the JSON that it is."""
        try:
            self._texts.add(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str))
        except (RecursionError, ValueError):
            raise InvalidRequestError(f"'{param}' is nested too deeply", param) from None

    def add(self, ceiling: int, expected: int | None = None) -> None:
        """Add tokens that are known otherwise."""
        self._ceiling += ceiling
        self._expected += ceiling if expected is None else expected

    def count(self, count: TokenCount) -> None:
        """Add a count."""
        self._ceiling += count.ceiling
        self._expected += count.expected

    def audio(self, count: TokenCount) -> None:
        """Add audio, which is priced apart."""
        self.audio_ceiling += count.ceiling
        self.audio_expected += count.expected

    def reference(self) -> None:
        """Take note of an input whose size is not in the body: a file id, a URL, an earlier response."""
        self.opaque += 1

    def total(self, context_window: int | None) -> TokenCount:
        """Sum up all but audio; what is unknown counts up to the model's context window."""
        window = _LARGEST_WINDOW if context_window is None else context_window
        each = self._options.opaque_tokens
        unknown = 0 if not self.opaque else window if each is None else min(self.opaque * each, window)
        texts = self._texts.total()
        ceiling = self._ceiling + texts.ceiling + unknown
        expected = self._expected + texts.expected + min(unknown, self.opaque * self._options.expected_opaque_tokens)
        return TokenCount(ceiling, min(ceiling, expected))


def _is_plain(message: dict[str, object]) -> bool:
    return message.keys() == _PLAIN and isinstance(message["content"], str) and isinstance(message["role"], str)


def objects(value: object, param: str) -> list[dict[str, object]]:
    """Check that a value is a list of objects; raises `InvalidRequestError` naming the field."""
    if not isinstance(value, list):
        raise InvalidRequestError(f"'{param}' must be an array", param)
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise InvalidRequestError(f"'{param}[{index}]' must be an object", f"{param}[{index}]")
    return value
