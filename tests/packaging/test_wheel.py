"""What is shipped: built for real, installed apart, and run from there."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("packaging")

RUN = """
import asyncio, pathlib, sys
import sark_mw
from decimal import Decimal
from sark_mw.policy.builtin import builtin_plugin_path
from sark_mw.store.scripts import lua_folder
assert str(pathlib.Path(sark_mw.__file__)).startswith(sys.argv[1]), sark_mw.__file__
assert str(lua_folder()).startswith(sys.argv[1]), lua_folder()
assert str(builtin_plugin_path("rate_limit")).startswith(sys.argv[1])

async def main():
    settings = sark_mw.Settings(
        store={"journal": sys.argv[2]},
        observe={"audit_log": False},
        limits=[{"scope": "user:*", "amount": "1"}],
        policy={"plugins": [{"name": "rate_limit", "options": {"max_requests": 2, "window_seconds": 60}}]},
    )
    async with sark_mw.Sark.open(settings) as sark:
        admitted = 0
        for _ in range(3):
            try:
                async with sark.reserve(principal="user:a", estimate=Decimal("0.30")) as reservation:
                    reservation.settle(Decimal("0.30"))
                admitted += 1
            except sark_mw.RefusedError as refused:
                assert refused.kind == "policy", refused
        print("admitted", admitted)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    # Without isolation, so that nothing is downloaded: hatchling is in the test extra.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return target


def test_the_wheel_carries_scripts_plugins_migrations_and_the_typing_marker(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    lua = {f"sark_mw/_lua/{path.relative_to(ROOT / 'lua')}" for path in (ROOT / "lua").rglob("*.lua")}
    plugins = {f"sark_mw/_plugins/{path.name}" for path in (ROOT / "plugins").glob("*.py")}
    migrations = {str(path.relative_to(ROOT)) for path in (ROOT / "sark_mw/ledger/migrations").rglob("*.sql")}
    assert len(lua) > 10
    assert plugins
    assert migrations
    assert names >= lua | plugins | migrations | {"sark_mw/py.typed"}
    assert not [name for name in names if name.startswith("tests/")]


def test_the_sdist_carries_what_the_wheel_is_built_from(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"lua/reserve.lua", "lua/include/book.lua", "plugins/rate_limit.py", "sark_mw/__init__.py", "README.md"} <= names


def test_the_installed_wheel_enforces_from_its_own_files(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(site), str(tmp_path / "journal.jsonl")],
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "admitted 2"
