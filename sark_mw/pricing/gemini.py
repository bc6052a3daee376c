"""Gemini's requests: generateContent and streamGenerateContent, from AI Studio or Vertex."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from sark_mw.errors import CostEstimationError, InvalidRequestError
from sark_mw.pricing.base import Estimate, InvocationResult, Json
from sark_mw.pricing.gemini_media import count_media, most_searches, thoughts_of, writes_media
from sark_mw.pricing.metered import MeteredEstimator
from sark_mw.pricing.numbers import MAX_CHOICES, MAX_TOKENS, nested, reported, whole_number
from sark_mw.pricing.output_limits import max_output_tokens
from sark_mw.pricing.prices import PriceBook, PricingOptions
from sark_mw.pricing.rates import ModelPrice
from sark_mw.pricing.tally import Demand, InputTally, objects
from sark_mw.pricing.tokens import TextCounter
from sark_mw.pricing.tool_fees import ToolCalls
from sark_mw.usage import Usage

_PER_CONTENT = 5
_PER_REQUEST = 8
_ANY_TOOL = 64
_PER_TOOL = 16
# Gemini's vocabulary is larger than OpenAI's, but cuts numbers into single digits.
_CEILING_FACTOR = 1.25
_EXPECTED_FACTOR = 1.05
#: From here on, one count per text would take milliseconds.
_MANY_TEXTS = 1_000
#: A request that does not bound its thinking: the model's own bound decides.
_UNBOUNDED = MAX_TOKENS
# The API takes every name in both spellings.
_CONFIG = ("generationConfig", "generation_config")
_SYSTEM = ("systemInstruction", "system_instruction")
_MEDIA = ("AUDIO", "IMAGE", "VIDEO")


class GeminiCostEstimator(MeteredEstimator):
    """Price requests in Gemini's dialect; `provider` names another that speaks it."""

    def __init__(self, book: PriceBook | None = None, options: PricingOptions | None = None, provider: str = "google") -> None:
        super().__init__(provider, book, options)

    def _texts(self, model: str) -> TextCounter:
        return TextCounter(None, 0, _CEILING_FACTOR, _EXPECTED_FACTOR)

    def _demand(self, body: Json, endpoint: str) -> Demand:
        limits: list[int] = []
        choices = 1
        media = False
        for config in _configs(body):
            # A limit of 0 is none: that is what the field is where nobody sets it.
            limits += [n for n in _numbers(config, "maxOutputTokens", "max_output_tokens") if n]
            choices = max([choices, *_numbers(config, "candidateCount", "candidate_count", least=1, most=MAX_CHOICES)])
            asked = [kind for value in _named(config, "responseModalities", "response_modalities") for kind in _strings(value)]
            media = media or any(kind.upper() in _MEDIA for kind in asked)
        tier = next((value for value in _named(body, "serviceTier", "service_tier") if isinstance(value, str)), None)
        return Demand(
            # With both spellings the provider decides; the larger is the safe one.
            limit=max(limits, default=None),
            choices=choices,
            extra_output=_thinking_budget(body),
            service_tier=None if tier is None else tier.lower(),
            audio_output=media,
            calls=ToolCalls(web_searches=self._options.tool_calls if _searches(body) else 0),
        )

    def actual(self, usage: Usage, estimate: Estimate) -> int:
        """Price what was used; the second generation is charged for a prompt that searched, and not for each of its queries."""
        name = (estimate.price.model if estimate.price else None) or estimate.model or ""
        return super().actual(replace(usage, web_searches=most_searches(name, usage.web_searches)), estimate)

    def _limit(self, demand: Demand, price: ModelPrice) -> int:
        if price.max_output_tokens is None:
            # A model without a price is Gemini's all the same.
            price = replace(price, max_output_tokens=max_output_tokens(price.model))
        return super()._limit(demand, price)

    def _figures(self, model: str, price: ModelPrice, demand: Demand, tally: InputTally, limit: int) -> Estimate:
        name = price.model or model
        demand = replace(
            demand,
            # Thoughts are outside the candidates and cost what output costs.
            extra_output=thoughts_of(name, demand.extra_output),
            audio_output=demand.audio_output or writes_media(name),
            calls=ToolCalls(web_searches=most_searches(name, demand.calls.web_searches)),
        )
        return super()._figures(model, price, demand, tally, limit)

    def _count_input(self, body: Json, model: str, tally: InputTally) -> None:
        contents = body.get("contents")
        cached = _named(body, "cachedContent", "cached_content")
        if contents in (None, [], "", {}):
            raise CostEstimationError("Missing 'contents' in request arguments", provider=self.provider_name)
        tally.add(_PER_REQUEST)
        texts: list[str] = []
        for index, content in enumerate(_contents(contents)):
            _count_content(content, f"contents[{index}]", model, tally, texts)
        for system in _named(body, *_SYSTEM):
            _count_content(system, "systemInstruction", model, tally, texts)
        for _ in cached:
            tally.reference()
        for text in texts if len(texts) <= _MANY_TEXTS else ["\n".join(texts)]:
            tally.text(text)
        _count_declarations(body, tally)

    def _read_usage(self, usage: Json) -> Usage | None:
        read = _reported(usage, "promptTokenCount", "prompt_token_count")
        written = _reported(usage, "candidatesTokenCount", "candidates_token_count")
        if read is None and written is None:
            return None
        thoughts = _reported(usage, "thoughtsTokenCount", "thoughts_token_count") or 0
        of_output = next(iter(_named(usage, "candidatesTokensDetails", "candidates_tokens_details")), None)
        of_input = next(iter(_named(usage, "promptTokensDetails", "prompt_tokens_details")), None)
        return Usage(
            input_tokens=(read or 0) + (_reported(usage, "toolUsePromptTokenCount", "tool_use_prompt_token_count") or 0),
            cache_read_tokens=_reported(usage, "cachedContentTokenCount", "cached_content_token_count") or 0,
            input_audio_tokens=_of_kind(of_input, ("AUDIO",)),
            output_tokens=(written or 0) + thoughts,
            reasoning_tokens=thoughts,
            output_audio_tokens=_of_kind(of_output, _MEDIA),
        )

    def _usage_of(self, result: InvocationResult) -> Usage | None:
        if (usage := super()._usage_of(result)) is not None:
            return usage
        dump = getattr(result.result, "model_dump", None)
        body = dump() if callable(dump) else result.result
        for source in (result.metadata, body):
            for found in _named(source, "usageMetadata", "usage_metadata") if isinstance(source, Mapping) else ():
                if isinstance(found, Mapping) and (usage := self._read_usage(found)) is not None:
                    return usage
        return None


