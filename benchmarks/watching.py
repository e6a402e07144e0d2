"""Finds joins, cuts and freezes in real films: `torchrsm.Watcher` beside two simple detectors.

    python benchmarks/watching.py FILM [FILM ...] --json benchmarks/results/watching.json

Each film is followed by each other one (a join at a known frame), is cut (it goes on elsewhere) and freezes for 8
frames. A film's own cuts, as ``bikes.mp4:30,76``, count as cuts, too. An event is found if a frame is an anomaly when
it comes or the frame after (of a freeze: while it lasts); anomalies elsewhere are false alarms, those that follow each
other within 10 frames are one. The detectors:

* `watcher`: the surprise of `torchrsm.Watcher`, which learns while the film plays, at 4;
* `frame difference, same rule`: the same, with the difference from the frame before in place of the error;
* `frame difference`: mean squared difference from the frame before;
* `running mean`: mean squared difference from an exponential mean of the last frames.

The last two are an anomaly from a fixed difference on, the one at which each finds most of these very events with at
most one false alarm a minute: the best that can be said of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from torchrsm import Watcher
from torchrsm.rsm import kernels
from torchrsm.storage.tensors import write_atomically
from torchrsm.streams import VideoReader
from torchrsm.watching import Surprises

HEIGHT, WIDTH = 48, 64
FROZEN = 8  # frames
BEFORE = 150  # frames of a film before the film that is joined to it, or all that there are
AFTER = 60  # frames after a join or a cut
NEAR = 10  # frames: alarms closer than this are one, and those so near behind an event are of the event
LEAST_MOTION = 1e-5  # mean squared difference of neighbouring frames, below which a film stands still anyway
RATE = 25.0  # frames a second, by which false alarms are counted by the minute
DETECTORS = {"watcher": 4.0, "frame difference, same rule": 4.0, "frame difference": None, "running mean": None}
"""Of each the threshold; None for the best one."""


class Event(NamedTuple):
    """Something that a detector should find: its kind, its first frame, and how many frames it may be found in."""

    kind: str
    frame: int
    length: int


class Shown(NamedTuple):
    """Frames ``[t, c, h, w]`` uint8 as they are shown, and the events among them."""

    name: str
    frames: Any
    events: tuple[Event, ...]


def read(argument: str) -> tuple[str, Any, tuple[int, ...]]:
    """Return name, frames and own cuts of a film."""
    path, _, cuts = argument.partition(":")
    frames = np.stack(list(VideoReader(path, height=HEIGHT, width=WIDTH)))
    return Path(path).name, frames, tuple(int(cut) for cut in cuts.split(",") if cut)


def shown(films: list[tuple[str, Any, tuple[int, ...]]]) -> Iterator[Shown]:
    """Yield what is shown: each film alone, cut, frozen, and joined to each other."""
    for name, frames, cuts in films:
        own = tuple(Event("cut", cut, 2) for cut in cuts)
        yield Shown(name, frames, own)
        first = min(BEFORE, len(frames) // 2)
        calm = not any(abs(cut - first) < 20 for cut in cuts)
        moves = (np.diff(frames[: first + 1].astype(float) / 255, axis=0) ** 2).mean((1, 2, 3))
        kept = tuple(event for event in own if event.frame < first)
        far = (first + len(frames) // 2) % len(frames)
        if calm and np.median(moves) > LEAST_MOTION:
            elsewhere = np.concatenate([frames[:first], np.roll(frames, -far, 0)[:AFTER]])
            later = (Event("cut", first + cut - far, 2) for cut in cuts if 0 < cut - far < AFTER)
            yield Shown(f"{name}, cut", elsewhere, (*kept, Event("cut", first, 2), *later))
            frozen = [frames[:first], np.repeat(frames[first - 1 : first], FROZEN, 0), frames[first : first + AFTER]]
            after = (Event("cut", cut + FROZEN, 2) for cut in cuts if first <= cut < first + AFTER)
            yield Shown(f"{name}, frozen", np.concatenate(frozen), (*kept, Event("freeze", first, FROZEN + 2), *after))
        for other, others, others_cuts in films:
            if other != name:
                after = (Event("cut", first + cut, 2) for cut in others_cuts if cut < AFTER)
                joined = np.concatenate([frames[:first], others[:AFTER]])
                yield Shown(f"{name}, then {other}", joined, (*kept, Event("join", first, 2), *after))


def surprises(frames: Any) -> dict[str, list[float]]:
    """Return how unusual each frame is to each detector."""
    watcher, rule = Watcher(frames.shape[1:]), Surprises()
    found: dict[str, list[float]] = {name: [] for name in DETECTORS}
    last = mean = frames[0].astype(float) / 255
    for number, frame in enumerate(frames):
        levels = frame.astype(float) / 255
        motion = float(((levels - last) ** 2).mean())
        found["watcher"].append(watcher.see(torch.from_numpy(frame)).surprise)
        contrast = max(float(levels.var()), float(last.var()))
        found["frame difference, same rule"].append(rule.of(motion, motion, contrast) if number else 0.0)
        found["frame difference"].append(motion)
        found["running mean"].append(float(((levels - mean) ** 2).mean()))
        last, mean = levels, 0.95 * mean + 0.05 * levels
    return found


def judged(surprise: list[float], events: tuple[Event, ...], threshold: float) -> tuple[dict[str, list[bool]], int]:
    """Return whether each event of each kind was found, and the number of false alarms."""
    anomalies = np.flatnonzero(np.asarray(surprise) >= threshold)
    found: dict[str, list[bool]] = {}
    free = np.ones(len(anomalies), bool)
    for event in events:
        inside = (anomalies >= event.frame) & (anomalies < event.frame + event.length)
        found.setdefault(event.kind, []).append(bool(inside.any()))
        free &= ~((anomalies >= event.frame) & (anomalies < event.frame + event.length + NEAR))
    alarms = anomalies[free]
    return found, int((np.diff(alarms, prepend=-NEAR - 1) > NEAR).sum())


def scored(measured: list[tuple[Shown, dict[str, list[float]]]], detector: str, threshold: float) -> dict[str, Any]:
    """Return the share found of each kind of event, and false alarms a minute."""
    found: dict[str, list[bool]] = {}
    alarms = frames = 0
    for one, surprise in measured:
        of_one, false = judged(surprise[detector], one.events, threshold)
        for kind, values in of_one.items():
            found.setdefault(kind, []).extend(values)
        alarms, frames = alarms + false, frames + len(one.frames)
    every = [value for values in found.values() for value in values]
    return {
        "threshold": threshold,
        "found": {kind: [sum(values), len(values)] for kind, values in sorted(found.items())},
        "share": sum(every) / max(len(every), 1),
        "false_alarms_per_minute": alarms / (frames / RATE / 60),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", nargs="+", metavar="FILM[:CUT,CUT]")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kernels.set_threads(1)
    films, measured = [read(film) for film in options.films], []
    for one in shown(films):
        measured.append((one, surprises(one.frames)))
        print(f"{one.name}, {len(one.frames)} frames", file=sys.stderr, flush=True)
    chosen = {}
    for detector, threshold in DETECTORS.items():
        if threshold is None:
            values = np.unique(np.concatenate([of[detector] for _, of in measured]))
            tries = [scored(measured, detector, float(one)) for one in np.quantile(values, np.linspace(0.8, 1, 400))]
            quiet = [one for one in tries if one["false_alarms_per_minute"] <= 1]
            chosen[detector] = max(quiet, key=lambda one: one["share"])
        else:
            chosen[detector] = scored(measured, detector, threshold)
    for name, row in chosen.items():
        print(name, json.dumps(row))
    if options.json:
        result = {
            "films": [name for name, *_ in films],
            "frames": sum(len(one.frames) for one, _ in measured),
            "frames_per_second": RATE,
            "detectors": chosen,
        }
        write_atomically(options.json, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
