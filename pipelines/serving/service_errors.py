"""Errors of the service as callers see them: a status, a type and one sentence as JSON, and never a trace."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pipelines.decoding.decode_errors import DeadlineExceeded, Draining, Overloaded, ServiceError
from tokenizer import AudioError, CodesError, QuantoneError

_UNFORESEEN = "the service failed at this request; its log says why"  # and not its answer, which tells of the inside
_MAX_TEXT = 400  # characters of a message: it may repeat what the caller sent

_KINDS: dict[type[Exception], tuple[int, str]] = {  # the first that fits: subclasses stand before their base
    CodesError: (422, "invalid_codes"),
    AudioError: (422, "invalid_audio"),
    DeadlineExceeded: (504, "deadline_exceeded"),
    Draining: (503, "draining"),
    Overloaded: (429, "overloaded"),
    ServiceError: (503, "unavailable"),
}
_HTTP_KINDS = {404: "not_found", 405: "method_not_allowed"}


class RequestError(QuantoneError):
    """A request that nobody can answer as it is.

    Args:
        message: what was wrong, and what is allowed.
        status: of HTTP, 4xx.
        kind: the type, one word for programs.
    """

    def __init__(self, message: str, *, status: int, kind: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def bad_request(message: str) -> RequestError:
    """A body that is not what its content type says."""
    return RequestError(message, status=400, kind="bad_request")


def too_large(message: str) -> RequestError:
    """A body, or sound in it, beyond a limit of the service."""
    return RequestError(message, status=413, kind="too_large")


def unsupported_media(message: str) -> RequestError:
    """A content type or encoding that the service does not read."""
    return RequestError(message, status=415, kind="unsupported_media_type")


def invalid_argument(message: str) -> RequestError:
    """An option with a value that does not exist."""
    return RequestError(message, status=422, kind="invalid_argument")


class BrokenAnswer(Exception):  # noqa: N818 - what the caller sees
    """An answer that failed after its first bytes: only cutting the connection tells the caller."""


def error_parts(error: Exception) -> tuple[int, str, str]:
    """Status, type and message of an error; those that nobody foresaw tell nothing of what they are."""
    if isinstance(error, RequestError):
        return error.status, error.kind, _cut(str(error))
    for kind, (status, name) in _KINDS.items():
        if isinstance(error, kind):
            inner = isinstance(error, ServiceError) and error.__cause__ is not None
            return status, name, _UNFORESEEN if inner else _cut(str(error))
    return 500, "internal_error", _UNFORESEEN


def error_content(error: Exception) -> dict[str, dict[str, str]]:
    """The JSON of an error."""
    _, kind, message = error_parts(error)
    return {"error": {"type": kind, "message": message}}


def error_response(error: Exception, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer that an error gets."""
    all_headers = dict(headers or {})
    if isinstance(error, Overloaded):
        all_headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))  # whole seconds: RFC 9110, 10.2.3
    return JSONResponse(error_content(error), status_code=error_parts(error)[0], headers=all_headers)


def install_error_answers(app: FastAPI) -> None:
    """Have an application answer every error with typed JSON."""

    async def answer_error(_: Request, error: Exception) -> JSONResponse:
        return error_response(error)

    async def answer_validation(_: Request, error: Any) -> JSONResponse:
        return error_response(invalid_argument(validation_text(error.errors())))

    async def answer_http(request: Request, error: Any) -> JSONResponse:
        kind = _HTTP_KINDS.get(error.status_code, "bad_request" if error.status_code < 500 else "unavailable")
        known = RequestError(f"{request.method} here: {error.detail}", status=error.status_code, kind=kind)
        return error_response(known, error.headers)

    app.add_exception_handler(QuantoneError, answer_error)
    app.add_exception_handler(RequestValidationError, answer_validation)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(Exception, answer_error)


def validation_text(errors: Sequence[Any]) -> str:
    """One sentence for the first of the faults that pydantic found."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("query", "body"))
    if first["type"] == "extra_forbidden":
        return f"{place}: there is no such option"
    return f"{place}: {first['msg']}" if place else str(first["msg"])


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."
