"""Policy plugins over HTTP: listed, switched on and off, loaded anew, and who did so."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from sark_mw.asgi.middleware import SarkMiddleware
from sark_mw.instrumentation.audit import AuditInstrumentation, audit_logger
from sark_mw.policy.base import PolicyContext
from sark_mw.policy.files import PluginFile
from sark_mw.policy.packages import Lock, pin_of
from sark_mw.sark import Sark
from tests.admin.conftest import TOKEN, Admin, MakeAdmin, app
from tests.enforcement.whole import settings_for, until
from tests.policy.samples import Sample
from tests.policy.versions import write


async def with_plugin(make: MakeAdmin, tmp_path: Path, **policy: Any) -> Admin:
    plugins = [{"path": str(write(tmp_path)), "isolated": False}, {"name": "allow_list", "options": {"models": ["gpt-4o"]}}]
    return await make(policy={"plugins": plugins, **policy})


async def asked(admin: Admin) -> list[str]:
    context = PolicyContext("user:a", "openai", "chat", "invoke", {"model": "gpt-4o"})
    return [str(each.plugin_name) for each in await admin.sark.policies.evaluate_all(context)]


async def test_the_plugins_are_listed_in_the_order_in_which_they_are_asked(make: MakeAdmin, tmp_path: Path) -> None:
    admin = await with_plugin(make, tmp_path)
    found = (await admin.ask("GET", "/plugins"))["plugins"]
    assert [each["name"] for each in found] == await asked(admin)
    (own,) = [each for each in found if each["name"] == "versioned"]
    assert (own["version"], own["tier"], own["enabled"], own["lock"]) == ("1", "in process", True, "")
    assert own["source"].endswith("versioned.py") and own["hash"].startswith("sha256:")


@pytest.mark.parametrize("said", [None, {"owner": "me", "source": 3, "last_error": None, "priority": None}])
async def test_a_plugin_that_says_odd_things_of_itself_is_listed_and_switched_and_rules_are_set(
    make: MakeAdmin, said: dict[str, Any] | None
) -> None:
    class Odd(Sample):
        def get_metadata(self) -> dict[str, Any]:
            return said  # type: ignore[return-value]  # what its author got wrong

    admin = await make()
    await admin.sark.policies.register_plugin(Odd("odd", priority=7))
    (told,) = (await admin.ask("GET", "/plugins"))["plugins"]
    assert (told["name"], told["priority"], told["on_error"]) == ("odd", 7, "deny")
    off = await admin.ask("POST", "/plugins/odd/disable")
    assert off["plugin"]["enabled"] is False
    await admin.ask("PUT", "/rules/night", json={"when": "false", "deny": "no"})


async def test_a_plugin_is_switched_off_and_on_and_it_is_recorded_who_did_it_and_why(make: MakeAdmin, tmp_path: Path) -> None:
    admin = await with_plugin(make, tmp_path)
    headers = {"x-sark-actor": "jane"}
    off = await admin.ask("POST", "/plugins/versioned/disable", params={"reason": "incident"}, headers=headers)
    assert off["plugin"]["enabled"] is False and await asked(admin) == ["allow_list"]
    on = await admin.ask("POST", "/plugins/versioned/enable", headers=headers)
    assert on["plugin"]["enabled"] is True and sorted(await asked(admin)) == ["allow_list", "versioned"]
    events = (await admin.ask("GET", "/events", params={"kind": "plugin"}))["events"]
    said = [(each["actor"], each["reason"], each["detail"]["action"], each["detail"]["plugin"]) for each in events]
    assert said == [("jane", "", "enable", "versioned"), ("jane", "incident", "disable", "versioned")]


async def test_who_switches_a_plugin_is_in_the_audit_trail(tmp_path: Path) -> None:
    trail = StringIO()
    settings = settings_for(
        f"memory://{uuid4().hex}",
        tmp_path,
        admin={"enabled": True, "token": TOKEN},
        policy={"plugins": [{"name": "allow_list", "options": {"models": ["gpt-4o"]}}]},
    )
    async with Sark.open(settings, instrumentation=AuditInstrumentation(audit_logger(file=trail))) as sark:
        transport = httpx2.ASGITransport(app=SarkMiddleware(app, sark=sark))  # type: ignore[arg-type]
        async with httpx2.AsyncClient(transport=transport, base_url="http://sark") as client:
            admin = Admin(sark, client)
            why = {"params": {"reason": "incident"}, "headers": {"x-sark-actor": "jane"}}
            await admin.ask("POST", "/plugins/allow_list/disable", **why)
    (line,) = [line for line in trail.getvalue().splitlines() if '"kind": "plugin"' in line]
    assert all(word in line for word in ("jane", "incident", "disable", "allow_list"))


async def test_a_changed_file_is_taken_up_and_a_broken_one_leaves_the_old_version(make: MakeAdmin, tmp_path: Path) -> None:
    admin = await with_plugin(make, tmp_path)
    write(tmp_path, "2")
    assert (await admin.ask("POST", "/plugins/versioned/reload"))["plugin"]["version"] == "2"
    (tmp_path / "versioned.py").write_text("def (")
    problem = await admin.ask("POST", "/plugins/versioned/reload", status=409)
    assert "The version in force stays" in problem["detail"]
    (own,) = [each for each in (await admin.ask("GET", "/plugins"))["plugins"] if each["name"] == "versioned"]
    assert own["version"] == "2" and "not valid Python" in own["last_error"]
    await admin.ask("POST", "/plugins/allow_list/reload")


async def test_a_file_that_the_lock_does_not_pin_is_not_taken_up(make: MakeAdmin, tmp_path: Path) -> None:
    lock, path = Lock(path=tmp_path / "sark-plugins.lock"), write(tmp_path)
    lock.write([pin_of(lock.key(path), "versioned", "1", PluginFile(path=path).contents())])
    admin = await with_plugin(make, tmp_path, lock=str(lock.path))
    write(tmp_path, "2 and longer")
    problem = await admin.ask("POST", "/plugins/versioned/reload", status=409)
    assert "is refused" in problem["detail"]
    (own,) = [each for each in (await admin.ask("GET", "/plugins"))["plugins"] if each["name"] == "versioned"]
    assert (own["version"], own["lock"]) == ("1", "changed")


async def test_what_another_plugin_requires_is_not_switched_off(make: MakeAdmin, tmp_path: Path) -> None:
    (tmp_path / "versioned").mkdir()
    path = write(tmp_path / "versioned")
    path.with_name("plugin.toml").write_text('name = "versioned"\nversion = "1"\nrequires = {plugins = {allow_list = ">=1"}}')
    admin = await make(policy={"plugins": [{"path": str(path), "isolated": False}, {"name": "allow_list"}]})
    problem = await admin.ask("POST", "/plugins/allow_list/disable", status=409)
    assert problem["detail"] == "Plugin 'allow_list' is required by versioned."
    await admin.ask("POST", "/plugins/versioned/disable")
    await admin.ask("POST", "/plugins/allow_list/disable")


async def test_an_unknown_plugin_is_not_found_and_nothing_is_recorded(make: MakeAdmin, tmp_path: Path) -> None:
    admin = await with_plugin(make, tmp_path)
    for action in ("enable", "disable", "reload"):
        assert (await admin.ask("POST", f"/plugins/nobody/{action}", status=404))["field"] == "name"
    await admin.ask("GET", "/plugins", status=401, token=None)
    assert (await admin.ask("GET", "/events", params={"kind": "plugin"}))["events"] == []


async def test_what_is_switched_is_switched_in_every_process_and_after_a_restart(make: MakeAdmin, tmp_path: Path) -> None:
    policy = {"plugins": [{"name": "allow_list", "options": {"models": ["gpt-4o"]}}]}
    url = f"memory://{uuid4().hex}"
    here, there = await make(url, policy=policy), await make(url, policy=policy)
    off = await here.ask("POST", "/plugins/allow_list/disable", params={"reason": "incident"})
    assert (off["plugin"]["enabled"], off["plugin"]["switched"]) == (False, "off")
    await until(lambda: _asks(there, []))
    later = await make(url, policy=policy)
    assert await asked(later) == []
    reset = await later.ask("POST", "/plugins/allow_list/reset")
    assert (reset["plugin"]["enabled"], reset["plugin"]["switched"]) == (True, "")
    await until(lambda: _asks(here, ["allow_list"]))


async def _asks(admin: Admin, names: list[str]) -> bool:
    return await asked(admin) == names


async def test_a_plugin_is_not_switched_on_while_what_it_requires_is_off(make: MakeAdmin, tmp_path: Path) -> None:
    (tmp_path / "versioned").mkdir()
    path = write(tmp_path / "versioned")
    path.with_name("plugin.toml").write_text('name = "versioned"\nversion = "1"\nrequires = {plugins = {allow_list = ">=1"}}')
    admin = await make(policy={"plugins": [{"path": str(path), "isolated": False}, {"name": "allow_list"}]})
    await admin.ask("POST", "/plugins/versioned/disable")
    await admin.ask("POST", "/plugins/allow_list/disable")
    for action in ("enable", "reset"):
        problem = await admin.ask("POST", f"/plugins/versioned/{action}", status=409)
        assert problem["detail"] == "Plugin 'versioned' requires allow_list, which is not asked."
    assert await asked(admin) == []
    await admin.ask("POST", "/plugins/allow_list/reset")
    await admin.ask("POST", "/plugins/versioned/reset")
    assert sorted(await asked(admin)) == ["allow_list", "versioned"]
