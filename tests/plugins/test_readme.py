from __future__ import annotations

import re
from pathlib import Path

from sark_mw import PolicyPluginManager, builtin_plugin_path
from tests.policy.samples import a_context

README = builtin_plugin_path("rate_limit").with_name("README.md").read_text(encoding="utf-8")


async def test_the_plugin_in_the_readme_works_as_it_stands_and_has_20_lines(tmp_path: Path) -> None:
    source = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert len(source.splitlines()) <= 20
    path = tmp_path / "allowed_models.py"
    path.write_text(source, encoding="utf-8")
    manager = PolicyPluginManager()
    await manager.load_from_file(path, models=["gpt-4o-mini"])
    await manager.load_from_file(builtin_plugin_path("business_hours"), timezone="Europe/Berlin", enabled=False)
    denied = (await manager.evaluate_all(a_context()))[0]
    assert denied.reason == "gpt-4o is not among the allowed models" and denied.metadata == {"allowed": ["gpt-4o-mini"]}
    assert (await manager.evaluate_all(a_context(arguments={"model": "gpt-4o-mini"})))[0].allowed
    for name in ("allowed_models", "business_hours"):
        await manager.unregister_plugin(name)
