"""What was seen of an output's text: how long it is and which bytes it is made of, but not the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

#: Pieces are counted together once they are this long: one by one, each would cost more than its parsing.
_FOLDED_CHARS = 4 * 1024
#: Of a longer piece, characters from all over stand for the rest.
_SAMPLED_CHARS = 64 * 1024


class SeenText:
    """Adds up the text of one response."""

    __slots__ = ("_bytes", "_pending", "_pieces", "chars")

    def __init__(self) -> None:
        self.chars = 0
        self._pieces: list[str] = []
        self._pending = 0
        self._bytes: Counter[int] = Counter()

    def add(self, *values: object) -> None:
        """Add those values that are strings."""
        for value in values:
            if isinstance(value, str) and value:
                self.chars += len(value)
                self._pending += len(value)
                self._pieces.append(value)
        # A document's one long text waits: mostly its usage comes with it, and nobody asks.
        if self._pending > _FOLDED_CHARS and len(self._pieces) > 1:
            self._fold()

    @property
    def byte_counts(self) -> Mapping[int, int]:
        """How often each byte of the text's UTF-8 occurs; of very long pieces, by a sample."""
        self._fold()
        return self._bytes

    def _fold(self) -> None:
        text = "".join(self._pieces)
        self._pieces.clear()
        self._pending = 0
        step = len(text) // _SAMPLED_CHARS + 1
        # Half a surrogate pair, which JSON can smuggle in, counts as the question mark that it is shown as.
        counts = Counter(text[::step].encode("utf-8", "replace"))
        self._bytes.update({byte: count * step for byte, count in counts.items()} if step > 1 else counts)
