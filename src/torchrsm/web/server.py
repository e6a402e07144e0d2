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
import secrets
import socket as sockets
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from torchrsm import __version__
from torchrsm.rsm import kernels
from torchrsm.streams import VideoReader
from torchrsm.web import messages
from torchrsm.web.library import Library
from torchrsm.web.session import Message, Session

STATIC = Path(__file__).parent / "static"
MAX_UPLOAD_BYTES = 32 * 2**20
MAX_VIDEO_FRAMES = 600
MAX_VIDEO_SIDE = 64
MAX_DECODED_PIXELS = 600 * 1920 * 1080
_UPLOAD_SECONDS = 60.0  # for the bytes to come
_DECODE_SECONDS = 4.0
_DECODE_QUEUE = 4
_GREY = 8  # levels by which the channels of a grey pixel may differ, as coding leaves them
_CONTENT_SECURITY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _CONTENT_SECURITY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
_BUSY, _POLICY = 1013, 1008  # codes that a socket is closed with
_LOGGER = logging.getLogger("torchrsm.web")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Limits:
    """How much one server gives.

    Attributes:
        viewers: sessions at once.
        trainings: that learn at the same time.
        waiting: trainings that wait for these.
        requests_per_second: of one viewer, on average; four times as many at once.
    """

    viewers: int = 32
    trainings: int = 1
    waiting: int = 4
    requests_per_second: float = 40.0


class Gate:
    """Lets a number of trainings run and a number wait, first come, first served."""

    def __init__(self, running: int, waiting: int) -> None:
        self._running, self._places = running, running + waiting
        self._inside: list[object] = []

    def enter(self, who: object) -> None:
        """Take a place.

        Raises:
            ValueError: all are taken.
        """
        if who in self._inside:
            return
        if len(self._inside) >= self._places:
            raise ValueError(f"at most {self._places} trainings can run or wait at once; please try again later")
        self._inside.append(who)

    def leave(self, who: object) -> None:
        """Give the place back, if one was taken."""
        if who in self._inside:
            self._inside.remove(who)

    def queued(self, who: object) -> int:
        """Return how many trainings come first; 0 for one that may run."""
        return max(0, self._inside.index(who) - self._running + 1) if who in self._inside else 0


