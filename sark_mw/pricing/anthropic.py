"""Anthropic's requests: messages."""

from __future__ import annotations

from collections.abc import Mapping

from sark_mw.errors import CostEstimationError, InvalidRequestError
from sark_mw.pricing.base import Json
from sark_mw.pricing.images import anthropic_image_tokens, size_of
from sark_mw.pricing.metered import MeteredEstimator
from sark_mw.pricing.numbers import nested, reported, whole_number
from sark_mw.pricing.prices import PriceBook, PricingOptions
from sark_mw.pricing.tally import MAX_DEPTH, Demand, InputTally, objects
from sark_mw.pricing.tokens import TextCounter
from sark_mw.pricing.tool_fees import ToolCalls
from sark_mw.usage import Usage

_PER_MESSAGE = 5
_PER_REQUEST = 8
# The system prompt that tools bring with them, by the published table, and that of the computer-use family.
_ANY_TOOL = 530
_USUAL_ANY_TOOL = 346
_PER_TOOL = 16
_PER_SERVER_TOOL = 735
# Anthropic's vocabulary cuts finer than OpenAI's, that of the latest models by up to 35 % more.
_CEILING_FACTOR = 1.35
_EXPECTED_FACTOR = 1.2
_DEPTH_OF_CACHE_CONTROL = 6


class AnthropicCostEstimator(MeteredEstimator):
    """Price requests in Anthropic's dialect; `provider` names another that speaks it."""

    def __init__(self, book: PriceBook | None = None, options: PricingOptions | None = None, provider: str = "anthropic") -> None:
        super().__init__(provider, book, options)

    def _texts(self, model: str) -> TextCounter:
        return TextCounter(None, 0, _CEILING_FACTOR, _EXPECTED_FACTOR)

    def _demand(self, body: Json, endpoint: str) -> Demand:
        # A limit of 0 is none.
        limit = whole_number(body, "max_tokens") or None
        thinking = whole_number(nested(body, "thinking"), "budget_tokens")
        tier = "fast" if body.get("speed") == "fast" else body.get("service_tier")
        return Demand(
            # With interleaved thinking the budget may exceed the limit.
            limit=limit if limit is None or thinking is None else max(limit, thinking),
            cache_writes=_cache_writes(body),
            service_tier=tier if isinstance(tier, str) else None,
            calls=ToolCalls(web_searches=_searches(body, self._options.tool_calls)),
        )

    def _count_input(self, body: Json, model: str, tally: InputTally) -> None:
        messages = body.get("messages")
        if messages in (None, []):
            raise CostEstimationError("Missing 'messages' in request arguments", provider=self.provider_name)
        tally.add(_PER_REQUEST)
        for index, message in tally.all_but_plain(objects(messages, "messages"), _PER_MESSAGE):
            tally.add(_PER_MESSAGE)
            _count_content(message.get("content"), f"messages[{index}].content", model, tally, 0)
        _count_content(body.get("system"), "system", model, tally, 0)
        if body.get("container") or body.get("mcp_servers"):
            tally.reference()
        if (tools := body.get("tools")) not in (None, []):
            _count_tools(objects(tools, "tools"), tally)
        for name in ("output_format", "output_config"):
            if body.get(name):
                tally.data(body[name], name)

    def _read_usage(self, usage: Json) -> Usage | None:
        plain = reported(usage, "input_tokens")
        written = reported(usage, "output_tokens")
        if plain is None and written is None:
            return None
        by_time = nested(usage, "cache_creation")
        long = reported(by_time, "ephemeral_1h_input_tokens") or 0
        short = reported(by_time, "ephemeral_5m_input_tokens")
        if short is None:
            short = max((reported(usage, "cache_creation_input_tokens") or 0) - long, 0)
        read = reported(usage, "cache_read_input_tokens") or 0
        tier = usage.get("service_tier")
        return Usage(
            # Anthropic's count excludes what was cached; ours includes it.
            input_tokens=(plain or 0) + read + short + long,
            cache_read_tokens=read,
            cache_write_5m_tokens=short,
            cache_write_1h_tokens=long,
            output_tokens=written or 0,
            reasoning_tokens=reported(nested(usage, "output_tokens_details"), "thinking_tokens") or 0,
            web_searches=reported(nested(usage, "server_tool_use"), "web_search_requests") or 0,
            service_tier=tier if isinstance(tier, str) else None,
        )


