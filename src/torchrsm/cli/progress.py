"""Shows how a run is getting on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from torchrsm.runs.record import Record

LINE_SECONDS = 10.0
BAR_SECONDS = 0.25


def describe(record: Record) -> str:
    """Return the error and the speed of a record in one short line."""
    error, speed = f"{record.frame_squared_error:.3f}/frame", f"{record.frames_per_second:,.0f} frames/s"
    return f"{record.phase} step {record.step:,}  error {error}  {speed}"


@contextmanager
def reporting(name: str, done: Callable[[], float] | None = None) -> Iterator[Callable[[Record], None]]:
    """Give the function to call with each record of a run.

    Args:
        name: of the run, shown in front.
        done: returns the share of the run that is done, in 0..1, by which the bar moves between two records; None for a
            bar that moves with each record.
    """
    if not sys.stdout.isatty():
        yield _Lines(name)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[record]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=1.0, record="")
        ended = threading.Event()

        def move() -> None:
            while done is not None and not ended.wait(BAR_SECONDS):
                progress.update(task, completed=done())

        mover = threading.Thread(target=move, daemon=True)
        mover.start()
        try:
            yield lambda record: progress.update(task, completed=record.progress, record=describe(record))
        finally:
            ended.set()
            mover.join()


class _Lines:
    """Prints a line every few seconds, and the last."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last = -LINE_SECONDS

    def __call__(self, record: Record) -> None:
        now = time.monotonic()
        if now - self.last >= LINE_SECONDS or record.progress >= 1:
            self.last = now
            minutes = record.seconds / 60
            print(f"{self.name} {record.progress:4.0%}  {minutes:5.1f} min  {describe(record)}", flush=True)
