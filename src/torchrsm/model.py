"""The whole predictor, a stack and its rectifier: frames in, frames out, and its folder on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from torchrsm.config import Config
from torchrsm.devices import choose_device
from torchrsm.precision import layers_of
from torchrsm.predictor import check_frame, check_shape, filled, predict_next, rollout
from torchrsm.rectifiers import AnyRectifierConfig, InputSizes, make_rectifier
from torchrsm.rsm.functional import Chance, Grid
from torchrsm.rsm.head import HeadConfig, SymbolHead, check_symbols, symbol_loss
from torchrsm.rsm.kernels import EngineName
from torchrsm.rsm.layer import LayerConfig, LayerPrediction, LayerState
from torchrsm.rsm.stack import RSMStack
from torchrsm.rsm.symmetry import Symmetry, turns
from torchrsm.sampling import Sampled, SampledWinners
from torchrsm.storage.folders import load_model, save_model, save_weights
from torchrsm.storage.shipped import find_model


class ModelConfig(Config):
    """Settings of a `VideoPredictor`.

    Attributes:
        layers: from the layer that reads the frames upwards.
        channels: channels of a frame.
        height, width: of a frame; needed only where the weights depend on them, else any size will do.
        pad: rows and columns of border around each frame, up to 256, which make the walls visible to a convolution.
        pad_value: value of the border.
        feedback: each layer hears what the layer above has chosen; else that layer learns, and none below hears it.
        fresh_feedback: a layer hears what the layer above has chosen for this very step; else, as published, what it
            chose for the last.
        symmetry: of the world: ``none``, left and right as in a ``mirror``, or the 8 turns and mirrors of a ``square``.
            The cells of a layer then come in blocks of 2 or 8 which look for the same thing, turned, and learn it
            together (`torchrsm.rsm.symmetry`). Where a picture has an up and a down, it is no square.
        rectifier: makes the stack's prediction, an average, one sharp frame; None for none.
        head: names the symbol that comes next, where frames are symbols; None for none.
    """

    layers: tuple[LayerConfig, ...] = Field(min_length=1)
    channels: int = Field(default=1, gt=0)
    height: int | None = Field(default=None, gt=0)
    width: int | None = Field(default=None, gt=0)
    pad: int = Field(default=0, ge=0, le=256)
    pad_value: float = Field(default=0.5, ge=0, le=1)
    feedback: bool = True
    fresh_feedback: bool = False
    symmetry: Symmetry = "none"
    rectifier: AnyRectifierConfig | None = None
    head: HeadConfig | None = None

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List the settings that need a layer above, cells that are heard, or a border."""
        top = len(self.layers) - 1
        yield f"layers.{top}.pool", "no layer stands above"
        if top == 0:
            yield "feedback", "there is one layer"
        if top == 0 or not self.feedback:
            yield "fresh_feedback", "there is one layer" if top == 0 else "there is no feedback"
        for level, layer in enumerate(self.layers):
            if not layer.recurrent and (level == top or not self.feedback):
                for name in ("dropout", "recurrent_deviation"):
                    yield f"layers.{level}.{name}", "the layer hears neither its own cells nor those of a layer above"
        if self.pad == 0 and (self.rectifier is None or not self.rectifier.learns):
            yield "pad_value", "pad is 0"

    @property
    def copies(self) -> int:
        """See `Config.copies`."""
        return len(turns(self.symmetry))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.height is None) != (self.width is None):
            raise ValueError(f"height and width go together; got {self.height} and {self.width}")
        if self.height is None and self.head is not None:
            raise ValueError("height and width must be given: a head sees the winners of each place")
        if self.height is None and any(layer.depends_on_size for layer in self.layers):
            raise ValueError("height and width must be given: a layer has output_bias 'element' or a connected decoder")
        for level, layer in enumerate(self.layers[1:], 2):
            for name in ("input_frames", "input_decay", "input_threshold", "changes", "loss", "recall"):
                if getattr(layer, name) != LayerConfig.model_fields[name].default:
                    raise ValueError(
                        f"{name} is for the first layer, which reads frames; layer {level} has {getattr(layer, name)}"
                    )
        block = self.copies
        for level, layer in enumerate(self.layers if block > 1 else (), 1):
            if layer.groups % block or layer.cells_per_group > 1:
                raise ValueError(
                    f"symmetry {self.symmetry!r} needs groups of one cell, {block} or a multiple of it; layer {level} "
                    f"has {layer.groups} of {layer.cells_per_group}"
                )
            if layer.depends_on_size:
                raise ValueError(
                    f"symmetry {self.symmetry!r} needs a convolutional decoder and one output_bias a channel; layer "
                    f"{level} has decoder {layer.decoder!r} and output_bias {layer.output_bias!r}"
                )
        if self.rectifier is not None:
            self.rectifier.check_symmetry(self.symmetry)
        if self.layers[0].margin > self.pad:
            raise ValueError(
                f"margin of the first layer must be in 0..pad = 0..{self.pad}; got {self.layers[0].margin}"
            )
        return self


