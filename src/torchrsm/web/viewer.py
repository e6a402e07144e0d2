"""One viewer: a socket and its session."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from torchrsm import __version__
from torchrsm.web import messages
from torchrsm.web.fairness import Bucket, Gate, Limits
from torchrsm.web.guard import POLICY
from torchrsm.web.library import Library
from torchrsm.web.session import Message, Session

Compute = Callable[..., Awaitable[Any]]


class Viewer:
    """One socket and its session.

    Args:
        library: what can be watched.
        compute: runs something in one of the server's threads.
        socket: accepted.
        gate: through which trainings pass.
        limits: see `Limits`.
    """

    def __init__(self, library: Library, compute: Compute, socket: WebSocket, gate: Gate, limits: Limits) -> None:
        self._library, self._compute, self._socket, self._gate = library, compute, socket, gate
        self._bucket = Bucket(limits.requests_per_second)
        self._upload_bytes = limits.upload_bytes
        self._session = Session(library, seed=secrets.randbits(32))
        self._busy, self._sending = asyncio.Lock(), asyncio.Lock()
        self._wake = asyncio.Event()
        self._queued = 0

    async def serve(self) -> None:
        """Talk until the socket ends."""
        hello = messages.Hello(
            version=__version__,
            models=self._library.entries,
            sources=self._library.sources,
            max_upload_bytes=self._upload_bytes,
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
                await self._socket.close(POLICY, "too many requests")
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
                    await self._compute(self._session.apply, request)
                else:
                    self._session.apply(request)
                if isinstance(request, messages.Clip):
                    film = await self._compute(self._session.clip)
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
                message = await self._compute(self._session.advance, share)
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
