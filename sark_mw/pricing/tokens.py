"""Count tokens: by the real tokenizer where there is one, by what the characters are where there is none.

A ceiling holds for text as people and programs write it, and the number of UTF-8 bytes bounds it for any byte-level
vocabulary; the expected count is near. Nothing here takes more than a few milliseconds, however long the text is: of a long
one, slices at places that nobody can foresee stand for the rest, and three standard errors are added.

Text that is made to have many tokens: where the tokenizer is there, it counts the slices, and the ceiling fails in less than
one case of a hundred, and then by a few percent. Without it, characters are weighed by their kinds, and a text built of the
rarest letters of one kind has at most 2.5 times the tokens of its ceiling (Latin; Cyrillic 2.2, any other 1.5), divided by the
factor that a provider's estimator adds (1.35 for Anthropic).
"""

from __future__ import annotations

import math
import re
import secrets
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

#: Models that read the older vocabulary; everything of OpenAI's that is not named here reads o200k.
_CL100K = re.compile(r"(?:ft:)?(?:gpt-4(?:$|[-:](?!1$|1-)|-turbo|-32k)|gpt-3\.?5|text-embedding|davinci-002|babbage-002)")


class TokenCount(NamedTuple):
    """A count's upper bound and its probable value."""

    ceiling: int
    expected: int


#: The models whose vocabulary is published; later ones may read another.
_PUBLISHED = re.compile(r"(?:ft:)?(?:gpt-(?:3|4|5)|chatgpt-4o|o[134]|text-embedding|davinci-002|babbage-002)")


def reads_published(model: str) -> bool:
    """Tell whether it is known which vocabulary one of OpenAI's models reads."""
    return _PUBLISHED.match(model.lower().rpartition("/")[2]) is not None


def encoding_of(model: str) -> str:
    """Name the vocabulary of one of OpenAI's models."""
    return "cl100k_base" if _CL100K.match(model.lower().rpartition("/")[2]) else "o200k_base"


@lru_cache(maxsize=8)
def tokenizer(encoding: str) -> Callable[[str], int] | None:
    """Load a vocabulary (0.1 to 0.7 s the first time: do it at start); None where the `tokenizer` extra is not installed."""
    try:
        with warnings.catch_warnings():
            # The package reads its own data by a way that Python 3.11 deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            from bpe_openai import _bindings
    except ImportError:
        return None
    count: Callable[[str], int] = _bindings.tokenizer_for_encoding(encoding).count
    return count


class _Weight(NamedTuple):
    """Tokens per character of one class: what it is bounded by, and what is usual."""

    ceiling: float
    expected: float


