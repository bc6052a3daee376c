"""What each protocol's requests, responses and streams look like."""

from __future__ import annotations

from sark_mw.wire.anthropic import AnthropicWire
from sark_mw.wire.base import Operation, Wire
from sark_mw.wire.gemini import GeminiWire
from sark_mw.wire.mcp import McpWire
from sark_mw.wire.openai import OpenAIWire
from sark_mw.wire.plain import PlainWire

#: Every wire by its name, in the order they are asked. They hold no state.
WIRES: dict[str, Wire] = {wire.name: wire for wire in (OpenAIWire(), AnthropicWire(), GeminiWire(), McpWire(), PlainWire())}

__all__ = ["WIRES", "wire_for"]


def wire_for(method: str, path: str) -> tuple[Wire, Operation] | None:
    """Find the wire whose request this is, by method and path; None for what nobody meters by itself."""
    for wire in WIRES.values():
        if operation := wire.match(method, path):
            return wire, operation
    return None
