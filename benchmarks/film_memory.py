"""Peak memory of reading a film of hours beside that of one of seconds: read, learned from, and predicted.

The films are made on the spot from ten seconds of bouncing squares, whose packets are repeated. Each number is the peak
resident memory of a process of its own.

    python benchmarks/film_memory.py [--hours 3] [--json benchmarks/results/film-memory.json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

RATE, HEIGHT, WIDTH = 30, 72, 128
SECONDS = 10

_READ = """
from torchrsm.streams import numbered_frames, open_clips
((name, reader),) = open_clips(path, height=64)
frames = 0
for numbered in numbered_frames(reader):
    frames += 1
"""
_LEARN = """
from torchrsm import VideoConfig
from torchrsm.streams.settings import make_stream
stream = make_stream(VideoConfig(path=path), 32, seed=0)
for _ in range(2000):
    next(stream)
frames = 2000 * 32
"""
_PREDICT = """
from torchrsm.cli import main
main(["predict", path, "--model", "copy-last", "--frames", "20", "--out", path + ".out.mp4"])
frames = 20
"""
WHAT = {"read all of it": _READ, "play it as a stream to learn from": _LEARN, "predict 20 frames": _PREDICT}

_REPORT = """
import resource
print(frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def make_film(path: Path, seconds: int) -> None:
    """Write a film of some seconds, by repeating the packets of the first ten."""
    pictures = np.zeros((SECONDS * RATE, HEIGHT, WIDTH, 3), np.uint8)
    for number, picture in enumerate(pictures):
        x, y = (abs((speed * number) % (2 * side) - side) for speed, side in ((2, WIDTH - 20), (1, HEIGHT - 20)))
        picture[y : y + 20, x : x + 20] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE), options={"bf": "0", "g": "30"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        first = [p for one in pictures for p in stream.encode(av.VideoFrame.from_ndarray(one, format="rgb24"))]
        first += stream.encode(None)
        contents = [(bytes(packet), packet.is_keyframe) for packet in first]
        for number in range(seconds * RATE):
            content, is_key = contents[number % len(contents)]
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.duration = stream, Fraction(1, RATE), 1
            packet.pts = packet.dts = number
            packet.is_keyframe = is_key
            container.mux(packet)


def peak(code: str, path: Path) -> tuple[int, float, float]:
    """Return frames, peak memory in MiB, and seconds, of some code in a process of its own."""
    begun = time.perf_counter()
    program = f"path = {str(path)!r}\n{code}{_REPORT}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    frames, kibibytes = result.stdout.split()[-2:]
    return int(frames), int(kibibytes) / 1024, time.perf_counter() - begun


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with TemporaryDirectory() as folder:
        films = {}
        for seconds in (SECONDS, round(3600 * options.hours)):
            films[seconds] = Path(folder) / f"{seconds}.mp4"
            make_film(films[seconds], seconds)
        print("| what | film, s | frames | peak memory, MiB | time, s |\n|---|---|---|---|---|")
        for what, code in WHAT.items():
            for seconds, path in films.items():
                frames, mebibytes, taken = peak(code, path)
                rows.append({"what": what, "film_seconds": seconds, "frames": frames, "mebibytes": round(mebibytes, 1)})
                print(f"| {what} | {seconds} | {frames} | {mebibytes:.0f} | {taken:.0f} |", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
