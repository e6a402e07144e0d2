"""Scores imagined frames: beside the true ones for as long as that is meaningful, then by their physics."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from torchrsm.predictor import Predictor
from torchrsm.scoring.physics import (
    TRACKED_STEPS,
    WORLD,
    PhysicsSummary,
    TrackedError,
    WorldGeometry,
    summarise_physics,
)
from torchrsm.scoring.sequences import Mapped, check_sequences, imagine, one_by_one
from torchrsm.streams.bouncing_balls import BOX, SPEED, bouncing_ball_sequences, render_balls, simulate_balls
from torchrsm.streams.settings import BallWorldConfig
from torchrsm.streams.splits import FRAMES_IN_A_SEQUENCE, Split, split_seed

SIMULATOR_NOISE = 0.03
"""Deviation, px, of the positions from which the simulator starts when it is compared with a dream."""


class RolloutScores(BaseModel):
    """What `evaluate_rollouts` measured.

    Attributes:
        prime: true frames that the model observes before it goes on alone.
        steps: frames imagined after them.
        physics: of the imagined frames.
        simulator: tracked error of the world itself, started beside the truth with positions that are off by
            `SIMULATOR_NOISE`; None where the positions are not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prime: int
    steps: int
    physics: PhysicsSummary
    simulator: tuple[TrackedError, ...] | None = None

    def table(self) -> str:
        """Return the scores as a text table, every line at most 120 characters."""
        physics, world = self.physics, self.physics.geometry
        windows = physics.windows
        rows: list[tuple[str, str, list[str]]] = [
            ("frames with the right number", "1", [f"{w.right_count:.4f}" for w in windows]),
            ("mass", "1", [f"{w.mass:.3f}" for w in windows]),
            ("kinetic energy, px²", f"{world.energy:.2f}", [_number(w.kinetic_energy) for w in windows]),
            ("balls outside", "0", [_number(w.outside) for w in windows]),
            ("pairs that overlap", "0", [_number(w.overlap) for w in windows]),
            ("pixels in 0.1..0.9", "", [f"{w.sharpness:.3f}" for w in windows]),
            ("bounces in a step", "", [_number(w.bounce_rate) for w in windows]),
            ("reflection error, degrees", "0", [_number(w.reflection_degrees) for w in windows]),
        ]
        spans = "".join(f"{f'{w.first}..{w.last}':>12}" for w in windows)
        lines = [
            f"{physics.sequences} dreams of {self.steps} steps after {self.prime} true frames, by steps",
            f"{'':<32}{'world':>6}{spans}",
        ]
        lines += [f"{name:<32}{truth:>6}{''.join(f'{value:>12}' for value in values)}" for name, truth, values in rows]
        lines.append(
            f"{'lifetime, steps (median)':<32}{'':>6}{physics.lifetime:>12g}   "
            f"({physics.never_ended:.1%} alive at step {self.steps})"
        )
        if physics.tracked:
            lines += ["", f"{'tracked error, px (median)':<38}" + "".join(f"{t.step:>9}" for t in physics.tracked)]
            lines.append(f"{'  of the dream':<38}" + "".join(f"{_number(t.median):>9}" for t in physics.tracked))
        if physics.tracked and self.simulator:
            name = f"  of the world, {SIMULATOR_NOISE} px off at the start"
            lines.append(
                f"{name:<38}" + "".join(f"{_number(t.median):>9}" for t in self.simulator[: len(physics.tracked)])
            )
        return "\n".join(lines)


def evaluate_rollouts(
    predictor: Predictor[Any, Any],
    frames: Tensor,
    *,
    prime: int = 50,
    steps: int = 150,
    batch_size: int = 50,
    simulator: tuple[TrackedError, ...] | None = None,
    geometry: WorldGeometry = WORLD,
    mapped: Mapped = one_by_one,
) -> RolloutScores:
    """Let a predictor dream of bouncing balls and judge the physics of its dreams.

    Args:
        predictor: the system.
        frames: true sequences ``[n, t, 1, side, side]``; the dream is tracked as far as they go on after the priming.
        prime: true frames observed first, 1 to t.
        steps: frames to imagine, >= 1.
        batch_size: sequences side by side, >= 1.
        simulator: what to put beside the tracked error, see `simulator_tracked_error`.
        geometry: the world, whose side is that of the frames.
        mapped: how the batches are worked on.

    Raises:
        ValueError: an argument is out of its range, or the predictor cannot work on frames of this shape.
    """
    check_sequences(frames)
    if not 1 <= prime <= frames.shape[1]:
        raise ValueError(f"prime must be in 1..{frames.shape[1]}, the frames of a sequence; got {prime}")
    dream = imagine(predictor, frames[:, :prime], steps, batch_size, mapped)
    return judge_dreams(dream, frames, prime, simulator, geometry)


def world_geometry(world: BallWorldConfig) -> WorldGeometry:
    """Return a world in pixels."""
    side = world.resolution
    radius, speed = world.radius * side / BOX, SPEED * world.speed * side / BOX
    return WorldGeometry(balls=world.balls, radius=radius, side=side, speed=speed)


def judge_dreams(
    dream: Tensor,
    frames: Tensor,
    prime: int,
    simulator: tuple[TrackedError, ...] | None = None,
    geometry: WorldGeometry = WORLD,
) -> RolloutScores:
    """Judge given dreams ``[n, steps, 1, side, side]``; the other arguments are those of `evaluate_rollouts`."""
    before, truth = frames[:, :prime], frames[:, prime:]
    physics = summarise_physics(dream, truth if truth.shape[1] else None, before, geometry=geometry)
    return RolloutScores(prime=prime, steps=dream.shape[1], physics=physics, simulator=simulator)


def simulator_tracked_error(split: Split, sequences: int = 200, *, prime: int = 50) -> tuple[TrackedError, ...]:
    """Return how fast the world itself loses the fixed sequences when its balls start `SIMULATOR_NOISE` off.

    Each coordinate of each ball of the last frame of the priming gets Gaussian noise of that deviation (fixed seed);
    the velocities are the true ones. The result is judged by its pixels, as a dream is.

    Raises:
        ValueError: an argument is out of its range.
    """
    seed = split_seed(split, sequences)
    if not 1 <= prime < FRAMES_IN_A_SEQUENCE:
        raise ValueError(f"prime must be in 1..{FRAMES_IN_A_SEQUENCE - 1}; got {prime}")
    world = bouncing_ball_sequences(range(sequences), seed=seed)
    steps = max(TRACKED_STEPS)
    side = world.frames.shape[-1]
    noise = np.random.default_rng(0).normal(0, SIMULATOR_NOISE * 10 / side, world.positions[:, prime - 1].shape)
    positions, _ = simulate_balls(
        world.positions[:, prime - 1].numpy() + noise, world.velocities[:, prime - 1].numpy(), steps + 1
    )
    frames = render_balls(positions[:, 1:], resolution=side)
    return summarise_physics(frames, world.frames[:, prime : prime + steps], world.frames[:, :prime]).tracked


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
