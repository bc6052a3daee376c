"""Attacks on time and memory, and on the interpreter that the gateway might share."""

# ruff: noqa: E501  # attacks are short programs in strings

from __future__ import annotations

from tests.isolation.abuse import attack, whole

WASTE = [
    attack("busy loop", "def attack(t):\n    while True: pass"),
    attack("busy loop in C", "def attack(t): return sum(range(10**13))"),
    attack("blocking sleep", "def attack(t): time.sleep(60)"),
    attack("swallowed cancellation", """
        import asyncio
        async def attack(t):
            while True:
                try:
                    await asyncio.sleep(0.05)
                    time.sleep(0.7)
                except BaseException:
                    pass
    """),
    attack("regular expression", "import re\ndef attack(t): return re.match(r'(a+)+$', 'a' * 64 + 'b')"),
    attack("huge power", "def attack(t): return 7 ** (10 ** 9)"),
    attack("huge number as text", "def attack(t):\n    sys.set_int_max_str_digits(0)\n    return str(1 << (1 << 26))"),
    attack("endless recursion", "def attack(t):\n    sys.setrecursionlimit(10**9)\n    return attack(t)"),
    attack("recursion in C", """
        def attack(t):
            nest = []
            for _ in range(10**6):
                nest = [nest]
            sys.setrecursionlimit(10**9)
            return repr(nest)
    """),
    attack("finally forever", "def attack(t):\n    while True:\n        try: time.sleep(9)\n        finally: continue"),
    attack("list bomb", "def attack(t):\n    kept = []\n    for _ in range(60): kept.append([0] * 1_000_000)\n    time.sleep(0.1)"),
    attack("bytes bomb", "def attack(t):\n    kept = bytearray(400 << 20)\n    kept[::4096] = b'x' * len(kept[::4096])\n    time.sleep(0.1)"),
    attack("text bomb", "def attack(t):\n    kept = 'x' * (400 << 20)\n    time.sleep(0.1)"),
    attack("dict bomb", "def attack(t):\n    kept = {n: str(n) for n in range(4_000_000)}\n    time.sleep(0.1)"),
    attack("mapped memory bomb", "import mmap\ndef attack(t):\n    kept = mmap.mmap(-1, 400 << 20)\n"
           "    for at in range(0, len(kept), 4096): kept[at] = 1\n    time.sleep(0.1)"),
    attack("shared mapping bomb", "import mmap\ndef attack(t):\n    kept = [mmap.mmap(-1, 40 << 20, flags=mmap.MAP_SHARED) for _ in range(10)]\n"
           "    for each in kept:\n        for at in range(0, len(each), 4096): each[at] = 1\n    time.sleep(0.1)"),
    attack("stack of frames bomb", "def attack(t):\n    kept = []\n    def more():\n        yield [0] * 100_000\n"
           "    for _ in range(600):\n        kept.append(list(more()))\n    time.sleep(0.1)"),
    attack("compressed bomb", "import zlib\ndef attack(t):\n    kept = zlib.decompress(zlib.compress(bytes(400 << 20)))\n    time.sleep(0.1)"),
    attack("memory kept over requests", """
        kept = []
        def attack(t):
            for _ in range(40):
                kept.append(bytearray(b"x") * (10 << 20))
            time.sleep(0.1)
    """),
    whole("busy at import", "while True: pass"),
    whole("asleep at import", "time.sleep(60)"),
    whole("memory bomb at import", "kept = bytearray(b'x') * (600 << 20)\ntime.sleep(0.1)"),
    whole("busy in its constructor", """
        class Abuse(PolicyPlugin):
            name = "abuse"
            def __init__(self):
                while True: pass
            async def evaluate(self, context): pass
    """),
    whole("busy in a property", """
        class Abuse(PolicyPlugin):
            @property
            def name(self):
                while True: pass
            async def evaluate(self, context): pass
    """),
    whole("busy in on_load", """
        class Abuse(PolicyPlugin):
            name = "abuse"
            async def on_load(self):
                while True: pass
            async def evaluate(self, context): pass
    """),
    whole("busy in its metaclass", """
        class Meta(type(PolicyPlugin)):
            def __instancecheck__(cls, other):
                while True: pass
            def __subclasscheck__(cls, other):
                while True: pass
        class Abuse(PolicyPlugin, metaclass=Meta):
            name = "abuse"
            async def evaluate(self, context):
                while True: pass
    """),
    whole("busy after its answer", """
        class Late:
            def __del__(self):
                while True: pass
        class Abuse(PolicyPlugin):
            name = "abuse"
            timeout = 0.4
            async def evaluate(self, context):
                self.late = Late()
                self.late = None
                return PolicyDecision(False)
    """),
]  # fmt: skip

