"""Keeps the page to itself: foreign hosts and origins are refused, and every answer carries the headers for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_CONTENT_SECURITY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)

HEADERS = {
    "content-security-policy": _CONTENT_SECURITY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}

BUSY, POLICY = 1013, 1008  # codes that a socket is closed with


class Manners:
    """Refuses foreign hosts and origins, and sends the headers that keep a page to itself.

    Args:
        app: what is guarded.
        hosts: values of Host that are served; None for any, where the server was told to listen to others.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            status, reason = refusal
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": POLICY, "reason": reason})
            else:
                await error_response(status, reason)(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {key.lower() for key, _ in message.get("headers", ())}
                more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        await self._app(scope, receive, with_headers)

    def _refusal(self, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Return the status and the reason of a refusal; None if the request is served."""
        if "\0" in path:  # no file has such a name, and the system's calls fail on it
            return 400, "an address has no null character"
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if self._hosts is not None and host not in self._hosts:
            return 403, "this host is not served here"
        if origin is not None and _authority(origin) != host:
            return 403, "this origin may not use the server"
        return None


def _authority(origin: str) -> str | None:
    """Return host and port of an origin; None if it is not an http or https address."""
    try:
        parts = urlsplit(origin.strip().lower())
        return parts.netloc if parts.scheme in ("http", "https") else None
    except ValueError:
        return None


def error_response(status: int, text: str) -> JSONResponse:
    """Return an answer that says in one line what is wrong."""
    return JSONResponse({"error": " ".join(text.split())[:400]}, status, HEADERS)
