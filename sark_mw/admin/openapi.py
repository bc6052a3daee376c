"""The OpenAPI document of the admin API, made from the declarations that validate its requests."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sark_mw.admin.operation import Operation
from sark_mw.admin.operations import OPERATIONS
from sark_mw.admin.problem import MEDIA_TYPE, Problem

_REFERENCE = "#/components/schemas/{model}"
_ACTOR = {
    "name": "x-sark-actor",
    "in": "header",
    "description": "Who does this, for the record; `admin` without it.",
    "schema": {"type": "string", "maxLength": 200},
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key happens once, however often it is sent.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,200}$"},
}


def openapi_document(path: str) -> dict[str, Any]:
    """Write the document for an API that is served below `path`."""
    answers = dict.fromkeys([*(operation.answer for operation in OPERATIONS), Problem])
    bodies = dict.fromkeys(operation.body for operation in OPERATIONS if operation.body is not None)
    wanted: Any = [*((model, "validation") for model in bodies), *((model, "serialization") for model in answers)]
    references, schemas = models_json_schema(wanted, ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sark_mw admin API",
            "version": version("sark-mw"),
            "description": "Set limits, and see where they stand. Amounts are decimal strings, dollars for `usd`.",
        },
        "servers": [{"url": path}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "The setting `admin.token`."}},
        },
    }


def _operation(operation: Operation, references: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "operationId": operation.operation_id,
        "summary": operation.summary,
        "parameters": [*_path_parameters(operation.path), *_query_parameters(operation.query)],
        "responses": {
            "200": _content("Done.", references[operation.answer, "serialization"], "application/json"),
            "default": _content("What is wrong, and with which field.", references[Problem, "serialization"], MEDIA_TYPE),
        },
    }
    if operation.body is not None:
        schema = references[operation.body, "validation"]
        said["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if operation.method != "GET":
        said["parameters"].append(_ACTOR)
    if operation.keyed:
        said["parameters"].append(_KEY)
    return said


def _content(description: str, schema: Any, media_type: str) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names: list[str] = re.findall(r"\{(\w+)\}", path)
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names]


def _query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema()
    parameters = []
    for name, field in schema.get("properties", {}).items():
        described = {key: value for key, value in field.items() if key not in ("title", "description")}
        parameter = {"name": name, "in": "query", "required": name in schema.get("required", []), "schema": described}
        if "description" in field:
            parameter["description"] = field["description"]
        parameters.append(parameter)
    return parameters
