"""API keys as they may be seen: a keyed hash, never the key."""

from __future__ import annotations

import hashlib
import hmac

from sark_mw.errors import ConfigurationError

#: 128 bits: nobody makes two keys collide, and a scope stays short.
_HEX_DIGITS = 32
_MIN_SECRET_BYTES = 16


def hash_key(secret: bytes, key: str) -> str:
    """Return HMAC-SHA256 of an API key as 32 hex digits.

    Keyed, so that whoever reads a log cannot try out guessed keys. A secret under 16 bytes raises `ConfigurationError`.
    """
    if len(secret) < _MIN_SECRET_BYTES:
        raise ConfigurationError(f"the secret that API keys are hashed with needs at least {_MIN_SECRET_BYTES} bytes")
    # A header may carry any bytes; lone surrogates must hash too, not raise.
    return hmac.new(secret, key.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:_HEX_DIGITS]
