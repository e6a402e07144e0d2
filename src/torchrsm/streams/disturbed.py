"""Frames that are disturbed: noise, frames that are not shown, a stretch of blindness, a bar that covers a part.

What happens to a frame is a function of the seed, the number of its sequence and its time in it alone. Where pixels are
not shown they are black, and a mask says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from torchrsm.compiling import compiled
from torchrsm.config import Config
from torchrsm.streams.random import WEYL, mix, uniform
from torchrsm.streams.share import part_of
from torchrsm.streams.stream import Stream, StreamBatch, require_integer, require_settings

_LARGEST = 2**63 - 1

Share = Annotated[float, Field(gt=0, lt=1)]


class DisturbanceConfig(Config):
    """What disturbs frames. Of several values each sequence draws one; none means that this does not happen.

    Attributes:
        noise: deviation of Gaussian noise on each pixel, which is then cut to 0..1.
        flicker: share of the frames that are not shown.
        blackout: how many frames in a row are not shown, from ``blackout_from`` on.
        blackout_from: number of the first of these frames in its sequence, from 1.
        bar: pixels, the width of an opaque bar from top to bottom, half-way between the sides.
    """

    noise: tuple[Annotated[float, Field(gt=0)], ...] = ()
    flicker: tuple[Share, ...] = ()
    blackout: tuple[Annotated[int, Field(gt=0)], ...] = ()
    blackout_from: int = Field(default=51, gt=0)
    bar: tuple[Annotated[int, Field(gt=0)], ...] = ()

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List the setting of a stretch where there is none."""
        if not self.blackout:
            yield "blackout_from", "there is no blackout"

    @property
    def disturbs(self) -> bool:
        """Whether anything happens."""
        return bool(self.noise or self.hides)

    @property
    def hides(self) -> bool:
        """Whether pixels are not shown."""
        return bool(self.flicker or self.blackout or self.bar)


class Shown(NamedTuple):
    """What is shown of frames.

    Attributes:
        frames: ``[..., c, h, w]``, black where nothing is shown.
        seen: ``[..., 1, h, w]`` bool, true where something is shown; None where all of it always is.
    """

    frames: Tensor
    seen: Tensor | None