class Prediction(NamedTuple):
    """A predicted frame.

    Attributes:
        frame: ``[b, c, h, w]`` in 0..1, what is shown and fed back; rectified if the model has a rectifier.
        raw: ``[b, c, h, w]``, what the stack predicts: the average of all futures.
        layers: what each layer predicts; it carries the graphs for `VideoPredictor.losses`.
        seen: ``[b, c', h', w']``, what the stack read before it predicted, with the border: the last ``input_frames``
            frames, the latest first, and behind them their trace, if there is one.
        samples: ``[samples, b, c, h, w]``, draws of what may come; None unless they were asked for.
        symbols: ``[b, symbols]``, the logarithm of how likely each symbol is, with the graph of the head alone; None
            without a head.
    """

    frame: Tensor
    raw: Tensor
    layers: tuple[LayerPrediction, ...]
    seen: Tensor
    samples: Tensor | None = None
    symbols: Tensor | None = None


class VideoPredictor(nn.Module):
    """A stack of RSM layers as a predictor of video; see `torchrsm.predictor.Predictor` for the calls.

    Args:
        config: its settings.
        engine: which implementation computes the step (`torchrsm.rsm.kernels.choose_engine`).
    """

    def __init__(self, config: ModelConfig, engine: EngineName = "auto") -> None:
        super().__init__()
        self.config = config
        grid = None
        if config.height is not None and config.width is not None:
            grid = Grid(config.height + 2 * config.pad, config.width + 2 * config.pad)
        self.stack = RSMStack(
            config.layers,
            config.channels,
            frame_grid=grid,
            feedback=config.feedback,
            fresh_feedback=config.fresh_feedback,
            engine=engine,
            symmetry=config.symmetry,
        )
        sizes = InputSizes(
            config.channels,
            tuple(layer.cells for layer in config.layers),
            config.layers[0].channels_in(config.channels),
            config.pad,
            config.pad_value,
            config.symmetry,
        )
        self.rectifier = None if config.rectifier is None else make_rectifier(config.rectifier, sizes)
        self.head = None
        if config.head is not None:
            assert grid is not None
            self.head = SymbolHead(config.head, sizes.layer_cells, self.stack.grids(grid))

    def initial_state(self, shape: tuple[int, int, int, int]) -> tuple[LayerState, ...]:
        """Return the state of streams of which nothing has been seen; ``shape`` is that of the frames to come.

        Raises:
            ValueError: the shape is no four numbers, of another number of channels or, where the weights depend on it,
                of another size.
        """
        batch, channels, height, width = check_shape(shape)
        config = self.config
        if channels != config.channels:
            raise ValueError(f"this model reads frames of {config.channels} channels; got {channels}")
        if config.height is not None and (height, width) != (config.height, config.width):
            raise ValueError(f"this model reads frames of {config.height} x {config.width}; got {height} x {width}")
        return self.stack.initial_state(batch, Grid(height + 2 * config.pad, width + 2 * config.pad))

    def predict(
        self, state: tuple[LayerState, ...], samples: int = 0, generator: torch.Generator | None = None
    ) -> Prediction:
        """Predict the next frame of each stream from all that the state has seen.

        Args:
            state: what the streams have seen.
            samples: how many frames that may come to draw, too, >= 0.
            generator: of the random numbers for that, on the device of the model; None for torch's own.

        Raises:
            ValueError: ``samples`` is below 0, or the rectifier takes no noise and cannot draw.
        """
        if samples < 0:
            raise ValueError(f"samples must be >= 0; got {samples}")
        prediction = self.predict_raw(state)
        with torch.no_grad():
            prediction = prediction._replace(frame=self.rectify(prediction))
        if samples:
            drawn = torch.stack([self.draw(prediction, generator) for _ in range(samples)])
            prediction = prediction._replace(samples=drawn)
        return prediction

    def predict_raw(self, state: tuple[LayerState, ...], chance: Chance | None = None) -> Prediction:
        """Predict as `predict` does, without the rectifier: ``frame`` is ``raw``, cut to 0..1.

        Args:
            state: what the streams have seen.
            chance: draw the winners of each layer.
        """
        return self._prediction(self.stack.predict(state, chance), state)

    def _prediction(self, layers: tuple[LayerPrediction, ...], state: tuple[LayerState, ...]) -> Prediction:
        first, p, (h, w) = self.stack.layers[0], self.config.pad, layers[0].input_grid
        with torch.no_grad():
            raw = first.decode(layers[0])[:, p : h - p, p : w - p].permute(0, 3, 1, 2)
            frame = raw.clamp(0, 1) if first.config.activation == "identity" else raw  # a frame is always in 0..1
        seen = state[0].input
        assert isinstance(seen, Tensor)
        symbols = None if self.head is None else self.head([layer.cells for layer in layers])
        return Prediction(frame, raw, layers, seen.permute(0, 3, 1, 2), symbols=symbols)

    def rectify(self, prediction: Prediction, noise: Tensor | None = None) -> Tensor:
        """Return the rectified frame ``[b, c, h, w]`` of a prediction, with the graph of the rectifier alone.

        Without a rectifier it is ``prediction.frame``.

        Args:
            prediction: of this model.
            noise: see `Rectifier.forward`; None for none.
        """
        if self.rectifier is None:
            return prediction.frame
        cells = [layer.cells for layer in prediction.layers]
        with layers_of(prediction.raw.device):
            frame: Tensor = self.rectifier(prediction.raw, cells, prediction.seen, noise)
        return frame

    @torch.no_grad()
    def stages(self, prediction: Prediction, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the frame ``[b, c, h, w]`` that each stage of the rectifier makes; the last is that of `rectify`.

        Raises:
            ValueError: there is no rectifier.
        """
        if self.rectifier is None:
            raise ValueError("model must have a rectifier to have stages; got one without")
        cells = [layer.cells for layer in prediction.layers]
        with layers_of(prediction.raw.device):
            return self.rectifier.stages(prediction.raw, cells, prediction.seen, noise)

    @property
    def draws_futures(self) -> bool:
        """Whether its rectifier takes noise, so that it can draw one of several futures."""
        return self.rectifier is not None and self.rectifier.noise_shape(1, 1) is not None

    @torch.no_grad()
    def draw(self, prediction: Prediction, generator: torch.Generator | None = None) -> Tensor:
        """Return one of the frames that may come, ``[b, c, h, w]``; another one at each call.

        Args:
            prediction: of this model.
            generator: of random numbers, on the device of the model; None for torch's own.

        Raises:
            ValueError: the rectifier takes no noise.
        """
        return self.rectify(prediction, self.noise(prediction, generator))

    def noise(self, prediction: Prediction, generator: torch.Generator | None = None) -> Tensor:
        """Return noise for the rectifier, see `Rectifier.forward`; the arguments and errors are those of `draw`."""
        raw = prediction.raw
        shape = None if self.rectifier is None else self.rectifier.noise_shape(*raw.shape[2:])
        if shape is None:
            raise ValueError("rectifier must take noise (noise_channels > 0) to draw a future; got one that takes none")
        return torch.randn(len(raw), *shape, generator=generator, device=raw.device)

    def rollout(
        self,
        state: tuple[LayerState, ...],
        steps: int,
        sample: bool = False,
        seed: int = 0,
        temperature: float | None = None,
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Imagine what comes next: predict, and take each prediction for the frame that came.

        Args:
            state: what the streams have seen, for instance after `observe` on the frames that prime the dream.
            steps: how many frames to imagine, >= 1.
            sample: draw one of the frames that may come at each step.
            seed: of these draws; the same seed imagines the same future again.
            temperature: draw the winners of each layer in place of noise in the rectifier, see
                `torchrsm.sampling.SampledWinners`.

        Returns:
            The frames, ``[b, steps, c, h, w]`` in 0..1, and the state after them, from which a rollout can go on.

        Raises:
            ValueError: ``steps`` is below 1, the temperature is not above 0, or the rectifier takes no noise and cannot
                draw.
        """
        if not sample:
            if temperature is not None:
                raise ValueError(f"temperature is that of draws and must be None without sample; got {temperature:g}")
            return rollout(self, state, steps)
        drawing = Sampled(self, seed) if temperature is None else SampledWinners(self, temperature, seed)
        return rollout(drawing, state, steps)

    def losses(self, prediction: Prediction, frame: Tensor, learn: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the error of each layer, a scalar each, on graphs that share nothing.

        Args:
            prediction: what `predict` returned.
            frame: the frame that came, ``[b, c, h, w]`` in 0..1.
            learn: ``[b]`` bool, false for streams to leave out (the first frame of a sequence); None for all.

        Raises:
            ValueError: the frame is not of the shape, type or device of the predicted one, or not in 0..1.
        """
        check_frame(frame, prediction.raw)
        if learn is None:
            learn = torch.ones(frame.shape[0], dtype=torch.bool, device=frame.device)
        return self.stack.losses(prediction.layers, self._padded(frame), learn)

    def symbol_loss(self, prediction: Prediction, symbols: Tensor, learn: Tensor) -> Tensor:
        """Return the error of the head, a scalar on a graph of its own.

        Args:
            prediction: what `predict` returned.
            symbols: that came, ``[b]`` int64.
            learn: ``[b]`` bool, false for streams to leave out.

        Raises:
            ValueError: there is no head, or the symbols are of another shape or type, or of another range.
        """
        if prediction.symbols is None or self.head is None:
            raise ValueError("model must have a head to learn symbols; got one without")
        check_symbols(symbols, len(prediction.raw), self.head.config.symbols)
        return symbol_loss(prediction.symbols, symbols, learn)

    def observe(
        self, frame: Tensor, prediction: Prediction, state: tuple[LayerState, ...], seen: Tensor | None = None
    ) -> tuple[LayerState, ...]:
        """Return the state after a frame ``[b, c, h, w]`` in 0..1, true or fed back.

        Args:
            frame: what came.
            prediction: of it, by this model.
            state: before it.
            seen: ``[b, 1, h, w]`` bool, true where the frame shows something. Elsewhere the model's own prediction
                takes its place. None where it does everywhere.

        Raises:
            ValueError: the frame is not of the shape, type or device of the predicted one, or not in 0..1; or ``seen``
                does not fit it.
        """
        check_frame(frame, prediction.raw)
        return self.observe_winners(filled(frame, prediction.frame, seen), prediction.layers, state)

    def observe_winners(
        self, frame: Tensor, layers: tuple[LayerPrediction, ...], state: tuple[LayerState, ...]
    ) -> tuple[LayerState, ...]:
        """Do what `observe` does with a frame that is known to be good; ``layers`` is ``prediction.layers``."""
        return self.stack.observe(self._padded(frame), layers, state)

    def forward(self, frames: Tensor) -> Tensor:
        """Predict the frame after each of ``frames [b, t, c, h, w]``; see `torchrsm.predictor.predict_next`."""
        return predict_next(self, frames)

    def last_frame(self, state: tuple[LayerState, ...]) -> Tensor:
        """Return the frame that was observed last, ``[b, c, h, w]``, values below the input threshold as 0."""
        seen, p = state[0].input, self.config.pad
        assert isinstance(seen, Tensor)
        height, width = seen.shape[1:3]
        return seen[:, p : height - p, p : width - p, : self.config.channels].permute(0, 3, 1, 2)

    def _padded(self, frame: Tensor) -> Tensor:
        p = self.config.pad
        return nn.functional.pad(frame.detach(), (p, p, p, p), value=self.config.pad_value).permute(0, 2, 3, 1)

    def save(self, folder: Path | str) -> None:
        """Write ``config.json`` and ``model.safetensors`` to a folder, which is made if need be.

        Raises:
            OSError: the folder cannot be made or written.
        """
        save_model(self, self.config, Path(folder))

    def save_weights(self, folder: Path) -> None:
        """Write ``model.safetensors`` alone, atomically."""
        save_weights(self, folder)

    def save_pretrained(self, folder: Path | str) -> None:
        """Do what `save` does, under the name that Hugging Face's libraries use; the folder is laid out as theirs."""
        self.save(folder)

    @staticmethod
    def from_pretrained(
        name_or_folder: Path | str, engine: EngineName = "auto", *, device: str | torch.device = "cpu"
    ) -> VideoPredictor:
        """Load an RSM model as `torchrsm.load` does, under the name that Hugging Face's libraries use.

        Nothing is fetched from a network.

        Args:
            name_or_folder: a folder that `save` or a training run wrote, or the name of a shipped model
                (`torchrsm.shipped_models`); a folder that exists goes before a name.
            engine: which implementation computes the step.
            device: where the model computes; see `torchrsm.devices.choose_device`.

        Raises:
            FileNotFoundError: there is neither such a folder nor such a shipped model, or a file in it is missing.
            ValueError: a file is truncated or foreign, a setting unknown or out of range, a weight of the wrong shape
                or not finite, or the settings ask for many more weights than the file holds; or there is no such
                device.
        """
        place = choose_device(device)
        model = load_model(find_model(name_or_folder), ModelConfig, lambda config: VideoPredictor(config, engine))
        return model.to(place)
