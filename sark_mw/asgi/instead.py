"""What happens instead of a refusal for lack of budget: a cheaper model, or less output.

The order is that of `InsteadSettings`: the cheaper models with the output that was asked for, the model that was asked for with
less, the cheaper models with less. Everything that is tried is priced and held as if it had been asked for, so what is admitted
in the end is what is sent, held and booked. The policies are asked once about each model. A refusal for anything but lack of
budget stands; a cheaper model that a policy denies is not used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote_to_bytes

from sark_mw.asgi.types import RawHeaders, Scope
from sark_mw.enforcement.admission import Admission
from sark_mw.enforcement.obligations import output_asked
from sark_mw.enforcer import Invocation
from sark_mw.sark import Sark
from sark_mw.settings import CheaperModelSettings, InsteadSettings
from sark_mw.wire.base import Call, Refusal, RefusalKind, Wire
from sark_mw.wire.refusal import header_text

#: Refusals that end the search: they are about the request, whatever its model.
_FINAL = (
    RefusalKind.UNAVAILABLE, RefusalKind.POLICY_UNAVAILABLE, RefusalKind.IDEMPOTENCY, RefusalKind.IN_FLIGHT,
    RefusalKind.ALREADY_DONE,
)  # fmt: skip
#: How long a hold that is given back for a cheaper one is waited for.
_RELEASE_S = 1.0
#: What was affordable a moment ago may have been spent by others: it is asked for once more with what they left.
_CLAMPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One way to serve a request, and what the enforcer said to it.

    `asked` is the call as it came, `tried` the one that the policies were asked about, `call` what they obliged to make of it.
    """

    asked: Call
    tried: Call
    call: Call
    invocation: Invocation
    answer: Admission | Refusal
    max_output_tokens: int | None = None

    @property
    def cheaper(self) -> bool:
        """Tell whether it is for another model than was asked for."""
        return self.call.model != self.asked.model

    @property
    def notes(self) -> RawHeaders:
        """What the response tells of it."""
        notes: RawHeaders = []
        if self.cheaper:
            notes.append((b"x-sark-model", header_text(self.call.model or "").encode()))
            notes.append((b"x-sark-requested-model", header_text(self.asked.model or "").encode()))
        if self.max_output_tokens is not None:
            notes.append((b"x-sark-max-output-tokens", str(self.max_output_tokens).encode()))
        return notes


class Instead:
    """The settings of one middleware; `admit` is asked for each request."""

    def __init__(self, settings: InsteadSettings, sark: Sark) -> None:
        self.settings = settings
        self.sark = sark

    async def admit(self, wire: Wire, call: Call, scope: Scope, invoke: Callable[[Call], Invocation]) -> Attempt:
        """Admit a request as it is, or as the settings allow to change it; `invoke` makes the invocation of a call."""
        return await _Search(self, wire, call, scope, invoke).run()

    def rule(self, model: str | None) -> CheaperModelSettings | None:
        """Find the cheaper models for a model."""
        if model is None or not self.settings.models:
            return None
        name = model.strip().lower()
        names = {model, name, name.rpartition("/")[2]}
        return next((rule for rule in self.settings.models if any(_matches(rule.from_model, name) for name in names)), None)


def _matches(pattern: str, model: str) -> bool:
    return model.startswith(pattern[:-1]) if pattern.endswith("*") else model == pattern


