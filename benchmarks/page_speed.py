"""Measures the page's server: frames a second for one viewer, how fast controls answer with many, memory over time.

    python benchmarks/page_speed.py --viewers 20 --seconds 30 --json benchmarks/results/page_speed.json

The server runs in a process of its own, with one core for the single viewer, with all for the many. The viewers dream;
each asks for something twice a second and waits for the reply.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import connect

from torchrsm.storage.tensors import write_atomically


class Server:
    """`torchrsm serve` on some cores."""

    def __init__(self, cores: set[int]) -> None:
        command = [sys.executable, "-m", "torchrsm.cli", "serve", "--port", "0"]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        assert self.process.stdout is not None
        found = re.search(r"127\.0\.0\.1:\d+", self.process.stdout.readline())
        assert found is not None
        self.address = f"ws://{found.group(0)}/session"

    def mebibytes(self) -> float:
        """Return the memory in use."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found is not None
        return int(found.group(1)) / 1024

    def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.wait(10)


async def view(address: str, rate: float, seconds: float, waits: list[float]) -> float:
    """Dream for some time; return frames a second and note how long each control took."""
    async with connect(address, max_size=2**24) as socket:
        frames: list[float] = []
        replies: dict[int, asyncio.Future[None]] = {}

        async def listen() -> None:
            async for message in socket:
                if isinstance(message, bytes):
                    frames.append(time.perf_counter())
                elif '"reply"' in message:
                    replies[json.loads(message)["id"]].set_result(None)

        listening = asyncio.create_task(listen())

        async def ask(number: int, **request: Any) -> float:
            replies[number] = asyncio.get_running_loop().create_future()
            start = time.perf_counter()
            await socket.send(json.dumps({"id": number, **request}))
            await asyncio.wait_for(replies[number], 30)
            del replies[number]
            return time.perf_counter() - start

        await ask(1, type="configure", models=["balls"])
        await ask(2, type="speed", frames_per_second=rate)
        await ask(3, type="play")
        await asyncio.sleep(1)
        await ask(4, type="dream")
        begun = time.perf_counter()
        frames.clear()
        number = 5
        while time.perf_counter() - begun < seconds:
            await asyncio.sleep(0.5)
            waits.append(await ask(number, type="speed", frames_per_second=rate))
            number += 1
        shown = len(frames) / (time.perf_counter() - begun)
        listening.cancel()
        return shown


async def crowd(address: str, viewers: int, rate: float, seconds: float) -> tuple[list[float], list[float]]:
    """Return the frames a second of each viewer, and the seconds of all controls."""
    waits: list[float] = []
    shown = await asyncio.gather(*[view(address, rate, seconds, waits) for _ in range(viewers)])
    return list(shown), waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--minutes-of-memory", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    result: dict[str, Any] = {"cores": len(cores), "viewers": options.viewers, "seconds": options.seconds}
    server = Server({cores[-1]})
    try:
        (alone,), _ = asyncio.run(crowd(server.address, 1, 60.0, options.seconds))
    finally:
        server.stop()
    result["frames_per_second_alone"] = alone
    print(f"one viewer, one core: {alone:.1f} frames/s", flush=True)
    server = Server(set(cores))
    try:
        shown, waits = asyncio.run(crowd(server.address, options.viewers, 20.0, options.seconds))
        milliseconds = {f"p{q}": 1000 * float(np.percentile(waits, q)) for q in (50, 95, 99, 100)}
        result |= {"frames_per_second_each": float(np.median(shown)), "control_milliseconds": milliseconds}
        print(f"{options.viewers} viewers: {np.median(shown):.1f} frames/s each, controls {milliseconds}", flush=True)
        memory = [server.mebibytes()]
        for _ in range(round(options.minutes_of_memory)):
            asyncio.run(crowd(server.address, 4, 20.0, 57.0))
            memory.append(server.mebibytes())
            print(f"memory: {memory[-1]:.0f} MiB", flush=True)
        result["memory_mebibytes_by_minute"] = memory
    finally:
        server.stop()
    if options.json is not None:
        write_atomically(options.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
