"""Who may call the service over HTTP: those who show its bearer token.

Streams are asked for theirs by their own route, because browsers can set no header on a WebSocket.
"""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.serving.service_errors import RequestError, error_response

OPEN_PATHS = ("/", "/healthz", "/readyz")  # for the page, which asks for the token, and for probes, which have none


class BearerToken:
    """Plain ASGI: refuses requests without the token before anything of their body is read.

    Args:
        app: what lies behind.
        token: that callers must show.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let callers through who may call."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        scheme, _, shown = Headers(scope=scope).get("authorization", "").partition(" ")
        has_shown = scheme.lower() == "bearer"
        if has_shown and hmac.compare_digest(shown.strip().encode("latin-1"), self._token):
            await self._app(scope, receive, send)
            return
        text = f"the token is {'wrong' if has_shown else 'missing'}: send it as Authorization: Bearer ..."
        refusal = RequestError(text, status=401, kind="unauthorized")
        await error_response(refusal, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
