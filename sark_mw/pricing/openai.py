"""OpenAI's requests: chat completions, completions, embeddings and responses, from OpenAI or whoever speaks its dialect."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from sark_mw.errors import CostEstimationError, InvalidRequestError
from sark_mw.pricing.base import Json
from sark_mw.pricing.images import openai_image_tokens, size_in_url
from sark_mw.pricing.metered import MeteredEstimator
from sark_mw.pricing.numbers import MAX_CHOICES, nested, reported, whole_number
from sark_mw.pricing.prices import PriceBook, PricingOptions
from sark_mw.pricing.rates import ModelPrice
from sark_mw.pricing.tally import MAX_DEPTH, Demand, InputTally, objects
from sark_mw.pricing.tokens import TextCounter, TokenCount, encoding_of, reads_published, tokenizer
from sark_mw.pricing.tool_fees import PREVIEW_SEARCH, ToolCalls, per_call
from sark_mw.usage import Usage

# What the chat format adds: per message, per request (the primed answer), per declared tool, for tools at all.
_PER_MESSAGE = 4
_PER_REQUEST = 3
_PER_TOOL = 12
_ANY_TOOL = 16
# Audio is 10 tokens a second; a second has at least a kilobyte when compressed and 8 when it is a WAV.
_AUDIO_BYTES_PER_TOKEN = {"wav": 800, "pcm16": 800}
_COMPRESSED_BYTES_PER_TOKEN = 100
# Each endpoint has its own output limit and passes over the others'.
_LIMITS = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "embeddings": (),
}
#: The endpoint that takes an input, for requests that do not say where they go to.
_ENDPOINT_OF = {"messages": "chat", "prompt": "completions", "input": "responses"}
#: Prompts in one request: what OpenAI allows for embeddings.
_MAX_PROMPTS = 2_048
# Read as text or JSON into the prompt, beside messages and input.
_STRUCTURED = ("tools", "functions", "response_format", "text")
# What a vocabulary that is not published may cut finer than the published ones.
_UNPUBLISHED_MARGIN = 1.15
_OWN_TOOLS = ("function", "custom")


# The models for which the older search tool costs no more than the newer one.
_REASONS = re.compile(r"gpt-(?:[5-9]|oss)|o[1-9]")


class OpenAICostEstimator(MeteredEstimator):
    """Price requests in OpenAI's dialect; `provider` names another that speaks it (`groq`, `azure`, …)."""

    # A request without a tier is served in its project's, and that may be the dearest.
    _unnamed_tier = "auto"

    def __init__(self, book: PriceBook | None = None, options: PricingOptions | None = None, provider: str = "openai") -> None:
        super().__init__(provider, book, options)
        if self._options.tokenizer:
            # Loaded here, at start, so that no request waits for it.
            tokenizer("o200k_base")
            tokenizer("cl100k_base")

    def _texts(self, model: str) -> TextCounter:
        if not self._options.tokenizer:
            return TextCounter(None, 0)
        if self._provider in ("openai", "azure") or model.startswith(("gpt-", "o1", "o3", "o4", "text-embedding")):
            margin = 1.0 if reads_published(model) else _UNPUBLISHED_MARGIN
            return TextCounter(tokenizer(encoding_of(model)), self._options.exact_bytes, ceiling_factor=margin)
        return TextCounter(None, 0, ceiling_factor=1.2, expected_factor=1.1)

    def _demand(self, body: Json, endpoint: str) -> Demand:
        if endpoint not in _LIMITS:
            endpoint = next((end for name, end in _ENDPOINT_OF.items() if body.get(name)), "responses")
        given = {name: whole_number(body, name) for names in _LIMITS.values() for name in names}
        # With two of them the provider decides; the larger is the safe one. 0 is none.
        limits = [limit for name in _LIMITS[endpoint] if (limit := given[name])]
        choices = max(whole_number(body, "n", 1, MAX_CHOICES) or 1, whole_number(body, "best_of", 1, MAX_CHOICES) or 1)
        tier = body.get("service_tier")
        modalities = body.get("modalities")
        return Demand(
            limit=max(limits, default=None),
            choices=choices * _prompts(body),
            extra_output=_prediction_tokens(body),
            # Caching is automatic, and some models charge for writing to the cache.
            cache_writes="5m",
            service_tier=tier if isinstance(tier, str) else None,
            audio_output=isinstance(modalities, list) and "audio" in modalities,
            detached=body.get("background") is True,
            calls=_tool_calls(body, self._options.tool_calls),
            uncounted_calls=ToolCalls(web_searches=_chat_searches(body)),
            preview_search=any(kind.startswith("web_search_preview") for kind in _tool_kinds(body)),
        )

    def _with_fees(self, price: ModelPrice, demand: Demand) -> ModelPrice:
        if not demand.preview_search or "web_search" in self._options.tool_fees or _REASONS.match(price.model or ""):
            return price
        fee = max(price.fees.web_search, per_call(PREVIEW_SEARCH))
        return replace(price, fees=price.fees._replace(web_search=fee))

    def _count_input(self, body: Json, model: str, tally: InputTally) -> None:
        found = [name for name in ("messages", "prompt", "input") if body.get(name) not in (None, [])]
        references = [name for name in ("previous_response_id", "conversation") if body.get(name)]
        if not found and not references:
            raise CostEstimationError("Missing 'messages', 'prompt' or 'input' in request arguments", provider=self.provider_name)
        for _ in references:
            tally.reference()
        if "messages" in found:
            messages = objects(body["messages"], "messages")
            for index, message in tally.all_but_plain(messages, _PER_MESSAGE):
                _count_item(message, f"messages[{index}]", model, tally, 0)
        if "prompt" in found:
            _count_prompt(body["prompt"], "prompt", model, tally)
        if "input" in found:
            _count_prompt(body["input"], "input", model, tally)
        if isinstance(instructions := body.get("instructions"), str):
            tally.text(instructions)
        tally.add(_PER_REQUEST)
        _count_declarations(body, tally)

    def _read_usage(self, usage: Json) -> Usage | None:
        read = reported(usage, "prompt_tokens")
        written = reported(usage, "completion_tokens")
        read = reported(usage, "input_tokens") if read is None else read
        written = reported(usage, "output_tokens") if written is None else written
        if read is None and written is None:
            return None
        of_input = nested(usage, "prompt_tokens_details") or nested(usage, "input_tokens_details")
        of_output = nested(usage, "completion_tokens_details") or nested(usage, "output_tokens_details")
        tier = usage.get("service_tier")
        return Usage(
            input_tokens=read or 0,
            cache_read_tokens=reported(of_input, "cached_tokens") or 0,
            cache_write_5m_tokens=reported(of_input, "cache_write_tokens") or 0,
            input_audio_tokens=reported(of_input, "audio_tokens") or 0,
            output_tokens=written or 0,
            reasoning_tokens=reported(of_output, "reasoning_tokens") or 0,
            output_audio_tokens=reported(of_output, "audio_tokens") or 0,
            service_tier=tier if isinstance(tier, str) else None,
        )