class _Search:
    """One request on its way to something that the budget admits."""

    __slots__ = ("_asked", "_instead", "_invoke", "_rule", "_scope", "_tried", "_wire")

    def __init__(self, instead: Instead, wire: Wire, call: Call, scope: Scope, invoke: Callable[[Call], Invocation]) -> None:
        self._instead = instead
        self._wire = wire
        self._asked = call
        self._scope = scope
        self._invoke = invoke
        self._rule = instead.rule(call.model)
        self._tried = 0

    async def run(self) -> Attempt:
        first = await self._try(self._asked)
        answer = first.answer
        if isinstance(answer, Refusal):
            return first if answer.kind is not RefusalKind.BUDGET else await self._after_refusal(first)
        if self._is_due(answer):
            return await self._step_down(first, answer)
        return first

    def _is_due(self, admission: Admission) -> bool:
        percent = self._rule.at_percent if self._rule is not None else None
        if percent is None or admission.share is None or admission.share * 100 < percent:
            return False
        return next(self._cheaper_calls(), None) is not None

    async def _step_down(self, first: Attempt, admission: Admission) -> Attempt:
        """Give back what is held for the dear model, and hold a cheaper one; failing that, the dear one again."""
        # Waited for, so that the cheaper model finds the budget that this one held, and its idempotency key free.
        await asyncio.wait({admission.release()}, timeout=_RELEASE_S)
        found, refused = await self._try_cheaper()
        if found is not None:
            return found
        first = await self._try(self._asked, allowed=True)
        if isinstance(first.answer, Refusal) and first.answer.kind is RefusalKind.BUDGET:
            return await self._with_less_output(first, refused)
        return first

    async def _after_refusal(self, first: Attempt) -> Attempt:
        found, refused = await self._try_cheaper()
        return found or await self._with_less_output(first, refused)

    async def _try_cheaper(self) -> tuple[Attempt | None, list[Attempt]]:
        refused: list[Attempt] = []
        for call in self._cheaper_calls():
            attempt = await self._try(call)
            if _is_final(attempt):
                return attempt, refused
            if isinstance(attempt.answer, Admission):
                return self._chosen(self._within_model(attempt, attempt.answer)), refused
            refused.append(attempt)
        return None, refused

    async def _with_less_output(self, first: Attempt, cheaper: list[Attempt]) -> Attempt:
        if self._instead.settings.clamp:
            for refused in (first, *cheaper):
                found = await self._clamp(refused)
                if found is not None:
                    return found
        return first

    async def _clamp(self, attempt: Attempt) -> Attempt | None:
        """Ask for as much output as the budget still allows; None if that is too little or cannot be asked for."""
        # As it was before policies obliged to change it: they do so again.
        call = attempt.tried
        for _ in range(_CLAMPS):
            refusal = attempt.answer
            affordable = refusal.affordable_output_tokens if isinstance(refusal, Refusal) else None
            if affordable is None or affordable < self._instead.settings.clamp_min_output_tokens:
                return None
            smaller = self._wire.rewrite(call, max_output_tokens=affordable)
            if smaller is None:
                return None
            attempt = await self._try(smaller, allowed=True)
            attempt = replace(attempt, max_output_tokens=attempt.max_output_tokens or affordable)
            if isinstance(attempt.answer, Admission):
                return self._chosen(attempt)
            if _is_final(attempt):
                return attempt
        return None

    def _cheaper_calls(self) -> Iterator[Call]:
        for model in self._rule.to if self._rule is not None else ():
            if model == self._asked.model:
                continue
            call = self._wire.rewrite(self._asked, model=model)
            if call is not None and target_of(self._scope, call.path) is not None:
                yield call

    def _within_model(self, attempt: Attempt, admission: Admission) -> Attempt:
        """Lower an output limit that the cheaper model does not have: its provider would refuse it."""
        estimate = admission.estimate
        most = estimate.price.max_output_tokens if estimate.price is not None else None
        if most is None or not estimate.output_limited or output_asked(estimate) <= most:
            return attempt
        call = self._wire.rewrite(attempt.call, max_output_tokens=most)
        return attempt if call is None else replace(attempt, call=call, max_output_tokens=most)

    def _chosen(self, attempt: Attempt) -> Attempt:
        tell = self._instead.sark.instrumentation.request_adapted
        if attempt.cheaper:
            tell("downgraded")
        if attempt.max_output_tokens is not None:
            tell("clamped")
        return attempt

    async def _try(self, call: Call, *, allowed: bool = False) -> Attempt:
        """Ask for a call; `allowed`: the policies have allowed this model for this request."""
        number, self._tried = self._tried, self._tried + 1

        def invoke(call: Call) -> Invocation:
            return replace(self._invoke(call), attempt=number, allowed=allowed and number > 0)

        shape = _Shape(self._wire, call, self._scope, invoke)
        answer = await self._instead.sark.enforcer.admit(shape.invocation)
        return Attempt(
            asked=self._asked,
            tried=call,
            call=shape.call,
            invocation=shape.invocation,
            answer=answer,
            max_output_tokens=shape.max_output_tokens,
        )


class _Shape:
    """A call as policies oblige to change it: what was made of it last is what is sent."""

    __slots__ = ("_invoke", "_scope", "_wire", "call", "invocation", "max_output_tokens")

    def __init__(self, wire: Wire, call: Call, scope: Scope, invoke: Callable[[Call], Invocation]) -> None:
        self._wire = wire
        self._scope = scope
        self._invoke = invoke
        self.call = call
        self.invocation = replace(invoke(call), reshape=self.change)
        self.max_output_tokens: int | None = None

    def change(self, model: str | None, max_output_tokens: int | None) -> Invocation | None:
        """Make the invocation of the call with another model or a smaller output limit; None where that cannot be."""
        call = self._wire.rewrite(self.call, model=model, max_output_tokens=max_output_tokens)
        if call is None or target_of(self._scope, call.path) is None:
            return None
        self.call = call
        self.max_output_tokens = self.max_output_tokens if max_output_tokens is None else max_output_tokens
        self.invocation = replace(self._invoke(call), reshape=self.change)
        return self.invocation


def _is_final(attempt: Attempt) -> bool:
    return isinstance(attempt.answer, Refusal) and attempt.answer.kind in _FINAL


def target_of(scope: Scope, path: str) -> tuple[str, bytes | None] | None:
    """Return `path` and `raw_path` of a scope whose path is another now; None if the raw one is spelt so that nobody can tell."""
    raw: bytes | None = scope.get("raw_path")
    before: str = scope["path"]
    if path == before or raw is None:
        return path, raw
    segments, was, now = raw.split(b"/"), before.split("/"), path.split("/")
    if not len(segments) == len(was) == len(now):
        return None
    for at, (old, new) in enumerate(zip(was, now, strict=True)):
        if old == new:
            continue
        if unquote_to_bytes(segments[at]) != old.encode("utf-8", "surrogatepass"):
            return None
        segments[at] = quote(new, safe=":@!$&'()*+,;=~").encode()
    return path, b"/".join(segments)
