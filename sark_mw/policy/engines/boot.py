"""Start the process of one engine: run by path with `python -I -S`, so nothing of the gateway is imported or inherited.

Arguments: the engine, the folder of its package, the parent's process id. Descriptor 0 is a socket to the parent; every message
on it stands behind its length in 4 bytes. The first two are the setup and the policy; the answer to them names the layers that
hold this process, or the reason why it cannot be. After that each message is one request's document, and each answer
`{"result": …}`, `{"undefined": true}` or `{"error": "…"}`.
"""

from __future__ import annotations

import encodings.ascii  # noqa: F401  # looked up by name, when no file can be opened any more
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

_ENGINES = {"rego": "rego_engine", "wasm": "wasm_engine"}


def read_message() -> bytes | None:
    """Read one message; None when the parent is gone."""
    header = _read(4)
    return None if header is None else _read(int.from_bytes(header, "big"))


def _read(size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(0, min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


def write_message(message: dict[str, Any]) -> None:
    """Write what is said before the first request."""
    _write(json.dumps(message).encode())


def _write(data: bytes) -> None:
    left = memoryview(len(data).to_bytes(4, "big") + data)
    while left:
        left = left[os.write(0, left) :]


def _stand_in(name: str, folder: Path) -> None:
    # The real packages would bring the whole gateway along.
    module = ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def _serve(engine: Any, written: Callable[[dict[str, Any]], bytes]) -> None:
    while (data := read_message()) is not None:
        try:
            answer = engine.evaluate(data)
        except Exception as error:  # noqa: BLE001  # whatever a policy does is an answer
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        _write(written(answer))


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Sent to all processes of a service they mean that it drains: its last requests are judged before the gateway ends this.
        signal.signal(number, signal.SIG_IGN)
    name, packages, parent = sys.argv[1:4]
    here = Path(__file__).resolve().parent
    sys.path[:] = [*(entry for entry in sys.path if entry != str(here)), packages]
    policy = here.parent
    for module, folder in (
        ("sark_mw", policy.parent),
        ("sark_mw.policy", policy),
        ("sark_mw.policy.engines", here),
        ("sark_mw.policy.isolated", policy / "isolated"),
    ):
        _stand_in(module, folder)
    setup_data = read_message()
    body = read_message()
    if setup_data is None or body is None:
        return
    setup = json.loads(setup_data)
    try:
        kind = importlib.import_module(f"sark_mw.policy.engines.{_ENGINES[name]}").Engine
        confinement = importlib.import_module("sark_mw.policy.engines.confinement").Confinement(
            int(parent), setup["memory_bytes"]
        )
        written = importlib.import_module("sark_mw.policy.engines.answers").written
        engine = kind(setup)
        confinement.begin(namespaces=setup["namespaces"], own_user=setup["own_user"])
        engine.compile(body)
        layers = confinement.finish()
        engine.build()
    except Exception as error:  # noqa: BLE001  # told to the parent
        write_message({"error": f"{type(error).__name__}: {error}"[:2000]})
        return
    write_message({"layers": layers})
    _serve(engine, written)


if __name__ == "__main__":
    _main()
    os._exit(0)  # nothing is left to do, and what an interpreter does at its end is more than this process may
