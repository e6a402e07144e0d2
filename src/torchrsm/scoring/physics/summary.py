"""Judges whole videos by every metric, and summarises the results."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from torchrsm.scoring.physics.detection import (
    WORLD,
    BoolArray,
    Detections,
    FloatArray,
    IntArray,
    WorldGeometry,
    checked_images,
    detect_balls,
)
from torchrsm.scoring.physics.motion import (
    ENERGY_WINDOW,
    Reflections,
    bounces,
    frame_mass,
    kinetic_energy,
    lifetime,
    match_balls,
    mean,
    median,
    outside_share,
    overlap_share,
    reflections,
    sharpness,
    smoothed_energy,
    tracked_error,
)

TRACKED_STEPS = (1, 5, 10, 20, 30)
"""Steps at which the balls are compared with the true ones. Later, chaos separates even equal worlds."""


class VideoPhysics(NamedTuple):
    """What `judge` measured: ``[n, t]`` at each step, or ``[n]`` for each sequence. NaN where it cannot be known.

    Attributes:
        counts: balls found.
        mass: `frame_mass`.
        energy: `kinetic_energy` of the transition into the step, px^2.
        smooth_energy: `smoothed_energy` of it.
        outside: `outside_share`.
        overlap: `overlap_share`.
        sharpness: `sharpness`.
        bounce: `bounces` in the transition into the step.
        reflections: `reflections`; a frame is the index of a step.
        reference_energy: ``[n]`` px^2, the energy that the lifetime compares with.
        lifetime: ``[n]`` `lifetime`.
        tracked: `tracked_error` beside the true video, up to the last of `TRACKED_STEPS`, NaN later; None without one.
    """

    counts: IntArray
    mass: FloatArray
    energy: FloatArray
    smooth_energy: FloatArray
    outside: FloatArray
    overlap: FloatArray
    sharpness: FloatArray
    bounce: FloatArray
    reflections: Reflections
    reference_energy: FloatArray
    lifetime: IntArray
    tracked: FloatArray | None


def judge(
    frames: Tensor, truth: Tensor | None = None, before: Tensor | None = None, *, geometry: WorldGeometry = WORLD
) -> VideoPhysics:
    """Measure every metric of videos, dreamt or true.

    Args:
        frames: ``[n, t, 1, side, side]``, or one sequence ``[t, 1, side, side]``, floating point in 0..1.
        truth: the true videos from the same step on, of any length; the comparison ends with the shorter one.
        before: the frames just before, any number: with one, the motion into the first step is known; with 12 or more,
            the median of their energy is the reference of the lifetime instead of the world's.
        geometry: the world.

    Raises:
        ValueError: frames have a wrong shape, type or value, are not of the same number of sequences, or there is only
            one frame in all and so no motion.
    """
    images = checked_images(frames, geometry)
    n, t = images.shape[:2]
    given = {"truth": truth, "before": before}
    for name, other in given.items():
        if other is not None and len(checked_images(other, geometry, name)) != n:
            raise ValueError(
                f"{name} must have the {n} sequences of frames; got {len(checked_images(other, geometry))}"
            )
    detections = whole = detect_balls(frames, geometry)
    earlier = 0
    if before is not None:
        seen = detect_balls(before, geometry)
        earlier = seen.counts.shape[1]
        whole = Detections(
            np.concatenate([seen.counts, detections.counts], axis=1),
            np.concatenate([seen.centres, detections.centres], axis=1),
        )
    if earlier + t < 2:
        raise ValueError("frames must be >= 2, those before included, to show a motion; got 1")

    tracks = match_balls(whole, geometry)
    energy = kinetic_energy(tracks)
    reference = np.full(n, geometry.energy)
    if earlier > ENERGY_WINDOW:
        own = median(energy[:, : earlier - 1], axis=1)
        reference = np.where(own > 0, own, reference)  # NaN or 0: no motion was seen before
    met = reflections(tracks, geometry)
    late = met.frame >= earlier
    contacts = Reflections(met.sequence[late], met.frame[late] - earlier, met.degrees[late], met.pair[late])
    smooth = _last(smoothed_energy(energy), t)
    tracked = None
    if truth is not None:
        true_frames = truth if truth.dim() == 5 else truth[None]
        shared = min(t, true_frames.shape[1], max(TRACKED_STEPS))
        tracked = np.full((n, t), np.nan)
        cut = Detections(detections.counts[:, :shared], detections.centres[:, :shared])
        tracked[:, :shared] = tracked_error(cut, detect_balls(true_frames[:, :shared], geometry), geometry)
    return VideoPhysics(
        counts=detections.counts,
        mass=frame_mass(frames, geometry),
        energy=_last(energy, t),
        smooth_energy=smooth,
        outside=outside_share(detections, geometry),
        overlap=overlap_share(detections, geometry),
        sharpness=sharpness(frames, geometry),
        bounce=_last(bounces(tracks, geometry), t),
        reflections=contacts,
        reference_energy=reference,
        lifetime=lifetime(detections.counts, smooth, reference, geometry),
        tracked=tracked,
    )


class WindowPhysics(BaseModel):
    """The physics of steps ``first`` to ``last``, counted from 1. None where nothing could be measured.

    Attributes:
        first, last: the steps.
        right_count: share of the frames with the world's number of balls.
        mass: median over sequences of their median.
        kinetic_energy: px^2, median over sequences of their median, over the transitions that could be followed.
        outside, overlap: mean share over the frames.
        sharpness: mean share over the frames.
        bounce_rate: share of the transitions that could be followed.
        reflection_degrees: median over the contacts.
        contacts: how many; each ball of a pair counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int
    last: int
    right_count: float
    mass: float
    kinetic_energy: float | None
    outside: float | None
    overlap: float | None
    sharpness: float
    bounce_rate: float | None
    reflection_degrees: float | None
    contacts: int


