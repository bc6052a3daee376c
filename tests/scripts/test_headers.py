"""The header of each Lua script is its contract: read here against the code, the wrapper and the enum."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sark_mw.reservation import Outcome
from sark_mw.store.keys import _PARTS
from sark_mw.store.scripts import load_script, lua_folder

SCRIPTS = sorted(path.stem for path in lua_folder().glob("*.lua"))
KEY_TYPES = {"meta": "hash", "periods": "zset", "leases": "zset", "outbox": "stream"}
#: Codes of whole calls besides the outcomes.
CALL_CODES = {"ok", "no_epoch", "stale_limits", "exists"}


def _parts(name: str) -> tuple[str, str]:
    text = (lua_folder() / f"{name}.lua").read_text("utf-8")
    header, _, code = text.partition("\n\n")
    return header, code


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_begins_with_what_it_is_for(name: str) -> None:
    first = _parts(name)[0].splitlines()[0]
    assert re.fullmatch(r"-- [A-Z].+[.:]", first)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_header_names_the_keys_in_the_order_in_which_the_wrapper_gives_them(name: str) -> None:
    keys = re.findall(r"^-- KEYS\[(\d+)\] (\w+) (\w+)$", _parts(name)[0], re.MULTILINE)
    assert [(int(n), key, kind) for n, key, kind in keys] == [
        (n, part, KEY_TYPES.get(part, "hash")) for n, part in enumerate(_PARTS, 1)
    ]


def test_the_include_names_the_keys_in_the_same_order() -> None:
    text = (lua_folder() / "include" / "keys.lua").read_text("utf-8")
    named = dict(re.findall(r"(\w+) = keys\[(\d+)\]", text))
    assert named == {part: str(n) for n, part in enumerate(_PARTS, 1)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_keys_are_reached_only_through_their_names(name: str) -> None:
    code = _parts(name)[1]
    assert "KEYS[" not in code
    assert code.count("KEYS") == 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_arguments_at_fixed_places_are_documented(name: str) -> None:
    header, code = _parts(name)
    used = {int(n) for n in re.findall(r"ARGV\[(\d+)\]", code)}
    documented = {int(n) for n in re.findall(r"^-- ARGV\[(\d+)\] \w+", header, re.MULTILINE)}
    assert documented
    assert used <= documented
    assert documented == set(range(1, len(documented) + 1))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_code_that_a_script_returns_stands_in_its_header(name: str) -> None:
    header, code = _parts(name)
    described = set(re.findall(r"\w+", header[header.index("-- Returns") :]))
    returned = set(re.findall(r"return \{ '(\w+)'", code)) | set(re.findall(r"return '(\w+)", code))
    assert returned
    assert returned <= described
    assert returned <= CALL_CODES | set(Outcome) | {"repeated", "exceeds_limit"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_reply_has_as_many_parts_as_the_header_says(name: str) -> None:
    header, code = _parts(name)
    shape = re.search(r"-- Returns \{(.*)\}", header)
    assert shape is not None
    parts = len(re.sub(r"\{[^{}]*\}", "x", shape[1]).split(","))
    replies = re.findall(r"^ *return (\{ '.*\})$", code, re.MULTILINE)
    assert replies
    for reply in replies:
        inner = re.sub(r"\([^()]*\)", "()", reply[1:-1])
        assert len(re.sub(r"\{[^{}]*\}", "x", inner).split(",")) == parts, reply


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_use_only_what_every_server_and_fakeredis_have(name: str) -> None:
    source = load_script(name).source
    assert not re.search(r"\b(cmsgpack|bit|struct|goto)\b\.?", source)
    assert not source.startswith("#!")
    assert Path(name).name == name
