"""Streams that change the frames of another stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from torch.nn import functional as F

from torchrsm.streams.stream import Stream, StreamBatch, require_integer, require_settings

_WIDEST = 4096  # pixels


class Pad:
    """A stream whose frames have a border, which makes the wall visible to a convolution.

    Args:
        stream: the stream that is padded. It is played by this one: do not play it elsewhere at the same time.
        margin: width of the border on each of the four sides, pixels, 0 to 4096.
        value: of the pixels of the border, 0 to 1.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(self, stream: Stream, margin: int, value: float = 0.5) -> None:
        if not isinstance(stream, Stream):
            raise ValueError(f"stream must be a stream of frames; got {type(stream).__name__}")
        self._stream = stream
        self._margin = require_integer("margin", margin, 0, _WIDEST)
        number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not number or not 0 <= value <= 1:
            raise ValueError(f"value must be a number in 0..1; got {value!r}")
        self._value = float(value)

    @property
    def batch_size(self) -> int:
        """Number of sequences played side by side."""
        return self._stream.batch_size

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames with their border."""
        channels, height, width = self._stream.frame_shape
        return (channels, height + 2 * self._margin, width + 2 * self._margin)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamBatch:
        batch = next(self._stream)
        return batch._replace(frames=F.pad(batch.frames, [self._margin] * 4, value=self._value))

    def state_dict(self) -> dict[str, Any]:
        """Return the position before the next batch: that of the padded stream, and the border."""
        return {"stream": "Pad", "margin": self._margin, "value": self._value, "padded": self._stream.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` returned.

        Raises:
            ValueError: the position is not one of a stream with the same border and the same stream inside.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"saved position: must be a mapping; got {state!r}")
        expected = {"stream": "Pad", "margin": self._margin, "value": self._value}
        require_settings({name: entry for name, entry in state.items() if name != "padded"}, expected)
        if not isinstance(state.get("padded"), Mapping):
            raise ValueError(f"saved position: padded must be a position; got {state.get('padded')!r}")
        self._stream.load_state_dict(state["padded"])