class Disturbed:
    """A stream that disturbs the frames of another.

    Args:
        stream: the stream whose frames are disturbed. It is played by this one: do not play it elsewhere.
        config: what disturbs them.
        seed: of chance, 0 to 2^63 - 1.

    Raises:
        ValueError: an argument is outside its range, or a bar is as wide as the frames.
    """

    def __init__(self, stream: Stream, config: DisturbanceConfig, seed: int = 0) -> None:
        self._stream, self._config = stream, config
        self._seed = require_integer("seed", seed, 0, _LARGEST)
        _check_bar(config, stream.frame_shape[2])
        self._times: list[int] = [0] * stream.batch_size

    @property
    def batch_size(self) -> int:
        """Number of sequences played side by side."""
        return self._stream.batch_size

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames of the next batch."""
        return self._stream.frame_shape

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamBatch:
        batch = next(self._stream)
        starts, numbers = batch.starts.tolist(), batch.index.tolist()
        self._times = [0 if start else time + 1 for start, time in zip(starts, self._times, strict=True)]
        shown = [
            show_frame(frame, number, time, self._config, self._seed)
            for frame, number, time in zip(batch.frames, numbers, self._times, strict=True)
        ]
        seen = torch.stack([one.seen for one in shown if one.seen is not None]) if self._config.hides else None
        return batch._replace(frames=torch.stack([one.frames for one in shown]), seen=seen)

    def state_dict(self) -> dict[str, Any]:
        """Return the position before the next batch: that of the stream inside, and the time in each sequence."""
        return {**self._settings(), "times": list(self._times), "disturbed": self._stream.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` returned.

        Raises:
            ValueError: the position is not one of a stream with the same settings and the same stream inside.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"saved position: must be a mapping; got {state!r}")
        require_settings({n: e for n, e in state.items() if n not in ("times", "disturbed")}, self._settings())
        times, inside = state.get("times"), state.get("disturbed")
        if not isinstance(inside, Mapping):
            raise ValueError(f"saved position: disturbed must be a position; got {inside!r}")
        if not isinstance(times, list) or len(times) != self.batch_size:
            raise ValueError(f"saved position: times must be {self.batch_size} numbers; got {times!r}")
        checked = [require_integer("saved position: times", time, 0) for time in times]
        self._stream.load_state_dict(inside)
        self._times = checked

    def part(self, first: int, count: int) -> Disturbed:
        """Return a stream of some elements of this one alone, from its position on, as `BouncingBalls.part` does."""
        part = Disturbed(part_of(self._stream, first, count), self._config, self._seed)
        part._times = self._times[first : first + count]
        return part

    def _settings(self) -> dict[str, Any]:
        return {"stream": "Disturbed", "seed": self._seed, **self._config.model_dump(mode="json")}


def disturbed_sequences(frames: Tensor, config: DisturbanceConfig, seed: int = 0) -> Shown:
    """Return what is shown of whole sequences, which have the numbers 0, 1, 2 and so on.

    Args:
        frames: ``[sequences, time, c, h, w]`` in 0..1.
        config: what disturbs them.
        seed: of chance, 0 to 2^63 - 1.

    Raises:
        ValueError: a bar is as wide as the frames.
    """
    _check_bar(config, frames.shape[-1])
    shown = [
        [show_frame(frame, number, time, config, seed) for time, frame in enumerate(sequence)]
        for number, sequence in enumerate(frames)
    ]
    made = torch.stack([torch.stack([one.frames for one in sequence]) for sequence in shown])
    if not config.hides:
        return Shown(made, None)
    masks = [torch.stack([one.seen for one in sequence if one.seen is not None]) for sequence in shown]
    return Shown(made, torch.stack(masks))


def expected_noisy(frames: Tensor, deviation: float) -> Tensor:
    """Return the mean of frames with Gaussian noise that are cut to 0..1, which is what can be known of a noisy frame.

    Args:
        frames: in 0..1, of any shape.
        deviation: of the noise, above 0.
    """
    exact = frames.to(torch.float64)
    low, high = -exact / deviation, (1 - exact) / deviation

    def density(x: Tensor) -> Tensor:
        return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)

    below = torch.special.ndtr
    inside = exact * (below(high) - below(low)) + deviation * (density(low) - density(high))
    mean: Tensor = inside + 1 - below(high)
    return mean.to(frames.dtype)


def show_frame(frame: Tensor, number: int, time: int, config: DisturbanceConfig, seed: int) -> Shown:
    """Return what is shown of one frame ``[c, h, w]``.

    Args:
        frame: as it is.
        number: of its sequence.
        time: in its sequence, from 0.
        config: what disturbs it.
        seed: of chance.
    """
    draws = np.empty(5)
    bits = _draw(np.uint64(seed), number, time, draws)

    def one_of(values: tuple[Any, ...], draw: int) -> Any:
        return values[int(draws[draw] * len(values))]

    if config.noise:
        # A generator for each frame: its bits depend on nothing that was drawn before.
        noise = torch.randn(frame.shape, generator=torch.Generator().manual_seed(bits))
        frame = (frame + one_of(config.noise, 0) * noise).clamp(0, 1)
    if not config.hides:
        return Shown(frame, None)
    seen = torch.ones(1, *frame.shape[1:], dtype=torch.bool)
    if config.flicker and draws[4] < one_of(config.flicker, 1):
        seen[:] = False
    if config.blackout and 0 <= time + 1 - config.blackout_from < one_of(config.blackout, 2):
        seen[:] = False
    if config.bar:
        width = one_of(config.bar, 3)
        left = (frame.shape[2] - width) // 2
        seen[:, :, left : left + width] = False
    return Shown(torch.where(seen, frame, 0.0), seen)


@compiled(nogil=True)
def _draw(seed: np.uint64, number: int, time: int, draws: NDArray[np.float64]) -> int:
    """Draw what happens to a frame.

    Args:
        seed: of chance.
        number: of the sequence.
        time: in it.
        draws: ``[5]``, uniform in [0, 1): four that are the same for the whole sequence, and one of the frame.

    Returns:
        The seed of the noise of the frame, 0 to 2^63 - 1.
    """
    key = mix(mix(seed + np.uint64(5) * WEYL) + np.uint64(number) * WEYL)
    for draw in range(4):
        draws[draw] = uniform(key, draw)
    draws[4] = uniform(key, 4 + time)
    return int(np.int64(mix(mix(key) + np.uint64(time + 1) * WEYL) >> np.uint64(1)))


def _check_bar(config: DisturbanceConfig, width: int) -> None:
    if config.bar and max(config.bar) >= width:
        raise ValueError(f"bar must be narrower than the frames, which have {width} columns; got {max(config.bar)}")
