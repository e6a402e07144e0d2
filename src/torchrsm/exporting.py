"""One step of a model as a function of tensors alone, for `torch.export`, ONNX and what reads their programs."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchrsm.model import VideoPredictor
from torchrsm.predictor import Shape, check_shape
from torchrsm.rsm.layer import LayerPrediction
from torchrsm.state import flatten, unflatten
from torchrsm.storage.tensors import write_atomically

FIRST_SUFFIX = ".first.npz"
"""What the file ends in that holds what a program begins with."""

_LOGGERS = ("torch.export", "torch.onnx", "onnxscript", "onnx_ir")


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
    return _exported(OneStep(model, shape))


def _exported(step: OneStep) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(step, step.initial())


def save_step(model: VideoPredictor, shape: Shape, file: Path | str) -> Path:
    """Write `OneStep` of a model as a program, and beside it what the program begins with.

    The inputs of the program are ``frame`` and then `OneStep.state_names`; its outputs are ``next_frame`` and then the
    same names behind ``next_``. The second file, whose name ends in `FIRST_SUFFIX`, holds `OneStep.initial` as arrays
    with the names of the inputs.

    Args:
        model: in evaluation mode.
        shape: batch, channels, height and width of the frames that the program reads.
        file: ``.pt2`` for `torch.export.load`; ``.onnx`` for onnxruntime and others, which needs the extra ``onnx``.

    Returns:
        The second file.

    Raises:
        ValueError: another ending, a model in training mode, or one that cannot read frames of this shape.
        ImportError: a package of the extra is missing.
        OSError: a file cannot be written.
    """
    file = Path(file)
    if file.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"file must end in .pt2 or .onnx; got {str(file)!r}")
    step = OneStep(model, shape)
    names = ("frame", *step.state_names)
    program = _exported(step)
    content = io.BytesIO()
    with _quietly():
        if file.suffix == ".pt2":
            torch.export.save(program, content)
        else:
            content.write(_as_onnx(program, names))
    arrays = io.BytesIO()
    begins: dict[str, Any] = {name: value.numpy() for name, value in zip(names, step.initial(), strict=True)}
    np.savez(arrays, **begins)
    first = file.with_name(file.stem + FIRST_SUFFIX)
    write_atomically(file, content.getvalue())
    write_atomically(first, arrays.getvalue())
    return first


def _as_onnx(program: torch.export.ExportedProgram, names: tuple[str, ...]) -> bytes:
    """Return a program as the content of an ``.onnx`` file."""
    import onnxscript

    op: Any = onnxscript.opset18

    def stable_sort(self: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        """Sort with `TopK`, which puts the lower index first among equal values, as a stable sort does."""
        size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
        return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)

    def add(self: Any, other: Any, alpha: Any = 1) -> Any:
        """Add; a small number by `Sum`, because a rule of the optimiser takes what is below 1e-8 in an `Add` for 0."""
        if not isinstance(other, int | float):
            return op.Add(self, other if alpha == 1 else op.Mul(other, op.CastLike(alpha, other)))
        added = alpha * other
        adding = op.Sum if isinstance(added, float) and abs(added) < 1e-6 else op.Add
        return adding(self, op.CastLike(op.Constant(value_float=float(added)), self))

    written = torch.onnx.export(
        program,
        input_names=names,
        output_names=[f"next_{name}" for name in names],
        custom_translation_table={torch.ops.aten.sort.stable: stable_sort, torch.ops.aten.add.Tensor: add},
        dynamo=True,
        verbose=False,
    )
    assert written is not None
    content: bytes = written.model_proto.SerializeToString()
    return content


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep quiet what the exporter tells of its own working: of packages that it could use, and of what it left out."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
