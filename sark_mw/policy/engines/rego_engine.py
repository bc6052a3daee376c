"""Rego by rego-cpp, inside the engine's process; the policy is read only after the lockdown."""

from __future__ import annotations

import json
from typing import Any

import regopy


class Engine:
    """One policy and the query that decides."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._query = setup["query"]
        self._body = b""
        self._interpreter = regopy.Interpreter()
        # Whatever it loads lazily is loaded now, while files can be opened.
        self._interpreter.add_module(
            "warm.rego",
            'package warm\nallow := input.a == "b" if { regex.match("a", "a"); time.clock([0, "Europe/Berlin"])[0] < 24 }',
        )
        self._interpreter.set_input_term('{"a": "b"}')
        self._interpreter.query("data.warm.allow")
        self._bundle: Any = None

    def compile(self, body: bytes) -> None:
        """Keep the policy: it is not machine code, and is read only when all is locked down."""
        self._body = body

    def build(self) -> None:
        """Read the policy."""
        policy = json.loads(self._body)
        interpreter = regopy.Interpreter()
        for name, source in policy["modules"].items():
            interpreter.add_module(name, source)
        interpreter.add_data_json(json.dumps(policy["data"], ensure_ascii=False))
        self._bundle = interpreter.build(self._query)
        self._interpreter = interpreter

    def evaluate(self, data: bytes) -> dict[str, Any]:
        # JSON is a Rego term. Not set_input(): it rounds numbers.
        self._interpreter.set_input_term(data.decode())
        output = self._interpreter.query_bundle(self._bundle)
        text = str(output)
        if text == "undefined":
            return {"undefined": True}
        if not output.results:
            return {"error": text[:500]}
        expressions = output.results[0].expressions
        return {"result": expressions[0]} if expressions else {"undefined": True}
