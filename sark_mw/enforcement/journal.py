"""The local journal: bookings that the store could not take yet, one JSON line each, booked at the next chance."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sark_mw.reservation import Line, Resolution, Settle


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
    taken over by whoever finds them first (a rename decides).
    """

    def __init__(self, path: Path) -> None:
        self._base = path
        self._path = path.with_name(f"{path.stem}.{os.getpid()}{path.suffix}")
        self._entries: dict[tuple[str, int], str] = {}
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    async def add(self, settle: Settle, reason: str) -> None:
        """Keep a settle; it is on disk when this returns."""
        text = _written(settle, reason)
        self._entries[settle.reservation_id, settle.part] = text
        await asyncio.to_thread(self._append, text)

    async def remove(self, settle: Settle) -> None:
        """Drop a settle that is booked."""
        if self._entries.pop((settle.reservation_id, settle.part), None) is not None:
            await asyncio.to_thread(self._rewrite)

    def entries(self) -> list[Settle]:
        """List what waits to be booked."""
        return [_read(text) for text in self._entries.values()]

    async def take_over(self) -> int:
        """Adopt the journals of processes that are gone; return how many entries came."""
        found = await asyncio.to_thread(self._adopt)
        for text in found:
            settle = _read(text)
            self._entries[settle.reservation_id, settle.part] = text
        if found:
            await asyncio.to_thread(self._rewrite)
        return len(found)

    def _append(self, text: str) -> None:
        with self._writing, self._path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _rewrite(self) -> None:
        with self._writing:
            if not self._entries:
                self._path.unlink(missing_ok=True)
                return
            fresh = self._path.with_suffix(".tmp")
            with fresh.open("w", encoding="utf-8") as file:
                file.writelines(text + "\n" for text in [*self._entries.values()])
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)

    def _adopt(self) -> list[str]:
        found: list[str] = []
        for path in self._base.parent.glob(f"{self._base.stem}.*{self._base.suffix}"):
            owner = path.name[len(self._base.stem) + 1 : -len(self._base.suffix) or None]
            if not owner.isdigit() or (path != self._path and _is_alive(int(owner))):
                continue
            taken = path.with_name(f"{path.name}.taken-by-{os.getpid()}")
            try:
                path.rename(taken)
            except OSError:
                continue  # somebody else was first
            lines = taken.read_text("utf-8").splitlines()
            found += [line for line in lines if _is_sound(line)]
            # Ours from here on: the entries are rewritten under our own name before the old file goes.
            with self._writing, self._path.open("a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines if _is_sound(line))
                file.flush()
                os.fsync(file.fileno())
            taken.unlink()
        return found


def _is_sound(line: str) -> bool:
    """Tell a whole line from one that a dying process wrote in part."""
    try:
        _read(line)
    except (ValueError, TypeError, KeyError):
        return False
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
