"""One step of a model as a function of tensors alone, for `torch.export` and what reads its programs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrsm.model import VideoPredictor
from torchrsm.predictor import Shape, check_shape
from torchrsm.rsm.layer import LayerPrediction
from torchrsm.state import flatten, unflatten


class OneStep(nn.Module):
    """Observes a frame and predicts the next: ``(frame, *state) -> (next frame, *next state)``.

    The state is a flat row of tensors: what the streams have seen, and the winners that predict the frame to come. A
    dream feeds the next frame back::

        step = OneStep(model, (1, 1, 30, 30))
        frame, *state = step.initial()
        frame, *state = step(true_frame, *state)
        frame, *state = step(frame, *state)  # the first dreamt one is observed

    Args:
        model: in evaluation mode.
        shape: batch, channels, height and width of the frames; a program is made for this shape alone.

    Raises:
        ValueError: the model is in training mode, or cannot read frames of this shape.
    """

    def __init__(self, model: VideoPredictor, shape: Shape) -> None:
        super().__init__()
        if model.training:
            raise ValueError("model must be in evaluation mode to be exported; call model.eval() first")
        self.model = model
        self.shape = check_shape(shape)
        with torch.no_grad():
            state = model.initial_state(self.shape)
            prediction = model.predict(state)
        self._first_frame = prediction.frame
        self._like = (state, tuple(layer.cells for layer in prediction.layers))
        self._grids = [layer.input_grid for layer in prediction.layers]
        self.state_names = tuple(flatten("state", self._like))

    def initial(self) -> tuple[Tensor, ...]:
        """Return the frame predicted when nothing has been seen, and the state to begin with."""
        return self._first_frame, *flatten("state", self._like).values()

    def forward(self, frame: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return the frame predicted after ``frame [b, c, h, w]`` in 0..1, and the next state."""
        layers, cells = unflatten("state", self._like, dict(zip(self.state_names, state, strict=True)))
        chosen = tuple(
            LayerPrediction(winners, winners.value, grid) for winners, grid in zip(cells, self._grids, strict=True)
        )
        layers = self.model.observe_winners(frame, chosen, layers)
        prediction = self.model.predict(layers)
        after = (layers, tuple(layer.cells for layer in prediction.layers))
        return prediction.frame, *flatten("state", after).values()


def export_step(model: VideoPredictor, shape: Shape) -> torch.export.ExportedProgram:
    """Return `OneStep` of a model as an exported program, which needs neither this package nor Numba to run.

    Args:
        model: in evaluation mode.
        shape: batch, channels, height and width of the frames that the program reads.

    Raises:
        ValueError: the model is in training mode, or cannot read frames of this shape.
    """
    step = OneStep(model, shape)
    with torch.no_grad():
        return torch.export.export(step, step.initial())
