"""Show a plugin what it asked for and nothing else; prompts only by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sark_mw.errors import ConfigurationError
from sark_mw.policy.context import PolicyContext, read_bytes, with_read_bytes

#: Where requests of any dialect keep what people and models said; `arguments` alone does not include them.
PROMPTS = frozenset(
    {
        "content", "contents", "documents", "generateContentRequest", "generate_content_request", "input", "instructions",
        "messages", "prediction", "prompt", "query", "requests", "suffix", "system", "systemInstruction", "system_instruction",
        "texts",
    }
)  # fmt: skip
_FIELDS = frozenset({"principal_id", "resource_id", "capability_id", "action"})
#: What lets a request pass once: whoever is shown it could use it up. `environment` alone does not include it.
_SECRETS = frozenset({"approval"})
#: A word for several fields.
_SHORT = {"model": ("environment.model", "arguments.model"), "prompts": tuple(f"arguments.{name}" for name in PROMPTS)}
#: What `needs = None` shows to a plugin in another process: neither prompts nor an approval's token.
ALL_BUT_PROMPTS = frozenset({*_FIELDS, "arguments", "environment"})


@dataclass(frozen=True, slots=True)
class _Part:
    """What is shown of `arguments` or `environment`: the `named` keys, and all others but `hidden` where `whole`."""

    whole: bool
    named: frozenset[str]
    hidden: frozenset[str]

    def of(self, content: Mapping[str, Any]) -> dict[str, Any]:
        if self.whole:
            return {name: value for name, value in content.items() if name not in self.hidden or name in self.named}
        return {name: content[name] for name in self.named if name in content}


@dataclass(frozen=True, slots=True)
class Lens:
    """The needs of one plugin, made ready to be applied to each request."""

    fields: frozenset[str]
    arguments: _Part
    environment: _Part

    def show(self, context: PolicyContext) -> PolicyContext:
        """Make a context of its own that holds what was asked for; other fields are empty, the time is always there."""
        fields = self.fields
        shown = PolicyContext(
            context.principal_id if "principal_id" in fields else "",
            context.resource_id if "resource_id" in fields else "",
            context.capability_id if "capability_id" in fields else "",
            context.action if "action" in fields else "",
            self.arguments.of(context.arguments),
            self.environment.of(context.environment),
            context.timestamp,
        )
        return with_read_bytes(shown, read_bytes(context)).view()


def lens_for(needs: object, *, isolated: bool) -> Lens | None:
    """Make the lens of a plugin; None shows everything. Raises `ConfigurationError` for a field that no context has."""
    if needs is None:
        return _lens(ALL_BUT_PROMPTS) if isolated else None
    if isinstance(needs, str) or not isinstance(needs, Iterable):
        raise ConfigurationError(f"needs must be a set of names of fields, not {needs!r}")
    return _lens(frozenset(needs))


def _lens(needs: frozenset[str]) -> Lens:
    names: set[str] = set()
    for name in needs:
        names.update(_SHORT.get(name, (name,)))
    return Lens(
        frozenset(_checked(name) for name in names) & _FIELDS,
        _part(names, "arguments", PROMPTS),
        _part(names, "environment", _SECRETS),
    )


def _part(names: set[str], part: str, hidden: frozenset[str]) -> _Part:
    keys = frozenset(name[len(part) + 1 :] for name in names if name.startswith(f"{part}."))
    return _Part(part in names, keys, hidden)


def _checked(name: object) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f"needs names fields, not {name!r}")
    part, dot, key = name.partition(".")
    known = part in ("arguments", "environment") and (not dot or (key and "." not in key))
    if not known and name not in _FIELDS and name != "timestamp":
        raise ConfigurationError(
            f"needs names no field {name!r}: one of {', '.join(sorted(_FIELDS))}, model, prompts, arguments, arguments.<name>, "
            "environment, environment.<name>"
        )
    return name
