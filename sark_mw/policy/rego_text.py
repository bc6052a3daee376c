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

from sark_mw.policy.document import MAX_REGO_VALUES, encode
from sark_mw.policy.unsendable import UnsendableRequestError

#: Free text, in which line ends and quotes are common; every other field is a name.
_FREE = frozenset({"arguments", "environment"})
#: The escapes of control characters that are neither tabs nor line ends.
_CONTROL = re.compile(rb"(?<!\\)(?:\\\\)*\\[bfu]")
#: A literal, a raw one (which has no escapes), a comment.
_TOKENS = re.compile(r'"(?:[^"\\\n]|\\.)*"|`[^`]*`|#[^\n]*')


def encode_for_rego(document: Mapping[str, Any]) -> bytes:
    """Write a request's document; raises `UnsendableRequestError` for text that the engine would take for another one."""
    data = encode(document, MAX_REGO_VALUES)
    if b"\\" in data:
        if _CONTROL.search(data):
            raise UnsendableRequestError("a text holds a control character")
        if b"\\" in encode({name: value for name, value in document.items() if name not in _FREE}, MAX_REGO_VALUES):
            raise UnsendableRequestError("a name holds a quote, a backslash or a line end")
    return data


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