INTERPRETER = [
    attack("patched open and eval", "def attack(t):\n    builtins.isinstance = lambda *_: True\n    builtins.len = lambda _: 0"),
    attack("patched json", "import json\ndef attack(t):\n    json.loads = json.dumps = json.JSONDecoder.decode = lambda *_, **__: {'allowed': True}"),
    attack("patched decision", """
        def attack(t):
            import sark_mw
            make = sark_mw.PolicyDecision.__init__
            def always(self, allowed, *more, **named):
                make(self, allowed or "as ever" in more, *more, **named)
            sark_mw.PolicyDecision.__init__ = always
    """),
    attack("neighbours patched by the collector", """
        def attack(t):
            for each in gc.get_objects():
                if type(each).__name__ in ("Neighbour", "IsolatedPlugin"):
                    async def allow(self, context):
                        return PolicyDecision(True)
                    type(each).evaluate = allow
    """),
    attack("patched asyncio", "import asyncio\ndef attack(t):\n    asyncio.sleep = asyncio.wait_for = lambda *_, **__: time.sleep(5)"),
    attack("trace function", """
        def attack(t):
            def spy(frame, event, argument):
                time.sleep(0.01)
                return spy
            sys.settrace(spy)
            import threading
            threading.settrace(spy)
    """),
    attack("profile function", "def attack(t): sys.setprofile(lambda *_: time.sleep(0.01))"),
    attack("switch interval and recursion limit", "def attack(t):\n    sys.setswitchinterval(100)\n    sys.setrecursionlimit(60)"),
    attack("collector callbacks", "def attack(t):\n    gc.callbacks.append(lambda *_: time.sleep(2))\n    gc.collect()\n    gc.set_threshold(1)"),
    attack("emptied modules", "def attack(t):\n    for name in list(sys.modules):\n        if name != 'sys': sys.modules[name] = None"),
    attack("audit hook", "def attack(t):\n    def hook(event, _):\n        if event != 'object.__getattr__': time.sleep(0.05)\n    sys.addaudithook(hook)"),
    attack("exit handler", "def attack(t):\n    import atexit\n    atexit.register(lambda: open(t['folder'] + '/abuse_exit', 'w'))\n"
           "    if not t['isolated']:\n        atexit._run_exitfuncs()"),
    attack("finaliser", "def attack(t):\n    class Last:\n        def __del__(self, open=open, path=t['folder'] + '/abuse_del'): open(path, 'w')\n    Last()"),
    attack("unpickled shell", "def attack(t):\n    import pickle\n    pickle.loads(b\"cos\\nsystem\\n(S'touch \" + t['folder'].encode() + b\"/abuse_pickle'\\ntR.\")"),
    attack("exit", "def attack(t): os._exit(3)"),
    attack("segmentation fault", "def attack(t): ctypes.string_at(0)"),
    attack("abort", "def attack(t): os.abort()"),
    attack("changed integer", """
        def attack(t):
            # The value of the cached 1 becomes 0: whoever shares this interpreter computes with it.
            ctypes.c_long.from_address(id(100) + 24).value = 7
            return SUCCEEDED if not t["isolated"] and int("100") != 10 * 10 + int(str("0")) else ""
    """, only_isolated=True),
    attack("output flood", "def attack(t):\n    for _ in range(2000): print('abuse' * 2000)\n    os.write(1, b'abuse-output' * 100)\n"
           "    return SUCCEEDED"),
    whole("system exit", """
        class Abuse(PolicyPlugin):
            name = "abuse"
            async def evaluate(self, context): raise SystemExit(5)
    """),
    whole("keyboard interrupt", """
        class Abuse(PolicyPlugin):
            name = "abuse"
            async def evaluate(self, context): raise KeyboardInterrupt
    """),
    whole("generator exit", """
        class Abuse(PolicyPlugin):
            name = "abuse"
            async def evaluate(self, context): raise GeneratorExit
    """),
    whole("exception whose text kills", """
        class Bad(Exception):
            def __str__(self): os._exit(9)
        class Abuse(PolicyPlugin):
            name = "abuse"
            async def evaluate(self, context): raise Bad
    """),
    whole("exit at import", "os._exit(4)"),
    whole("system exit in its constructor", """
        class Abuse(PolicyPlugin):
            name = "abuse"
            def __init__(self): raise SystemExit(1)
            async def evaluate(self, context): pass
    """),
]  # fmt: skip
