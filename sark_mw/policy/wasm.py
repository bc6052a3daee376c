"""Policies in WebAssembly: a guest of Wasmtime (package wasmtime) under fuel and memory limits, in a process that holds nothing.

The guest exports `memory`, `alloc(size: i32) -> i32` and `evaluate(at: i32, size: i32) -> i64`. For each request a fresh instance
is made, `alloc` says where the document's JSON is put, and `evaluate` returns where its answer's JSON lies: `at << 32 | size`, 0
for no decision, which denies. It imports nothing; with `wasi` what WASI preview 1 has, without files, arguments or output.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from sark_mw.errors import ConfigurationError
from sark_mw.policy.engines.plugin import EnginePlugin
from sark_mw.policy.engines.process import EngineOptions, EngineProcesses

_MAX_MODULE = 16 << 20
#: What a guest may answer, before its process cuts that: twice of what it is shown.
_MAX_ANSWER = 2 << 20
_PAGE = 65_536


class WasmPlugin(EnginePlugin):
    """Judge by a guest from a file, `.wasm` or, as text, `.wat`; the answer is read as that of a Rego policy is.

    `contents` is what the file holds, by its name, where it was read already. `fuel` is about the number of instructions that
    one decision may take, `memory_bytes` the most that its memory may grow to. The guest is held by the engine already, so this
    works where the kernel has no layers to add: with a warning, unless `hardening` is `require`.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        contents: Mapping[str, bytes] | None = None,
        fuel: int = 10_000_000,
        memory_bytes: int = 16 << 20,
        wasi: bool = False,
        name: str = "wasm",
        priority: int = 100,
        on_error: str = "deny",
        prompts: Collection[str] = (),
        limits: bool = True,
        deadline_s: float = 0.25,
        workers: int = 1,
        hardening: Literal["require", "best-effort"] = "best-effort",
    ) -> None:
        if fuel < 1 or memory_bytes < _PAGE:
            raise ConfigurationError(f"{name}: fuel must be 1 and memory_bytes {_PAGE} at least")
        # Room for the guest twice, since a memory that grows may move, and for the engine's own.
        own = EngineOptions(
            deadline_s=deadline_s, memory_bytes=2 * memory_bytes + (64 << 20), workers=workers, hardening=hardening
        )
        super().__init__(name=name, priority=priority, on_error=on_error, prompts=prompts, limits=limits, options=own)
        self._setup = {
            "fuel": fuel,
            "guest_bytes": memory_bytes,
            "reply_bytes": _MAX_ANSWER,
            "wasi": wasi,
            "text": Path(path).suffix == ".wat",
        }
        try:
            self._body = Path(path).read_bytes() if contents is None else contents[Path(path).name]
        except OSError as error:
            raise ConfigurationError(f"{name}: {error}") from error
        if len(self._body) > _MAX_MODULE:
            raise ConfigurationError(f"{name}: a module may have {_MAX_MODULE:,} bytes at most")

    def _make(self) -> EngineProcesses:
        return EngineProcesses(self._name, ("wasm", "wasmtime"), self._setup, self._body, self._options)
