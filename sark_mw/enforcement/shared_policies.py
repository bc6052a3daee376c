"""What administrators decided of policies, in force in every process: rules, and plugins that are switched on or off.

The ledger's events are all there is of it: see docs/architecture.md, "What administrators decide of policies".
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol
from uuid import uuid4

from sark_mw.enforcement.grants import Why
from sark_mw.enforcement.rules import UnusableRule, rule_plugin, usable_or_not
from sark_mw.enforcement.tables import ServerClock
from sark_mw.errors import ConfigurationError
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.events import EventKind, LimitEvent, RecordedEvent
from sark_mw.limit import DEFAULT_ROOT
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.policy.reloading import NameTakenError
from sark_mw.settings_policy import RuleSettings

_log = logging.getLogger(__name__)

#: Rules that administrators may set: every request is put to each of them, and each takes some microseconds.
MAX_RULES = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PAGE = 1000
_TAKEN = "@admin"

Action = Literal["enable", "disable", "reset"]


class RuleNameError(ConfigurationError):
    """A name that a rule cannot have."""


class TooManyRulesError(ConfigurationError):
    """There are as many rules as there may be."""


class Records(Protocol):
    """Whatever records what an administrator did, and tells of it."""

    def __call__(self, *events: LimitEvent) -> Awaitable[None]:
        """Record events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRule:
    """A rule as an administrator set it: `said` has the fields of `RuleSettings`."""

    name: str
    said: Mapping[str, Any]
    actor: str
    reason: str
    at_ms: int


@dataclass(slots=True)
class _State:
    """What the events up to `seq` make of each other; `last_id` is the id of the one at `seq`."""

    seq: int = 0
    last_id: str = ""
    rules: dict[str, SharedRule] = field(default_factory=dict)
    switches: dict[str, bool] = field(default_factory=dict)

    def follow(self, events: Iterable[RecordedEvent]) -> None:
        for recorded in events:
            self.seq, self.last_id = recorded.seq, recorded.event.event_id
            try:
                detail = json.loads(recorded.event.detail_json)
                self._take(recorded.event, detail)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                _log.error("the policy event %s says nothing that is known here: %s", recorded.event.event_id, error)

    def _take(self, event: LimitEvent, detail: Mapping[str, Any]) -> None:
        if event.kind == EventKind.RULE:
            name, said = detail["rule"], detail["set"]
            if not _NAME.fullmatch(name):
                raise ValueError(f"no rule is called {name!r}")
            if said is None:
                self.rules.pop(name, None)
            else:
                # What is no rule at all is one that cannot be used.
                made_of = said if isinstance(said, dict) else {}
                self.rules[name] = SharedRule(name=name, said=made_of, actor=event.actor, reason=event.reason, at_ms=event.at_ms)
        elif "process" in detail:
            pass  # of one process and until its end, as earlier versions switched
        elif detail["action"] in ("enable", "disable"):
            self.switches[str(detail["plugin"])] = detail["action"] == "enable"
        elif detail["action"] == "reset":
            self.switches.pop(str(detail["plugin"]), None)


