"""Clips of video, played on and on: short films, long ones, many of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrsm.compiling import compiled
from torchrsm.streams.film_store import Clip, ClipOnDisk
from torchrsm.streams.random import WEYL, mix
from torchrsm.streams.stream import StreamBatch, require_boolean, require_integer, saved_step

_LARGEST = 2**63 - 1


class ClipStream:
    """Play one or several clips for ever, side by side from different places.

    The elements of a batch begin evenly spread over the material: element i of B at frame ``floor(i N / B)`` of all N.
    Each plays its clip to the end, then the next clip from its beginning, after the last one the first. The first batch
    and each beginning of a clip are flagged as starts. The ``index`` of element i's passage p through a clip, the first
    and partial one counted as 0, is ``i + B p``: unique, and it only grows.

    Args:
        clips: uint8 ``[time, channels, height, width]`` each, the last three the same for all: arrays, tensors, or
            clips on disk (`torchrsm.streams.film_store`), of which a frame at a time is read. They are kept, not
            copied, and must not change. One of them must have two frames or more, so that there is a next frame to
            learn to predict.
        batch_size: places played side by side, 1 or more.
        mirror: whether each passage is shown mirrored, left to right, with probability 1/2.
        seed: of the mirroring, 0 to 2^63 - 1.

    Raises:
        ValueError: an argument is outside its range, a clip is empty or of another shape or type, or no frame follows
            another.
    """

    def __init__(
        self, clips: Sequence[Clip | Tensor], batch_size: int = 1, *, mirror: bool = False, seed: int = 0
    ) -> None:
        self._batch_size = require_integer("batch_size", batch_size, 1)
        self._mirror = require_boolean("mirror", mirror)
        self._seed = require_integer("seed", seed, 0, _LARGEST)
        self._clips = [_require_clip(number, clip) for number, clip in enumerate(clips)]
        if not self._clips:
            raise ValueError("clips must hold one or more; got none")
        for number, clip in enumerate(self._clips):
            if clip.shape[1:] != self._clips[0].shape[1:]:
                raise ValueError(
                    f"clips must all be [time, {', '.join(map(str, self._clips[0].shape[1:]))}] as the first; "
                    f"got {list(clip.shape)} as clip {number}"
                )
        if all(len(clip) < 2 for clip in self._clips):
            raise ValueError(
                "clips must hold a frame that follows another, to learn from; got "
                + ("a single frame" if len(self._clips) == 1 else f"{len(self._clips)} clips of a single frame each")
            )
        self._ends = np.cumsum([len(clip) for clip in self._clips])
        self._begins = self._ends - np.array([len(clip) for clip in self._clips])
        element = np.arange(self._batch_size, dtype=np.int64)
        self._first_frames = element * self._ends[-1] // self._batch_size
        self._first_clips = np.searchsorted(self._ends, self._first_frames, side="right")
        self._step = 0

    @property
    def batch_size(self) -> int:
        """Number of places played side by side."""
        return self._batch_size

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames."""
        _, channels, height, width = self._clips[0].shape
        return (channels, height, width)

    @property
    def frames(self) -> list[Clip]:
        """The clips, ``[time, channels, height, width]`` each, to look at and not to change."""
        return list(self._clips)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamBatch:
        laps, places = np.divmod(self._first_frames + self._step, self._ends[-1])
        clips = np.asarray(np.searchsorted(self._ends, places, side="right"))
        times = places - self._begins[clips]
        passages = laps * len(self._clips) + clips - self._first_clips
        chosen = np.stack([self._clips[clip][time] for clip, time in zip(clips, times, strict=True)])
        if self._mirror:
            mirrored = _mirrored(np.uint64(self._seed), passages)
            chosen[mirrored] = chosen[mirrored][..., ::-1]
        starts = (times == 0) | (self._step == 0)
        index = np.arange(self._batch_size, dtype=np.int64) + self._batch_size * passages
        self._step += 1
        frames = torch.from_numpy(chosen.astype(np.float32) / np.float32(255))
        return StreamBatch(frames, torch.from_numpy(starts), torch.from_numpy(index))

    def state_dict(self) -> dict[str, Any]:
        """Return the position before the next batch: the settings, a digest of the clips, the batches played."""
        return {**self._settings, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` returned.

        Raises:
            ValueError: the position is not one of a stream with the same settings and clips.
        """
        self._step = saved_step(state, self._settings)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for clip in self._clips:
            digest.update(str(clip.shape).encode())
            for time in range(len(clip)):  # one by one: a clip on disk does not fit into memory
                digest.update(np.ascontiguousarray(clip[time]).data)
        return {
            "stream": "ClipStream",
            "batch_size": self._batch_size,
            "mirror": self._mirror,
            "seed": self._seed,
            "clips": len(self._clips),
            "frames_sha256": digest.hexdigest(),
        }


@compiled(nogil=True)
def _mirrored(seed: np.uint64, passages: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Toss a coin for the passage of each element: a function of the seed and of the two numbers alone."""
    result = np.empty(len(passages), dtype=np.bool_)
    for element in range(len(passages)):
        key = mix(mix(seed + WEYL) + np.uint64(element) * WEYL)
        result[element] = mix(key + np.uint64(passages[element]) * WEYL) >> np.uint64(63) == np.uint64(1)
    return result


def _require_clip(number: int, clip: Clip | Tensor) -> Clip:
    if isinstance(clip, ClipOnDisk):
        return clip
    array = clip.detach().cpu().numpy() if isinstance(clip, Tensor) else np.asarray(clip)
    if array.ndim != 4 or array.dtype != np.uint8 or array.size == 0:
        raise ValueError(
            f"clips must be uint8 [time, channels, height, width], none of them 0; got {array.dtype} "
            f"{list(array.shape)} as clip {number}"
        )
    return array
