"""The page to hear the service by: one file, under a policy that lets it talk to its own service and to nobody else."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

SAMPLE = "en-us/rms-train.flac"  # of the speech that comes with the package


def page_router() -> APIRouter:
    """GET / answers the page, GET /sample.flac a sentence for those who have no sound at hand.

    Both open nothing that a request names, and neither stands in the OpenAPI document: they are for people.
    """
    page = resources.files("pipelines.serving").joinpath("service_page.html").read_text(encoding="utf-8")
    sample = resources.files("pipelines").joinpath("demo_speech", SAMPLE).read_bytes()
    headers = _headers(page)
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @router.get("/sample.flac")
    async def show_sample() -> Response:
        return Response(sample, media_type="audio/flac", headers={"X-Content-Type-Options": "nosniff"})

    return router


def _headers(page: str) -> dict[str, str]:
    """Only the page's own script runs, it may ask only its own service, and no other page may frame it."""
    policy = {
        "default-src": "'none'",
        "script-src": _inline(page, "script"),
        "style-src": _inline(page, "style"),
        "img-src": "data:",  # the icon
        "connect-src": "'self'",  # HTTP, and WebSockets to the same host and port
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{directive} {value}" for directive, value in policy.items()),
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",  # a new version of the service brings its own page
    }


def _inline(page: str, tag: str) -> str:
    """What allows the inline elements of one kind, and no others: their hashes. Source: CSP level 3, section 6.7.3."""
    contents = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", page, re.DOTALL)
    digests = (hashlib.sha256(content.encode()).digest() for content in contents)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
