"""`sark-mw`: the command line. What each command does is in `sark_mw.commands`."""

from __future__ import annotations

import sys

from sark_mw.errors import ConfigurationError, MoneyError, SarkError

#: What the command line itself is made of; all of it comes with the extra.
_SERVE_EXTRA = frozenset({"typer", "click", "uvicorn", "httpx2", "starlette", "rich", "tomli_w"})


def main() -> None:
    """Run the command line and exit: 0 done, 1 it failed, 2 it was asked or configured wrongly."""
    try:
        from sark_mw.commands import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _SERVE_EXTRA:
            raise
        _say(f"the command line needs an extra: pip install 'sark-mw[serve]' ({error})")
        sys.exit(2)
    try:
        app()
    except (ConfigurationError, MoneyError) as error:
        _say(str(error))
        sys.exit(2)
    except SarkError as error:
        _say(str(error))
        sys.exit(1)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _SERVE_EXTRA:
            raise
        _say(f"this command needs an extra: pip install 'sark-mw[serve]' ({error})")
        sys.exit(2)


def _say(message: str) -> None:
    sys.stderr.write(f"sark-mw: {' '.join(message.split())}\n")
