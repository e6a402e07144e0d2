"""Moving MNIST, made on the fly: handwritten digits that move in straight lines and bounce off the frame.

Nitish Srivastava, Elman Mansimov, Ruslan Salakhutdinov, "Unsupervised Learning of Video Representations using LSTMs",
ICML 2015, arXiv 1502.04681: two digits of 28 x 28 in a frame of 64 x 64, a tenth of the way from wall to wall a step,
the brighter one where they overlap. Two details differ: the original stops a digit at the wall for the rest of the step
and cuts positions down to whole pixels; here it is reflected, so that its speed is constant, and positions are rounded.

The digits are those of `torchrsm.streams.handwriting`. A sequence is a function of its number, the seed and the split
alone, drawn as `bouncing_balls` draws its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrsm.compiling import compiled
from torchrsm.streams.bouncing_balls import FloatArray
from torchrsm.streams.handwriting import SIDE, DigitSplit, check_digit_split, handwritten_digits
from torchrsm.streams.random import WEYL, mix, uniform
from torchrsm.streams.stream import StreamBatch, element_positions, require_boolean, require_integer, saved_step

FRAME = 64  # in which it has that size
STEP_LENGTH = 0.1  # a digit's way in a step, in units of the way from wall to wall
_LARGEST = 2**63 - 1


class MovingMNIST:
    """An endless stream of moving digits, in which no sequence is ever played twice.

    Element i of the batch plays the sequences ``first_sequence`` + i, + i + batch, + i + 2 batch, ... The digits begin
    anywhere, move by a tenth of the way from wall to wall at each step in a direction of their own, and turn round
    where they meet the edge; where they overlap the brighter one is seen.

    Args:
        batch_size: sequences played side by side, 1 or more.
        digits: in each sequence, 1 to 10.
        resolution: height and width of a frame, pixels, 16 or more; of 64 a digit has 28.
        sequence_length: frames in a sequence, 2 or more.
        seed: 0 to 2^63 - 1.
        split: which digits: ``train`` 4,000, ``validation`` 500, ``test`` 500 others.
        dephased: whether the elements begin at different times of their sequences.
        first_sequence: number of the sequence that element 0 plays first, 0 to 2^62 - 1.
        deterministic: False lets a digit leave a wall in a random direction (Denton, Fergus 2018, arXiv 1802.07687).

    Raises:
        ValueError: an argument is outside its range.
        ImportError: the digits are not installed (extra: digits).
    """

    def __init__(
        self,
        batch_size: int = 64,
        *,
        digits: int = 2,
        resolution: int = FRAME,
        sequence_length: int = 20,
        seed: int = 0,
        split: DigitSplit = "train",
        dephased: bool = True,
        first_sequence: int = 0,
        deterministic: bool = True,
    ) -> None:
        self._settings = {
            "stream": "MovingMNIST",
            "batch_size": require_integer("batch_size", batch_size, 1),
            **_checked(digits, resolution, sequence_length, seed, split, deterministic),
            "dephased": require_boolean("dephased", dephased),
            "first_sequence": require_integer("first_sequence", first_sequence, 0, _LARGEST // 2),
        }
        self._batch_size, self._dephased = int(batch_size), dephased
        self._first_sequence = int(first_sequence)
        self._world = _World(int(digits), int(resolution), int(sequence_length), int(seed), split, deterministic)
        self._playing: dict[int, _Sequence] = {}
        self._step = 0

    @property
    def batch_size(self) -> int:
        """Number of sequences played side by side."""
        return self._batch_size

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the frames."""
        return (1, self._world.resolution, self._world.resolution)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamBatch:
        numbers, times = element_positions(self._step, self._batch_size, self._world.sequence_length, self._dephased)
        numbers = numbers + self._first_sequence
        frames = torch.empty(self._batch_size, *self.frame_shape)
        for element, (number, time) in enumerate(zip(numbers.tolist(), times.tolist(), strict=True)):
            sequence = self._playing.get(element)
            if sequence is None or sequence.number != number:
                sequence = self._playing[element] = self._world.sequence(number)
            frames[element, 0] = torch.from_numpy(sequence.frame(time))
        starts = torch.from_numpy((times == 0) | (self._step == 0))
        self._step += 1
        return StreamBatch(frames, starts, torch.from_numpy(numbers))

    def state_dict(self) -> dict[str, Any]:
        """Return the position before the next batch: the settings and the batches played."""
        return {**self._settings, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` returned.

        Raises:
            ValueError: the position is not one of a stream with the same settings.
        """
        self._step = saved_step(state, self._settings)
        self._playing.clear()


def moving_mnist_sequences(
    sequences: int | Sequence[int],
    *,
    seed: int = 0,
    digits: int = 2,
    resolution: int = FRAME,
    sequence_length: int = 20,
    split: DigitSplit = "train",
    deterministic: bool = True,
) -> Tensor:
    """Return whole sequences, the same that `MovingMNIST` plays under the same numbers, seed and split.

    Args:
        sequences: how many, counted from number 0, or their numbers.
        seed, digits, resolution, sequence_length, split, deterministic: see `MovingMNIST`.

    Returns:
        ``[n, t, 1, h, w]`` float32 in 0..1.

    Raises:
        ValueError: an argument is outside its range.
        ImportError: the digits are not installed (extra: digits).
    """
    _checked(digits, resolution, sequence_length, seed, split, deterministic)
    if isinstance(sequences, int | np.integer):
        numbers: Sequence[int] = range(require_integer("sequences", sequences, 1))
    else:
        numbers = [require_integer("sequences: each number", number, 0, _LARGEST) for number in sequences]
    if not len(numbers):
        raise ValueError("sequences must hold one number or more; got none")
    world = _World(digits, resolution, sequence_length, seed, split, deterministic)
    made = (world.sequence(number) for number in numbers)
    frames = np.stack([np.stack([one.frame(time) for time in range(sequence_length)]) for one in made])
    return torch.from_numpy(frames[:, :, None])


class _World:
    """Draws sequences by their numbers."""

    def __init__(
        self, digits: int, resolution: int, sequence_length: int, seed: int, split: DigitSplit, deterministic: bool
    ) -> None:
        self.digits, self.resolution, self.sequence_length = digits, resolution, sequence_length
        self._deterministic = deterministic
        self._seed, self._split = np.uint64(seed), check_digit_split(split)
        self.side = max(4, round(SIDE * resolution / FRAME))
        self._images = handwritten_digits(split, self.side).images

    def sequence(self, number: int) -> _Sequence:
        """Return a sequence; the same for the same number, whatever was played before."""
        draws, places = _paths(self._seed, self._split, number, self.digits, self.sequence_length, self._deterministic)
        chosen = (draws * len(self._images)).astype(np.int64)
        corners = np.rint((self.resolution - self.side) * places).astype(np.int64)
        return _Sequence(number, self._images[chosen], corners, self.resolution)


class _Sequence:
    def __init__(self, number: int, images: NDArray[np.float32], corners: NDArray[np.int64], resolution: int) -> None:
        self.number = number
        self._images, self._corners, self._resolution = images, corners, resolution

    def frame(self, time: int) -> NDArray[np.float32]:
        """Return one frame, ``[h, w]``."""
        frame = np.zeros((self._resolution, self._resolution), np.float32)
        side = self._images.shape[1]
        for image, (top, left) in zip(self._images, self._corners[time], strict=True):
            part = frame[top : top + side, left : left + side]
            np.maximum(part, image, out=part)
        return frame


@compiled(nogil=True)
def _paths(
    seed: np.uint64, split: int, number: int, digits: int, length: int, deterministic: bool
) -> tuple[FloatArray, FloatArray]:
    """Return a uniform draw for each digit, and the places of the digits between the walls.

    Returns:
        ``[digits]`` in [0, 1), and ``[length, digits, 2]`` in 0..1, (y, x).
    """
    draws, places = np.empty(digits), np.empty((length, digits, 2))
    key = mix(mix(seed + WEYL) + np.uint64(split) * WEYL)
    for i in range(digits):
        own = mix(mix(key + np.uint64(number) * WEYL) + np.uint64(i + 1) * WEYL)
        draws[i] = uniform(own, 0)
        place = np.array([uniform(own, 1), uniform(own, 2)])
        draw, turned = 3, True
        step = np.zeros(2)
        wall = np.zeros(2)  # of the walls just met, the way that leads away from them
        for time in range(length):
            if turned:
                # A uniform direction, from a point in a disc: this needs no function that libraries round differently.
                while True:
                    y, x = 2.0 * uniform(own, draw) - 1.0, 2.0 * uniform(own, draw + 1) - 1.0
                    draw += 2
                    if 1e-6 < y * y + x * x <= 1.0:
                        break
                scale = STEP_LENGTH / np.sqrt(y * y + x * x)
                step[0], step[1] = y * scale, x * scale
                for axis in range(2):
                    if wall[axis] != 0.0:
                        step[axis] = wall[axis] * abs(step[axis])
            places[time, i] = place
            turned = False
            for axis in range(2):
                place[axis] += step[axis]
                wall[axis] = 0.0
                if place[axis] < 0.0:
                    place[axis], step[axis], wall[axis] = -place[axis], -step[axis], 1.0
                elif place[axis] > 1.0:
                    place[axis], step[axis], wall[axis] = 2.0 - place[axis], -step[axis], -1.0
                turned = turned or (wall[axis] != 0.0 and not deterministic)
    return draws, places


def _checked(
    digits: int, resolution: int, sequence_length: int, seed: int, split: DigitSplit, deterministic: bool
) -> dict[str, Any]:
    check_digit_split(split)
    return {
        "digits": require_integer("digits", digits, 1, 10),
        "resolution": require_integer("resolution", resolution, 16, 1024),
        "sequence_length": require_integer("sequence_length", sequence_length, 2),
        "seed": require_integer("seed", seed, 0, _LARGEST),
        "split": split,
        "deterministic": require_boolean("deterministic", deterministic),
    }
