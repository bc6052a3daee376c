"""A worker: locked down first, then it takes a plugin's source over its socket and answers one request after the other.

Whatever runs in here may be hostile: the gateway believes no more than the few typed fields of a reply, and this side's only care
is that an honest plugin's answer fits into them.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import struct
import sys
from datetime import datetime
from types import ModuleType
from typing import Any, NoReturn

from sark_mw.errors import ConfigurationError
from sark_mw.policy.isolated.inside import api
from sark_mw.policy.isolated.inside.answers import cut, decision_reply, failure_reply
from sark_mw.policy.isolated.inside.frames import SOCKET, frames, write
from sark_mw.policy.isolated.inside.lockdown import Layers, WorkerLockdown
from sark_mw.policy.isolated.inside.loop import QuietLoop

_MODULE = "isolated_plugin"
_NUMBER = struct.Struct(">Q")
_encode = json.JSONEncoder(separators=(",", ":")).encode
#: Ready before memory is short.
_OUT_OF_MEMORY = b'"MemoryError","text":"the plugin used more memory than it may"}'


class _Silence(io.TextIOBase):
    """Where prints go."""

    def write(self, text: str, /) -> int:
        return len(text)


def run(handle: int, lockdown: WorkerLockdown, memory_bytes: int, cpu_s: int, zygote: int) -> NoReturn:
    """Live as a worker; never returns."""
    status = 70
    try:
        if handle != SOCKET:
            os.dup2(handle, SOCKET)
        os.closerange(SOCKET + 1, 1 << 20)
        sys.stdin = None
        sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = _Silence()  # type: ignore[misc, assignment]  # prints go nowhere
        _serve(lockdown.put_on(memory_bytes, cpu_s, zygote))
        status = 0
    except OSError:
        status = 0  # the gateway closed its end
    except MemoryError:
        status = 71
    finally:
        os._exit(status)


def _send(message: dict[str, Any]) -> None:
    write(_encode(message).encode())


def _serve(layers: Layers) -> None:
    given = frames()
    # Not before the gateway spoke: until then the socket is the zygote's, which tells of our birth on it.
    header = json.loads(next(given, b"") or os._exit(0))
    _send({"locked": layers})
    source = next(given, None)
    if source is None:
        return  # this lockdown does not please the gateway
    loop = QuietLoop()
    try:
        plugin = _load(source, header, loop)
        _send({"ready": _described(plugin)})
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the plugin boundary
        _send({"refused": _told(error)})
        return
    judge = _Judge(plugin, loop, header["reply_bytes"])
    for frame in given:
        judge.answer(frame)


def _told(error: BaseException) -> str:
    if isinstance(error, ConfigurationError):
        return cut(str(error), 2000)
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # its own __str__
        text = ""
    return f"{type(error).__name__}: {cut(text, 1900)}"


def _load(source: bytes, header: dict[str, Any], loop: QuietLoop) -> api.PolicyPlugin:
    name = header["name"]
    try:
        code = compile(source, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise ConfigurationError(f"is not valid Python: {error}") from None
    module = ModuleType(_MODULE)
    module.__file__ = name
    sys.modules[_MODULE] = module
    try:
        exec(code, module.__dict__)  # noqa: S102  # what this process is for
    except (Exception, SystemExit) as error:  # the plugin boundary
        raise ConfigurationError(f"failed to run: {_told(error)}") from error
    plugin_class = _plugin_class(module, header["class_name"])
    options = header["options"]
    try:
        plugin = plugin_class(**options)
        loop.run_until_complete(plugin.on_load())
    except (Exception, SystemExit) as error:  # the plugin boundary
        given = ", ".join(sorted(options)) or "none"
        raise ConfigurationError(
            f"{plugin_class.__name__} cannot be built with the options given ({given}): {_told(error)}"
        ) from error
    return plugin


def _plugin_class(module: ModuleType, wanted: str | None) -> type[api.PolicyPlugin]:
    found = {
        value.__name__: value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, api.PolicyPlugin) and value.__module__ == module.__name__
    }
    usable = {name: value for name, value in found.items() if not inspect.isabstract(value)}
    listed = f"it defines {', '.join(sorted(found)) or 'none at all'}"
    if wanted is not None:
        if wanted not in usable:
            raise ConfigurationError(f"defines no usable PolicyPlugin class {wanted!r}; {listed}")
        return usable[wanted]
    if len(usable) != 1:
        many = "several PolicyPlugin classes; name one (class_name):" if usable else "no usable PolicyPlugin class;"
        raise ConfigurationError(f"defines {many} {listed}")
    return next(iter(usable.values()))


def _described(plugin: api.PolicyPlugin) -> dict[str, Any]:
    needs = plugin.needs
    described = {name: getattr(plugin, name) for name in ("name", "version", "description", "priority", "timeout", "on_error")}
    return described | {"needs": None if needs is None else sorted(needs)}


class _Judge:
    """Asks the plugin, one request after the other."""

    def __init__(self, plugin: api.PolicyPlugin, loop: QuietLoop, reply_bytes: int) -> None:
        self._plugin = plugin
        self._loop = loop
        self._reply_bytes = reply_bytes

    def answer(self, frame: bytes) -> None:
        """Answer one request: its number, then its fields in JSON."""
        (number,) = _NUMBER.unpack_from(frame)
        try:
            context = _context(frame)
        except (MemoryError, RecursionError, ValueError):
            write(b'{"id":%d,"unread":true}' % number)  # the caller's doing: nothing of the plugin's has run
            return
        try:
            decision = self._loop.run_until_complete(self._plugin.evaluate(context))
            write(decision_reply(number, decision, self._reply_bytes))
        except MemoryError:
            # Whatever it kept is still there: the process ends, a fresh one takes over.
            write(b'{"id":%d,"error":%s' % (number, _OUT_OF_MEMORY))
            os._exit(71)
        except BaseException as error:  # noqa: BLE001  # the plugin boundary
            write(failure_reply(number, type(error).__name__, _told(error)))


def _context(frame: bytes) -> api.PolicyContext:
    *fields, timestamp = json.loads(str(memoryview(frame)[_NUMBER.size :], "ascii"))
    principal, resource, capability, action, arguments, environment = fields
    return api.PolicyContext(principal, resource, capability, action, arguments, environment, datetime.fromisoformat(timestamp))