class SharedPolicies:
    """Keep a manager as administrators want it. Every method may raise `LedgerUnavailableError`; what is in force stays then."""

    def __init__(self, ledger: Ledger, manager: PolicyPluginManager, *, clock: ServerClock, record: Records) -> None:
        self._ledger = ledger
        self._manager = manager
        self._clock = clock
        self._record = record
        self._state = _State()
        self._behind = False
        #: Of each rule that is registered: the name of its plugin here, and what it was made of.
        self._registered: dict[str, tuple[str, Mapping[str, Any]]] = {}
        self._lock = asyncio.Lock()

    @property
    def rules(self) -> tuple[SharedRule, ...]:
        """List the rules in force, in the order in which they were set first."""
        return tuple(self._state.rules.values())

    @property
    def switches(self) -> Mapping[str, bool]:
        """Tell which plugins administrators switched on or off."""
        return MappingProxyType(self._state.switches)

    def plugin_of(self, rule: str) -> str:
        """Name the plugin that a rule is in this process; empty if it is none yet."""
        return self._registered.get(rule, ("",))[0]

    async def refresh(self) -> None:
        """Take up what was decided since the last time; all of it at the first."""
        async with self._lock:
            state = await self._read()
            if state is not None:
                self._state, self._behind = state, True
            if self._behind:
                await self._apply(self._state)
                self._behind = False

    async def aclose(self) -> None:
        """Take the rules out of the manager again, and let its plugins be as they were registered."""
        async with self._lock:
            self._manager.switch_plugins({})
            for name, _ in self._registered.values():
                await self._manager.unregister_plugin(name)
            self._registered, self._state = {}, _State()

    async def set_rule(self, name: str, rule: RuleSettings, why: Why, *, dry_run: bool = False) -> SharedRule:
        """Set a rule, or replace the one of its name; raises `ConfigurationError` for one that cannot be."""
        if not _NAME.fullmatch(name):
            raise RuleNameError("a rule's name is 1 to 100 letters, digits, dots, dashes and underscores")
        rule_plugin(rule, name, self._manager.obligation_models)
        await self.refresh()
        if name not in self._state.rules:
            if self._manager.get_plugin(name) is not None:
                raise NameTakenError(name)
            if len(self._state.rules) >= MAX_RULES:
                raise TooManyRulesError(f"{MAX_RULES} rules are set already")
        said = rule.model_dump(exclude_none=True, exclude={"name", "enabled"})
        event = self._event(EventKind.RULE, {"rule": name, "set": said}, why)
        if dry_run:
            return SharedRule(name=name, said=said, actor=why.actor, reason=why.reason, at_ms=event.at_ms)
        await self._record(event)
        await self.refresh()
        return self._state.rules.get(name) or SharedRule(
            name=name, said=said, actor=why.actor, reason=why.reason, at_ms=event.at_ms
        )

    async def drop_rule(self, name: str, why: Why) -> SharedRule | None:
        """Drop a rule, and return it; None if there is none."""
        await self.refresh()
        known = self._state.rules.get(name)
        if known is not None:
            await self._record(self._event(EventKind.RULE, {"rule": name, "set": None}, why))
            await self.refresh()
        return known

    async def switch(self, plugin: str, action: Action, why: Why, **about: str) -> None:
        """Let a plugin be asked in every process, or not, or as it was registered; for good."""
        await self._record(self._event(EventKind.PLUGIN, {"plugin": plugin, "action": action, **about}, why))
        await self.refresh()

    async def record_reload(self, plugin: str, why: Why, **about: str) -> None:
        """Record that one process is to load a plugin anew: it decides nothing for the others."""
        await self._record(self._event(EventKind.PLUGIN, {"plugin": plugin, "action": "reload", **about}, why))

    def _event(self, kind: EventKind, detail: Mapping[str, Any], why: Why) -> LimitEvent:
        return LimitEvent(
            event_id=f"{kind}:{uuid4().hex}",
            kind=kind,
            root=DEFAULT_ROOT,
            at_ms=self._clock.now_ms(),
            actor=why.actor,
            reason=why.reason,
            detail_json=json.dumps(detail, separators=(",", ":")),
        )

    async def _read(self) -> _State | None:
        """Read on; None if nothing is new."""
        known = self._state
        # The last one that is known comes again, or the database is another one by now.
        page = await self._ledger.policy_events(known.seq, _PAGE)
        if known.last_id:
            if page and page[0].event.event_id == known.last_id:
                page = page[1:]
                state = _State(known.seq, known.last_id, dict(known.rules), dict(known.switches))
            else:
                _log.warning("the ledger's policy events are not those of before: all of them are read anew")
                state = _State()
                page = await self._ledger.policy_events(0, _PAGE)
                if not page:
                    return state
        else:
            state = _State()
        if not page:
            return None
        state.follow(page)
        while page := await self._ledger.policy_events(state.seq + 1, _PAGE):
            state.follow(page)
        return state

    async def _apply(self, state: _State) -> None:
        # Before rules come, so that one that is switched off is never asked.
        self._manager.switch_plugins(state.switches)
        for rule in tuple(state.rules.values()):
            name, made_of = self._registered.get(rule.name, ("", {}))
            if not name or made_of != rule.said:
                await self._put(rule, name)
                await asyncio.sleep(0)  # compiling takes a millisecond: requests go on in between
        for gone in self._registered.keys() - state.rules.keys():
            name, _ = self._registered.pop(gone)
            await self._manager.unregister_plugin(name)
        # One that was dropped and set again may still be the same here: everywhere they are asked in the order of the events.
        self._manager.order_plugins(self._registered[rule][0] for rule in state.rules)
        _log.info("policies are as administrators decided, up to event %d: %d rules", state.seq, len(state.rules))

    async def _put(self, rule: SharedRule, name: str) -> None:
        name = name or rule.name
        while rule.name not in self._registered and self._manager.get_plugin(name) is not None:
            name += _TAKEN  # a plugin of this process has the name
        plugin = usable_or_not(rule.said, name, self._manager.obligation_models)
        await self._manager.put_plugin(plugin)
        if isinstance(plugin, UnusableRule):
            _log.error("rule %r cannot be used in this process, its on_error decides", rule.name)
            self._manager.load_failed(name, ConfigurationError(plugin.why))
        self._registered[rule.name] = (name, rule.said)
