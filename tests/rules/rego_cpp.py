"""Real Rego, by rego-cpp, in a process of its own: it and CEL's engine cannot share one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_SCRIPT = """
import json, sys, regopy
asked = json.load(sys.stdin)
answers = []
for document in asked["documents"]:
    rego = regopy.Interpreter()
    for name, source in asked["modules"].items():
        rego.add_module(name, source)
    if document is not None:
        rego.set_input_term(json.dumps(document))
    output = rego.query(asked["query"])
    answers.append([] if str(output) == "undefined" else output.results[0].expressions)
json.dump(answers, sys.stdout)
"""


def rego(modules: Mapping[str, str], query: str, documents: Sequence[Any]) -> list[list[Any]]:
    """Ask the query about each document (None: no input at all); an empty list is an undefined result."""
    asked = json.dumps({"modules": modules, "query": query, "documents": documents})
    done = subprocess.run([sys.executable, "-c", _SCRIPT], input=asked, capture_output=True, text=True, check=True)
    answers: list[list[Any]] = json.loads(done.stdout)
    return answers
