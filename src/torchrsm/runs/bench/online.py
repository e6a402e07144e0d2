"""Lets a system learn on line: one stream, one pass, constant rates, the error of each frame before it is learned from.

RSM takes one update for each frame, stack and rectifier at the same time. A baseline takes one whenever a window of new
frames is complete. No frame comes twice, and all systems get the same frames in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from torchrsm.config import Config
from torchrsm.learning.contract import require_finite_losses
from torchrsm.learning.randomness import Randomness
from torchrsm.learning.schedules import ScheduleConfig
from torchrsm.precision import products_in
from torchrsm.rsm import kernels
from torchrsm.runs.fitting import without_dreams
from torchrsm.runs.settings import AnyRunConfig, RunConfig
from torchrsm.streams.bouncing_balls import BouncingBalls
from torchrsm.streams.splits import FRAMES_IN_A_SEQUENCE
from torchrsm.streams.stream import StreamBatch

SEARCH_SEED = 20190530
"""The seed of the stream on which learning rates are chosen. No figure is reported of that stream."""

_CPU = torch.device("cpu")

_REPORT_FRAMES = 1000


class World(Config):
    """A stretch of a stream in which the world stays the same.

    Attributes:
        balls, radius: as of `torchrsm.streams.BouncingBalls`.
        frames: of the stretch.
    """

    balls: int = Field(default=3, gt=0)
    radius: float = Field(default=1.2, gt=0, lt=5)
    frames: int = Field(gt=0)

    def is_like(self, other: World) -> bool:
        """Return whether the other stretch is one of the same world, however long."""
        return (self.balls, self.radius) == (other.balls, other.radius)


class OnlineErrors(NamedTuple):
    """What was measured while a system learned on line.

    Attributes:
        errors: ``[frames]`` float64, the squared error of each frame before the update that learns from it; NaN for the
            first frame of a sequence, and for frames at the end that do not fill a window.
        seconds: in which it predicted and learned; without the making of frames.
        processor_seconds: likewise, of one core.
    """

    errors: NDArray[np.float64]
    seconds: float
    processor_seconds: float


def on_line(run: AnyRunConfig) -> AnyRunConfig:
    """Return a run that learns on line: one stream, constant rates, stack and rectifier at once from beginning to end.

    A single stream cannot dream and learn from what comes at the same time, so dreams are left out.
    """
    changes: dict[str, object] = {"learning": _constant(run.learning), "training.batch_size": 1}
    if isinstance(run, RunConfig) and run.rectifying is not None:
        alone = without_dreams(run.rectifying).replace(share=1.0, stack_share=1.0)
        changes["rectifying"] = _constant(alone)
    return run.replace(**changes)


def _constant(config: ScheduleConfig) -> ScheduleConfig:
    unused = {name: ScheduleConfig.model_fields[name].default for name in ("warmup_share", "final_share")}
    return config.replace(schedule="constant", **unused)


def play(worlds: Sequence[World], seed: int) -> Iterator[StreamBatch]:
    """Play one world after the other, batch 1, in sequences of 100 frames; no sequence comes twice.

    Args:
        worlds: in their order.
        seed: of all of them.

    Raises:
        ValueError: the balls do not fit into the box.
    """
    first = 0
    for world in worlds:
        stream = BouncingBalls(
            1,
            balls=world.balls,
            radius=world.radius,
            sequence_length=FRAMES_IN_A_SEQUENCE,
            seed=seed,
            first_sequence=first,
        )
        yield from islice(stream, world.frames)
        first += -(-world.frames // FRAMES_IN_A_SEQUENCE)


def learn_on_line(
    run: AnyRunConfig, worlds: Sequence[World], seed: int, report: Callable[[int, float], None] = lambda *_: None
) -> OnlineErrors:
    """Let a new system learn from a stream once, on one thread, and return its errors.

    Products are exact (float32) for all systems, so no figure depends on what the processor rounds to.

    Args:
        run: what `on_line` returned.
        worlds: what the stream shows.
        seed: of the weights, the dropout and the frames.
        report: called now and then with the frames seen and the mean error since the last call.

    Raises:
        NonFiniteError: learning has failed.
        ValueError: the system reads other frames, or does not predict each frame while it learns.
    """
    frames = play(worlds, seed)
    randomness = Randomness(seed, _CPU)
    found: list[Tensor] = []
    seconds = processor_seconds = 0.0
    with kernels.threads_in_use(1), products_in("float32"), randomness.in_use():
        learner = run.make_learner((1, 1, 30, 30), _CPU, True)
        learner.warm_up()
        phase = learner.phase(0.0)
        learner.begin(phase, 1)
        last = 0
        while len(batches := list(islice(frames, learner.batches_per_update))) == learner.batches_per_update:
            began, began_processor = time.perf_counter(), time.process_time()
            taught = learner.teach(batches, 0.0)
            seconds += time.perf_counter() - began
            processor_seconds += time.process_time() - began_processor
            require_finite_losses(learner.loss_names(phase), taught.losses)
            starts = torch.stack([batch.starts for batch in batches])
            if not torch.equal(taught.is_scored, ~starts):
                raise ValueError(f"a system must predict each frame while it learns; {run.name!r} leaves some out")
            found.append(torch.where(taught.is_scored, taught.errors, torch.nan)[:, 0])
            seen = len(found) * learner.batches_per_update
            if seen // _REPORT_FRAMES > last // _REPORT_FRAMES:
                report(seen, float(torch.cat(found)[last:].nanmean()))
                last = seen
    errors = np.full(sum(world.frames for world in worlds), np.nan)
    measured = torch.cat(found).double().numpy() if found else errors[:0]
    errors[: len(measured)] = measured
    return OnlineErrors(errors, seconds, processor_seconds)