def _tool_kinds(body: Json) -> list[str]:
    tools = body.get("tools")
    return [str(tool.get("type")) for tool in (tools if isinstance(tools, list) else ()) if isinstance(tool, Mapping)]


def _tool_calls(body: Json, usual: int) -> ToolCalls:
    """Bound the calls of OpenAI's own tools: by `max_tool_calls`, which holds for all of them together."""
    most = whole_number(body, "max_tool_calls")
    most = usual if most is None else most
    kinds = _tool_kinds(body)
    return ToolCalls(
        web_searches=max(_chat_searches(body), most if any(kind.startswith("web_search") for kind in kinds) else 0),
        file_searches=most if "file_search" in kinds else 0,
        # All calls of one request run in one container.
        code_sessions=min(most, 1) if "code_interpreter" in kinds or "shell" in kinds else 0,
    )


def _chat_searches(body: Json) -> int:
    """Return 1 for a chat completion that searches: the models that can, do so once, and say nothing of it."""
    model = body.get("model")
    searches = isinstance(body.get("web_search_options"), Mapping)
    return int(searches or (isinstance(model, str) and "-search-" in model and "messages" in body))


def _prompts(body: Json) -> int:
    """Count how many prompts a completion request carries: each is answered apart."""
    prompt = body.get("prompt")
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], int):
        return 1
    return len(prompt)


def _prediction_tokens(body: Json) -> int:
    """Bound the tokens of a predicted output: rejected ones are billed as output."""
    content = nested(body, "prediction").get("content")
    if isinstance(content, str):
        return len(content.encode("utf-8", "replace"))
    if not isinstance(content, list):
        return 0
    return sum(len(str(part.get("text", "")).encode("utf-8", "replace")) for part in content if isinstance(part, Mapping))