class _Bucket:
    """Counts the requests that a viewer may still make."""

    def __init__(self, rate: float) -> None:
        self._rate, self._most = rate, 4 * rate
        self._left, self._at = self._most, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self._most, self._left + self._rate * (now - self._at))
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


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
        reason = self._reason(headers)
        if reason is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": _POLICY, "reason": reason})
            else:
                await _error(403, reason)(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {key.lower() for key, _ in message.get("headers", ())}
                more = [(k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in given]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        await self._app(scope, receive, with_headers)

    def _reason(self, headers: Mapping[str, str]) -> str | None:
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if self._hosts is not None and host not in self._hosts:
            return "this host is not served here"
        if origin is not None and _authority(origin) != host:
            return "this origin may not use the server"
        return None


def _authority(origin: str) -> str | None:
    """Return host and port of an origin; None if it is not an http or https address."""
    try:
        parts = urlsplit(origin.strip().lower())
        return parts.netloc if parts.scheme in ("http", "https") else None
    except ValueError:
        return None


def _error(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": " ".join(text.split())[:400]}, status, _HEADERS)


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
        self._viewers: set[_Viewer] = set()

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
        if declared.isdigit() and int(declared) > MAX_UPLOAD_BYTES:
            return _error(413, _too_large(int(declared)))
        if self._decoding >= _DECODE_QUEUE:
            return _error(503, "other videos are being read; please try again in a moment")
        name = unquote(request.headers.get("x-file-name", "video"), errors="replace")[:200]
        self._decoding += 1
        try:
            with tempfile.TemporaryDirectory(prefix="torchrsm-") as folder:
                path = Path(folder) / "upload"
                try:
                    async with asyncio.timeout(_UPLOAD_SECONDS):
                        refused = await _receive(request, path)
                except TimeoutError:
                    return _error(408, f"the video must arrive within {_UPLOAD_SECONDS:.0f} s")
                if refused is not None:
                    return refused
                loop = asyncio.get_running_loop()
                try:
                    frames = await loop.run_in_executor(self._decoder, _decode, path)
                except (ValueError, OSError) as error:
                    return _error(422, str(error).replace(str(path), name))
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
            await socket.close(_BUSY, "all places are taken")
            return
        viewer = _Viewer(self, socket, self._gate, self.limits)
        self._viewers.add(viewer)
        try:
            await viewer.serve()
        finally:
            self._viewers.discard(viewer)
            self._gate.leave(viewer)


class _Viewer:
    """One socket and its session."""

    def __init__(self, server: Server, socket: WebSocket, gate: Gate, limits: Limits) -> None:
        self._server, self._socket, self._gate = server, socket, gate
        self._bucket = _Bucket(limits.requests_per_second)
        self._session = Session(server.library, seed=secrets.randbits(32))
        self._busy, self._sending = asyncio.Lock(), asyncio.Lock()
        self._wake = asyncio.Event()
        self._queued = 0

    async def serve(self) -> None:
        """Talk until the socket ends."""
        hello = messages.Hello(
            version=__version__,
            models=self._server.library.entries,
            sources=self._server.library.sources,
            max_upload_bytes=MAX_UPLOAD_BYTES,
        )
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._say(hello)
            tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._play())]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (WebSocketDisconnect, RuntimeError) as end:
            if isinstance(end, RuntimeError) and "websocket" not in str(end).lower():
                raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._gate.leave(self)

    async def _listen(self) -> None:
        while True:
            event = await self._socket.receive()
            if event["type"] == "websocket.disconnect":
                return
            if not self._bucket.take():
                await self._socket.close(_POLICY, "too many requests")
                return
            text = event.get("text")
            try:
                request = messages.parse_request(event.get("bytes") or b"" if text is None else text)
            except ValueError as error:
                await self._say(messages.Reply(id=0, error=str(error)))
                continue
            await self._obey(request)

    async def _obey(self, request: messages.Request) -> None:
        error: str | None = None
        film: Message | None = None
        async with self._busy:
            try:
                if isinstance(request, messages.Train):
                    self._gate.enter(self)
                if isinstance(request, messages.Configure | messages.Train):
                    await self._server.compute(self._session.apply, request)
                else:
                    self._session.apply(request)
                if isinstance(request, messages.Clip):
                    film = await self._server.compute(self._session.clip)
            except ValueError as reason:
                error = str(reason)
            if not self._session.trains:
                self._gate.leave(self)
            state = self._state() if error is None else None
        await self._say(messages.Reply(id=request.id, error=error))
        if film is not None:
            await self._show(film)
        if state is not None:
            await self._say(state)
        if error is None and isinstance(request, messages.Advance):
            await self._advance()
        if self._session.playing:
            self._wake.set()

    async def _play(self) -> None:
        due = time.monotonic()
        while True:
            if not self._session.playing:
                self._wake.clear()
                await self._wake.wait()
                due = time.monotonic()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if not self._session.playing:
                continue
            due = max(due + 1 / self._session.frames_per_second, time.monotonic())
            await self._advance()

    async def _advance(self) -> None:
        async with self._busy:
            learned, queued = self._session.trains, self._gate.queued(self)
            share = 0.9 if learned and not queued else 0.0
            failed: str | None = None
            message: Message | None = None
            try:
                message = await self._server.compute(self._session.advance, share)
                data = message.encode()
            except ArithmeticError as error:
                failed = str(error)
            ended = learned and not self._session.trains
            if ended:
                self._gate.leave(self)
            changed = ended or queued != self._queued
            self._queued = queued
            state = self._state() if changed else None
        if failed is not None:
            await self._say(messages.Reply(id=0, error=f"the training has failed: {failed}"))
        if message is not None:
            await self._send_bytes(data)
        if state is not None:
            await self._say(state)

    def _state(self) -> messages.SessionState:
        return self._session.state(self._gate.queued(self))

    async def _say(self, message: Any) -> None:
        async with self._sending:
            await self._socket.send_text(message.model_dump_json())

    async def _show(self, message: Message) -> None:
        await self._send_bytes(message.encode())

    async def _send_bytes(self, data: bytes) -> None:
        async with self._sending:
            await self._socket.send_bytes(data)


async def _receive(request: Request, path: Path) -> Response | None:
    """Write the body of an upload to a file; return what to answer if it is refused."""
    size = 0
    with path.open("wb") as file:
        async for part in request.stream():
            size += len(part)
            if size > MAX_UPLOAD_BYTES:
                return _error(413, _too_large(size))
            file.write(part)
    return _error(400, "the video must have one byte or more; got none") if size == 0 else None


def _too_large(size: int) -> str:
    return f"a video must have at most {MAX_UPLOAD_BYTES // 2**20} MiB; got {size / 2**20:.1f} MiB or more"


def _decode(path: Path) -> NDArray[np.uint8]:
    """Return the first frames of a video, made small, ``[t, c, h, w]``; in colour if the video has any."""
    deadline = time.monotonic() + _DECODE_SECONDS
    height, width = VideoReader(path, max_pixels=MAX_DECODED_PIXELS).frame_shape[1:]
    side = min(MAX_VIDEO_SIDE, max(height, width))
    tall = height >= width
    reader = VideoReader(path, height=side if tall else None, width=None if tall else side, channels=3)
    frames = []
    pixels = MAX_DECODED_PIXELS
    for frame in reader:
        frames.append(frame)
        pixels -= height * width
        if len(frames) >= MAX_VIDEO_FRAMES or pixels < 0 or time.monotonic() > deadline:
            break
    if len(frames) < 2:
        raise ValueError(f"a video must have 2 frames or more; got {len(frames)}")
    found = np.stack(frames)
    colours = found.max(1).astype(np.int16) - found.min(1)
    return found if colours.max() > _GREY else found[:, :1]


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, str(error.detail))


async def _failure(request: Request, error: Exception) -> Response:
    return _error(500, "the server has failed; its log says why")


def serve(
    library: Library, host: str, port: int, *, ready: Callable[[str], Awaitable[None] | None] | None = None
) -> None:
    """Serve the page until interrupted.

    Args:
        library: what can be watched.
        host: address to listen on; anything but a loopback address lets others in, who then may name any Host.
        port: 0 to 65535, 0 for any that is free.
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
        Server(library).app(hosts),
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