def _named(body: Json, *names: str) -> list[object]:
    return [value for name in names if (value := body.get(name)) is not None]


def _numbers(body: Json, *names: str, least: int = 0, most: int = MAX_TOKENS) -> list[int]:
    return [number for name in names if (number := whole_number(body, name, least, most)) is not None]


def _reported(usage: Json, *names: str) -> int | None:
    return next((count for name in names if (count := reported(usage, name)) is not None), None)


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _configs(body: Json) -> Iterator[Json]:
    for name in _CONFIG:
        value = body.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise InvalidRequestError(f"'{name}' must be an object", name)
        yield nested(body, name)


def _thinking_budget(body: Json) -> int:
    """Return how much a request lets the model think; −1, a level or nothing leave it to the model."""
    budgets: list[int] = []
    for config in _configs(body):
        for thinking in _named(config, "thinkingConfig", "thinking_config"):
            if not isinstance(thinking, Mapping):
                raise InvalidRequestError("'thinkingConfig' must be an object", "thinkingConfig")
            budgets += _numbers(thinking, "thinkingBudget", "thinking_budget", least=-1)
    return _UNBOUNDED if not budgets or min(budgets) < 0 else max(budgets)


def _of_kind(details: object, kinds: tuple[str, ...]) -> int:
    if not isinstance(details, list):
        return 0
    known = [detail for detail in details if isinstance(detail, Mapping) and str(detail.get("modality")).upper() in kinds]
    return sum(_reported(detail, "tokenCount", "token_count") or 0 for detail in known)


def _contents(value: object) -> list[object]:
    if isinstance(value, (str, Mapping)):
        return [value]
    return list(objects(value, "contents"))


def _count_content(content: object, param: str, model: str, tally: InputTally, texts: list[str]) -> None:
    tally.add(_PER_CONTENT)
    if isinstance(content, str):
        texts.append(content)
        return
    if not isinstance(content, Mapping):
        raise InvalidRequestError(f"'{param}' must be an object", param)
    parts = content.get("parts")
    if parts is None:
        # A lone part is taken for a content by lenient servers.
        _count_part(content, param, model, tally, texts)
        return
    for index, part in enumerate(objects([parts] if isinstance(parts, dict) else parts, f"{param}.parts")):
        _count_part(part, f"{param}.parts[{index}]", model, tally, texts)


def _count_part(part: Json, param: str, model: str, tally: InputTally, texts: list[str]) -> None:
    for name, value in part.items():
        if value is None or name in ("role", "thought", "videoMetadata", "video_metadata", "mediaResolution", "media_resolution"):
            continue
        if name in ("inlineData", "inline_data"):
            count_media(part, value, param, model, tally)
        elif isinstance(value, str):
            # Signatures of earlier thoughts among them: they come back as input.
            texts.append(value)
        elif name in ("fileData", "file_data"):
            tally.reference()
        else:
            # Function calls, their results, code: at most the JSON that they are.
            tally.data(value, param)


def _count_declarations(body: Json, tally: InputTally) -> None:
    for config in _configs(body):
        for schema in _named(config, "responseSchema", "response_schema", "responseJsonSchema", "response_json_schema"):
            tally.data(schema, "generationConfig.responseSchema")
    tools = body.get("tools")
    if tools in (None, []):
        return
    tally.add(_ANY_TOOL, _ANY_TOOL // 2)
    for tool in objects(tools, "tools"):
        declared = [item for value in _named(tool, "functionDeclarations", "function_declarations") for item in _items(value)]
        tally.add(_PER_TOOL * len(declared))
        if set(tool) - {"functionDeclarations", "function_declarations"}:
            # The provider's own (search, URLs, files, code) put what they find into the input.
            tally.reference()
    tally.data(tools, "tools")


def _searches(body: Json) -> bool:
    """Tell whether a request lets the model search: `googleSearch`, and what it was called before."""
    tools = body.get("tools")
    named = ("googleSearch", "google_search", "googleSearchRetrieval", "google_search_retrieval", "enterpriseWebSearch")
    return any(name in tool for tool in _items(tools) if isinstance(tool, Mapping) for name in named)


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []
