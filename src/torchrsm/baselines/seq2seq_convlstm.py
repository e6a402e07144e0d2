"""Sequence to sequence with convolutional LSTMs: an encoder reads what was seen, a decoder goes on from its memory.

Alberto Cenzato, Alberto Testolin, Marco Zorzi, "On the difficulty of learning and predicting the long-term dynamics of
bouncing objects", 2019, arXiv 1907.13494, and the authors' settings; after Xingjian Shi et al., "Convolutional LSTM
Network: A Machine Learning Approach for Precipitation Nowcasting", NIPS 2015, arXiv 1506.04214, and, for the second
decoder, Nitish Srivastava, Elman Mansimov, Ruslan Salakhutdinov, "Unsupervised Learning of Video Representations using
LSTMs", ICML 2015, arXiv 1502.04681.

The decoder reads the last frame, then its own predictions, and is judged by several frames at once. In the published
pair of models its last layer has one channel, and its output is the frame. The one with two decoders hands each of them
the memory of the encoder's last layer alone; the other decoder must tell what was seen, backwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from torchrsm.baselines.convlstm import ConvLSTMStack, StackConfig, at_rest
from torchrsm.baselines.lstm import UNSEEN, Memory
from torchrsm.baselines.sequence_model import Lesson, Predicted, SequenceModel, Window, mean_squared_error


class _DecodingConfig(StackConfig):
    """When decoders start, and how many frames they are asked for.

    Attributes:
        horizon: frames that a decoder is asked for while it learns.
        decode_every: frames of a window between two starts of a decoder; the first start is after as many.
        curriculum_updates: a decoder is asked for one frame at first, and for one more each time that this many updates
            are done, up to ``horizon``; None asks for all from the beginning.
    """

    horizon: int = Field(default=8, gt=0)
    decode_every: int = Field(default=8, gt=0)
    curriculum_updates: int | None = Field(default=None, gt=0)

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List the curriculum where there is nothing more to ask for."""
        if self.horizon == 1:
            yield "curriculum_updates", "horizon is 1"


class Seq2SeqConvLSTMConfig(_DecodingConfig):
    """Settings of the `Seq2SeqConvLSTM`; the defaults are the published ones.

    Attributes:
        horizon, decode_every, curriculum_updates: when a decoder starts, and how many frames it is asked for.
    """

    kind: Literal["seq2seq-convlstm"] = "seq2seq-convlstm"

    @model_validator(mode="after")
    def _ends_in_a_frame(self) -> Self:
        if self.hidden_channels[-1] != self.channels:
            raise ValueError(
                f"the last of hidden_channels must be {self.channels}, the channels of a frame; "
                f"got {self.hidden_channels[-1]}"
            )
        return self


class Seq2SeqConvLSTMMultiDecoderConfig(_DecodingConfig):
    """Settings of the `Seq2SeqConvLSTMMultiDecoder`; the defaults are the published ones.

    Attributes:
        horizon, decode_every, curriculum_updates: when the decoders start, and how many frames they are asked for.
        reconstruction_weight: of the loss of the decoder that tells what was seen.
    """

    kind: Literal["seq2seq-convlstm-multi-decoder"] = "seq2seq-convlstm-multi-decoder"
    curriculum_updates: int | None = Field(default=3750, gt=0)
    reconstruction_weight: float = Field(default=1.0, ge=0)


class Seq2SeqState(NamedTuple):
    """What has been seen.

    Attributes:
        frame: the last frame, ``[b, c, h, w]`` in 0..1; `torchrsm.baselines.lstm.UNSEEN` before the first.
        layers: the memory of each layer of the encoder after all frames.
    """

    frame: Tensor
    layers: tuple[Memory, ...]


class Seq2SeqConvLSTM(SequenceModel):
    """The `Predictor`: the decoder's first frame; the state is a `Seq2SeqState`.

    The decoder has the layers of the encoder, each of which begins with the memory of its peer.

    Args:
        config: its settings.
    """

    config: Seq2SeqConvLSTMConfig | Seq2SeqConvLSTMMultiDecoderConfig

    def __init__(self, config: Seq2SeqConvLSTMConfig | Seq2SeqConvLSTMMultiDecoderConfig | None = None) -> None:
        config = config or Seq2SeqConvLSTMConfig()
        super().__init__(config)
        self.encoder = ConvLSTMStack(config.channels, config.hidden_channels, config.kernel_sizes, config.forget_bias)
        self.decoder = self._new_decoder()
        self.updates: Tensor
        if config.curriculum_updates is not None:
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def asks_for_values(self) -> bool:
        """Whether the number of updates decides how many frames are decoded."""
        return self.config.curriculum_updates is not None

    @property
    def shortest_window(self) -> int:
        """Enough to decode a frame."""
        return self.config.decode_every + 1

    @property
    def horizon(self) -> int:
        """Frames that a decoder is asked for now, see `Seq2SeqConvLSTMConfig`."""
        config = self.config
        if config.curriculum_updates is None:
            return config.horizon
        return min(config.horizon, 1 + int(self.updates) // config.curriculum_updates)

    def initial_state(self, shape: tuple[int, int, int, int]) -> Seq2SeqState:
        """Return empty cells and no frame."""
        self.check_shape(shape)
        empty = self.encoder.empty(shape[0], shape[2], shape[3])
        return Seq2SeqState(next(self.parameters()).new_full(shape, UNSEEN), empty)

    def predict(self, state: Seq2SeqState) -> Predicted:
        """Return the first frame that the decoder goes on with."""
        return Predicted(self._decode(self.decoder, state.layers, state.frame, 1)[0])

    def advance(self, frame: Tensor, prediction: Predicted, state: Seq2SeqState) -> Seq2SeqState:
        """Let the encoder read the frame."""
        _, steps = self.encoder(2 * frame - 1, state.layers, _no_starts(frame))
        return Seq2SeqState(frame, steps[-1])

    def learn(self, window: Window, state: Seq2SeqState) -> Lesson:
        """Return the mean squared error of what the decoder says of the frames to come.

        Only its first frames are next-frame predictions: one in ``decode_every`` is scored.

        Raises:
            ValueError: the window is not longer than ``decode_every``, so there is nothing to decode.
        """
        frames, starts, _ = window
        if len(frames) < self.shortest_window:
            raise ValueError(f"window must be longer than decode_every {self.config.decode_every}; got {len(frames)}")
        numbers = range(self.config.decode_every - 1, len(frames) - 1, self.config.decode_every)
        points = torch.arange(numbers.start, numbers.stop, numbers.step, device=frames.device)
        _, steps = self.encoder((2 * frames - 1).flatten(0, 1), state.layers, starts)
        memories = tuple(
            Memory(*(torch.cat(parts) for parts in zip(*layer, strict=True)))
            for layer in zip(*(steps[number] for number in numbers), strict=True)
        )
        loss, first = self._decoded(window, points, memories)
        predicted, scored = torch.zeros_like(frames), torch.zeros_like(starts)
        predicted[points + 1] = first.detach()
        scored[points + 1] = ~starts[points + 1]
        if self.training and self.config.curriculum_updates is not None:
            self.updates += 1
        return Lesson((loss,), predicted, scored, Seq2SeqState(frames[-1], at_rest(steps[-1])))

    def _new_decoder(self) -> ConvLSTMStack:
        config = self.config
        return ConvLSTMStack(config.channels, config.hidden_channels, config.kernel_sizes, config.forget_bias)

    def _handed_over(self, memories: tuple[Memory, ...]) -> tuple[Memory, ...]:
        """Return what a decoder begins with."""
        return memories

    def _decoded(self, window: Window, points: Tensor, memories: tuple[Memory, ...]) -> tuple[Tensor, Tensor]:
        """Return the loss, and the first frames ``[points, b, c, h, w]``, of the decoder.

        Args:
            window: the frames.
            points: ``[points]``, of the last frame that was read before a decoder starts.
            memories: of the encoder then, ``[points * b, ...]``.
        """
        steps = min(self.horizon, len(window.frames) - self.config.decode_every)
        error, decoded = self._error(
            self.decoder, window, points, memories, 1 + torch.arange(steps, device=points.device)
        )
        return error, decoded[0]

    def _error(
        self, decoder: ConvLSTMStack, window: Window, points: Tensor, memories: tuple[Memory, ...], offsets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the error of a decoder, and its frames, ``[steps, points, b, c, h, w]``.

        Frames that are not of the same sequence, or not in the window, are left out.

        Args:
            decoder: which one.
            window, points, memories: see `_decoded`.
            offsets: ``[steps]``, of the frames that it is to tell, from the last one that was read.
        """
        frames, starts, _ = window
        decoded = self._decode(decoder, memories, frames[points].flatten(0, 1), len(offsets))
        wanted = offsets[:, None] + points
        there = (wanted >= 0) & (wanted < len(frames))
        wanted = wanted.clamp(0, len(frames) - 1)
        sequence = starts.cumsum(0)
        scored = there[..., None] & (sequence[wanted] == sequence[points])
        decoded = decoded.unflatten(1, (len(points), -1))
        return mean_squared_error(decoded.flatten(0, 1), frames[wanted].flatten(0, 1), scored.flatten(0, 1)), decoded

    def _decode(self, decoder: ConvLSTMStack, memories: tuple[Memory, ...], frame: Tensor, steps: int) -> Tensor:
        """Unroll a decoder from a frame and the encoder's memory on its own output, ``[steps, b, c, h, w]`` in 0..1."""
        value, memories, values = 2 * frame - 1, self._handed_over(memories), []
        for _ in range(steps):
            value, after = decoder(value, memories, _no_starts(frame))
            memories = after[-1]
            values.append(value)
        return (torch.stack(values) + 1) / 2


class Seq2SeqConvLSTMMultiDecoder(Seq2SeqConvLSTM):
    """The same with a second decoder, which tells what was seen, the last frame first; it is used to learn only.

    The decoders have the layers of the encoder in reverse and one of 1 x 1 on top; the first begins with the memory of
    the encoder's last, the others with none.

    Args:
        config: its settings.
    """

    config: Seq2SeqConvLSTMMultiDecoderConfig

    def __init__(self, config: Seq2SeqConvLSTMMultiDecoderConfig | None = None) -> None:
        super().__init__(config or Seq2SeqConvLSTMMultiDecoderConfig())
        self.reconstructor = self._new_decoder()

    def _new_decoder(self) -> ConvLSTMStack:
        config = self.config
        channels = (*reversed(config.hidden_channels), config.channels)
        return ConvLSTMStack(config.channels, channels, (*reversed(config.kernel_sizes), 1), config.forget_bias)

    def _handed_over(self, memories: tuple[Memory, ...]) -> tuple[Memory, ...]:
        hidden = memories[-1].hidden
        return (memories[-1], *self.decoder.empty(len(hidden), *hidden.shape[2:])[1:])

    def _decoded(self, window: Window, points: Tensor, memories: tuple[Memory, ...]) -> tuple[Tensor, Tensor]:
        loss, first = super()._decoded(window, points, memories)
        steps = min(self.horizon, len(points) * self.config.decode_every)
        error, _ = self._error(self.reconstructor, window, points, memories, -torch.arange(steps, device=points.device))
        return loss + self.config.reconstruction_weight * error, first


def _no_starts(frame: Tensor) -> Tensor:
    return torch.zeros(1, len(frame), dtype=torch.bool, device=frame.device)
