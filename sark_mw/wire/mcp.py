"""MCP over streamable HTTP: JSON-RPC messages, of which `tools/call` is metered and the tool's name is the capability."""

from __future__ import annotations

from typing import Any

from sark_mw.errors import InvalidRequestError
from sark_mw.wire.base import Call, Headers, Operation, Refusal, RefusalKind, Response, RpcId, ToolCall, UsageTap
from sark_mw.wire.body import MAX_MODEL_CHARS, check_headers, clean_path, mapping, read_json
from sark_mw.wire.refusal import details_of, response_of
from sark_mw.wire.tap import PassTap

MAX_BATCH = 100
_MAX_RPC_ID_CHARS = 256
_INVALID_REQUEST = -32600
#: The implementation-defined range of JSON-RPC: refusals that are no fault of the message.
_REFUSED = -32000
# The caller is a model that can read the reason and act on it: it gets a result, as the specification asks.
_TOLD_TO_THE_MODEL = (RefusalKind.RATE_LIMIT, RefusalKind.CONCURRENCY, RefusalKind.BUDGET, RefusalKind.POLICY)
_MALFORMED = (RefusalKind.INVALID, RefusalKind.TOO_LARGE, RefusalKind.UNSUPPORTED)


class McpWire:
    """MCP's dialect, for requests to `/mcp` under any prefix, or to the given paths."""

    name = "mcp"

    def __init__(self, paths: tuple[str, ...] = ()) -> None:
        self._paths = frozenset(clean_path(path) for path in paths)

    def match(self, method: str, path: str) -> Operation | None:
        """Recognise a message to the endpoint; `read` tells whether it calls a tool."""
        if method != "POST":
            return None
        clean = clean_path(path)
        matched = clean in self._paths if self._paths else clean.endswith("/mcp")
        return Operation.TOOL_CALL if matched else None

    def read(self, operation: Operation, path: str, headers: Headers, body: bytes) -> Call:
        """Read a message or a batch; what calls no tool is `Operation.OTHER` and free."""
        check_headers(headers)
        parsed = read_json(body)
        messages = parsed if isinstance(parsed, list) else [parsed]
        if not messages or len(messages) > MAX_BATCH:
            raise InvalidRequestError(f"A batch must hold 1 to {MAX_BATCH} messages.")
        if not all(isinstance(message, dict) for message in messages):
            raise InvalidRequestError("A JSON-RPC message must be an object.")
        tools = tuple(_tool_call(message) for message in messages if message.get("method") == "tools/call")
        return Call(
            wire=self.name,
            operation=Operation.TOOL_CALL if tools else Operation.OTHER,
            body=parsed if isinstance(parsed, dict) else None,
            tools=tools,
            rpc_ids=tuple(_rpc_id(message) for message in messages if "id" in message and "method" in message),
            rpc_batch=isinstance(parsed, list),
            path=path,
            raw=body,
        )

    def request_body(self, call: Call) -> bytes | None:
        """Nothing to ask for."""
        return None

    def rewrite(self, call: Call, *, model: str | None = None, max_output_tokens: int | None = None) -> Call | None:
        """A tool has neither a model nor an output limit."""
        return None

    def tap(self, call: Call, status: int, headers: Headers) -> UsageTap:
        """Tools report no usage: their price is the settings' business."""
        return PassTap(failed=status >= 400)

    def refuse(self, refusal: Refusal, stream: bool = False, call: Call | None = None) -> Response:
        """Answer tool calls with `isError` results under 200, anything else with JSON-RPC errors under the HTTP status."""
        told = call is not None and bool(call.tools) and refusal.kind in _TOLD_TO_THE_MODEL
        ids = call.rpc_ids if call and call.rpc_ids else (None,)
        tool_ids = {_key(tool.rpc_id) for tool in call.tools} if call and told else set()
        answers = [_result(refusal, rpc_id) if _key(rpc_id) in tool_ids else _error(refusal, rpc_id) for rpc_id in ids]
        body: Any = answers if call is not None and call.rpc_batch else answers[0]
        return response_of(refusal, body, status=200 if told else None)


def _key(rpc_id: RpcId) -> tuple[str, RpcId]:
    # 1, 1.0 and "1" are different ids to whoever sent them.
    return type(rpc_id).__name__, rpc_id


def _rpc_id(message: dict[str, Any]) -> RpcId:
    rpc_id = message.get("id")
    if rpc_id is None or type(rpc_id) in (int, float) or (isinstance(rpc_id, str) and len(rpc_id) <= _MAX_RPC_ID_CHARS):
        return rpc_id
    raise InvalidRequestError("A JSON-RPC id must be a number or a short string.", param="id")


def _tool_call(message: dict[str, Any]) -> ToolCall:
    params = message.get("params")
    name = mapping(params).get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_MODEL_CHARS or not name.isprintable():
        raise InvalidRequestError("'params.name' must be a tool's name.", param="params.name")
    arguments = mapping(params).get("arguments")
    if arguments is not None and not isinstance(arguments, dict):
        raise InvalidRequestError("'params.arguments' must be an object.", param="params.arguments")
    return ToolCall(name=name, rpc_id=_rpc_id(message), arguments=arguments or {})


def _result(refusal: Refusal, rpc_id: RpcId) -> dict[str, Any]:
    result = {
        "content": [{"type": "text", "text": refusal.message}],
        "isError": True,
        # Required since the 2026 protocol; unknown to earlier ones, whose results are open to extra fields.
        "resultType": "complete",
        "_meta": {"sark-mw/refusal": details_of(refusal)},
    }
    return {"jsonrpc": "2.0", "id": rpc_id, "result": result}


def _error(refusal: Refusal, rpc_id: RpcId) -> dict[str, Any]:
    code = _INVALID_REQUEST if refusal.kind in _MALFORMED else _REFUSED
    return {"jsonrpc": "2.0", "id": rpc_id, "error": {"code": code, "message": refusal.message, "data": details_of(refusal)}}
