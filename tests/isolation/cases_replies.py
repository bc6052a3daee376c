"""Attacks with answers: what is no decision, and what no worker of ours would say."""

# ruff: noqa: E501  # attacks are short programs in strings

from __future__ import annotations

from tests.isolation.abuse import Abuse, whole


def _answer(name: str, expression: str) -> Abuse:
    return whole(name, f"""
        class Yes:
            def __bool__(self): return True
            def __eq__(self, other): return True
            def __hash__(self): return 1
            def __str__(self): return "x" * (10 << 20)
        class Abuse(PolicyPlugin):
            name = "abuse"
            timeout = 0.4
            async def evaluate(self, context):
                loop = {{}}
                loop["me"] = loop
                nest = []
                for _ in range(5000): nest = [nest]
                return {expression}
    """)  # fmt: skip


def _raw(name: str, data: str, *, after: str = "time.sleep(60)") -> Abuse:
    return whole(name, f"""
        class Abuse(PolicyPlugin):
            name = "abuse"
            timeout = 0.4
            async def evaluate(self, context):
                n = number()
                say({data})
                {after}
    """, wire=True)  # fmt: skip


ANSWERS = [
    _answer("truthy number", "PolicyDecision(1)"),
    _answer("truthy text", "PolicyDecision('true')"),
    _answer("truthy list", "PolicyDecision([True])"),
    _answer("object that is true", "PolicyDecision(Yes())"),
    _answer("no decision but true", "True"),
    _answer("a dict", "{'allowed': True}"),
    _answer("nothing", "None"),
    _answer("endless metadata", "PolicyDecision(False, '', loop)"),
    _answer("deep metadata", "PolicyDecision(False, '', {'a': nest})"),
    _answer("huge metadata", "PolicyDecision(False, '', {'a': 'x' * (5 << 20)})"),
    _answer("huge reason", "PolicyDecision(False, 'x' * (5 << 20))"),
    _answer("reason that is an object", "PolicyDecision(False, Yes())"),
    _answer("surrogates", "PolicyDecision(False, '\\ud800', {'\\udc00': '\\ud800'})"),
    _answer("numbers that are none", "PolicyDecision(False, '', {'a': float('nan'), 'b': float('inf'), 'c': 10**4000})"),
    _answer("obligations that are none", "PolicyDecision(True and Yes(), '', {}, obligations=5)"),
    whole("evaluate that is no coroutine", """
        class Abuse(PolicyPlugin):
            name = "abuse"
            def evaluate(self, context): return PolicyDecision(1)
    """),
    whole("boundless description", """
        class Abuse(PolicyPlugin):
            name = "x" * (10 << 20)
            description = "x" * (10 << 20)
            priority = -10**100
            timeout = 10**100
            async def evaluate(self, context): return PolicyDecision(1)
    """),
    whole("on_error that is none", """
        class Abuse(PolicyPlugin):
            name = "abuse"
            on_error = "always-allow"
            async def evaluate(self, context): return 1 / 0
    """),
]  # fmt: skip

#: The judge has to see this one: it is well-formed, so the others fail for what is wrong with them.
TYPED = _raw("typed by hand", "frame(reply(n))", after="time.sleep(0.01)")
RAW = [
    _raw("pickle", "frame(b'\\x80\\x04cos\\nsystem\\n(S\\'touch ' + context.arguments['folder'].encode() + b'/abuse_reply\\'\\ntR.')"),
    _raw("announced four gigabytes", "b'\\xff\\xff\\xff\\xff' + b'x' * 100000"),
    _raw("too long", "frame('{\"id\":1,\"allowed\":true,\"reason\":\"' + 'x' * 200000 + '\",\"metadata\":{},\"obligations\":[]}')"),
    _raw("too deep", "frame('[' * 60000)"),
    _raw("too deep within", "frame(reply(n).replace('{}', '{\"a\":' * 100 + '1' + '}' * 100))"),
    _raw("key twice", "frame(reply(n, 'false')[:-1] + ',\"allowed\":true}')"),
    _raw("not a number", "frame(reply(n).replace('{}', '{\"a\":NaN}'))"),
    _raw("infinite", "frame(reply(n).replace('{}', '{\"a\":1e999}'))"),
    _raw("endless number", "frame(reply(n).replace('{}', '{\"a\":' + '9' * 60000 + '}'))"),
    _raw("number in the place of true", "frame(reply(n, '1'))"),
    _raw("text in the place of true", "frame(reply(n, '\"true\"'))"),
    _raw("more fields", "frame(reply(n)[:-1] + ',\"plugin_name\":\"neighbour\"}')"),
    _raw("no object", "frame('true')"),
    _raw("no UTF-8", "frame(b'\\xff\\xfe{}')"),
    _raw("surrogate", "frame(reply(n).replace('\"reason\":\"\"', '\"reason\":\"\\\\ud800\"'))"),
    _raw("reply to another", "frame(reply(n + 1000))"),
    _raw("reply to a fraction", "frame(reply(1.0))"),
    _raw("reply to true", "frame(reply('true'))"),
    _raw("empty message", "b'\\0\\0\\0\\0' * 50"),
    _raw("half a message", "frame(reply(n))[:20]", after="os._exit(0)"),
    _raw("half a message and waiting", "frame(reply(n))[:20]"),
    _raw("nothing at all", "b''"),
    _raw("unknown obligation", "frame(reply(n).replace('[]', '[{\"kind\":\"become_root\",\"value\":1}]'))"),
    _raw("a death of its own making", "b'\\0\\0\\0\\0' + (9).to_bytes(8, 'little')"),
    _raw("flood", "frame(reply(0, 'false')) * 20000"),
    whole("flood of what looks right", """
        class Abuse(PolicyPlugin):
            name = "abuse"
            timeout = 0.4
            async def evaluate(self, context):
                for n in range(100000):
                    say(frame(reply(number() + n + 1)))
    """, wire=True),
    whole("reply before the request", """
        class Abuse(PolicyPlugin):
            name = "abuse"
            async def evaluate(self, context): return PolicyDecision(False)
        say(frame(reply(1)))
    """, wire=True),
    whole("ready before it is", """
        say(frame('{"ready":{"name":"neighbour","version":"1","description":"","priority":1,"timeout":null,"on_error":"allow","needs":null}}'))
        say(frame(reply(1)) * 10)
        time.sleep(60)
    """, wire=True),
    whole("its end of the socket closed", """
        class Abuse(PolicyPlugin):
            name = "abuse"
            timeout = 0.4
            async def evaluate(self, context):
                os.close(0)
                time.sleep(60)
    """, wire=True),
]  # fmt: skip
