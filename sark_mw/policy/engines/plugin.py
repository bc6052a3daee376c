"""What Rego and WebAssembly have in common: a document of the request goes to a process, and a decision comes back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

from sark_mw.errors import PolicyEvaluationError
from sark_mw.policy.base import LimitReader, PolicyContext, PolicyDecision, PolicyServices
from sark_mw.policy.document import document_of, encode, figures_for, on_one_line, read_answer
from sark_mw.policy.engines.process import EngineOptions, EngineProcesses, Held
from sark_mw.policy.named import NamedPlugin
from sark_mw.policy.unsendable import UnsendableRequestError, denial


class EnginePlugin(NamedPlugin):
    """A plugin whose judgement is made in the processes of an engine."""

    concurrent = True
    version = "1"

    def __init__(
        self,
        *,
        name: str,
        priority: int,
        on_error: str,
        prompts: Collection[str],
        limits: bool,
        options: EngineOptions,
    ) -> None:
        super().__init__(name, priority, on_error)
        self._prompts = frozenset(prompts)
        self._with_limits = limits
        self._reader: LimitReader | None = None
        self._options = options
        self._processes: EngineProcesses | None = None

    @property
    def timeout(self) -> float | None:
        # Its process is killed by the deadline, which begins when it has one; the manager's own time-out comes only after that.
        return self._options.wait_s + self._options.deadline_s + 1

    @property
    def pids(self) -> list[int]:
        """List the processes that judge for it right now."""
        return [] if self._processes is None else self._processes.pids

    @property
    def hardening(self) -> Held | None:
        """Tell what holds its processes; None while it is not loaded."""
        return None if self._processes is None else self._processes.held

    def bind(self, services: PolicyServices) -> None:
        self._reader = services.limits

    async def on_load(self) -> None:
        await self.on_unload()  # loaded once more, it has the processes of one time
        self._processes = self._make()
        try:
            await self._processes.start()
        except BaseException:
            await self._processes.stop()
            raise

    async def on_unload(self) -> None:
        if self._processes is not None:
            await self._processes.stop()

    def _encode(self, document: Mapping[str, Any]) -> bytes:
        """Write the document for this engine; raises `UnsendableRequestError`."""
        return encode(document)

    @abstractmethod
    def _make(self) -> EngineProcesses:
        """Describe the processes; they are started after that."""

    async def evaluate(self, context: PolicyContext) -> PolicyDecision:
        if self._processes is None:
            raise PolicyEvaluationError("it was never loaded", plugin_name=self._name)
        figures = await figures_for(context, self._reader) if self._with_limits else ()
        try:
            body = self._encode(document_of(context, figures, self._prompts))
        except UnsendableRequestError as error:
            return denial(error)
        answer = await self._processes.ask(body)
        if "undefined" in answer:
            return PolicyDecision(False, "the policy does not decide this request", {"undefined": True})
        if "result" not in answer:
            raise PolicyEvaluationError(on_one_line(str(answer.get("error"))), plugin_name=self._name)
        return read_answer(answer["result"], self._name)
