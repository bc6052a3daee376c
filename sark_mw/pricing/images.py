"""Tokens of images: from their size where it stands in the body, else the most that the provider charges for one."""

from __future__ import annotations

import base64
import binascii
import math
import re
from typing import NamedTuple

from sark_mw.pricing.tokens import TokenCount

#: Enough of a base64 file to find its size in: photographs carry a thumbnail and a colour profile before it.
_HEAD = 64 * 1024
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_DATA_URL = re.compile(r"data:image/[\w.+-]{1,64};base64,")


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


def size_of(encoded: str) -> Size | None:
    """Read width and height off the head of a base64 PNG, GIF or JPEG; None where they are not to be found."""
    whole = encoded[:_HEAD]
    try:
        head = base64.b64decode(whole[: len(whole) // 4 * 4])
    except (binascii.Error, ValueError):
        return None
    size: Size | None = None
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) >= 24:
        size = Size(int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big"))
    elif head[:4] == b"GIF8" and len(head) >= 10:
        size = Size(int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little"))
    elif head[:2] == b"\xff\xd8":
        size = _jpeg_size(head)
    return size if size is not None and min(size) > 0 else None


def _jpeg_size(head: bytes) -> Size | None:
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        if head[at + 1] in _FRAME_MARKERS:
            return Size(int.from_bytes(head[at + 7 : at + 9], "big"), int.from_bytes(head[at + 5 : at + 7], "big"))
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def size_in_url(url: str) -> Size | None:
    """Read the size off an image in a `data:` URL."""
    match = _DATA_URL.match(url)
    return size_of(url[match.end() : match.end() + _HEAD]) if match else None


class _Tiles(NamedTuple):
    base: int
    tile: int


class _Patches(NamedTuple):
    most: int
    factor: float


# Longest family first wins. Tiles: a base and so much per 512-pixel tile; patches: 32-pixel patches times a factor.
_OPENAI: dict[str, _Tiles | _Patches] = {
    "gpt-4o-mini": _Tiles(2833, 5667),
    "gpt-4": _Tiles(85, 170),
    "gpt-4.1-mini": _Patches(1536, 1.62),
    "gpt-4.1-nano": _Patches(1536, 2.46),
    "gpt-5": _Tiles(70, 140),
    "gpt-5-mini": _Patches(1536, 1.62),
    "gpt-5-nano": _Patches(1536, 2.46),
    "o1": _Tiles(75, 150),
    "o3": _Tiles(75, 150),
    "o4-mini": _Patches(1536, 1.72),
    "computer-use": _Tiles(65, 129),
}
# Newer ones take up to 10,000 patches at original detail; so does whatever is not known.
_NEWEST = _Patches(10_000, 1.2)
_MAX_TILES = 8
_PATCH = 32
_USUAL = Size(1024, 1024)
_USUAL_NEWEST_PATCHES = re.compile(r"gpt-5\.[4-9]|gpt-[6-9]")


def openai_image_tokens(model: str, detail: object, size: Size | None) -> TokenCount:
    """Count an image for one of OpenAI's models; a detail that is not `low` counts as high."""
    name = model.lower().rpartition("/")[2]
    family = max((f for f in _OPENAI if name.startswith(f)), key=len, default=None)
    rule = _NEWEST if family is None or _USUAL_NEWEST_PATCHES.match(name) else _OPENAI[family]
    low = detail == "low"
    usual = _image(rule, size or _USUAL, low)
    return TokenCount(_image(rule, size, low) if low or size is None else usual, usual)


def _image(rule: _Tiles | _Patches, size: Size | None, low: bool) -> int:
    if isinstance(rule, _Tiles):
        return rule.base + (0 if low else rule.tile * (_MAX_TILES if size is None else _tiles(size)))
    most = min(rule.most, 1536) if low else rule.most
    patches = most if size is None else min(most, math.ceil(size.width / _PATCH) * math.ceil(size.height / _PATCH))
    return math.ceil(patches * rule.factor)


def _tiles(size: Size) -> int:
    scale = min(1.0, 2048 / max(size))
    width, height = size.width * scale, size.height * scale
    shrink = min(1.0, 768 / min(width, height))
    return min(_MAX_TILES, math.ceil(width * shrink / 512) * math.ceil(height * shrink / 512))


# The models that shrink images to about 1.15 megapixels; later ones take up to 4784 tokens.
_SMALL_IMAGES = re.compile(r"claude-(?:2|3|v1|instant|(?:opus|sonnet|haiku)-4(?:$|[-@](?:[0-6]\b|20))|4)")


def anthropic_image_tokens(model: str, size: Size | None) -> TokenCount:
    """Count an image for one of Anthropic's models: width × height / 750 within the model's bound."""
    most = 1_640 if _SMALL_IMAGES.match(model.lower().rpartition("/")[2]) else 4_784
    if size is None:
        return TokenCount(most, 1_400)
    # A few percent above: images are padded to whole patches.
    area = size.width * size.height
    return TokenCount(min(most, math.ceil(area / 750 * 1.06) + 4), min(most, math.ceil(area / 750)))
