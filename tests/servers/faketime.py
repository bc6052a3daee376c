"""A Valkey whose clock the test moves: `TIME`, expiry and stream ids follow, timers and time-outs do not."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.servers.process import new_directory, wait_until
from tests.servers.redis_server import RedisServer

ROUNDING = timedelta(milliseconds=1)


class FaketimeServer(RedisServer):
    """A server under libfaketime. Its clock runs on from wherever it is put, forwards or back, over restarts too.

    It reads the file of its clock at its own pace: a move returns when the server, if it runs, shows it.
    """

    def __init__(self, binary: Path, library: Path, **options: str | int) -> None:
        directory = new_directory()
        self._offset_file = directory / "offset"
        self._offset_s = 0.0
        self._write_offset()
        environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset_file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        super().__init__(binary, environment=environment, directory=directory, **options)

    def set_time(self, moment: datetime) -> None:
        """Put the clock to an aware datetime; it runs on from there."""
        if moment.tzinfo is None:
            raise ValueError("set_time takes an aware datetime")
        self.set_offset(timedelta(seconds=moment.timestamp() - time.time()))

    def set_offset(self, offset: timedelta) -> None:
        """Put the clock `offset` away from the real one."""
        self._offset_s = offset.total_seconds()
        self._move()

    def advance(self, step: timedelta) -> None:
        """Move the clock by `step`; a negative one steps it back."""
        self._offset_s += step.total_seconds()
        self._move()

    def now(self) -> datetime:
        """Return what the server answers to TIME, in UTC."""
        seconds, micros = self.command("TIME")
        return datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(micros))

    def recover(self) -> None:
        """Empty the server and put its clock right."""
        self._offset_s = 0.0
        self._write_offset()  # it may be paused: nobody can be asked yet
        super().recover()
        self._move()

    def kill(self) -> None:
        """SIGKILL; what libfaketime left in shared memory goes too."""
        pid = self.process.pid if self.running else None
        super().kill()
        if pid is not None:
            for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
                Path("/dev/shm", name).unlink(missing_ok=True)

    def _move(self) -> None:
        self._write_offset()
        if self.running:
            wait_until(self._is_where_it_was_put, lambda: "the server does not notice that its clock was moved")

    def _is_where_it_was_put(self) -> bool:
        offset = timedelta(seconds=self._offset_s)
        before = datetime.now(UTC)
        seen = self.now() - offset
        return before - ROUNDING <= seen <= datetime.now(UTC) + ROUNDING

    def _write_offset(self) -> None:
        # Replaced whole: the server reads the file at every look at its clock.
        fresh = self._offset_file.with_suffix(".new")
        fresh.write_text(f"{self._offset_s:+.6f}\n")
        fresh.replace(self._offset_file)
