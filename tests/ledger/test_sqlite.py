"""What is SQLite's own: its thread, its lock, its file."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from sark_mw.errors import ConfigurationError, LedgerUnavailableError
from sark_mw.ledger.base import CostFilter
from sark_mw.ledger.open import open_ledger
from sark_mw.ledger.sqlite import SqliteLedger
from tests.ledger.books import entry

APPEND_IN_A_PROCESS = """
import asyncio, sys
from sark_mw.ledger.open import open_ledger
from tests.ledger.books import entry

async def main():
    ledger = open_ledger(sys.argv[1])
    await ledger.migrate()
    for start in range(1, 101, 10):
        await ledger.append([entry(number) for number in range(start, start + 10)])
    await ledger.aclose()

asyncio.run(main())
"""


async def test_a_ledger_in_memory_lives_as_long_as_it_is_open() -> None:
    ledger = SqliteLedger("sqlite:///:memory:")
    assert len(await ledger.migrate()) == (await ledger.schema_version())[1]
    await ledger.append([entry(1)])
    assert (await ledger.total(CostFilter())).rows == 1
    await ledger.aclose()
    other = SqliteLedger("sqlite:///:memory:")
    assert (await other.schema_version())[0] == 0
    await other.aclose()


async def test_what_is_committed_is_in_the_file_for_the_next_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/books.db"
    ledger = open_ledger(url)
    await ledger.migrate()
    await ledger.append([entry(1)])
    # not closed: as a process that is killed
    other = open_ledger(url)
    assert await other.append([entry(1), entry(2)]) == 1
    await asyncio.gather(ledger.aclose(), other.aclose())


def test_processes_that_start_at_once_share_a_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/books.db"
    command = [sys.executable, "-W", "error", "-c", APPEND_IN_A_PROCESS, url]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 4
    connection = sqlite3.connect(tmp_path / "books.db")
    assert connection.execute("select count(*), sum(cost_nanos) from cost_tracking").fetchone() == (100, 100_000)
    assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    connection.close()


async def test_a_lock_of_somebody_else_is_waited_for_and_then_reported(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    ledger = SqliteLedger(f"sqlite:///{path}", deadline_s=0.05)
    await ledger.migrate()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("begin immediate")
    with pytest.raises(LedgerUnavailableError, match="locked"):
        await ledger.append([entry(1)])
    assert (await ledger.total(CostFilter())).rows == 0  # readers never wait
    holder.execute("rollback")
    holder.close()
    assert await ledger.append([entry(1)]) == 1
    await ledger.aclose()


async def test_the_event_loop_goes_on_while_the_disk_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    ledger = SqliteLedger(f"sqlite:///{path}", deadline_s=60)
    await ledger.migrate()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("begin immediate")
    waiting = asyncio.create_task(ledger.append([entry(1)]))
    # Only a loop that is not blocked gets to release the lock that the append waits for.
    await asyncio.sleep(0.01)
    assert not waiting.done()
    holder.execute("rollback")
    holder.close()
    assert await waiting == 1
    await ledger.aclose()


async def test_a_failed_batch_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    ledger = SqliteLedger(f"sqlite:///{path}")
    await ledger.migrate()
    breaker = sqlite3.connect(path)
    breaker.execute("create trigger full before insert on cost_tracking when new.shard_seq = 3 begin select * from no_such; end")
    with pytest.raises(Exception, match="no_such"):
        await ledger.append([entry(number) for number in range(1, 6)])
    breaker.execute("drop trigger full")
    breaker.commit()
    breaker.close()
    assert (await ledger.total(CostFilter())).rows == 0
    assert await ledger.append([entry(number) for number in range(1, 6)]) == 5
    await ledger.aclose()


@pytest.mark.parametrize("directory", ["books.db/inside", "."])
async def test_a_place_where_no_file_can_be_is_reported(tmp_path: Path, directory: str) -> None:
    (tmp_path / "books.db").write_text("")
    ledger = SqliteLedger(f"sqlite:///{tmp_path / directory}/{'' if directory == '.' else 'x.db'}")
    with pytest.raises(LedgerUnavailableError):
        await ledger.migrate()
    await ledger.aclose()


async def test_a_file_that_is_no_database_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    path.write_text("this is not a database, whatever its name says" * 100)
    ledger = open_ledger(f"sqlite:///{path}")
    with pytest.raises(Exception, match="not a database") as raised:
        await ledger.migrate()
    assert type(raised.value).__name__ == "LedgerError"
    await ledger.aclose()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:relative.db"])
def test_an_address_that_names_no_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        SqliteLedger(url)
