"""The migrations that ship with the package: one SQL file each, `migrations/<track>/NNNN_name.sql`.

The head of a file are comments `-- key: value`: `description` (required), `transaction: none` for a single statement that cannot
run in a transaction (it must then be repeatable, since a crash may come before it is recorded), `needs: community` for what
TimescaleDB does not do under its Apache licence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from sark_mw.errors import ConfigurationError

#: Any number will do, as long as it is ours: the key of the advisory lock under which migrations run.
LOCK_KEY = 0x5A2B_1ED6_E200
_KEYS = ("description", "transaction", "needs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step of the schema. `version` counts from 1 within its track without gaps."""

    track: str
    version: int
    name: str
    description: str
    sql: str
    in_transaction: bool = True
    needs_community: bool = False

    @property
    def label(self) -> str:
        """Name it as its file is named, with its track."""
        return f"{self.track}/{self.version:04d}_{self.name}"


@lru_cache(maxsize=8)
def migrations(track: str) -> tuple[Migration, ...]:
    """Read the migrations of a track (`sqlite`, `postgres`, `timescale`) in order."""
    folder = files("sark_mw.ledger").joinpath("migrations", track)
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(".sql"))
    found = tuple(_read(track, name, folder.joinpath(name).read_text(encoding="utf-8")) for name in names)
    if not found or [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise ConfigurationError(f"the installation is broken: the {track} migrations are not complete: {names}")
    return found


def _read(track: str, file_name: str, sql: str) -> Migration:
    number, _, name = file_name.removesuffix(".sql").partition("_")
    head: dict[str, str] = {}
    for line in sql.splitlines():
        key, colon, value = line.removeprefix("-- ").partition(": ")
        if not (line.startswith("-- ") and colon and key in _KEYS):
            break
        head[key] = value.strip()
    return Migration(
        track=track,
        version=int(number),
        name=name,
        description=head["description"],
        sql=sql,
        in_transaction=head.get("transaction") != "none",
        needs_community=head.get("needs") == "community",
    )
