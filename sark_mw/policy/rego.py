"""Rego without an OPA server: rego-cpp (package regopy) in a process that holds nothing and is killed when it is late."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from sark_mw.errors import ConfigurationError
from sark_mw.policy.document import encode
from sark_mw.policy.engines.plugin import EnginePlugin
from sark_mw.policy.engines.process import EngineOptions, EngineProcesses

_MAX_SOURCE = 1 << 20


class RegoPlugin(EnginePlugin):
    """Judge by a Rego policy: `query` gives `true`, `false` or an object with `allow`, `reason`, `obligations`, `metadata`.

    An undefined result denies. `source` or `path` (a file, or a folder whose *.rego files belong together); `data` is the base
    document. `prompts` names the arguments with prompts that are sent along, `limits` sends where the limits stand.
    """

    def __init__(
        self,
        source: str | None = None,
        path: Path | str | None = None,
        query: str = "data.sark.decision",
        *,
        data: Mapping[str, Any] | None = None,
        name: str = "rego",
        priority: int = 100,
        on_error: str = "deny",
        prompts: Collection[str] = (),
        limits: bool = True,
        deadline_s: float = 0.25,
        memory_bytes: int = 64 << 20,
        workers: int = 1,
        hardening: Literal["require", "best-effort"] = "require",
    ) -> None:
        options = EngineOptions(deadline_s=deadline_s, memory_bytes=memory_bytes, workers=workers, hardening=hardening)
        super().__init__(name=name, priority=priority, on_error=on_error, prompts=prompts, limits=limits, options=options)
        self._modules = _modules(name, source, path)
        if not query.startswith("data."):
            raise ConfigurationError(f"{name}: the query names a rule, as data.sark.decision does, not {query!r}")
        self._query = query
        self._data = dict(data or {})

    def _make(self) -> EngineProcesses:
        body = encode({"modules": self._modules, "data": self._data})
        return EngineProcesses(self._name, ("rego", "regopy"), {"query": self._query}, body, self._options)


def _modules(name: str, source: str | None, path: Path | str | None) -> dict[str, str]:
    if (source is None) == (path is None):
        raise ConfigurationError(f"{name}: a Rego policy has either a source or a path")
    if source is not None:
        return {"policy.rego": source}
    assert path is not None
    where = Path(path)
    tests = [each for each in sorted(where.glob("*.rego")) if not each.stem.endswith("_test")]
    files = tests if where.is_dir() else [where]
    try:
        found = {file.name: file.read_text("utf-8") for file in files}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{name}: {error}") from error
    if not found:
        raise ConfigurationError(f"{name}: there is no .rego file in {where}")
    if sum(map(len, found.values())) > _MAX_SOURCE:
        raise ConfigurationError(f"{name}: a policy may have {_MAX_SOURCE:,} characters at most")
    return found