class TrackedError(BaseModel):
    """Distance from the true balls at one step, px, over the sequences in which it is known (``share`` of all)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    median: float | None
    mean: float | None
    share: float


class StepPhysics(BaseModel):
    """The physics at each step, the first value is step 1; None where nothing could be measured.

    Attributes:
        right_count: share of the sequences with the world's number of balls.
        mass: median over sequences.
        kinetic_energy: px^2, median over sequences, not smoothed.
        outside, overlap, sharpness: mean over sequences.
        bounce_rate: share of sequences.
        alive: share of the sequences whose lifetime reaches the step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    right_count: tuple[float, ...]
    mass: tuple[float, ...]
    kinetic_energy: tuple[float | None, ...]
    outside: tuple[float | None, ...]
    overlap: tuple[float | None, ...]
    sharpness: tuple[float, ...]
    bounce_rate: tuple[float | None, ...]
    alive: tuple[float, ...]


class PhysicsSummary(BaseModel):
    """What `summarise_physics` measured, ready for JSON; ``PhysicsSummary.model_validate_json`` reads it back.

    Attributes:
        geometry: the world that the videos were compared with.
        sequences, steps: their numbers.
        windows: steps 1 to 50, 1 to 150, the last 50, as far as the video is longer; the last one is all steps.
        lifetime: median over sequences, steps; a sequence that does not end counts with all its steps.
        never_ended: share of the sequences that were alive at the last step.
        reference_energy: px^2, median over sequences of the energy that the lifetime compares with.
        tracked: at each of `TRACKED_STEPS` that both videos reach; empty without a true video.
        by_step: at each step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    geometry: WorldGeometry
    sequences: int
    steps: int
    windows: tuple[WindowPhysics, ...]
    lifetime: float
    never_ended: float
    reference_energy: float
    tracked: tuple[TrackedError, ...]
    by_step: StepPhysics


def summarise_physics(
    frames: Tensor, truth: Tensor | None = None, before: Tensor | None = None, *, geometry: WorldGeometry = WORLD
) -> PhysicsSummary:
    """Judge videos and summarise them over sequences; arguments and errors as `judge`."""
    physics = judge(frames, truth, before, geometry=geometry)
    n, t = physics.counts.shape
    right = physics.counts == geometry.balls
    alive = physics.lifetime[:, None] >= np.arange(1, t + 1)
    parts = [(1, 50), (1, 150), (t - 49, t)]
    spans = [(first, last) for first, last in parts if first >= 1 and last <= t and (first, last) != (1, t)]
    tracked = []
    if truth is not None and physics.tracked is not None:
        reached = min(t, truth.shape[-4])
        for step in (step for step in TRACKED_STEPS if step <= reached):
            values = physics.tracked[:, step - 1]
            tracked.append(
                TrackedError(
                    step=step,
                    median=_value(median(values)),
                    mean=_value(mean(values)),
                    share=float(np.isfinite(values).mean()),
                )
            )
    return PhysicsSummary(
        geometry=geometry,
        sequences=n,
        steps=t,
        windows=tuple(_window(physics, right, first, last) for first, last in [*spans, (1, t)]),
        lifetime=float(np.median(physics.lifetime)),
        never_ended=float(alive[:, -1].mean()),
        reference_energy=float(np.median(physics.reference_energy)),
        tracked=tuple(tracked),
        by_step=StepPhysics(
            right_count=tuple(right.mean(axis=0).tolist()),
            mass=tuple(np.median(physics.mass, axis=0).tolist()),
            kinetic_energy=_values(median(physics.energy, axis=0)),
            outside=_values(mean(physics.outside, axis=0)),
            overlap=_values(mean(physics.overlap, axis=0)),
            sharpness=tuple(physics.sharpness.mean(axis=0).tolist()),
            bounce_rate=_values(mean(physics.bounce, axis=0)),
            alive=tuple(alive.mean(axis=0).tolist()),
        ),
    )


def _window(physics: VideoPhysics, right: BoolArray, first: int, last: int) -> WindowPhysics:
    steps = slice(first - 1, last)
    contact = physics.reflections
    degrees = contact.degrees[(contact.frame >= first - 1) & (contact.frame < last)]
    return WindowPhysics(
        first=first,
        last=last,
        right_count=float(right[:, steps].mean()),
        mass=float(np.median(np.median(physics.mass[:, steps], axis=1))),
        kinetic_energy=_value(median(median(physics.energy[:, steps], axis=1))),
        outside=_value(mean(physics.outside[:, steps])),
        overlap=_value(mean(physics.overlap[:, steps])),
        sharpness=float(physics.sharpness[:, steps].mean()),
        bounce_rate=_value(mean(physics.bounce[:, steps])),
        reflection_degrees=_value(median(degrees)),
        contacts=len(degrees),
    )


def _last(by_transition: FloatArray, steps: int) -> FloatArray:
    """Return the transitions into the last ``steps`` frames; that into the very first frame is unknown."""
    return np.pad(by_transition, ((0, 0), (1, 0)), constant_values=np.nan)[:, -steps:]


def _value(number: FloatArray) -> float | None:
    return None if np.isnan(number) else float(number)


def _values(numbers: FloatArray) -> tuple[float | None, ...]:
    return tuple(_value(number) for number in numbers)
