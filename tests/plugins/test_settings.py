"""Every plugin that comes along is loaded by its name in the settings, with options as TOML has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sark_mw._fake_provider import FakeProvider
from sark_mw.errors import ConfigurationError
from sark_mw.policy.builtin import BUILTIN_PLUGINS, builtin_plugin_path
from sark_mw.settings import Settings
from tests.asgi.driving import Gateway, gateway_for

TOML = """
[principal]
anonymous = "user:a"
[ledger]
flush = false
[store]
journal = "{folder}/journal.jsonl"
deadline_ms = 20_000
[observe]
metrics = false
audit_log = false
[admin]
token = "a token of the tests, long enough"
[[limits]]
scope = "user:a"
amount = 10
[[limits]]
scope = "user:a"
amount = 100
unit = "concurrency"
[[policy.plugins]]
name = "network"
options = {{deny = ["198.51.100.0/24"]}}
[[policy.plugins]]
name = "business_hours"
options = {{start_hour = 0, end_hour = 24, allowed_days = [0, 1, 2, 3, 4, 5, 6], closed_on = [2001-12-24, "2002-12-24"]}}
[[policy.plugins]]
name = "allow_list"
[policy.plugins.options]
models = ["gpt-4o*"]
rules = [{{scopes = ["user:*"], deny_models = ["*-preview"]}}]
[[policy.plugins]]
name = "size_guard"
options = {{max_messages = 3, content_types = ["text"]}}
[[policy.plugins]]
name = "rate_limit"
options = {{max_requests = 5, window_minutes = 1, key = "principal+capability"}}
[[policy.plugins]]
name = "adaptive_rate_limit"
options = {{start = 5}}
[[policy.plugins]]
name = "cost_aware"
options = {{scopes = ["user"], deny_threshold = 0.9}}
[[policy.plugins]]
name = "anomaly"
options = {{least_usd = 5}}
[[policy.plugins]]
name = "approval"
options = {{above_usd = 1}}
"""


def settings_in(folder: Path) -> Settings:
    path = folder / "sark.toml"
    path.write_text(TOML.format(folder=folder), "utf-8")
    return Settings.load(path)


async def test_all_of_them_together_let_an_ordinary_request_pass(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert {plugin.name for plugin in settings.policy.plugins} == set(BUILTIN_PLUGINS)
    provider = FakeProvider()
    async with gateway_for(provider, settings, on_fakeredis=True) as gateway:
        listed = {each["name"] for each in gateway.sark.policies.list_plugins(enabled_only=True)}
        assert listed == set(BUILTIN_PLUGINS)
        assert (await gateway.post()).status == 200
        await _each_denies(gateway)
    assert len(provider.calls) == 5


async def _each_denies(gateway: Gateway) -> None:
    def ask(**changes: object) -> dict[str, object]:
        return {"model": "gpt-4o", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}], **changes}

    far = await gateway.post(ask(), client=("198.51.100.7", 1))
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}]
    denied = {
        "network": far,
        "allow_list": await gateway.post(ask(model="gpt-4o-audio-preview")),
        "size_guard": await gateway.post(ask(messages=picture)),
        "approval": await gateway.post(ask(max_tokens=16_000, n=50)),
    }
    for name, answer in denied.items():
        assert answer.status == 403 and f"policy {name}:" in answer.json["error"]["message"], answer.body
    statuses = [(await gateway.post(ask())).status for _ in range(6)]
    assert statuses[-1] == 403 and statuses.count(200) == 4


@pytest.mark.parametrize("name", BUILTIN_PLUGINS)
async def test_an_option_that_a_plugin_does_not_have_refuses_the_start(tmp_path: Path, name: str) -> None:
    policy = {"plugins": ({"name": name, "options": {"colour": "red"}},)}
    settings = settings_in(tmp_path).model_copy(update={"policy": Settings.of({"policy": policy}).policy})
    with pytest.raises(ConfigurationError, match="colour"):
        async with gateway_for(FakeProvider(), settings, on_fakeredis=True):
            raise AssertionError("it started")


def test_each_stands_in_the_readme_and_imports_only_what_is_public() -> None:
    readme = builtin_plugin_path("rate_limit").with_name("README.md").read_text("utf-8")
    for name in BUILTIN_PLUGINS:
        assert f"`{name}.py`" in readme
        source = builtin_plugin_path(name).read_text("utf-8")
        assert "from sark_mw import" in source and "sark_mw." not in source.replace("sark-mw.", "")
