"""What rego-cpp does to text, and how a document and a policy are written so that equal texts stay equal.

The engine keeps a text as it was spelled in JSON, between the quotes, and compares spellings: `"\\u00e9"` is not `"é"` to it. So
whatever it is given, the request's document, the base document and the policy's own literals, has one spelling: characters as
UTF-8, and the shortest escape where JSON needs one. What is left of the difference: an escape counts as two characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sark_mw.policy.document import REGO_BOUNDS, encode_parts
from sark_mw.policy.unsendable import UnsendableRequestError

#: Free text, in which line ends and quotes are common; every other field is a name.
_FREE = frozenset({"arguments", "environment"})
#: How the escapes of control characters begin that are neither tabs nor line ends.
_CONTROL = (b"\\b", b"\\f", b"\\u")
#: A literal, a raw one (which has no escapes), a comment.
_TOKENS = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`|#[^\n]*')


def encode_for_rego(document: Mapping[str, Any]) -> bytes:
    """Write a request's document; raises `UnsendableRequestError` for text that the engine would take for another one."""
    free = {name: value for name, value in document.items() if name in _FREE}
    named, freely = encode_parts([{name: value for name, value in document.items() if name not in free}, free], REGO_BOUNDS)
    if b"\\" in named:
        raise UnsendableRequestError("a name holds a quote, a backslash, a line end or a control character")
    # Without the backslashes that are escaped themselves: what is left of them begins an escape.
    if b"\\" in freely and any(each in freely.replace(b"\\\\", b"") for each in _CONTROL):
        raise UnsendableRequestError("a text holds a control character")
    return b"{" + b",".join(part[1:-1] for part in (named, freely) if part != b"{}") + b"}"


def spelled(source: str) -> str:
    """Spell the literals of a policy as documents are; what is no JSON text is left for the engine to refuse."""
    return _TOKENS.sub(lambda found: _literal(found[0]), source)


def _literal(token: str) -> str:
    if token[0] != '"' or "\\" not in token:
        return token
    try:
        text = json.loads(token)
        text.encode()
    except ValueError:
        return token
    return json.dumps(text, ensure_ascii=False)
