"""What a hostile plugin is, as the harness runs it: attacks as source text, which never see the judge."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

_PLUGIN = '''
import builtins, gc, os, signal, socket, sys, time
try:
    import ctypes
except ImportError:
    ctypes = None
from sark_mw import PolicyContext, PolicyDecision, PolicyPlugin

{body}

class Abuse(PolicyPlugin):
    name = "abuse"
    timeout = 0.4
{members}
    async def evaluate(self, context):
        t = context.arguments
        try:
            found = attack(t)
            if hasattr(found, "__await__"):
                found = await found
        except BaseException as error:
            found = repr(error)
        return PolicyDecision(False, "", {{"found": str(found)[:3000]}})
'''
#: Raw replies of a worker, and a way to say that something worked which leaves no trace outside.
_TOOLS = '''
SUCCEEDED = "abuse-" + "succeeded"

def frame(text):
    body = text if isinstance(text, bytes) else text.encode()
    return len(body).to_bytes(4, "big") + body

def reply(number, allowed="true", **more):
    import json
    return '{"id":%s,"allowed":%s,"reason":"","metadata":{},"obligations":[]}' % (number, allowed)

def number():
    frame = sys._getframe()
    while "number" not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals["number"]

def say(data):
    while data:
        data = data[os.write(0, data):]
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Abuse:
    """One attack. `wire`: it needs a worker's socket; `only_isolated`: it would do harm in this machine outside of one."""

    name: str
    source: str
    wire: bool = False
    only_isolated: bool = False


def attack(name: str, body: str, *, members: str = "", wire: bool = False, only_isolated: bool = False) -> Abuse:
    """Make a case of a function `attack(t)`; `t` has the targets: secret, gateway, tcp, udp, unix, abstract, folder, handle."""
    text = _PLUGIN.format(body=textwrap.dedent(body).strip(), members=textwrap.indent(textwrap.dedent(members), "    "))
    return Abuse(name=name, source=_TOOLS + text, wire=wire, only_isolated=only_isolated)


def whole(name: str, source: str, *, wire: bool = False, only_isolated: bool = False) -> Abuse:
    """Make a case of a whole plugin."""
    start = "import os, sys, time\nfrom sark_mw import PolicyContext, PolicyDecision, PolicyPlugin\n" + _TOOLS
    return Abuse(name=name, source=start + textwrap.dedent(source), wire=wire, only_isolated=only_isolated)
