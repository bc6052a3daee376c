"""The local journal: bookings that the store could not take yet, one JSON line each, booked at the next chance."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sark_mw.reservation import Line, Resolution, Settle

_Key = tuple[str, int]


def _key(settle: Settle) -> _Key:
    return settle.reservation_id, settle.part


def _written(settle: Settle, reason: str) -> str:
    lines = [{k: v for k, v in asdict(line).items() if k != "limit"} for line in settle.lines]
    fields = {name: getattr(settle, name) for name in Settle.__slots__ if name != "lines"}
    return json.dumps({**fields, "lines": lines, "reason": reason}, separators=(",", ":"))


def _read(text: str) -> Settle:
    fields: dict[str, Any] = json.loads(text)
    fields.pop("reason", None)
    fields["lines"] = tuple(Line(**line) for line in fields["lines"])
    fields["amounts"] = tuple((str(unit), int(amount)) for unit, amount in fields["amounts"])
    return Settle(**{**fields, "kind": Resolution(fields["kind"])})


class Journal:
    """Append settles to a file, forced to disk; take them out again once they are booked.

    One process writes a file: each appends its process id to the configured name. Files of processes that are gone are
    taken over by whoever finds them first (a rename decides). Of several lines about one settle the last counts.
    """

    def __init__(self, path: Path) -> None:
        self._base = path
        self._path = path.with_name(f"{path.stem}.{os.getpid()}{path.suffix}")
        taken = r"(?:\.taken-by-(\d+))?"
        self._name = re.compile(rf"({re.escape(path.stem)}\.(\d+){re.escape(path.suffix)}){taken}")
        self._entries: dict[_Key, str] = {}
        self._in_flight: set[_Key] = set()
        self._unwritten: list[str] = []
        self._removed = self._rewritten = 0
        self._has_looked = False
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, settle: Settle) -> bool:
        return _key(settle) in self._entries

    async def open(self, settle: Settle) -> None:
        """Keep what to book of a request in flight if nothing more is heard of it; it is on disk when this returns.

        `entries` does not list it before `add` says what it came to; a process that finds it after this one died does. Raises
        `OSError`, and then keeps nothing.
        """
        key, text = _key(settle), _written(settle, "in_flight")
        self._in_flight.add(key)
        try:
            await self._keep(key, text)
        except OSError:
            self._in_flight.discard(key)
            del self._entries[key]
            with contextlib.suppress(ValueError):
                self._unwritten.remove(text)
            raise

    async def add(self, settle: Settle, reason: str) -> None:
        """Keep a settle; it is on disk when this returns. Raises `OSError`, and then keeps it in memory."""
        self._in_flight.discard(_key(settle))
        await self._keep(_key(settle), _written(settle, reason))

    async def _keep(self, key: _Key, text: str) -> None:
        self._entries[key] = text
        self._unwritten.append(text)
        await asyncio.to_thread(self._append)

    async def remove(self, settle: Settle) -> None:
        """Drop a settle that is booked."""
        if self._entries.pop(_key(settle), None) is not None:
            self._in_flight.discard(_key(settle))
            self._removed += 1
            await asyncio.to_thread(self._rewrite, self._removed)

    def entries(self) -> list[Settle]:
        """List what waits to be booked."""
        return [_read(text) for key, text in self._entries.items() if key not in self._in_flight]

    async def take_over(self) -> int:
        """Adopt the journals of processes that are gone; return how many entries came."""
        found = {_key(settle): text for settle, text in await asyncio.to_thread(self._adopt)}
        new = {key: text for key, text in found.items() if key not in self._entries}
        self._entries.update(new)
        if found:
            self._removed += 1
            await asyncio.to_thread(self._rewrite, self._removed)
        return len(new)

    def _append(self) -> None:
        """Write what waits to be written: one forcing to disk for all who came meanwhile."""
        with self._writing:
            texts, self._unwritten = self._unwritten, []
            if not texts:
                return
            try:
                self._write_to(self._path, texts, "a")
            except OSError:
                self._unwritten = texts + self._unwritten
                raise

    def _rewrite(self, removal: int) -> None:
        with self._writing:
            if self._rewritten >= removal:
                return  # another one wrote it down with its own
            now = self._removed
            if self._entries:
                fresh = self._path.with_suffix(".tmp")
                self._write_to(fresh, [*self._entries.values()], "w")
                fresh.replace(self._path)
            else:
                self._path.unlink(missing_ok=True)
            self._rewritten = now

    def _write_to(self, path: Path, texts: Sequence[str], mode: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode, encoding="utf-8") as file:
            # A newline first: a line that could only be written in part must not spoil the next one.
            file.write("\n".join(["", *texts, ""]))
            file.flush()
            os.fsync(file.fileno())

    def _adopt(self) -> list[tuple[Settle, str]]:
        # Our own name only once: then it is what a process of the same id left behind.
        first, self._has_looked = not self._has_looked, True
        found: list[tuple[Settle, str]] = []
        for path in self._base.parent.glob(f"{self._base.stem}.*"):
            match = self._name.fullmatch(path.name)
            if match is None:
                continue
            owner = int(match[3] or match[2])
            if not first if owner == os.getpid() else _is_alive(owner):
                continue
            taken = path.with_name(f"{match[1]}.taken-by-{os.getpid()}")
            try:
                path.rename(taken)
            except OSError:
                continue  # somebody else was first
            sound = [(settle, line) for line in _lines(taken) if (settle := _read_whole(line)) is not None]
            # Ours from here on: the entries are written under our own name before the old file goes.
            with self._writing:
                self._write_to(self._path, [line for _, line in sound], "a")
            taken.unlink()
            found += sound
        return found


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8", errors="replace").splitlines()


def _read_whole(line: str) -> Settle | None:
    """Read a line, unless a dying process wrote it in part."""
    try:
        return _read(line)
    except (ValueError, TypeError, KeyError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
