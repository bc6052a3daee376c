"""Learn how much output to expect: a moving average per model and size of limit."""

from __future__ import annotations

from collections import OrderedDict

_WEIGHT = 0.05
_MODELS = 1_024


class OutputAverage:
    """Remember the usual output per choice of up to a thousand (model, magnitude of limit) pairs, the latest used.

    The first few observations count evenly, later ones with a weight of 5 %, so that habits may change.
    """

    def __init__(self, prior_tokens: int) -> None:
        self._prior = prior_tokens
        self._seen: OrderedDict[tuple[str, int], tuple[int, float]] = OrderedDict()

    def expected(self, model: str, limit: int) -> int:
        """Return the output tokens to expect of one choice, at most `limit`."""
        _, mean = self._seen.get((model, limit.bit_length()), (0, float(self._prior)))
        return min(limit, round(mean))

    def observe(self, model: str, limit: int, output_tokens: int) -> None:
        """Take in what one choice really produced."""
        key = (model, limit.bit_length())
        count, mean = self._seen.pop(key, (0, float(self._prior)))
        weight = max(_WEIGHT, 1 / (count + 2))
        self._seen[key] = (count + 1, mean + (output_tokens - mean) * weight)
        if len(self._seen) > _MODELS:
            self._seen.popitem(last=False)
