"""The server of the page: files, uploads and one socket for each viewer.

All computation runs in as many threads as there are cores, one frame of one viewer at a time; the viewer who has waited
longest comes next. The event loop only passes messages on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket as sockets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import torch
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from torchrsm import __version__
from torchrsm.rsm import kernels
from torchrsm.web import messages
from torchrsm.web.fairness import Gate, Limits
from torchrsm.web.guard import BUSY, Manners, error_response
from torchrsm.web.library import Library
from torchrsm.web.uploads import (
    DECODE_QUEUE,
    UPLOAD_SECONDS,
    decode_upload,
    receive_upload,
    too_large,
)
from torchrsm.web.viewer import Viewer

STATIC = Path(__file__).parent / "static"

_LOGGER = logging.getLogger("torchrsm.web")

_T = TypeVar("_T")


@dataclass
class Server:
    """The sessions and the threads that compute them.

    Args:
        library: what can be watched.
        limits: see `Limits`.
    """

    library: Library
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(cores, "torchrsm-frames", lambda: torch.set_num_threads(1))
        self._decoder = ThreadPoolExecutor(1, "torchrsm-decoder")
        self._decoding = 0
        self._gate = Gate(self.limits.trainings, self.limits.waiting)
        self._viewers: set[Viewer] = set()

    def app(self, hosts: frozenset[str] | None = None) -> FastAPI:
        """Return the application; ``hosts`` are the values of Host that it serves, None for any."""
        app = FastAPI(title="torchrsm", openapi_url=None, docs_url=None, redoc_url=None, lifespan=self._life)
        app.add_middleware(Manners, hosts=hosts)
        app.add_api_route("/", self._index, include_in_schema=False)
        app.add_api_route("/health", self._health)
        app.add_api_route("/videos", self._upload, methods=["POST"])
        app.add_api_websocket_route("/session", self._session)
        app.mount("/static", StaticFiles(directory=STATIC))
        app.add_exception_handler(HTTPException, _refusal)
        app.add_exception_handler(Exception, _failure)
        return app

    @contextlib.asynccontextmanager
    async def _life(self, app: FastAPI) -> AsyncIterator[None]:
        with kernels.threads_in_use(1):
            yield
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._decoder.shutdown(wait=False, cancel_futures=True)

    async def _index(self) -> Response:
        return FileResponse(STATIC / "index.html")

    async def _health(self) -> dict[str, Any]:
        return {"status": "ok", "version": __version__, "viewers": len(self._viewers), "decoding": self._decoding}

    async def compute(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run something in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def _upload(self, request: Request) -> Response:
        declared = request.headers.get("content-length", "")
        most = self.limits.upload_bytes
        if declared.isdigit() and int(declared) > most:
            return error_response(413, too_large(int(declared), most))
        if self._decoding >= DECODE_QUEUE:
            return error_response(503, "other videos are being read; please try again in a moment")
        name = unquote(request.headers.get("x-file-name", "video"), errors="replace")[:200]
        self._decoding += 1
        try:
            with tempfile.TemporaryDirectory(prefix="torchrsm-") as folder:
                path = Path(folder) / "upload"
                try:
                    async with asyncio.timeout(UPLOAD_SECONDS):
                        refused = await receive_upload(request, path, most)
                except TimeoutError:
                    return error_response(408, f"the video must arrive within {UPLOAD_SECONDS:.0f} s")
                if refused is not None:
                    return refused
                loop = asyncio.get_running_loop()
                try:
                    frames = await loop.run_in_executor(self._decoder, decode_upload, path)
                except (ValueError, OSError) as error:
                    return error_response(422, str(error).replace(str(path), name))
        finally:
            self._decoding -= 1
        count, channels, height, width = frames.shape
        return JSONResponse(
            {
                "id": self.library.add_video(name, frames),
                "name": name,
                "frames": count,
                "channels": channels,
                "height": height,
                "width": width,
            },
            201,
        )

    async def _session(self, socket: WebSocket) -> None:
        await socket.accept()
        if len(self._viewers) >= self.limits.viewers:
            await socket.close(BUSY, "all places are taken")
            return
        viewer = Viewer(self.library, self.compute, socket, self._gate, self.limits)
        self._viewers.add(viewer)
        try:
            await viewer.serve()
        finally:
            self._viewers.discard(viewer)
            self._gate.leave(viewer)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, str(error.detail))


async def _failure(request: Request, error: Exception) -> Response:
    return error_response(500, "the server has failed; its log says why")


def serve(
    library: Library,
    host: str,
    port: int,
    *,
    limits: Limits | None = None,
    ready: Callable[[str], Awaitable[None] | None] | None = None,
) -> None:
    """Serve the page until interrupted.

    Args:
        library: what can be watched.
        host: address to listen on; anything but a loopback address lets others in, who then may name any Host.
        port: 0 to 65535, 0 for any that is free.
        limits: how much it gives; None for the usual ones.
        ready: called with the address of the page once it can be opened.

    Raises:
        OSError: the address cannot be listened on.
    """
    family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
    listener = sockets.socket(family, sockets.SOCK_STREAM)
    try:
        listener.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)  # from here on a viewer who connects waits until the server is up
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    port = listener.getsockname()[1]
    names = {"localhost", "127.0.0.1", "[::1]"} if _is_loopback(host) else None
    hosts = None if names is None else frozenset({*names, *(f"{name}:{port}" for name in names)})
    config = uvicorn.Config(
        Server(library, limits or Limits()).app(hosts),
        log_level="warning",
        ws_max_size=4 * messages.MAX_REQUEST_BYTES,
        ws_max_queue=16,
        limit_concurrency=256,
        timeout_keep_alive=5,
        server_header=False,
    )
    server = uvicorn.Server(config)
    if ready is not None:
        shown = f"[{host}]" if family == sockets.AF_INET6 else host
        functools.partial(ready, f"http://{shown}:{port}/")()
    with listener:
        asyncio.run(server.serve([listener]))


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
