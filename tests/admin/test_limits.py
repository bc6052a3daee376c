"""Limits set and seen over HTTP."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, get_args

import pytest
from openapi_spec_validator import validate

from sark_mw.admin.inputs import Kind, UnitName
from sark_mw.ledger.events import EventFilter, EventKind
from sark_mw.limit import DEFAULT_ROOT, Unit
from sark_mw.wire.base import RefusalKind
from tests.admin.conftest import PATH, TOKEN, Admin, MakeAdmin
from tests.enforcement.whole import ALICE, TEAM, admitted, counted, refused, until
from tests.servers.redis_server import RedisHandle

BUDGET = {"scope": "user:*", "amount": "2.5", "window": "month:15", "timezone": "Europe/Berlin"}
SLOTS = {"scope": "org:acme", "unit": "concurrency", "amount": 3}


def ids(limits: Any) -> list[str]:
    return [each["limit_id"] for each in limits]


async def test_the_document_is_openapi_and_names_every_unit_and_kind(admin: Admin) -> None:
    answer = await admin.client.get(f"{PATH}/openapi.json", headers={"authorization": f"Bearer {TOKEN}"})
    document = answer.json()
    validate(document)
    assert document["openapi"] == "3.1.0" and document["servers"] == [{"url": PATH}]
    assert set(get_args(UnitName)) == set(Unit) and set(get_args(Kind)) == set(EventKind)


async def test_limits_are_set_listed_and_dropped_with_who_and_why(admin: Admin) -> None:
    headers = {"x-sark-actor": "jane"}
    done = await admin.ask("PUT", "/limits", json={"limits": [BUDGET, SLOTS], "reason": "Q4"}, headers=headers)
    assert ids(done["added"]) == ["user:*/usd/month:15@Europe/Berlin", "org:acme/concurrency/total"]
    more = await admin.ask("PUT", "/limits", json={"limits": [{**BUDGET, "amount": 3, "mode": "shadow"}, SLOTS]})
    assert [(each["before"]["amount"], each["after"]["mode"]) for each in more["changed"]] == [("2.5", "shadow")]
    assert ids(more["unchanged"]) == ["org:acme/concurrency/total"]
    listed = (await admin.ask("GET", "/limits"))["limits"]
    assert {each["limit_id"]: each["amount"] for each in listed} == {
        "team:ml/usd/total": "10",
        "user:*/usd/month:15@Europe/Berlin": "3",
        "org:acme/concurrency/total": "3",
    }
    gone = await admin.ask("DELETE", "/limits/org:acme/concurrency/total", params={"reason": "unused"})
    assert ids(gone["dropped"]) == ["org:acme/concurrency/total"]
    again = await admin.ask("DELETE", "/limits/org:acme/concurrency/total", status=404)
    assert again["field"] == "limit_id"
    events = (await admin.ask("GET", "/events", params={"kind": ["set", "delete"], "most": 3}))["events"]
    assert [(each["kind"], each["actor"], each["reason"]) for each in events] == [
        ("delete", "admin", "unused"),
        ("set", "admin", ""),
        ("set", "jane", "Q4"),
    ]


async def test_a_dry_run_tells_and_changes_nothing(admin: Admin) -> None:
    before = await admin.ask("GET", "/limits")
    put = await admin.ask("PUT", "/limits", params={"dry_run": "true"}, json={"limits": [BUDGET]})
    dropped = await admin.ask("DELETE", "/limits/team:ml/usd/total", params={"dry_run": "true"})
    imported = await admin.ask("POST", "/limits/import", params={"dry_run": True, "prune": True}, json={"limits": [BUDGET]})
    assert (ids(put["added"]), ids(dropped["dropped"])) == ([put["added"][0]["limit_id"]], ["team:ml/usd/total"])
    assert (ids(imported["added"]), ids(imported["dropped"])) == (ids(put["added"]), ["team:ml/usd/total"])
    assert put["dry_run"] and await admin.ask("GET", "/limits") == before


async def test_an_import_drops_the_rest_only_if_asked_and_only_of_the_roots_it_names(admin: Admin) -> None:
    await admin.ask("PUT", "/limits", json={"limits": [{**BUDGET, "root": "acme"}, {**SLOTS, "root": "acme"}]})
    await admin.ask("POST", "/limits/import", params={"root": "acme"}, json={"limits": [BUDGET]})
    assert len((await admin.ask("GET", "/limits", params={"root": "acme"}))["limits"]) == 2
    await admin.ask("POST", "/limits/import", params={"root": "acme", "prune": "true"}, json={"limits": [BUDGET]})
    assert ids((await admin.ask("GET", "/limits", params={"root": "acme"}))["limits"]) == ["user:*/usd/month:15@Europe/Berlin"]
    assert ids((await admin.ask("GET", "/limits"))["limits"]) == ["team:ml/usd/total"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"window": "fortnight"}, "window"),
        ({"amount": "-1"}, "amount"),
        ({"amount": "1e400"}, "amount"),
        ({"amount": "99999999999"}, "amount"),
        ({"unit": "requests", "amount": "0.5"}, "amount"),
        ({"unit": "bananas"}, "unit"),
        ({"mode": "maybe"}, "mode"),
        ({"scope": "nonsense"}, "scope"),
        ({"scope": None}, "scope"),
        ({"root": "a b"}, "root"),
        ({"parent": "user:*"}, "parent"),
        ({"thresholds": [0]}, "thresholds"),
        ({"thresholds": ["x"]}, "thresholds[0]"),
        ({"thresholds": [True]}, "thresholds[0]"),
        ({"thresholds": [50, "80"]}, "thresholds[1]"),
        ({"window": "total", "rollover": "1"}, "rollover"),
        ({"color": "red"}, "color"),
    ],
)
async def test_what_is_wrong_with_a_limit_is_told_with_its_field_and_nothing_is_set(
    admin: Admin, changes: dict[str, Any], field: str
) -> None:
    wrong = {"scope": "user:x", "amount": "1", "window": "day", **changes}
    told = await admin.ask("PUT", "/limits", status=422, json={"limits": [BUDGET, wrong]})
    assert told["field"] == f"limits[1].{field}"
    assert ids((await admin.ask("GET", "/limits"))["limits"]) == ["team:ml/usd/total"]


async def test_what_is_wrong_together_is_told_and_nothing_is_set(admin: Admin) -> None:
    twice = await admin.ask("PUT", "/limits", status=422, json={"limits": [BUDGET, {**BUDGET, "amount": 9}]})
    assert twice["field"] == "limits[1]"
    part = {"scope": "user:a", "amount": "11", "window": "total", "parent": TEAM}
    told = await admin.ask("PUT", "/limits", status=422, json={"limits": [part]})
    assert "would hand out 11" in told["detail"]
    assert ids((await admin.ask("GET", "/limits"))["limits"]) == ["team:ml/usd/total"]


@pytest.mark.parametrize(
    ("path", "params", "field"),
    [
        ("/limits", {"root": "a|b"}, "root"),
        ("/limits", {"root": ["a", "b"]}, "root"),
        ("/limits", {"rot": "a"}, "rot"),
        ("/status", {"scope": "x"}, "scope[0]"),
        ("/holds", {"most": "0"}, "most"),
        ("/events", {"kind": "party"}, "kind[0]"),
        ("/events", {"since": "yesterday"}, "since"),
        ("/events", {"before_seq": str(2**70)}, "before_seq"),
    ],
)
async def test_a_wrong_parameter_is_told_by_name(admin: Admin, path: str, params: dict[str, Any], field: str) -> None:
    assert (await admin.ask("GET", path, status=422, params=params))["field"] == field


async def test_status_tells_what_is_allowed_spent_held_and_left(admin: Admin) -> None:
    first = await admitted(admin.sark, "3")
    told = await admin.ask("GET", "/status", params={"scope": [ALICE, TEAM]})
    (team,) = told["limits"]
    assert (team["amount"], team["spent"], team["held"], team["remaining"]) == ("10.00", "0.00", "3.00", "7.00")
    assert await admin.ask("GET", "/status") == told
    assert (team["resets_at"], team["scope"]) == (None, TEAM)
    first.release()


async def test_a_top_up_counts_once_by_its_key(admin: Admin) -> None:
    body = {"scope": TEAM, "amount": "2.50", "reason": "invoice 4"}
    for _ in range(2):
        told = await admin.ask("POST", "/top-ups", json=body, headers={"idempotency-key": "inv-4"})
        assert (told["amount"], told["topped_up"]) == ("12.50", "2.50")
    other = await admin.ask("POST", "/top-ups", status=422, json={**body, "amount": "3"}, headers={"idempotency-key": "inv-4"})
    assert other["field"] == "idempotency-key"
    assert (await admin.ask("POST", "/top-ups", json={**body, "amount": "-1.5"}))["amount"] == "11.00"
    (newest, _) = (await admin.ask("GET", "/events", params={"kind": "top_up", "root": DEFAULT_ROOT}))["events"]
    assert (newest["amount"], newest["actor"], newest["reason"]) == ("-1.50", "admin", "invoice 4")


@pytest.mark.parametrize("other", [{"root": "other"}, {"scope": ALICE}, {"window": "day"}, {"amount": "6"}])
async def test_a_key_that_came_with_another_top_up_is_refused(admin: Admin, other: dict[str, Any]) -> None:
    total, day = {"scope": TEAM, "amount": 1, "window": "total"}, {"scope": TEAM, "amount": 1, "window": "day"}
    more = [day, {**total, "root": "other"}, {**total, "scope": ALICE}]
    await admin.ask("PUT", "/limits", json={"limits": more})
    body, headers = {"scope": TEAM, "amount": "5", "window": "total"}, {"idempotency-key": "inv-4"}
    await admin.ask("POST", "/top-ups", json=body, headers=headers)
    told = await admin.ask("POST", "/top-ups", status=422, json={**body, **other}, headers=headers)
    assert told["field"] == "idempotency-key"
    # The keys of overrides are others.
    await admin.ask("POST", "/overrides", json={**body, "for_s": 60}, headers=headers)


async def test_a_key_is_that_of_an_override_for_as_long_as_was_asked(admin: Admin) -> None:
    body, headers = {"scope": TEAM, "amount": "5", "for_s": 60}, {"idempotency-key": "raise-1"}
    first = await admin.ask("POST", "/overrides", json=body, headers=headers)
    ends = {"scope": TEAM, "amount": "5", "until": first["override_until"]}
    for other in ({**body, "for_s": 99_999}, ends, {"scope": TEAM, "amount": None}):
        told = await admin.ask("POST", "/overrides", status=422, json=other, headers=headers)
        assert told["field"] == "idempotency-key"
    assert await admin.ask("POST", "/overrides", json=body, headers=headers) == first
    (event,) = (await admin.ask("GET", "/events", params={"kind": "override"}))["events"]
    assert event["detail"] == {"for_s": 60}


async def test_an_override_is_in_force_until_it_ends(admin: Admin) -> None:
    ends = (datetime.now(UTC) + timedelta(hours=2)).replace(microsecond=0)
    told = await admin.ask("POST", "/overrides", json={"scope": TEAM, "amount": "99", "until": ends.isoformat()})
    assert (told["amount"], told["base_amount"]) == ("99.00", "99.00")
    assert datetime.fromisoformat(told["override_until"]) == ends
    headers = {"idempotency-key": "raise-1"}
    once = await admin.ask("POST", "/overrides", json={"scope": TEAM, "amount": 50, "for_s": 3600}, headers=headers)
    await asyncio.sleep(0.01)
    again = await admin.ask("POST", "/overrides", json={"scope": TEAM, "amount": 50, "for_s": 3600}, headers=headers)
    assert once["override_until"] == again["override_until"] and again["amount"] == "50.00"
    assert len((await admin.ask("GET", "/events", params={"kind": "override"}))["events"]) == 2
    ended = await admin.ask("POST", "/overrides", json={"scope": TEAM, "amount": None})
    assert (ended["amount"], ended["override_until"]) == ("10.00", None)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/top-ups", {"scope": "team:other", "amount": 1}, "scope"),
        ("/top-ups", {"scope": "user:*", "amount": 1}, "scope"),
        ("/top-ups", {"scope": TEAM, "amount": "99999999999"}, "amount"),
        ("/top-ups", {"scope": TEAM, "amount": 1, "window": "blue moon"}, "window"),
        ("/top-ups", {"scope": TEAM, "amount": 1, "root": ""}, "root"),
        ("/overrides", {"scope": TEAM, "amount": 1, "until": "2020-01-01T00:00:00Z"}, "until"),
        ("/overrides", {"scope": TEAM, "amount": 1, "until": "2026-12-01T00:00:00"}, "until"),
        ("/overrides", {"scope": TEAM, "for_s": 10}, "amount"),
        ("/overrides", {"scope": TEAM, "amount": 1, "for_s": True}, "for_s"),
    ],
)
async def test_a_wrong_grant_is_told_with_its_field(admin: Admin, path: str, body: dict[str, Any], field: str) -> None:
    assert (await admin.ask("POST", path, status=422, json=body))["field"] == field


@pytest.mark.parametrize(
    "body", [{"amount": 1}, {"amount": None, "for_s": 9}, {"amount": 1, "for_s": 9, "until": "2030-01-01T00:00Z"}]
)
async def test_an_override_has_one_end(admin: Admin, body: dict[str, Any]) -> None:
    assert "one of until and for_s" in (await admin.ask("POST", "/overrides", status=422, json={"scope": TEAM, **body}))["detail"]
    await admin.ask("POST", "/top-ups", status=422, json={"scope": TEAM, "amount": 0})


async def test_a_hold_released_by_hand_is_free_and_recorded(admin: Admin) -> None:
    held = await admitted(admin.sark, "4")
    (hold,) = (await admin.ask("GET", "/holds"))["holds"]
    assert (hold["id"], hold["principal"], hold["held"]["usd"]) == (held.reservation_id, ALICE, "4.00")
    assert hold["scopes"] == [ALICE, TEAM] and hold["request_id"] == held.request_id
    done = await admin.ask(
        "DELETE", f"/holds/{hold['id']}", params={"reason": "client is gone"}, headers={"x-sark-actor": "jane"}
    )
    assert done["released"]["id"] == hold["id"] and await counted(admin.sark) == (0, 0)
    assert (await admin.ask("GET", "/holds"))["holds"] == []
    assert (await admin.ask("DELETE", f"/holds/{hold['id']}", status=404))["field"] == "id"
    ((recorded),) = await admin.sark.limits.history(EventFilter(kinds=("release",)))
    event = recorded.event
    assert (event.actor, event.reason, event.amount, event.scope) == ("jane", "client is gone", 4_000_000_000, ALICE)
    assert held.reservation_id in event.detail_json


async def test_recent_refusals_of_all_processes_are_told_with_their_reason(make: MakeAdmin, valkey_server: RedisHandle) -> None:
    one = await make(valkey_server.url, budget="1")
    two = await make(valkey_server.url, budget="1")
    refusal = await refused(two.sark, "5")
    assert refusal.kind is RefusalKind.BUDGET

    async def told() -> bool:
        return bool((await one.ask("GET", "/refusals"))["refusals"])

    await until(told)
    answer = await one.ask("GET", "/refusals")
    (only,) = answer["refusals"]
    assert (only["kind"], only["limit_id"], only["principal"]) == ("budget", f"{TEAM}/usd/total", ALICE)
    assert (only["message"], only["request_id"]) == (refusal.message, refusal.request_id)
    assert (Decimal(only["needed"]), Decimal(only["remaining"]), only["scopes"]) == (5, 1, [ALICE, TEAM])
    assert (await one.ask("GET", "/refusals", params={"root": "other"}))["refusals"] == []


async def test_a_limit_set_in_one_process_refuses_the_next_request_of_another(
    make: MakeAdmin, valkey_server: RedisHandle
) -> None:
    one = await make(valkey_server.url, budget=None)
    two = await make(valkey_server.url, budget=None)
    (await admitted(two.sark, "5")).release()
    await one.ask("PUT", "/limits", json={"limits": [{"scope": TEAM, "amount": "1", "window": "total"}]})
    assert (await refused(two.sark, "5")).limit == f"{TEAM}/usd/total"
    await one.ask("POST", "/top-ups", json={"scope": TEAM, "amount": "9"})
    (await admitted(two.sark, "5")).release()
    await one.ask("DELETE", f"/limits/{TEAM}/usd/total")
    (await admitted(two.sark, "500")).release()


async def test_a_store_that_does_not_answer_is_a_503(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    from sark_mw.errors import StoreUnavailableError

    async def fail(*_: object) -> None:
        raise StoreUnavailableError("gone")

    monkeypatch.setattr(admin.sark.store, "limits", fail)
    for method, path, body in (("GET", "/limits", None), ("PUT", "/limits", {"limits": [BUDGET]})):
        assert (await admin.ask(method, path, status=503, json=body))["title"] == "Service Unavailable"


async def test_a_change_that_others_were_always_faster_than_is_a_409(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    async def overtaken(*_: object) -> None:
        return None

    monkeypatch.setattr("sark_mw.enforcement.limits._PAUSE_S", 0)
    monkeypatch.setattr(admin.sark.store, "change_limits", overtaken)
    told = await admin.ask("PUT", "/limits", status=409, json={"limits": [BUDGET]})
    assert "changed by others at the same time, nothing was changed: repeat" in told["detail"]
    assert [limit.scope for limit in await admin.sark.ledger.load_limits()] == [TEAM]


async def test_a_body_that_names_something_twice_is_refused(admin: Admin) -> None:
    for text in ('{"limits": [{"scope": "user:d", "amount": "1", "amount": "9000"}]}', '{"limits": [], "limits": []}'):
        headers = {"content-type": "application/json"}
        told = await admin.ask("POST", "/limits/import", status=400, content=text, params={"prune": "true"}, headers=headers)
        assert "named twice" in told["detail"]
    assert ids((await admin.ask("GET", "/limits"))["limits"]) == ["team:ml/usd/total"]


async def test_a_status_of_all_reads_the_limits_once(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [{"scope": f"user:{n}", "amount": 1, "window": "total"} for n in range(250)]
    await admin.ask("PUT", "/limits", json={"limits": [*limits, BUDGET]})
    read, asked = admin.sark.store.limits, list[str]()

    async def counting(root: str) -> Any:
        asked.append(root)
        return await read(root)

    monkeypatch.setattr(admin.sark.store, "limits", counting)
    told = await admin.ask("GET", "/status")
    # Each user's total, and what each spent of the pattern's.
    assert len(told["limits"]) == 501 and asked == [DEFAULT_ROOT]


async def test_a_pattern_that_counts_nothing_on_a_scope_cannot_be_topped_up_there(admin: Admin) -> None:
    limits = [{"scope": "user:*", "amount": 1}, {"scope": ALICE, "amount": 1}]
    await admin.ask("PUT", "/limits", json={"limits": limits})
    body = {"scope": ALICE, "amount": 1}
    told = await admin.ask("POST", "/top-ups", status=422, json={**body, "limit_id": "user:*/usd/day@UTC"})
    assert told["field"] == "scope"
    assert (await admin.ask("POST", "/top-ups", json={**body, "window": "day"}))["limit_id"] == f"{ALICE}/usd/day@UTC"
