"""Rego without an OPA server: rego-cpp (package regopy) in a process that holds nothing and is killed when it is late."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from sark_mw.errors import ConfigurationError
from sark_mw.policy.engines.plugin import EnginePlugin
from sark_mw.policy.engines.process import EngineOptions, EngineProcesses
from sark_mw.policy.rego_subset import check_modules
from sark_mw.policy.rego_text import encode_for_rego, spelled

_MAX_BODY = 1 << 20


class RegoPlugin(EnginePlugin):
    """Judge by a Rego policy: `query` gives `true`, `false` or an object with `allow`, `reason`, `obligations`, `metadata`.

    An undefined result denies. `source` or `path` (a file, or a folder whose *.rego files belong together; `contents` by name
    where they were read already); `data` is the base document. `prompts` names the arguments with prompts that are sent along,
    `limits` sends where the limits stand.
    """

    def __init__(
        self,
        source: str | None = None,
        path: Path | str | None = None,
        query: str = "data.sark.decision",
        *,
        contents: Mapping[str, bytes] | None = None,
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
        self._modules = _modules(name, source, path, contents)
        check_modules(name, self._modules)
        if not query.startswith("data."):
            raise ConfigurationError(f"{name}: the query names a rule, as data.sark.decision does, not {query!r}")
        self._query = query
        self._data = dict(data or {})
        self._body()

    def _body(self) -> bytes:
        modules = {name: spelled(source) for name, source in self._modules.items()}
        try:
            body = json.dumps({"modules": modules, "data": self._data}, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"{self._name}: its data or source is no plain data: {error}") from error
        if len(body) > _MAX_BODY:
            raise ConfigurationError(f"{self._name}: a policy and its data may have {_MAX_BODY:,} bytes at most")
        return body

    def _encode(self, document: Mapping[str, Any]) -> bytes:
        return encode_for_rego(document)

    def _make(self) -> EngineProcesses:
        body = self._body()
        return EngineProcesses(self._name, ("rego", "regopy"), {"query": self._query}, body, self._options)


def _modules(
    name: str, source: str | None, path: Path | str | None, contents: Mapping[str, bytes] | None = None
) -> dict[str, str]:
    if (source is None) == (path is None):
        raise ConfigurationError(f"{name}: a Rego policy has either a source or a path")
    if source is not None:
        return {"policy.rego": source}
    assert path is not None
    where = Path(path)
    in_folder = where.is_dir()
    try:
        if contents is None:
            contents = {file.name: file.read_bytes() for file in (sorted(where.glob("*.rego")) if in_folder else [where])}
        named = {file: text for file, text in contents.items() if not (in_folder and Path(file).stem.endswith("_test"))}
        found = {file: _one_newline(text.decode("utf-8")) for file, text in named.items()}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{name}: {error}") from error
    if not found:
        raise ConfigurationError(f"{name}: there is no .rego file in {where}")
    return found


def _one_newline(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
