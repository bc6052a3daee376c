"""Addresses as they may be shown."""

from __future__ import annotations

import re

_USERINFO = re.compile(r"(?<=://)(?P<user>[^/@:]*):[^/?#]*(?=@)")
_QUERY = re.compile(r"(?i)(?<=[?&])(?P<name>[a-z_]*(?:password|secret|token)[a-z_]*)=[^&]*")


def mask_url(url: str) -> str:
    """Replace the password of an address, in front of the host or in the query."""
    return _QUERY.sub(r"\g<name>=***", _USERINFO.sub(r"\g<user>:***", url))
