"""The admin API as an ASGI app: guarded by its own token, each operation validated by what it declares."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sark_mw.admin.guard import Guard
from sark_mw.admin.openapi import openapi_document
from sark_mw.admin.operation import Asked, Operation
from sark_mw.admin.operations import OPERATIONS
from sark_mw.admin.problem import ProblemError, answer_problem, invalid, problem_of
from sark_mw.errors import SarkError
from sark_mw.limit_documents import NamedTwiceError, object_of
from sark_mw.sark import Sark

_Message = MutableMapping[str, Any]
_App = Callable[[_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]]

_MAX_BODY = 4 * 1024 * 1024
_BODY_S = 30.0
_KEY = re.compile(r"[!-~]{1,200}")
_MAX_ACTOR = 200
#: To callers of an API that changes budgets, an answer is never to be kept.
_HEADERS = {"cache-control": "no-store"}


def admin_app(sark: Sark) -> _App:
    """Make the app, to be mounted anywhere; `SarkMiddleware` mounts it where `[admin]` is enabled.

    Raises `ConfigurationError` without a token in the settings. It starts `sark` with its first request if nobody has.
    """
    document = openapi_document(sark.settings.admin.path)

    async def openapi(request: Request) -> Response:
        return JSONResponse(document, headers=_HEADERS)

    # Of two methods of one path Starlette wants one route; the order keeps /limits/import before /limits/{limit_id}.
    paths: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = operation
    routes: Sequence[Route] = [
        *(Route(_spelt(path), _endpoint(sark, methods), methods=[*methods]) for path, methods in paths.items()),
        Route("/openapi.json", openapi, methods=["GET"]),
    ]
    handlers: Any = {HTTPException: _answer_http, ProblemError: _answer, SarkError: _answer_error}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), sark)


def _spelt(path: str) -> str:
    """A limit's id has slashes in it."""
    return path.replace("}", ":path}")


def _endpoint(sark: Sark, methods: dict[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        operation = methods["GET" if request.method == "HEAD" else request.method]
        answer = await operation.run(sark, await _asked(request, operation))
        return await asyncio.to_thread(_written, answer)

    return endpoint


def _written(answer: BaseModel) -> Response:
    return JSONResponse(answer.model_dump(mode="json"), headers=_HEADERS)


async def _asked(request: Request, operation: Operation) -> Asked:
    key = request.headers.get("idempotency-key") if operation.keyed else None
    if key is not None and not _KEY.fullmatch(key):
        raise ProblemError(422, "A key is 1 to 200 printable ASCII characters without spaces.", "idempotency-key")
    query = _query(request, operation.query)
    body = await _body(request, operation.body) if operation.body is not None else None
    name = next(iter(request.path_params.values()), "")
    return Asked(query=query, body=body, name=str(name), actor=_actor(request), key=key)


def _actor(request: Request) -> str:
    said = request.headers.get("x-sark-actor", "").strip()
    return "".join(char for char in said if char.isprintable())[:_MAX_ACTOR] or "admin"


def _query(request: Request, model: type[BaseModel]) -> BaseModel:
    values: dict[str, object] = {}
    for name in request.query_params:
        several = request.query_params.getlist(name)
        repeatable = name in model.model_fields and str(model.model_fields[name].annotation).startswith("tuple")
        if len(several) > 1 and not repeatable:
            raise ProblemError(422, "This parameter may be given once.", name)
        values[name] = several if repeatable else several[0]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from error


async def _body(request: Request, model: type[BaseModel]) -> BaseModel:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ProblemError(415, "The body is to be application/json.", "content-type")
    try:
        async with asyncio.timeout(_BODY_S):
            text = await _read(request)
    except (TimeoutError, ClientDisconnect) as error:
        raise ProblemError(408, "The body did not arrive in time.") from error
    # What may be thousands of limits, in a thread: requests wait for the loop.
    return await asyncio.to_thread(_parsed, text, model)


def _parsed(text: bytes, model: type[BaseModel]) -> BaseModel:
    try:
        value = json.loads(text, parse_float=Decimal, parse_constant=_no_number, object_pairs_hook=object_of)
        # A lone surrogate is JSON, but no text that a database takes.
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except NamedTwiceError as error:
        raise ProblemError(400, f"The body may mean two things: {error}.") from error
    except (ValueError, RecursionError, ArithmeticError) as error:
        raise ProblemError(400, "The body is no JSON.") from error
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error) from error


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            raise ProblemError(413, f"The body is longer than {_MAX_BODY} bytes.", headers={"connection": "close"})
    return bytes(body)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


async def _answer(request: Request, error: ProblemError) -> Response:
    return answer_problem(error)


async def _answer_error(request: Request, error: SarkError) -> Response:
    return answer_problem(problem_of(error))


async def _answer_http(request: Request, error: HTTPException) -> Response:
    return answer_problem(ProblemError(error.status_code, error.detail, headers=error.headers))
