"""The Lua scripts: found in the wheel or the repository, put together from their includes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path

from sark_mw.errors import ConfigurationError

_INCLUDE = re.compile(r"^-- @include (.+)$", re.MULTILINE)
_PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Script:
    """One script as it is sent; `sha` is what EVALSHA wants."""

    name: str
    source: str
    sha: str


def lua_folder() -> Path:
    """Find the scripts: `sark_mw/_lua` in a wheel, `lua/` beside the package in a repository."""
    for folder in (_PACKAGE / "_lua", _PACKAGE.parent / "lua"):
        if (folder / "reserve.lua").is_file():
            return folder
    raise ConfigurationError(f"the Lua scripts are missing: neither {_PACKAGE / '_lua'} nor {_PACKAGE.parent / 'lua'} has them")


@cache
def load_script(name: str) -> Script:
    """Read a script and put its includes in place."""
    folder = lua_folder()

    def include(match: re.Match[str]) -> str:
        return "\n".join((folder / "include" / f"{part}.lua").read_text("utf-8") for part in match[1].split())

    source = _INCLUDE.sub(include, (folder / f"{name}.lua").read_text("utf-8"))
    # Comments and indentation cost the server nothing but an EVAL its bandwidth.
    source = "\n".join(line for raw in source.splitlines() if (line := raw.strip()) and not line.startswith("--"))
    return Script(name, source, sha1(source.encode(), usedforsecurity=False).hexdigest())
