"""What Gemini's models make of media and of thinking: tokens bounded by what stands in the body, as lengths do not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from sark_mw.errors import InvalidRequestError
from sark_mw.pricing.base import Json
from sark_mw.pricing.images import Size, size_of
from sark_mw.pricing.tally import InputTally
from sark_mw.pricing.tokens import TokenCount

#: No model reads more at once.
_MOST = 1_048_576
# The second generation cuts images into tiles of 256 to 768 pixels, at most 4 × 4; the later ones count by resolution.
_PER_TILE = 258
_MAX_TILES = 16
_SMALL = 384
_LATER_IMAGE = TokenCount(2_240, 1_120)
_USUAL_TILES = 5
# A page is one image; of its size only the file's is known. Compressed, a page of text has some hundred bytes at least.
_MAX_PAGES = 1_000
_LEAST_BYTES_PER_PAGE = 500
_USUAL_BYTES_PER_PAGE = 50_000
_LATER_PAGE = TokenCount(1_120, 560)
# Audio has 32 tokens a second, and a second a kilobyte at least when compressed and 8 when it is not.
_AUDIO_PER_SECOND = 32
_PLAIN_AUDIO = re.compile(r"audio/(?:x-|vnd\.)?(?:wave?|l16|pcm|aiff?)")
# Video has a frame a second unless asked otherwise, and its sound.
_FRAME = TokenCount(290, 258)
_MAX_FPS = 24.0
_LEAST_VIDEO_BYTES_PER_SECOND = 10_000
_USUAL_VIDEO_BYTES_PER_SECOND = 125_000

_SECOND_GENERATION = re.compile(r"gemini-(?:1|2)\b|gemini-[12]\.|gemini-(?:pro|flash)-1|gemini-pro(?:-vision)?$|gemma-[23]")
_WRITES_MEDIA = re.compile(r"image|tts|audio|banana|omni|live|video")

# The most thinking on top of the candidates; the longest family that a name starts with decides. From the fourth generation on,
# the output limit covers both.
_MOST_THOUGHTS = {
    "gemini": 32_768,
    "gemini-1": 0,
    "gemini-pro": 0,
    "gemini-pro-latest": 32_768,
    "gemini-flash-1": 0,
    "gemini-pro-1": 0,
    "gemini-2.0": 0,
    "gemini-2.0-flash-thinking": 32_768,
    "gemini-2.5-flash": 24_576,
    "gemini-2.5-flash-image": 0,
    "gemini-2.5-flash-tts": 0,
    "gemini-2.5-flash-preview-tts": 0,
    "gemini-2.5-pro-tts": 0,
    "gemini-2.5-pro-preview-tts": 0,
    "gemini-4": 0,
    "gemma": 0,
    "gemma-4": 32_768,
}
# What these think at least: they cannot be told not to.
_LEAST_THOUGHTS = {"gemini-2.5-pro": 128, "gemini-3": 1_024}


def thoughts_of(model: str, budget: int) -> int:
    """Return the most tokens that a model thinks beside its candidates when a request lets it think `budget` tokens."""
    name = model.lower().rpartition("/")[2]
    family = max((f for f in _MOST_THOUGHTS if name.startswith(f)), key=len, default="gemini")
    least = next((tokens for f, tokens in _LEAST_THOUGHTS.items() if name.startswith(f)), 0)
    return min(_MOST_THOUGHTS[family], max(budget, least))


def most_searches(model: str, queries: int) -> int:
    """Return how many searches are charged for so many queries."""
    return min(queries, 1) if _SECOND_GENERATION.match(model.lower().rpartition("/")[2]) else queries


def writes_media(model: str) -> bool:
    """Tell whether a model answers with images, sound or video without being asked to."""
    return _WRITES_MEDIA.search(model.lower().rpartition("/")[2]) is not None


def count_media(part: Json, blob: object, param: str, model: str, tally: InputTally) -> None:
    """Count a part's `inlineData` (base64) by its kind and size; raises `InvalidRequestError` where it is none."""
    if not isinstance(blob, Mapping):
        raise InvalidRequestError(f"'{param}.inlineData' must be an object", param)
    kind = str(blob.get("mimeType") or blob.get("mime_type") or "").lower()
    data = blob.get("data")
    encoded = data if isinstance(data, str) else ""
    size = len(encoded) * 3 // 4
    earlier = _SECOND_GENERATION.match(model.lower().rpartition("/")[2]) is not None
    if kind.startswith("image/"):
        tally.count(_image(size_of(encoded)) if earlier else _LATER_IMAGE)
    elif kind.startswith("audio/"):
        tally.audio(_audio(kind, size))
    elif kind.startswith("video/"):
        _count_video(part, size, param, tally)
    elif kind == "application/pdf":
        tally.count(_pages(size, TokenCount(_PER_TILE, _PER_TILE) if earlier else _LATER_PAGE))
    else:
        # Read as text: a byte is a token at most.
        tally.add(min(size, _MOST), min(size // 4 + 1, _MOST))


def _image(size: Size | None) -> TokenCount:
    if size is None:
        return TokenCount(_MAX_TILES * _PER_TILE, _USUAL_TILES * _PER_TILE)
    if max(size) <= _SMALL:
        return TokenCount(_PER_TILE, _PER_TILE)
    unit = min(768, max(256, int(min(size) / 1.5)))
    tiles = min(_MAX_TILES, math.ceil(size.width / unit) * math.ceil(size.height / unit))
    return TokenCount(tiles * _PER_TILE, tiles * _PER_TILE)


def _pages(size: int, page: TokenCount) -> TokenCount:
    most = min(_MAX_PAGES, size // _LEAST_BYTES_PER_PAGE + 1)
    usual = min(most, size // _USUAL_BYTES_PER_PAGE + 1)
    return TokenCount(min(_MOST, most * page.ceiling), usual * page.expected)


def _audio(kind: str, size: int) -> TokenCount:
    per_second = 8_000 if _PLAIN_AUDIO.match(kind) else 1_000
    most = min(_MOST, (size // per_second + 1) * _AUDIO_PER_SECOND)
    return TokenCount(most, min(most, (size // (per_second * 8) + 1) * _AUDIO_PER_SECOND))


def _count_video(part: Json, size: int, param: str, tally: InputTally) -> None:
    fps = _frames_per_second(part, param)
    most, usual = size // _LEAST_VIDEO_BYTES_PER_SECOND + 1, size // _USUAL_VIDEO_BYTES_PER_SECOND + 1
    ceiling = min(_MOST, math.ceil(most * _FRAME.ceiling * max(fps, 1.0)))
    tally.add(ceiling, min(ceiling, math.ceil(usual * _FRAME.expected * fps)))
    sound = min(_MOST, most * _AUDIO_PER_SECOND)
    tally.audio(TokenCount(sound, min(sound, usual * _AUDIO_PER_SECOND)))


def _frames_per_second(part: Json, param: str) -> float:
    asked: list[float] = []
    for name in ("videoMetadata", "video_metadata"):
        metadata = part.get(name)
        fps = metadata.get("fps") if isinstance(metadata, Mapping) else None
        if fps is None:
            continue
        # NaN is not in the range either.
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= _MAX_FPS:
            raise InvalidRequestError(f"'{param}.videoMetadata.fps' must be a number above 0 and at most {_MAX_FPS:g}", param)
        asked.append(float(fps))
    return max(asked, default=1.0)
