"""Peak memory of reading a film of hours beside that of one of seconds: read, learned from, and predicted.

The films are made on the spot from ten seconds of bouncing squares, whose packets are repeated. Each number is the peak
resident memory of a process of its own. To predict takes a hundredth of a second a frame, so that the long film for it
has few frames a second.

    python benchmarks/film_memory.py [--hours 3] [--predicted-rate 1] [--json benchmarks/results/film_memory.json]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

from torchrsm.storage.tensors import write_atomically

RATE, HEIGHT, WIDTH = 30, 72, 128
SECONDS = 10
ALLOWED_MEBIBYTES = 50

_READ = """
from torchrsm.streams import numbered_frames, open_clips
((name, reader),) = open_clips(path, height=64)
frames = sum(1 for _ in numbered_frames(reader))
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
assert main(["predict", "copy-last", path, "--out", path + ".out.mp4", "--json", path + ".json"]) == 0
frames = None  # the command says how many
"""
_DREAM = """
from torchrsm.cli import main
assert main(["dream", "copy-last", "--prime-from", path, "--prime", "10", "--steps", "5", "--out", path + ".npz"]) == 0
frames = 15
"""
READING = {"read all of it": _READ, "play it as a stream to learn from": _LEARN, "dream from its beginning": _DREAM}
PREDICTING = {"predict all of it": _PREDICT}

_REPORT = """
import resource
print(frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def make_film(path: Path, seconds: int, rate: int) -> None:
    """Write a film of some seconds, by repeating the packets of the first ten."""
    pictures = np.zeros((SECONDS * rate, HEIGHT, WIDTH, 3), np.uint8)
    for number, picture in enumerate(pictures):
        x, y = (abs((speed * number) % (2 * side) - side) for speed, side in ((2, WIDTH - 20), (1, HEIGHT - 20)))
        picture[y : y + 20, x : x + 20] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate), options={"bf": "0", "g": "30"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        first = [p for one in pictures for p in stream.encode(av.VideoFrame.from_ndarray(one, format="rgb24"))]
        first += stream.encode(None)
        contents = [(bytes(packet), packet.is_keyframe) for packet in first]
        for number in range(seconds * rate):
            content, is_key = contents[number % len(contents)]
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.duration = stream, Fraction(1, rate), 1
            packet.pts = packet.dts = number
            packet.is_keyframe = is_key
            container.mux(packet)


def peak(code: str, path: Path) -> tuple[int, float, float]:
    """Return frames, peak memory in MiB, and seconds, of some code in a process of its own."""
    begun = time.perf_counter()
    program = f"path = {str(path)!r}\n{code}{_REPORT}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    frames, kibibytes = result.stdout.split()[-2:]
    if frames == "None":
        (frames,) = re.findall(r"^(\d+) frames of ", result.stdout, re.MULTILINE)
    return int(frames), int(kibibytes) / 1024, time.perf_counter() - begun


def measure(what: dict[str, str], seconds: int, rate: int, folder: Path) -> list[dict[str, str | int | float]]:
    """Return a row for each piece of code and each of the two films, the long one of some rate, and print it."""
    films = {length: folder / f"{length}-{rate}.mp4" for length in (SECONDS, seconds)}
    make_film(films[SECONDS], SECONDS, RATE)
    make_film(films[seconds], seconds, rate)
    rows: list[dict[str, str | int | float]] = []
    for name, code in what.items():
        for length, path in films.items():
            frames, mebibytes, taken = peak(code, path)
            rows.append({"what": name, "film_seconds": length, "frames": frames, "mebibytes": round(mebibytes, 1)})
            print(f"| {name} | {length} | {frames} | {mebibytes:.0f} | {taken:.0f} |", flush=True)
    return rows


def main() -> None:
    """Measure, print a table, and fail if to predict a film of hours takes much more memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=3)
    parser.add_argument("--predicted-rate", type=int, default=1, help="frames per second of the long film to predict")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seconds = round(3600 * options.hours)
    print("| what | film, s | frames | peak memory, MiB | time, s |\n|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        rows = measure(READING, seconds, RATE, Path(folder))
        rows += measure(PREDICTING, seconds, options.predicted_rate, Path(folder))
    if options.json is not None:
        write_atomically(options.json, (json.dumps(rows, indent=1) + "\n").encode())
    for short, long in zip(rows[::2], rows[1::2], strict=True):
        more = float(long["mebibytes"]) - float(short["mebibytes"])
        if more > ALLOWED_MEBIBYTES and long["what"] in PREDICTING:
            raise SystemExit(f"{long['what']}: {more:.0f} MiB more than for a film of seconds")


if __name__ == "__main__":
    main()
