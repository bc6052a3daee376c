"""What administrators decide of policies: in every process, for good, whatever comes in between."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from sark_mw.enforcement.grants import Why
from sark_mw.enforcement.shared_policies import SharedPolicies
from sark_mw.enforcement.tables import ServerClock
from sark_mw.errors import ConfigurationError, LedgerUnavailableError
from sark_mw.ledger.base import Ledger
from sark_mw.ledger.events import EventKind, LimitEvent
from sark_mw.ledger.open import open_ledger
from sark_mw.policy.base import PolicyContext, PolicyDecision
from sark_mw.policy.manager import PolicyPluginManager
from sark_mw.policy.reloading import NameTakenError
from sark_mw.settings_policy import RuleSettings
from tests.policy.samples import Sample

WHY = Why(actor="jane", reason="why not")
DEAR = RuleSettings(when='request.model == "gpt-4o"', deny="too dear")
SMALL = RuleSettings(when='request.model == "gpt-4o-mini"', deny="too small")

Process = tuple[SharedPolicies, PolicyPluginManager]
MakeProcess = Callable[[], Awaitable[Process]]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.getfixturevalue("postgres_url")) if request.param == "postgres" else f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
async def process(url: str) -> AsyncIterator[MakeProcess]:
    """Make processes that share a database: each with a manager and connections of its own."""
    async with AsyncExitStack() as stack:

        async def one() -> Process:
            ledger = open_ledger(url)
            stack.push_async_callback(ledger.aclose)
            await ledger.migrate()
            manager = PolicyPluginManager()
            await manager.register_plugin(Sample(name="resident"))
            return shared(ledger, manager), manager

        yield one


def shared(ledger: Ledger, manager: PolicyPluginManager) -> SharedPolicies:
    async def record(*events: LimitEvent) -> None:
        await ledger.record_new(events)

    return SharedPolicies(ledger, manager, clock=ServerClock(), record=record)


async def decide(manager: PolicyPluginManager, model: str = "gpt-4o") -> list[PolicyDecision]:
    environment = {"model": model}
    return await manager.evaluate_all(PolicyContext("user:a", "openai", "chat", "invoke", {"model": model}, environment))


async def reasons(manager: PolicyPluginManager, model: str = "gpt-4o") -> list[str]:
    return [each.reason for each in await decide(manager, model) if not each.allowed]


async def test_a_rule_holds_where_it_was_set_at_once_and_elsewhere_with_the_next_look(process: MakeProcess) -> None:
    (here, mine), (there, theirs) = await process(), await process()
    assert await reasons(mine) == await reasons(theirs) == []
    await here.set_rule("dear", DEAR, WHY)
    assert await reasons(mine) == ["too dear"]
    assert await reasons(theirs) == []
    await there.refresh()
    assert await reasons(theirs) == ["too dear"]
    late, _ = newcomer = await process()
    await late.refresh()
    assert await reasons(newcomer[1]) == ["too dear"]
    (rule,) = late.rules
    assert (rule.name, rule.actor, rule.reason, dict(rule.said)["when"]) == ("dear", "jane", "why not", DEAR.when)


async def test_a_rule_is_replaced_without_a_round_that_misses_it(process: MakeProcess) -> None:
    here, manager = await process()
    await here.set_rule("dear", DEAR, WHY)
    unjudged, done = 0, False

    async def ask() -> None:
        nonlocal unjudged
        while not done:
            unjudged += not await reasons(manager)
            await asyncio.sleep(0)

    asking = asyncio.ensure_future(ask())
    for number in range(20):
        await here.set_rule("dear", DEAR.model_copy(update={"deny": f"number {number}"}), WHY)
    done = True
    await asking
    assert unjudged == 0
    assert await reasons(manager) == ["number 19"]


async def test_a_dropped_rule_is_gone_everywhere_and_its_switch_stays(process: MakeProcess) -> None:
    (here, mine), (there, theirs) = await process(), await process()
    await here.set_rule("dear", DEAR, WHY)
    await here.switch("dear", "disable", WHY)
    assert await reasons(mine) == []
    await there.refresh()
    assert await reasons(theirs) == []
    dropped = await there.drop_rule("dear", WHY)
    assert dropped is not None and dropped.name == "dear"
    assert await there.drop_rule("dear", WHY) is None
    await here.refresh()
    assert here.rules == () and dict(here.switches) == {"dear": False}
    await here.set_rule("dear", DEAR, WHY)
    assert await reasons(mine) == []
    await here.switch("dear", "reset", WHY)
    assert await reasons(mine) == ["too dear"]


async def test_rules_of_one_priority_are_asked_in_one_order_in_every_process(process: MakeProcess) -> None:
    (here, mine), (there, theirs) = await process(), await process()
    for name in ("a", "b", "c"):
        await here.set_rule(name, DEAR.model_copy(update={"deny": f"by {name}"}), WHY)
    await there.refresh()
    # Dropped and set again, between two looks of the other: to that one it is the rule that it has.
    await here.drop_rule("a", WHY)
    await here.set_rule("a", DEAR.model_copy(update={"deny": "by a"}), WHY)
    await there.refresh()
    late, newest = await process()
    await late.refresh()
    for manager in (mine, theirs, newest):
        assert [each["name"] for each in manager.list_plugins()] == ["resident", "b", "c", "a"]
        assert await reasons(manager) == ["by b"]
    await there.set_rule("b", DEAR.model_copy(update={"deny": "still by b"}), WHY)
    assert await reasons(theirs) == ["still by b"]


async def test_many_who_decide_at_once_end_up_with_the_same(process: MakeProcess) -> None:
    processes = [await process() for _ in range(3)]
    await asyncio.gather(
        *(
            each.set_rule(f"rule-{number % 4}", DEAR.model_copy(update={"deny": f"{at}.{number}"}), WHY)
            for at, (each, _) in enumerate(processes)
            for number in range(8)
        ),
        *(each.switch("resident", "disable" if at else "enable", WHY) for at, (each, _) in enumerate(processes)),
    )
    for each, _ in processes:
        await each.refresh()
    states = [(each.rules, dict(each.switches), await reasons(manager)) for each, manager in processes]
    assert states[0] == states[1] == states[2]
    assert sorted(rule.name for rule in states[0][0]) == [f"rule-{n}" for n in range(4)]


async def test_a_plugin_is_switched_by_name_for_good_also_where_it_comes_later(process: MakeProcess) -> None:
    (here, mine), (there, theirs) = await process(), await process()
    await here.switch("resident", "disable", WHY)
    await here.switch("comes-later", "disable", WHY)
    await there.refresh()
    await theirs.register_plugin(Sample(name="comes-later"))
    assert await decide(mine) == await decide(theirs) == []
    await there.switch("comes-later", "reset", WHY)
    await there.switch("resident", "enable", WHY)
    await here.refresh()
    assert [each.plugin_name for each in await decide(theirs)] == ["resident", "comes-later"]
    assert [each.plugin_name for each in await decide(mine)] == ["resident"]


async def test_what_an_earlier_version_switched_in_one_process_is_not_switched_in_all(process: MakeProcess) -> None:
    here, manager = await process()
    await here._record(here._event(EventKind.PLUGIN, {"plugin": "resident", "action": "disable", "process": 4711}, WHY))
    await here.refresh()
    assert [each.plugin_name for each in await decide(manager)] == ["resident"] and not here.switches
    await here.switch("resident", "disable", WHY)
    await here._record(here._event(EventKind.PLUGIN, {"plugin": "resident", "action": "enable", "process": 4711}, WHY))
    await here.refresh()
    assert await decide(manager) == []


async def test_a_reset_plugin_is_asked_as_it_was_registered(process: MakeProcess) -> None:
    here, manager = await process()
    await manager.register_plugin(Sample(name="asleep"), enabled=False)
    await here.switch("asleep", "enable", WHY)
    assert [each.plugin_name for each in await decide(manager)] == ["resident", "asleep"]
    await here.switch("asleep", "reset", WHY)
    assert [each.plugin_name for each in await decide(manager)] == ["resident"]


async def test_a_rule_that_this_process_cannot_use_fails_and_its_on_error_decides(process: MakeProcess) -> None:
    here, manager = await process()
    strange = {"when": 'request.of_the_future == "x"', "deny": "no", "priority": 5}
    for name, said in (
        ("strange", strange),
        ("lenient", {**strange, "on_error": "skip"}),
        ("shapeless", {"what": 1}),
    ):
        await here._record(here._event(EventKind.RULE, {"rule": name, "set": said}, WHY))
    await here._record(here._event(EventKind.RULE, {"nothing": 1}, WHY))
    await here._record(here._event(EventKind.PLUGIN, {"plugin": "resident", "action": "explode"}, WHY))
    await here.refresh()
    assert [rule.name for rule in here.rules] == ["strange", "lenient", "shapeless"]
    assert all("last_error" in each for each in manager.list_plugins() if each["name"] != "resident")
    decisions = await decide(manager)
    assert [(each.plugin_name, each.allowed, str(each.outcome)) for each in decisions] == [("strange", False, "failed")]
    await here.drop_rule("strange", WHY)
    decisions = await decide(manager)
    assert [(each.plugin_name, each.allowed) for each in decisions][-1] == ("shapeless", False)
    await here.drop_rule("shapeless", WHY)
    assert all(each.allowed for each in await decide(manager))


async def test_a_rule_whose_name_a_plugin_of_this_process_has_is_asked_all_the_same(process: MakeProcess) -> None:
    (here, mine), (there, theirs) = await process(), await process()
    await theirs.register_plugin(Sample(name="dear"))
    with pytest.raises(NameTakenError):
        await there.set_rule("dear", DEAR, WHY)
    await here.set_rule("dear", DEAR, WHY)
    await there.refresh()
    assert await reasons(theirs) == await reasons(mine) == ["too dear"]
    assert (here.plugin_of("dear"), there.plugin_of("dear")) == ("dear", "dear@admin")
    await here.set_rule("dear", SMALL, WHY)
    await there.refresh()
    assert (await reasons(theirs), await reasons(theirs, "gpt-4o-mini")) == ([], ["too small"])
    await there.drop_rule("dear", WHY)
    assert await reasons(theirs, "gpt-4o-mini") == []
    assert theirs.get_plugin("dear") is not None


@pytest.mark.parametrize("name", ["", "a/b", "with space", "x" * 101, "rule@admin", "é"])
async def test_a_name_that_cannot_be_is_refused(process: MakeProcess, name: str) -> None:
    here, _ = await process()
    with pytest.raises(ConfigurationError, match="name"):
        await here.set_rule(name, DEAR, WHY)


async def test_what_does_not_compile_is_refused_and_nothing_is_recorded(process: MakeProcess) -> None:
    here, manager = await process()
    with pytest.raises(ConfigurationError, match="line 1"):
        await here.set_rule("dear", DEAR.model_copy(update={"when": "request.modell == 1"}), WHY)
    await here.set_rule("dear", DEAR, WHY, dry_run=True)
    assert here.rules == () and await reasons(manager) == []


async def test_while_the_database_is_away_what_is_known_stays(process: MakeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    here, manager = await process()
    await here.set_rule("dear", DEAR, WHY)

    async def away(*_: Any) -> Any:
        raise LedgerUnavailableError("away")

    with monkeypatch.context() as patched:
        patched.setattr(type(here._ledger), "policy_events", away)
        for attempt in (here.refresh(), here.set_rule("small", SMALL, WHY), here.drop_rule("dear", WHY)):
            with pytest.raises(LedgerUnavailableError):
                await attempt
        assert await reasons(manager) == ["too dear"]
    await here.refresh()
    assert [rule.name for rule in here.rules] == ["dear"]


async def test_what_was_read_but_could_not_be_applied_is_applied_with_the_next_look(
    process: MakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, manager = await process()

    async def refuses(*_: Any) -> None:
        raise RuntimeError("not now")

    with monkeypatch.context() as patched:
        patched.setattr(manager, "put_plugin", refuses)
        with pytest.raises(RuntimeError):
            await here.set_rule("dear", DEAR, WHY)
    await here.refresh()
    assert await reasons(manager) == ["too dear"]


async def test_a_database_that_was_restored_from_a_backup_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger, manager = open_ledger(f"sqlite:///{path}"), PolicyPluginManager()
    await ledger.migrate()
    here = shared(ledger, manager)
    await here.set_rule("before", SMALL, WHY)
    await here.set_rule("dear", DEAR, WHY)
    assert await reasons(manager) == ["too dear"]
    with sqlite3.connect(path) as backup:
        backup.execute("delete from limit_events where seq = 2")
        backup.execute("update sqlite_sequence set seq = 1 where name = 'limit_events'")
    await here.refresh()
    assert [rule.name for rule in here.rules] == ["before"] and await reasons(manager) == []
    # Another event of the number that it knew.
    await here.set_rule("other", DEAR, WHY)
    with sqlite3.connect(path) as backup:
        backup.execute("update limit_events set event_id = 'rule:another' where seq = 2")
    await here.refresh()
    assert [rule.name for rule in here.rules] == ["before", "other"]
    with sqlite3.connect(path) as backup:
        backup.execute("delete from limit_events")
    await here.refresh()
    assert here.rules == () and await reasons(manager) == []
    await ledger.aclose()


async def test_thousands_of_decisions_are_read_in_portions_and_then_read_on_from(process: MakeProcess) -> None:
    here, _ = await process()
    events = [
        here._event(EventKind.RULE, {"rule": f"r{n % 7}", "set": {"when": "true", "deny": str(n)}}, WHY) for n in range(2500)
    ]
    await here._record(*events)
    await here.refresh()
    assert [rule.said["deny"] for rule in here.rules] == [str(2499 - (2499 - n) % 7) for n in range(7)]
    other, _ = await process()
    await other.refresh()
    assert other.rules == here.rules


async def test_at_the_end_the_manager_is_as_it_was(process: MakeProcess) -> None:
    here, manager = await process()
    await here.set_rule("dear", DEAR, WHY)
    await here.switch("resident", "disable", WHY)
    await here.aclose()
    assert [(each["name"], each["enabled"]) for each in manager.list_plugins()] == [("resident", True)]
