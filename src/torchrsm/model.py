"""The whole predictor: frames in, frames out, and its folder on disk (config.json and weights.safetensors)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from torchrsm.checkpoint import load_tensors, make_folder, save_tensors, write_atomically
from torchrsm.config import Config, first_error
from torchrsm.functional import Grid
from torchrsm.kernels import EngineName
from torchrsm.layer import LayerConfig, LayerPrediction, LayerState
from torchrsm.stack import RSMStack

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
FORMAT = "torchrsm-model-1"


class ModelConfig(Config):
    """Settings of a `VideoPredictor`.

    Attributes:
        layers: from the layer that reads the frames upwards.
        channels: channels of a frame.
        height, width: of a frame; needed only where the weights depend on them, else any size will do.
        pad: rows and columns of border around each frame, which make the walls visible to a convolution.
        pad_value: value of the border.
        fresh_feedback: a layer hears what the layer above has chosen for this very step; else, as published, what it
            chose for the last.
    """

    layers: tuple[LayerConfig, ...] = Field(min_length=1)
    channels: int = Field(default=1, gt=0)
    height: int | None = Field(default=None, gt=0)
    width: int | None = Field(default=None, gt=0)
    pad: int = Field(default=0, ge=0)
    pad_value: float = Field(default=0.5, ge=0, le=1)
    fresh_feedback: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.height is None) != (self.width is None):
            raise ValueError(f"height and width go together; got {self.height} and {self.width}")
        if self.height is None and any(layer.depends_on_size for layer in self.layers):
            raise ValueError("height and width must be given: a layer has output_bias 'element' or a connected decoder")
        for level, layer in enumerate(self.layers[1:], 2):
            for name in ("input_decay", "input_threshold"):
                if getattr(layer, name):
                    raise ValueError(
                        f"{name} is for the first layer, which reads frames; layer {level} has {getattr(layer, name)}"
                    )
        if self.layers[0].margin > self.pad:
            raise ValueError(
                f"margin of the first layer must be in 0..pad = 0..{self.pad}; got {self.layers[0].margin}"
            )
        return self


class Prediction(NamedTuple):
    """A predicted frame.

    Attributes:
        frame: ``[b, c, h, w]`` in 0..1, what is shown and fed back.
        raw: ``[b, c, h, w]``, what the stack predicts: the average of all futures.
        layers: what each layer predicts; it carries the graphs for `VideoPredictor.losses`.
    """

    frame: Tensor
    raw: Tensor
    layers: tuple[LayerPrediction, ...]


class VideoPredictor(nn.Module):
    """A stack of RSM layers as a predictor of video; see `torchrsm.predictor.Predictor` for the calls.

    Args:
        config: its settings.
        engine: which implementation computes the step (`torchrsm.kernels.choose_engine`).
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
            fresh_feedback=config.fresh_feedback,
            engine=engine,
        )

    def initial_state(self, shape: tuple[int, int, int, int]) -> tuple[LayerState, ...]:
        """Return the state of streams of which nothing has been seen; ``shape`` is that of the frames to come.

        Raises:
            ValueError: frames of another number of channels or, where the weights depend on it, another size.
        """
        batch, channels, height, width = shape
        config = self.config
        if channels != config.channels:
            raise ValueError(f"this model reads frames of {config.channels} channels; got {channels}")
        if config.height is not None and (height, width) != (config.height, config.width):
            raise ValueError(f"this model reads frames of {config.height} x {config.width}; got {height} x {width}")
        return self.stack.initial_state(batch, Grid(height + 2 * config.pad, width + 2 * config.pad))

    def predict(self, state: tuple[LayerState, ...]) -> Prediction:
        """Predict the next frame of each stream from all that the state has seen."""
        layers = self.stack.predict(state)
        decoded = self.stack.layers[0].decode(layers[0]).detach()
        p, (h, w) = self.config.pad, layers[0].input_grid
        raw = decoded[:, p : h - p, p : w - p].permute(0, 3, 1, 2)
        return Prediction(raw, raw, layers)

    def losses(self, prediction: Prediction, frame: Tensor, learn: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the error of each layer, a scalar each, on graphs that share nothing.

        Args:
            prediction: what `predict` returned.
            frame: the frame that came, ``[b, c, h, w]`` in 0..1.
            learn: ``[b]`` bool, false for streams to leave out (the first frame of a sequence); None for all.
        """
        if learn is None:
            learn = torch.ones(frame.shape[0], dtype=torch.bool, device=frame.device)
        return self.stack.losses(prediction.layers, self._padded(frame), learn)

    def observe(self, frame: Tensor, prediction: Prediction, state: tuple[LayerState, ...]) -> tuple[LayerState, ...]:
        """Return the state after a frame ``[b, c, h, w]``, true or fed back."""
        return self.stack.observe(self._padded(frame), prediction.layers, state)

    def _padded(self, frame: Tensor) -> Tensor:
        p = self.config.pad
        return nn.functional.pad(frame.detach(), (p, p, p, p), value=self.config.pad_value).permute(0, 2, 3, 1)

    def save(self, folder: Path | str) -> None:
        """Write ``config.json`` and ``weights.safetensors`` to a folder, which is made if need be.

        Raises:
            OSError: the folder cannot be made or written.
        """
        folder = Path(folder)
        make_folder(folder)
        write_atomically(folder / CONFIG_FILE, (self.config.model_dump_json(indent=2) + "\n").encode())
        self.save_weights(folder)

    def save_weights(self, folder: Path) -> None:
        """Write ``weights.safetensors`` alone, atomically."""
        save_tensors(folder / WEIGHTS_FILE, self.state_dict(), {"format": FORMAT})


def load(folder: Path | str, engine: EngineName = "auto") -> VideoPredictor:
    """Load a model from a folder that `VideoPredictor.save` or a training run wrote; it comes in evaluation mode.

    Nothing in the folder is executed: settings are JSON, weights safetensors.

    Raises:
        FileNotFoundError: there is no such folder, or a file in it is missing.
        ValueError: a file is truncated or foreign, a setting unknown, a weight of the wrong shape or not finite.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no model folder {folder}")
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no {CONFIG_FILE}")
    try:
        config = ModelConfig.model_validate_json((folder / CONFIG_FILE).read_bytes())
    except ValidationError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {first_error(error)}") from error
    tensors, header = load_tensors(folder / WEIGHTS_FILE)
    if header.get("format") != FORMAT:
        raise ValueError(f"{folder / WEIGHTS_FILE} must have the format {FORMAT}; got {header.get('format')}")
    model = VideoPredictor(config, engine)
    load_weights(model, tensors, str(folder / WEIGHTS_FILE))
    return model.eval()


def load_weights(model: VideoPredictor, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a model.

    Raises:
        ValueError: names or shapes differ, or a weight is not finite; the message names ``source``.
    """
    expected = model.state_dict()
    if expected.keys() != tensors.keys():
        name = sorted(expected.keys() ^ tensors.keys())[0]
        raise ValueError(f"{source}: weight {name} is {'missing' if name in expected else 'unknown'}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise ValueError(
                f"{source}: weight {name} must be {tuple(expected[name].shape)} {expected[name].dtype}; "
                f"got {tuple(tensor.shape)} {tensor.dtype}"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{source}: weight {name} is not finite")
    model.load_state_dict(dict(tensors))
