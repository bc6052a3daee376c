"""Find out what this system can hold a plugin with, by locking a worker down and asking it."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading

from sark_mw.policy.isolated.link import MalformedReplyError, WorkerEndedError, start
from sark_mw.policy.isolated.options import LAYERS, Hardening, IsolationOptions
from sark_mw.policy.isolated.zygote_process import hold_zygote, zygote_released


def elsewhere() -> Hardening | None:
    """Tell what a system that is no Linux lacks, which is every layer; None on Linux."""
    system = sys.platform
    if system.startswith("linux"):
        return None
    return Hardening(layers=dict.fromkeys(LAYERS, f"needs Linux, this is {system}"))


@functools.cache
def probe() -> Hardening:
    """Lock a worker down and list by layer whether it is there; once in a process, as the kernel stays the same.

    Takes as long as an interpreter takes to start. Never raises: a system where not even that works lacks every layer.
    """
    lacking = elsewhere()
    if lacking is not None:
        return lacking
    found: list[Hardening] = []
    # In a thread of its own, as the caller may be in an event loop.
    thread = threading.Thread(target=lambda: found.append(asyncio.run(_probe())), name="sark-mw-probe")
    thread.start()
    thread.join()
    return found[0] if found else Hardening(layers=dict.fromkeys(LAYERS, "the probe failed"))


async def _probe() -> Hardening:
    zygote = hold_zygote((), namespaces=True)
    try:
        link, hardening, _ = await start(zygote, None, IsolationOptions())
        link.end("it was a probe")
    except (OSError, WorkerEndedError, MalformedReplyError) as error:
        return Hardening(layers=dict.fromkeys(LAYERS, f"no worker starts: {error or type(error).__name__}"))
    else:
        return hardening
    finally:
        await zygote_released(zygote)