# Every byte is put into a class by what it starts; continuation bytes (0x80–0xBF) belong to the character before them.
_CLASSES: dict[str, tuple[_Weight, bytes]] = {
    "lower": (_Weight(0.4, 0.195), b"abcdefghijklmnopqrstuvwxyz"),
    "upper": (_Weight(0.75, 0.34), b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "digit": (_Weight(1.0, 0.45), b"0123456789"),
    "space": (_Weight(0.65, 0.12), b" \t"),
    "line": (_Weight(1.0, 0.7), b"\n\r\x0b\x0c"),
    "mark": (_Weight(1.0, 0.62), b"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
    "control": (_Weight(1.0, 1.0), bytes([*range(9), *range(14, 32), 127])),
    "latin": (_Weight(1.5, 1.2), bytes(range(0xC2, 0xCC))),
    "combining": (_Weight(2.0, 1.5), b"\xcc\xcd"),
    "greek": (_Weight(1.3, 0.42), b"\xce\xcf"),
    "cyrillic": (_Weight(0.9, 0.32), bytes(range(0xD0, 0xD4))),
    "armenian": (_Weight(2.25, 0.36), b"\xd4\xd5"),
    "semitic": (_Weight(1.4, 0.45), bytes(range(0xD6, 0xE0))),
    "indic": (_Weight(2.4, 0.4), b"\xe0"),
    "asian": (_Weight(3.0, 0.6), b"\xe1"),
    "symbol": (_Weight(2.4, 1.0), b"\xe2"),
    "han": (_Weight(2.4, 0.88), b"\xe3\xe4\xe5\xe6\xe7\xe8\xe9"),
    "hangul": (_Weight(2.4, 0.7), b"\xea\xeb\xec\xed"),
    "fullwidth": (_Weight(2.5, 1.0), b"\xee\xef"),
    "rare": (_Weight(4.0, 2.0), b"\xf0\xf1\xf2\xf3\xf4"),
}
# Letters of text without words (hashes, base64, keys): no vocabulary has long pieces of those.
_DENSE = _Weight(0.72, 0.5)
_CONTINUATION = 255


def _table() -> bytes:
    table = bytearray([_CONTINUATION]) * 256
    for index, (_, members) in enumerate(_CLASSES.values()):
        for member in members:
            table[member] = index
    return bytes(table)


_TABLE = _table()
_WEIGHTS = tuple((bytes([index]), *weight) for index, (weight, _) in enumerate(_CLASSES.values()))
_LOWER, _UPPER, _DIGIT, _GAP, _LINE, _MARK, _CONTROL, _LATIN, _COMBINING = range(9)
_ASCII_WEIGHTS = _WEIGHTS[:_LATIN]
_SPACE = _CLASSES["space"][0]
_WINDOW = 1 << 17
_SLICES = 128
#: What the tokenizer counts of a text beyond what it counts anyway: some 5 ms.
_COUNTED_WINDOW = 1 << 15
_STANDARD_ERRORS = 3.0


def utf8(text: str) -> bytes:
    """Encode text; a lone surrogate, which JSON can smuggle in, becomes a replacement character."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _most_bytes(text: str) -> int:
    """Bound the size in UTF-8 without encoding it."""
    return len(text) if text.isascii() else 4 * len(text)


def estimate_tokens(text: str) -> TokenCount:
    """Estimate tokens from the kinds of characters; beyond a hundred kilobytes, from a part of them."""
    if len(text) <= _WINDOW:
        return _weigh(text)
    return _sample(text, _WINDOW // _SLICES, _weigh)


def _sample(text: str, width: int, weigh: Callable[[str], TokenCount]) -> TokenCount:
    """Weigh one slice of each part of a text that is too long to look at all of it; where, is not to be foreseen."""
    step = len(text) // _SLICES
    starts = [part * step + secrets.randbelow(step - width + 1) for part in range(_SLICES)]
    counts = [weigh(text[start : start + width]) for start in starts]
    scale = len(text) / (width * _SLICES)
    most = [count.ceiling for count in counts]
    mean = sum(most) / _SLICES
    deviation = math.sqrt(sum((count - mean) ** 2 for count in most) / (_SLICES - 1))
    ceiling = scale * (sum(most) + _STANDARD_ERRORS * deviation * math.sqrt(_SLICES))
    bound = min(_most_bytes(text), int(ceiling) + 1)
    return TokenCount(bound, min(bound, int(scale * sum(count.expected for count in counts)) + 1))


def _count_classes(text: str, data: bytes) -> list[int]:
    classes = data.translate(_TABLE)
    members = _ASCII_WEIGHTS if len(data) == len(text) else _WEIGHTS
    counts = [0, *(classes.count(member) for member, _, _ in members[1:])]
    # Counting what is everywhere is slow; the small letters are what is left of the characters.
    counts[_LOWER] = max(len(text) - sum(counts), 0)
    return counts


def expected_tokens(byte_counts: Mapping[int, int]) -> int:
    """Estimate the tokens of a text of which is only known how often each byte of its UTF-8 occurs."""
    counts = [0] * len(_WEIGHTS)
    for byte, count in byte_counts.items():
        if _TABLE[byte] != _CONTINUATION:
            counts[_TABLE[byte]] += count
    return math.ceil(_sum_up(counts)[1])


def _weigh(text: str) -> TokenCount:
    data = utf8(text)
    counts = _count_classes(text, data)
    ceiling, expected = _sum_up(counts)
    # Runs of spaces (indentation) become one token for many.
    pairs = data.count(b"  ")
    ceiling -= pairs * _SPACE.ceiling
    expected -= pairs * 2 * _SPACE.expected * 0.8
    # Letters under piles of accents are cut one by one.
    combining = counts[_COMBINING] if len(counts) > _COMBINING else 0
    bound = len(data) if combining * 3 > counts[_LOWER] + counts[_UPPER] else min(len(data), int(ceiling) + 3)
    return TokenCount(bound, min(bound, max(int(expected + 0.5), 1 if data else 0)))


def _sum_up(counts: list[int]) -> tuple[float, float]:
    """Weigh how many characters of each class there are: what bounds their tokens, and what is usual."""
    ceiling = expected = 0.0
    for count, (_, most, usual) in zip(counts, _WEIGHTS, strict=False):
        if count:
            ceiling += count * most
            expected += count * usual
    letters = counts[_LOWER] + counts[_UPPER]
    gaps = counts[_GAP] + counts[_LINE] + counts[_MARK]
    wordy = letters + counts[_DIGIT]
    # Characters of other scripts have gaps of their own, which say nothing about the Latin letters.
    own_gaps = gaps - sum(counts[_LATIN:]) / 3
    if wordy > 24 and (wordy > 12 * own_gaps or counts[_DIGIT] > 0.3 * letters):
        ceiling += counts[_LOWER] * (_DENSE.ceiling - _WEIGHTS[_LOWER][1]) + counts[_GAP] * (1 - _SPACE.ceiling)
    if wordy > 24 and (wordy > 12 * gaps or counts[_DIGIT] > 0.3 * letters):
        expected += counts[_LOWER] * (_DENSE.expected - _WEIGHTS[_LOWER][2])
        expected += counts[_UPPER] * (_DENSE.expected - _WEIGHTS[_UPPER][2])
    return ceiling, expected


class TextCounter:
    """Count the texts of one request: exactly up to `exact_bytes` in all, from there on by samples of the rest.

    `ceiling_factor` and `expected_factor` scale the estimate for vocabularies that cut finer than OpenAI's, `ceiling_factor` also
    the exact count, for a model that may not read the vocabulary it was counted with.
    """

    __slots__ = ("_ceiling_factor", "_count", "_exact", "_expected_factor", "_head_bytes", "_left", "_rest")

    def __init__(
        self,
        count: Callable[[str], int] | None,
        exact_bytes: int,
        ceiling_factor: float = 1.0,
        expected_factor: float = 1.0,
    ) -> None:
        self._count = count
        self._left = exact_bytes if count is not None else 0
        self._ceiling_factor = ceiling_factor
        self._expected_factor = expected_factor
        self._exact = 0
        self._head_bytes = 0
        self._rest: list[str] = []

    def add(self, text: str) -> None:
        """Count one more text."""
        if not text:
            return
        if self._count is None or self._left <= 0:
            self._rest.append(text)
            return
        # Most characters beyond ASCII have three bytes.
        width = 1 if text.isascii() else 3
        head = text if len(text) * width <= self._left else text[: self._left // width + 1]
        self._left -= len(head) * width
        self._head_bytes += _most_bytes(head)
        self._exact += self._exactly(head)
        if len(head) < len(text):
            self._rest.append(text[len(head) :])

    def total(self) -> TokenCount:
        """Return what all texts come to."""
        rest = self._weigh_rest()
        ceiling = self._exact
        if self._ceiling_factor != 1.0:
            ceiling = min(self._head_bytes, int(self._exact * self._ceiling_factor) + 1)
        return TokenCount(ceiling + rest.ceiling, self._exact + rest.expected)

    @property
    def ceiling(self) -> int:
        """Bound the tokens of all texts."""
        return self.total().ceiling

    @property
    def expected(self) -> int:
        """Return the probable tokens of all texts."""
        return self.total().expected

    def _exactly(self, text: str) -> int:
        assert self._count is not None
        try:
            return self._count(text)
        except UnicodeEncodeError:
            return self._count(utf8(text).decode())

    def _weigh_rest(self) -> TokenCount:
        if not self._rest:
            return TokenCount(0, 0)
        # Together, so that the samples are as many however the text is cut up.
        text = self._rest[0] if len(self._rest) == 1 else "\n".join(self._rest)
        if self._count is None:
            count = estimate_tokens(text)
        elif len(text) <= _COUNTED_WINDOW:
            count = self._both(text)
        else:
            count = _sample(text, _COUNTED_WINDOW // _SLICES, self._both)
        ceiling = min(_most_bytes(text), int(count.ceiling * self._ceiling_factor) + 1)
        return TokenCount(ceiling, min(ceiling, int(count.expected * self._expected_factor) + 1))

    def _both(self, text: str) -> TokenCount:
        exact = self._exactly(text)
        return TokenCount(exact, exact)
