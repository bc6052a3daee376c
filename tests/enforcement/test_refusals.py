"""Recent refusals: bounded in number and size, never in a request's way, and nothing of what a request said."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from sark_mw.enforcement.refusals import RecentRefusals
from sark_mw.enforcement.tables import ServerClock
from sark_mw.errors import StoreUnavailableError
from sark_mw.sark import Sark
from sark_mw.store.base import RecentRefusal
from sark_mw.store.connect import open_store
from sark_mw.store.redis_store import RedisStore
from sark_mw.wire.base import Refusal, RefusalKind
from tests.enforcement.whole import admitted, invocation, refused, settings_for


@pytest.fixture
async def store(request: pytest.FixtureRequest) -> AsyncIterator[RedisStore]:
    store = await open_store(f"memory://{uuid4().hex}", shards=1, deadline_s=20.0)
    yield store
    await store.aclose()


def note(refusals: RecentRefusals, number: int, *, root: str = "acme", **changes: object) -> None:
    fields = {"kind": RefusalKind.BUDGET, "message": "no", "request_id": f"r{number}", **changes}
    refusals.refused(Refusal(**fields), root=root, principal_id="user:a", scopes=("user:a",))  # type: ignore[arg-type]


async def test_a_hundred_of_a_second_are_listed_and_the_others_counted_by_root(store: RedisStore) -> None:
    refusals = RecentRefusals(store, ServerClock())
    for n in range(150):
        note(refusals, n)
    note(refusals, 150, root="other")
    await refusals.write()
    found = await store.recent_refusals("acme", 1000)
    assert len([each for each in found if each.kind]) == 100 and sum(each.left_out for each in found) == 50
    assert [each.left_out for each in await store.recent_refusals("other")] == [1]
    note(refusals, 200)
    await refusals.write()
    assert (await store.recent_refusals("acme", 1))[0].request_id == "r200"


async def test_the_stream_keeps_only_the_last_few_thousand(store: RedisStore) -> None:
    many = [RecentRefusal(at_ms=n, root="acme", kind="budget", request_id=f"r{n}") for n in range(5000)]
    for start in range(0, len(many), 500):
        await store.note_refusals(many[start : start + 500])
    found = await store.recent_refusals("acme", 10_000)
    assert 2000 <= len(found) < 3000 and found[0].request_id == "r4999"


async def test_what_is_written_is_bounded_and_malformed_requests_are_not_in_it(store: RedisStore) -> None:
    refusals = RecentRefusals(store, ServerClock())
    note(refusals, 1, message="x" * 10_000, limit="l" * 10_000)
    note(refusals, 2, kind=RefusalKind.INVALID, message="cannot read 'my secret prompt'")
    await refusals.write()
    (only,) = await store.recent_refusals("acme")
    assert len(only.message) == 500 and len(only.limit_id) == 500


async def test_a_request_that_is_admitted_after_all_is_not_listed(tmp_path: Path) -> None:
    async with Sark.open(settings_for("memory://", tmp_path)) as sark:
        first = invocation("5")
        assert isinstance(await sark.enforcer.admit(first), Refusal)
        sark.refusals.admitted(first.request_id)
        (await admitted(sark, "0.5")).release()
        last = await refused(sark, "5")
        await sark.refusals.write()
        assert [each.request_id for each in await sark.store.recent_refusals("default")] == [last.request_id]


async def test_a_store_that_fails_costs_the_list_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Sark.open(settings_for("memory://", tmp_path)) as sark:

        async def fail(_: Sequence[RecentRefusal]) -> None:
            raise StoreUnavailableError("gone")

        monkeypatch.setattr(sark.store, "note_refusals", fail)
        await refused(sark, "5")
        with pytest.raises(StoreUnavailableError):
            await sark.refusals.write()
        monkeypatch.undo()
        await refused(sark, "5")
        await sark.refusals.write()
        assert len(await sark.store.recent_refusals("default")) == 1
