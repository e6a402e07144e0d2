"""Makes a preset fit another stream: its settings follow from what is learned and from the size of the frames."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any

from torchrsm.learning.local import LearningConfig
from torchrsm.rectifiers.unet import UNetConfig
from torchrsm.runs.presets import balls_1l
from torchrsm.runs.settings import AnyRunConfig, BaselineRunConfig, RunConfig
from torchrsm.streams.settings import AnyStreamConfig, BouncingBallsConfig, VideoConfig

_PASSAGES = 4  # through a video, side by side
_NEARBY = 16  # pixels: systems halve frames at most four times, or fold patches of them


def fit(run: AnyRunConfig, shape: tuple[int, int, int], stream: AnyStreamConfig) -> AnyRunConfig:
    """Return a run that learns from another stream, its settings made sensible for that.

    Args:
        run: from `preset`.
        shape: channels, height and width of the frames (`torchrsm.frame_shape`).
        stream: what it learns from.

    Raises:
        ValueError: the system cannot read frames of this size.
    """
    return sized(adapted(run, stream), shape)


def adapted(run: AnyRunConfig, stream: AnyStreamConfig) -> AnyRunConfig:
    """Return a run that learns from another stream, whatever the size of its frames.

    In RSM, what is tuned to bouncing balls is undone: inputs near 0 are read, no stream dreams, and where most of a
    picture may stand still the rectifier changes the last frame instead of the stack's prediction. Of a video a batch
    is four passages: its frames are few, so that many small updates tell more than few large ones.
    """
    if isinstance(run, BaselineRunConfig) or isinstance(stream, BouncingBallsConfig):
        return run.model_copy(update={"stream": stream})
    first, *others = run.model.layers
    changes: dict[str, Any] = {"layers": (first.model_copy(update={"input_threshold": 0.0}), *others)}
    if isinstance(run.model.rectifier, UNetConfig):
        changes["rectifier"] = run.model.rectifier.model_copy(update={"changes": "last"})
    rectifying = run.rectifying
    if rectifying is not None:
        rectifying = rectifying.model_copy(update={"loop_share": 0.0, "motion_weight": 0.0})
    model = run.model.model_copy(update=changes)
    training = run.training
    if isinstance(stream, VideoConfig):
        training = training.model_copy(update={"batch_size": _PASSAGES})
    return run.model_copy(update={"model": model, "rectifying": rectifying, "training": training, "stream": stream})


def sized(run: AnyRunConfig, shape: tuple[int, int, int]) -> AnyRunConfig:
    """Return a run for frames of this shape; RSM takes height and width only where its weights depend on them.

    Where a system folds patches of a frame into channels, they get the size nearest to its own that divides the frame.

    Raises:
        ValueError: the system cannot read frames of this size.
    """
    channels, height, width = shape
    size = {} if run.model.height is None else {"height": height, "width": width}
    settings = {**run.model.model_dump(), "channels": channels, **size}
    if "patch" in settings:
        dividing = [patch for patch in range(1, 1 + math.gcd(height, width)) if height % patch == width % patch == 0]
        settings["patch"] = min(dividing, key=lambda patch: abs(math.log(patch / settings["patch"])))
    return run.model_copy(update={"model": type(run.model).model_validate(settings)})


def nearest_shape(run: AnyRunConfig, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape of frames that a system can read which is nearest to some other: itself, if it can read that.

    The width is changed before the height is, and each by as little as possible.

    Args:
        run: of the system.
        shape: channels, height and width.

    Raises:
        ValueError: no size nearby will do; the message is about the shape itself.
    """
    channels, height, width = shape
    changes = sorted(
        itertools.product(range(-_NEARBY, _NEARBY + 1), repeat=2), key=lambda d: (abs(d[0]) + abs(d[1]), abs(d[0]), d)
    )
    for taller, wider in [*((0, wider) for taller, wider in changes if taller == 0), *changes]:
        near = (channels, height + taller, width + wider)
        if min(near) < 1:
            continue
        with contextlib.suppress(ValueError):
            sized(run, near)
            return near
    sized(run, shape)
    raise AssertionError("unreachable: the shape itself was tried first")


def for_watching(shape: tuple[int, int, int]) -> RunConfig:
    """Return RSM that learns from one stream for ever: one layer and its rectifier, at rates that never fall."""
    run = fit(balls_1l(), shape, VideoConfig(path="-"))
    assert isinstance(run, RunConfig)
    assert run.rectifying is not None
    constant = {"schedule": "constant", "learning_rate": 1e-3, "matrix_learning_rate": 2e-3}
    rectifying = {**constant, "share": 0.999, "stack_share": 0.999, "adversarial_weight": 0.0, "gradient_norm": 0.1}
    return run.model_copy(
        update={
            "name": "watch",
            "learning": LearningConfig(learning_rates=(1e-3,)),
            "rectifying": run.rectifying.model_copy(update=rectifying),
        }
    )
