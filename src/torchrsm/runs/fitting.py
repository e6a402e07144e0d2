"""Makes a preset fit another stream: its settings follow from what is learned and from the size of the frames."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any

from torchrsm.learning.local import LearningConfig
from torchrsm.learning.rectifying import RectifyingConfig
from torchrsm.runs.presets import balls_window_1l
from torchrsm.runs.settings import AnyRunConfig, BaselineRunConfig, RunConfig
from torchrsm.streams.settings import BallWorldConfig, OfBalls, OfSymbols, StreamConfig, VideoConfig

_PASSAGES = 4  # through a video, which are learned from side by side
_NEARBY = 16  # pixels: systems halve frames at most four times, or fold patches of them


def fit(run: AnyRunConfig, shape: tuple[int, int, int], stream: StreamConfig) -> AnyRunConfig:
    """Return a run that learns from another stream, its settings made sensible for that.

    Args:
        run: from `preset`.
        shape: channels, height and width of the frames (`torchrsm.frame_shape`).
        stream: what it learns from.

    Raises:
        ValueError: the system cannot read frames of this size.
    """
    return sized(adapted(run, stream), shape)


def adapted(run: AnyRunConfig, stream: StreamConfig) -> AnyRunConfig:
    """Return a run that learns from another stream, whatever the size of its frames.

    RSM loses what is true of bouncing balls alone: it reads inputs near 0, no stream dreams, and the world, which may
    have an up and a down, is not taken to look the same from all sides. Its rectifier changes the last frame instead of
    the stack's prediction, since most of a picture may stand still. Of a video a batch is four passages: its frames are
    few, so that many small updates tell more than few large ones. Where frames are disturbed no stream dreams, since
    their motion is not that of the world.
    """
    if isinstance(stream, OfSymbols):
        return _naming(run, stream)
    if isinstance(run, RunConfig) and run.rectifying is not None and stream.disturbance.disturbs:
        run = run.replace(rectifying=without_dreams(run.rectifying))
    if isinstance(run, BaselineRunConfig) or isinstance(stream, OfBalls | BallWorldConfig):
        return run.replace(stream=stream)
    changes: dict[str, Any] = {"stream": stream, "model.layers.0.input_threshold": 0.0, "model.symmetry": "none"}
    if run.model.rectifier is not None:
        changes["model.rectifier"] = run.model.rectifier.for_still_pictures()
    if run.rectifying is not None:
        changes["rectifying"] = without_dreams(run.rectifying)
    if isinstance(stream, VideoConfig):
        changes["training.batch_size"] = _PASSAGES
    return run.replace(**changes)


def _naming(run: AnyRunConfig, stream: StreamConfig) -> AnyRunConfig:
    """Return a run that learns from symbols, its model naming as many as there are.

    Raises:
        ValueError: its model names no symbols.
    """
    if isinstance(run, RunConfig) and run.model.head is not None:
        named = "model.head.symbols"
    elif isinstance(run, BaselineRunConfig) and getattr(run.model, "symbols", None) is not None:
        named = "model.symbols"
    else:
        raise ValueError(f"system must be a preset that names symbols, such as reber or symbol-lstm; got {run.name!r}")
    return run.replace(**{"stream": stream, named: len(stream.symbols())})


def without_dreams(rectifying: RectifyingConfig) -> RectifyingConfig:
    """Return how a rectifier learns from the frames that come alone."""
    dreams = ("loop_share", "loop_from", "loop_error", "loop_steps", "motion_weight", "motion_blur")
    return rectifying.replace(**{name: RectifyingConfig.model_fields[name].default for name in dreams})


def on_stack_of(run: RunConfig, folder: str) -> RunConfig:
    """Return a run that takes the stack of a trained model as it is: its whole budget is the rectifier's.

    How the stack learns, and from when to when, has no effect then and is left at its defaults.

    Args:
        run: from `preset`, with a rectifier that learns.
        folder: of the model.

    Raises:
        ValueError: the run has no rectifier that learns.
    """
    changes: dict[str, Any] = {"stack_from": folder, "learning": LearningConfig()}
    if run.rectifying is not None:
        shares = {name: RectifyingConfig.model_fields[name].default for name in ("share", "stack_share")}
        changes["rectifying"] = run.rectifying.replace(**shares)
    return run.replace(**changes)


def sized(run: AnyRunConfig, shape: tuple[int, int, int]) -> AnyRunConfig:
    """Return a run for frames of this shape; RSM takes height and width only where its weights depend on them.

    Where a system folds patches of a frame into channels, they get the size nearest to its own that divides the frame.

    Raises:
        ValueError: the system cannot read frames of this size.
    """
    channels, height, width = shape
    size = {} if run.model.height is None else {"height": height, "width": width}
    settings: dict[str, Any] = {"channels": channels, **size}
    wanted = getattr(run.model, "patch", None)
    if wanted is not None:
        dividing = [patch for patch in range(1, 1 + math.gcd(height, width)) if height % patch == width % patch == 0]
        settings["patch"] = min(dividing, key=lambda patch: abs(math.log(patch / wanted)))
    return run.replace(**{f"model.{name}": value for name, value in settings.items()})


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
    run = fit(balls_window_1l(), shape, VideoConfig(path="-"))
    assert isinstance(run, RunConfig)
    rectifying = RectifyingConfig(
        share=0.999,
        stack_share=0.999,
        learning_rate=1e-3,
        matrix_learning_rate=2e-3,
        adversarial_weight=0.0,
        gradient_norm=0.1,
    )
    return run.replace(name="watch", learning=LearningConfig(learning_rates=(1e-3,)), rectifying=rectifying)
