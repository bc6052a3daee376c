"""Start a zygote: run by path with `python -I -S`, so nothing of the user's environment or site-packages is read.

The packages around `inside` are stood in for by empty ones: importing them would bring the whole gateway along.
"""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path
from types import ModuleType


def _stand_in(name: str, folder: Path) -> None:
    module = ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def _settle_signals() -> None:
    """Be told of ended workers, also where the gateway was started without, and leave to it what asks for an orderly end.

    A terminal tells a whole group and a service manager every process, while the gateway still drains: we go when it does.
    Workers inherit this.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _main() -> None:
    _settle_signals()
    here = Path(__file__).resolve().parent
    package = here.parent.parent
    # The folder of this script would let `import options` and the like find our files.
    sys.path[:] = [entry for entry in sys.path if entry != str(here)]
    _stand_in("sark_mw", package)
    _stand_in("sark_mw.policy", package / "policy")
    _stand_in("sark_mw.policy.isolated", here)
    importlib.import_module("sark_mw.policy.isolated.inside.zygote").main(sys.argv[1])


if __name__ == "__main__":
    _main()