def _count_prompt(value: object, param: str, model: str, tally: InputTally) -> None:
    if isinstance(value, str):
        tally.text(value)
    elif isinstance(value, Mapping):
        # A stored prompt template: its text is at the provider.
        tally.reference()
        tally.data(value, param)
    elif not isinstance(value, list):
        raise InvalidRequestError(f"'{param}' must be a string or an array", param)
    elif isinstance(value[0], int):
        tally.add(len(value))
    elif isinstance(value[0], dict):
        for index, item in tally.all_but_plain(objects(value, param), _PER_MESSAGE):
            _count_item(item, f"{param}[{index}]", model, tally, 0)
    else:
        _count_batch(value, param, tally)


def _count_batch(values: list[object], param: str, tally: InputTally) -> None:
    """Count several prompts: texts, or lists of tokens."""
    if len(values) > _MAX_PROMPTS:
        raise InvalidRequestError(f"'{param}' must have at most {_MAX_PROMPTS} entries", param)
    for index, value in enumerate(values):
        if isinstance(value, str):
            tally.text(value)
        elif isinstance(value, list):
            tally.add(len(value))
        else:
            raise InvalidRequestError(f"'{param}[{index}]' must be a string or an array of tokens", param)


def _count_item(item: Mapping[str, object], param: str, model: str, tally: InputTally, depth: int) -> None:
    """Count a message, an item of a response's input, or a part of a message's content: whichever it is, its type tells."""
    if depth > MAX_DEPTH:
        raise InvalidRequestError(f"'{param}' is nested too deeply", param)
    kind = item.get("type")
    if depth == 0:
        tally.add(_PER_MESSAGE)
    if kind in ("image_url", "input_image", "computer_screenshot"):
        _count_image(item, model, tally)
    elif kind == "input_audio":
        _count_audio(nested(item, "input_audio"), tally)
    elif kind in ("file", "input_file", "item_reference"):
        tally.reference()
    else:
        _count_fields(item, param, model, tally, depth)


def _count_fields(item: Mapping[str, object], param: str, model: str, tally: InputTally, depth: int) -> None:
    for name, value in item.items():
        if name in ("role", "type", "id", "status") or value is None:
            continue
        if isinstance(value, str):
            tally.text(value)
        elif name == "audio" and isinstance(value, Mapping):
            # An earlier spoken answer, named by its id.
            tally.audio(TokenCount(4_096, 1_024))
        elif isinstance(value, list) and value and isinstance(value[0], dict) and name in ("content", "output", "summary"):
            for index, part in enumerate(objects(value, f"{param}.{name}")):
                _count_item(part, f"{param}.{name}[{index}]", model, tally, depth + 1)
        elif name == "output" and isinstance(value, Mapping):
            _count_item(value, f"{param}.output", model, tally, depth + 1)
        elif name == "content" and not isinstance(value, list):
            raise InvalidRequestError(f"'{param}.content' must be a string or an array", f"{param}.content")
        else:
            tally.data(value, param)


def _count_image(item: Mapping[str, object], model: str, tally: InputTally) -> None:
    source = item.get("image_url")
    # In chat completions the detail stands beside the URL, and one beside that is passed over.
    of_chat = item.get("type") == "image_url" or isinstance(source, Mapping)
    detail = nested(item, "image_url").get("detail") if of_chat else item.get("detail")
    if isinstance(source, Mapping):
        source = source.get("url")
    tally.count(openai_image_tokens(model, detail, size_in_url(source) if isinstance(source, str) else None))


def _count_audio(audio: Mapping[str, object], tally: InputTally) -> None:
    data = audio.get("data")
    size = len(data) * 3 // 4 if isinstance(data, str) else 0
    rate = _AUDIO_BYTES_PER_TOKEN.get(str(audio.get("format")), _COMPRESSED_BYTES_PER_TOKEN)
    tally.audio(TokenCount(size // rate + 16, size // (rate * 4) + 1))


def _count_declarations(body: Json, tally: InputTally) -> None:
    for name in _STRUCTURED:
        value = body.get(name)
        if value in (None, [], {}):
            continue
        tally.data(value, name)
        if not isinstance(value, list):
            continue
        tally.add(_ANY_TOOL + _PER_TOOL * len(value), _PER_TOOL)
        for tool in objects(value, name):
            # The provider's own tools (web and file search, code, MCP) put what they find into the input.
            if name == "tools" and tool.get("type", "function") not in _OWN_TOOLS:
                tally.reference()