def _searches(body: Json, most: int) -> int:
    """Bound how often a request may search the web: by `max_uses`, which holds for the whole request."""
    tools = body.get("tools")
    searches = [
        tool
        for tool in (tools if isinstance(tools, list) else ())
        if isinstance(tool, Mapping) and str(tool.get("type")).startswith("web_search")
    ]
    return sum(most if (uses := whole_number(tool, "max_uses")) is None else uses for tool in searches)


def _cache_writes(value: object, depth: int = 0) -> str:
    """Find the dearest `cache_control` in a body; only where the API reads one, so not inside long texts."""
    found = ""
    if isinstance(value, Mapping):
        control = value.get("cache_control")
        if isinstance(control, Mapping):
            found = "1h" if control.get("ttl") == "1h" else "5m"
        children = [child for name in ("messages", "system", "tools", "content") if isinstance(child := value.get(name), list)]
    else:
        children = []
    if depth < _DEPTH_OF_CACHE_CONTROL:
        for child in children:
            for item in child:
                if found == "1h":
                    return found
                found = max(found, _cache_writes(item, depth + 1), key=("", "5m", "1h").index)
    return found


def _count_content(content: object, param: str, model: str, tally: InputTally, depth: int) -> None:
    if content is None:
        return
    if isinstance(content, str):
        tally.text(content)
        return
    if depth > MAX_DEPTH:
        raise InvalidRequestError(f"'{param}' is nested too deeply", param)
    if not isinstance(content, list):
        raise InvalidRequestError(f"'{param}' must be a string or an array", param)
    for index, block in enumerate(objects(content, param)):
        _count_block(block, f"{param}[{index}]", model, tally, depth)


def _count_block(block: Mapping[str, object], param: str, model: str, tally: InputTally, depth: int) -> None:
    kind = block.get("type")
    if kind == "text" and isinstance(text := block.get("text"), str):
        tally.text(text)
    elif kind == "image":
        data = nested(block, "source").get("data")
        tally.count(anthropic_image_tokens(model, size_of(data) if isinstance(data, str) else None))
    elif kind == "document":
        _count_document(block, param, model, tally, depth)
    elif kind in ("tool_result", "mcp_tool_result", "search_result"):
        tally.add(_PER_TOOL)
        _count_content(block.get("content"), f"{param}.content", model, tally, depth + 1)
        for name in ("title", "source"):
            if isinstance(text := block.get(name), str):
                tally.text(text)
    elif kind == "container_upload":
        tally.reference()
    else:
        # Tool calls, thinking, results of server tools: at most the JSON that they are.
        tally.data(block, param)


def _count_document(block: Mapping[str, object], param: str, model: str, tally: InputTally, depth: int) -> None:
    source = nested(block, "source")
    for name in ("title", "context"):
        if isinstance(text := block.get(name), str):
            tally.text(text)
    if source.get("type") == "text" and isinstance(text := source.get("data"), str):
        tally.text(text)
    elif source.get("type") == "content":
        _count_content(source.get("content"), f"{param}.source.content", model, tally, depth + 1)
    else:
        # A PDF's pages are not to be counted from here: their text and a picture of each are read.
        tally.reference()


def _count_tools(tools: list[dict[str, object]], tally: InputTally) -> None:
    tally.add(_ANY_TOOL, _USUAL_ANY_TOOL)
    tally.data(tools, "tools")
    for tool in tools:
        tally.add(_PER_TOOL)
        if tool.get("type", "custom") == "custom":
            continue
        tally.add(_PER_SERVER_TOOL, _PER_SERVER_TOOL // 2)
        if str(tool.get("type")).startswith("web_"):
            # What a search or a fetch finds comes back as input.
            tally.reference()
