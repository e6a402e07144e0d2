"""One RSM layer: it predicts its next input with a few winner cells, and learns from that error alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from torchrsm.config import Config
from torchrsm.rsm import functional as F
from torchrsm.rsm.functional import Activation, Cells, Grid, Loss, Normalisation
from torchrsm.rsm.kernels import Context, Engine, EngineName, Step, Weights, check_engine, choose_engine
from torchrsm.rsm.kernels.reference import ReferenceEngine
from torchrsm.rsm.symmetry import Axis, Symmetry, TiedWeights

_SURE = 0.01
"""How far the last frame is held from 0 and 1 where its logit is the start of a prediction.

The nearer, the longer it takes to learn that a pixel changes.
"""


class LayerConfig(Config):
    """Settings of one layer. The names and their published symbols stand side by side in docs/science/notation.md.

    Attributes:
        groups: groups of cells at each location (g); they share their feed-forward weights.
        cells_per_group: cells of a group (c).
        active_groups: winners at each location (k), at most ``groups``.
        kernel_size, stride: of the feed-forward convolution over the layer's input.
        decoder: ``convolutional`` (transposed, with the stride of the encoder) or ``fully_connected``.
        decoder_kernel_size: of the convolutional decoder; None for that of the encoder.
        recurrent: whether cells see the layer's own last cells, its memory; without it, the weights for them are 0.
        recurrent_kernel_size: side of the neighbourhood whose last cells a cell sees; 1, as published, for its own
            place.
        recurrent_decay: eps, how much of the recurrent memory is left after a step; 0 for the last cells alone.
        learns_decay: each cell learns how much of its own trace is left, from ``recurrent_decay`` on; its gradient ends
            with the step, as all do. Source, of ``forgetting`` and ``boost``, too: Jeremy Gordon, David Rawlinson,
            Subutai Ahmad, arXiv 1912.01116.
        forgetting: chance with which a stream forgets its memory, all but its last input, after a step of training.
        input_frames: frames that the layer reads at once, the last one first, those before it as further channels. Only
            for a layer that reads frames.
        input_decay: adds a fading trace ``max(input_decay * trace, input)`` to the input as further channels; None for
            no trace. Only for a layer that reads frames.
        input_threshold: frame and trace values below it are read as 0, which costs the fused engine nothing; a
            prediction is still compared with the whole frame. Only for a layer that reads frames.
        normalisation: of the recurrent memory, over the whole ``sample`` (as published), each ``location`` or ``none``.
        inhibition_decay: gamma, how much of its inhibition a cell keeps after a step; 0 keeps the last winners from
            winning for one step, None is no inhibition.
        boost: strength with which cells that rarely win are favoured; 0 for none. Not together with inhibition.
        boost_decay: how much of the running frequency of wins is kept after a step.
        dropout: share of the recurrent and feedback inputs that is dropped in training.
        pool: side of the windows in which the layer above sees these cells.
        activation: of the prediction; ``softmax`` is over the channels, of which one comes: a symbol.
        changes: what the decoded cells are added to, before the activation: nothing, as published (``zero``), or the
            input that was seen last (``last``), as a logit where the activation is sigmoid. The layer then starts as a
            copy of the last frame, and its cells say what changes. Only for a layer that reads frames.
        loss: of the prediction: ``squared`` error, as published, or ``cross_entropy`` of a sigmoid or a softmax, whose
            gradient does not vanish where the layer is sure and wrong. Both are least at the mean of what comes.
            Cross-entropy is only for a layer that reads frames, which are in 0..1.
        recall: how many inputs before the last one the winners must tell, too, by decoders of their own; the error of
            each adds to that of the prediction. So a layer keeps what it cannot use yet. It is as local: the inputs are
            at hand, and no gradient crosses a step. Only for a layer that reads frames.
        output_bias: one for each ``element`` of the input, as published (fixes the frame's size), or each ``channel``.
        margin: rows and columns along each edge of the input that the layer sees but does not predict.
        recurrent_deviation: standard deviation of the recurrent and feedback weights at the start.
        decoder_deviation: standard deviation of the decoder's weights at the start. Too small a value makes few cells
            win ever; the deviation of the feed-forward weights is one over the root of their number.
    """

    groups: int = Field(gt=0)
    cells_per_group: int = Field(default=1, gt=0)
    active_groups: int = Field(gt=0)
    kernel_size: int = Field(default=5, gt=0)
    stride: int = Field(default=2, gt=0)
    decoder: Literal["convolutional", "fully_connected"] = "convolutional"
    decoder_kernel_size: int | None = Field(default=None, gt=0)
    recurrent: bool = True
    recurrent_kernel_size: int = Field(default=1, gt=0)
    recurrent_decay: float = Field(default=0.0, ge=0, lt=1)
    learns_decay: bool = False
    forgetting: float = Field(default=0.0, ge=0, lt=1)
    input_frames: int = Field(default=1, gt=0)
    input_decay: float | None = Field(default=None, gt=0, lt=1)
    input_threshold: float = Field(default=0.0, ge=0, lt=1)
    normalisation: Normalisation = "sample"
    inhibition_decay: float | None = Field(default=0.0, ge=0, lt=1)
    boost: float = Field(default=0.0, ge=0)
    boost_decay: float = Field(default=0.99, ge=0, lt=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    pool: int = Field(default=1, gt=0)
    activation: Activation = "identity"
    changes: Literal["zero", "last"] = "zero"
    loss: Loss = "squared"
    recall: int = Field(default=0, ge=0)
    output_bias: Literal["element", "channel"] = "element"
    margin: int = Field(default=0, ge=0)
    recurrent_deviation: float = Field(default=0.03, gt=0)
    decoder_deviation: float = Field(default=0.03, gt=0)

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List the settings of mechanisms that are switched off."""
        if self.boost == 0:
            yield "boost_decay", "boost is 0"
        if not self.recurrent:
            for name in ("recurrent_kernel_size", "recurrent_decay", "normalisation"):
                yield name, "the layer is not recurrent"
        if self.decoder == "fully_connected":
            yield "decoder_kernel_size", "the decoder is fully_connected"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.active_groups > self.groups:
            raise ValueError(f"active_groups must be in 1..groups = 1..{self.groups}; got {self.active_groups}")
        if self.recurrent_kernel_size % 2 == 0:
            raise ValueError(f"recurrent_kernel_size must be odd; got {self.recurrent_kernel_size}")
        size = self.decoder_kernel_size or self.kernel_size
        if self.decoder == "convolutional" and size < self.stride:
            name = "kernel_size" if self.decoder_kernel_size is None else "decoder_kernel_size"
            raise ValueError(
                f"{name} must be >= stride = {self.stride}, so that the convolutional decoder reaches every element of "
                f"the input; got {size}"
            )
        if self.learns_decay and self.recurrent_decay == 0:
            raise ValueError(
                "recurrent_decay must be > 0 where learns_decay is on: it is where the decay starts; got 0"
            )
        if self.loss == "cross_entropy" and self.activation == "identity":
            raise ValueError(f"loss cross_entropy needs the activation sigmoid or softmax; got {self.activation!r}")
        if self.activation == "softmax" and (self.loss, self.changes) != ("cross_entropy", "zero"):
            raise ValueError(
                f"activation softmax needs loss cross_entropy and changes zero; got {self.loss} and {self.changes}"
            )
        if self.recall and self.decoder == "fully_connected":
            raise ValueError(f"recall must be 0 where the decoder is fully_connected; got {self.recall}")
        if self.boost > 0 and self.inhibition_decay is not None:
            raise ValueError(f"boost must be 0 where inhibition_decay is not None; got boost = {self.boost}")
        return self

    @property
    def cells(self) -> int:
        """Cells of a location."""
        return self.groups * self.cells_per_group

    def channels_in(self, channels: int) -> int:
        """Return the channels that the layer reads of an input of so many: its frames, and their trace behind them."""
        return channels * (self.input_frames + (self.input_decay is not None))

    @property
    def depends_on_size(self) -> bool:
        """Whether the weights fit one frame size only."""
        return self.decoder == "fully_connected" or self.output_bias == "element"


class LayerState(NamedTuple):
    """What a layer remembers; detached, so a step's gradient ends with the step.

    Attributes:
        input: the last inputs ``[b, h, w, c']``, the last first, their trace behind them; or the last cells of the
            layer below.
        cells: the layer's own last cells, ``[b, h, w, k]``.
        trace: recurrent memory ``[b, h, w, n]``, or None where ``recurrent_decay`` is 0. Where the decay is learned, as
            it was before the last cells: the next prediction lets it fade and takes these up.
        inhibition: ``[b, h, w, n]`` in 0..1, or None where the last winners alone are inhibited or nothing is.
        past: the inputs before the last that are to be recalled, the latest first, ``[b, h, w, recall * c]``; None
            where there are none.
    """

    input: Tensor | Cells
    cells: Cells
    trace: Tensor | None
    inhibition: Tensor | None
    past: Tensor | None = None


class LayerPrediction(NamedTuple):
    """What a layer expects of its next input.

    Attributes:
        cells: the winners and their values, detached.
        z: value of each winner's group, ``[b, h, w, k]``; carries the graph of this layer and of no other.
        input_grid: rows and columns of the predicted input.
        base: ``[b, h, w, c]``, what the decoded cells are added to; a constant. None for 0.
        past: what the cells are to recall, see `LayerState`; a constant.
    """

    cells: Cells
    z: Tensor
    input_grid: Grid
    base: Tensor | None = None
    past: Tensor | None = None


class RSMLayer(nn.Module):
    """One layer of Recurrent Sparse Memory.

    Args:
        config: its settings.
        channels: channels of its input.
        input_pool: side of the windows in which cells that come as input are pooled.
        cells_above: cells of the layer above, whose feedback is an input too; None for the top layer.
        input_grid: rows and columns of the input; needed only if the weights depend on them.
        engine: which implementation computes the step.
        symmetry: of the world, see `torchrsm.rsm.symmetry`; that of the layer below is the same.
        reads_cells: the input is cells of a layer below. Only a symmetry asks for it.

    Raises:
        ValueError: ``input_grid`` is missing where the weights depend on it.
    """

    duty: Tensor
    recurrent: Tensor

    def __init__(
        self,
        config: LayerConfig,
        channels: int,
        *,
        input_pool: int = 1,
        cells_above: int | None = None,
        input_grid: Grid | None = None,
        engine: EngineName = "auto",
        symmetry: Symmetry = "none",
        reads_cells: bool = False,
    ) -> None:
        super().__init__()
        if config.depends_on_size and input_grid is None:
            raise ValueError("input_grid must be given for a fully connected decoder or one bias per element; got None")
        self.config = config
        self.channels = channels
        self.input_pool = input_pool
        self.input_grid = input_grid if config.depends_on_size else None
        check_engine(engine)
        self.engine = engine
        self._steps: dict[Grid, Step] = {}
        fan_in = config.kernel_size**2 * config.channels_in(channels)
        self.feedforward = _normal(fan_in, config.groups, fan_in**-0.5)
        if config.recurrent:
            neighbours = config.recurrent_kernel_size**2 * config.cells
            self.recurrent = _normal(neighbours, config.cells, config.recurrent_deviation)
        else:
            self.register_buffer("recurrent", torch.zeros(config.cells, config.cells), persistent=False)
        self.feedback = None if cells_above is None else _normal(cells_above, config.cells, config.recurrent_deviation)
        self.bias = nn.Parameter(torch.zeros(config.cells))
        self.decay = None
        if config.learns_decay:  # as a logit, so that it stays between 0 and 1
            start = torch.tensor(config.recurrent_decay)
            self.decay = nn.Parameter(torch.logit(start).expand(config.cells).clone())
        if config.decoder == "fully_connected":
            assert input_grid is not None
            grid = F.strided_grid(input_grid, config.stride)
            self.decoder = _normal(
                grid.height * grid.width * config.groups,
                input_grid.height * input_grid.width * channels,
                config.decoder_deviation,
            )
        else:
            size = config.decoder_kernel_size or config.kernel_size
            self.decoder = _normal(config.groups, size**2 * channels, config.decoder_deviation)
        bias_grid = self.input_grid if config.output_bias == "element" and self.input_grid else Grid(1, 1)
        self.output_bias = nn.Parameter(torch.zeros(*bias_grid, channels))
        self.recall, self.recall_bias = None, None
        if config.recall:
            drawn = torch.randn(config.recall, *self.decoder.shape) * config.decoder_deviation
            self.recall = nn.Parameter(drawn)
            self.recall_bias = nn.Parameter(torch.zeros(config.recall, *self.output_bias.shape))
        self.register_buffer("duty", torch.zeros(config.cells), persistent=config.boost > 0)
        self.tied = TiedWeights(self, self._axes(reads_cells), symmetry)

    def initial_state(self, batch: int, input: Tensor | Cells) -> LayerState:
        """Return the state of a layer that has seen nothing; ``input`` is an input of zeros."""
        config = self.config
        grid = self._step(self._grid_of(input)).grid
        dense = (batch, *grid, config.cells)
        like = self.bias
        past = None
        if isinstance(input, Tensor):
            past = input.repeat(1, 1, 1, config.recall) if config.recall else None
            input = input.repeat(1, 1, 1, config.channels_in(1))
        return LayerState(
            input=input,
            cells=F.empty_cells(batch, grid, config.active_groups, like),
            trace=like.new_zeros(dense) if config.recurrent_decay > 0 else None,
            inhibition=like.new_zeros(dense) if config.inhibition_decay else None,
            past=past,
        )

    def predict(
        self, state: LayerState, feedback: Cells | None = None, chance: F.Chance | None = None
    ) -> LayerPrediction:
        """Choose the cells that predict the next input (lines 2 to 7).

        Args:
            state: what the layer remembers.
            feedback: the last cells of the layer above.
            chance: draw the winners; then the reference computes the step.

        Raises:
            ValueError: a part of them has another shape, type or device than this layer's own.
        """
        config = self.config
        step = self._step(self._grid_of(state.input))
        self._check_state(state, feedback, step)
        context = Context(
            input=state.input,
            memory=self._memory(state),
            feedback=None if feedback is None else feedback._replace(value=self._dropout(feedback.value)),
            refractory=state.cells.index if config.inhibition_decay == 0 else None,
            inhibition=state.inhibition,
            boost=F.boost_factor(self.duty, config.boost, config.active_groups) if config.boost else None,
        )
        if chance is None and self.decay is None:
            index, a = self._engine.select(step, self._weights, context)
        else:  # the other engines draw nothing, and give no gradient of what is remembered
            index, a = ReferenceEngine().select(step, self._weights, context, chance)
        y = torch.tanh(a)
        z = F.group_values(y, config.cells_per_group)
        return LayerPrediction(Cells(index, y.detach()), z, step.input_grid, self._base(state.input), state.past)

    def decode(self, prediction: LayerPrediction) -> Tensor:
        """Return the predicted input ``[b, h, w, c]`` (line 9)."""
        return self._decoded(self._weights, prediction, prediction.base)

    def _decoded(self, weights: Weights, prediction: LayerPrediction, base: Tensor | None) -> Tensor:
        """Return what weights decode (line 9)."""
        step = self._step(prediction.input_grid)
        x = self._engine.decode(step, weights, prediction.cells.index, prediction.z, base)
        return F.activate(x, "softmax") if self.config.activation == "softmax" else x

    def _recalling(self) -> list[Weights]:
        """Return the weights that tell each of the inputs that are recalled."""
        if self.recall is None or self.recall_bias is None:
            return []
        return [
            self._weights._replace(decoder=decoder, output_bias=bias)
            for decoder, bias in zip(self.recall, self.recall_bias, strict=True)
        ]

    def loss(self, prediction: LayerPrediction, target: Tensor | Cells, learn: Tensor) -> Tensor:
        """Return the error of the prediction (line 10), a scalar: the mean of `LayerConfig.loss`.

        Args:
            prediction: what `predict` returned.
            target: the input that came, ``[b, h, w, c]`` or cells of the layer below.
            learn: ``[b]`` bool, false for samples to leave out.

        Raises:
            ValueError: the target is not of the predicted shape, type or device, or ``learn`` does not fit.
        """
        step = self._step(prediction.input_grid)
        self._check_input("the target", target, len(prediction.z), step)
        if learn.dtype != torch.bool or learn.shape != prediction.z.shape[:1] or learn.device != self.bias.device:
            raise ValueError(
                f"learn must be {torch.bool} [{len(prediction.z)}] on {self.bias.device}; "
                f"got {learn.dtype} {list(learn.shape)} on {learn.device}"
            )
        error = self._error(step, self._weights, prediction, target, learn, prediction.base)
        if prediction.past is not None:
            for weights, past in zip(self._recalling(), prediction.past.split(self.channels, -1), strict=True):
                error = error + self._error(step, weights, prediction, past.contiguous(), learn, None)
        return error

    def _error(
        self,
        step: Step,
        weights: Weights,
        prediction: LayerPrediction,
        target: Tensor | Cells,
        learn: Tensor,
        base: Tensor | None,
    ) -> Tensor:
        """Return the error of what weights decode (line 10)."""
        index, z = prediction.cells.index, prediction.z
        if self.config.activation == "softmax" and isinstance(target, Tensor):
            x = ReferenceEngine().decoded(step, weights, index, z)
            return F.categorical_loss(x, target, learn, step.margin)
        return self._engine.loss(step, weights, index, z, target, learn, base)

    @torch.no_grad()
    def recalled(self, prediction: LayerPrediction) -> Tensor | None:
        """Return what the winners tell of the inputs before the last, ``[b, h, w, recall * c]``; None for nothing."""
        told = [self._decoded(weights, prediction, None) for weights in self._recalling()]
        return torch.cat(told, -1) if told else None

    def observe(self, input: Tensor | Cells, prediction: LayerPrediction, state: LayerState) -> LayerState:
        """Return the state after an input (lines 1 and 8); nothing in it carries a graph.

        Raises:
            ValueError: the input is not of the predicted shape, type or device.
        """
        config = self.config
        self._check_input("the input", input, len(prediction.z), self._step(prediction.input_grid))
        y, past = prediction.cells, state.past
        if past is not None and isinstance(state.input, Tensor):
            past = torch.cat((state.input[..., : self.channels], past), -1)[..., : past.shape[-1]]
        if isinstance(input, Tensor) and isinstance(state.input, Tensor):
            kept = (config.input_frames - 1) * self.channels
            before, trace_before = state.input[..., :kept], state.input[..., kept + self.channels :]
            parts = [input, before] if kept else [input]
            if config.input_decay is not None:
                parts.append(F.update_trace(trace_before, input, config.input_decay))
            input = torch.cat(parts, 3) if len(parts) > 1 else input
            if config.input_threshold > 0:
                input = nn.functional.threshold(input, config.input_threshold, 0.0)
        trace, inhibition = state.trace, state.inhibition
        if self.decay is not None:
            with torch.no_grad():
                trace = self._trace(state)
        elif trace is not None:
            trace = F.update_trace(trace, F.to_dense(y, config.cells), config.recurrent_decay)
        if inhibition is not None and config.inhibition_decay is not None:
            winners = F.to_dense(y._replace(value=torch.ones_like(y.value)), config.cells)
            inhibition = F.update_inhibition(inhibition, winners, config.inhibition_decay)
        if self.training and config.forgetting > 0:
            return self._forgetful(LayerState(input, y, trace, inhibition, past))
        return LayerState(input, y, trace, inhibition, past)

    def _forgetful(self, state: LayerState) -> LayerState:
        """Return a state in which some streams, drawn at random, remember nothing but their last input."""
        cells = state.cells
        forgets = torch.rand(len(cells.index), 1, 1, 1, device=cells.value.device) < self.config.forgetting
        return state._replace(
            cells=Cells(cells.index.masked_fill(forgets, -1), cells.value.masked_fill(forgets, 0)),
            trace=None if state.trace is None else state.trace.masked_fill(forgets, 0),
            inhibition=None if state.inhibition is None else state.inhibition.masked_fill(forgets, 0),
        )

    @torch.no_grad()
    def wins(self, cells: Cells) -> Tensor:
        """Return how often each cell wins and, behind that, the number of locations: ``[n + 1]``, of all samples.

        What several processes count may be added up.
        """
        winners = cells.index.flatten().long()
        # Not `torch.bincount`, for which the host waits. Sums of integers do not depend on their order.
        wins = winners.new_zeros(self.config.cells).scatter_add_(0, winners, torch.ones_like(winners))
        locations = wins.new_full((1,), cells.index.numel() // cells.index.shape[-1])
        return torch.cat((wins, locations)).to(self.duty.dtype)

    @torch.no_grad()
    def update_duty(self, wins: Tensor) -> None:
        """Take what `wins` counted into the running frequency of each cell, which the boosted rank uses."""
        if self.config.boost > 0:
            self.duty.lerp_(wins[:-1] / wins[-1], 1 - self.config.boost_decay)

    def _axes(self, reads_cells: bool) -> Iterator[tuple[str, tuple[Axis, ...]]]:
        """Yield the weights that a symmetry ties, and what their axes count."""
        config = self.config
        own, window = Axis(config.cells, "cells"), Axis(config.kernel_size**2, "window")
        spread = Axis((config.decoder_kernel_size or config.kernel_size) ** 2, "window")
        reads = Axis(config.channels_in(self.channels), "cells" if reads_cells else "fixed")
        predicts = reads._replace(size=self.channels)
        yield "feedforward", (window, reads, own)
        if config.recurrent:
            yield "recurrent", (Axis(config.recurrent_kernel_size**2, "window"), own, own)
        if self.feedback is not None:
            yield "feedback", (Axis(len(self.feedback), "cells"), own)
        yield "bias", (own,)
        if self.decay is not None:
            yield "decay", (own,)
        yield "decoder", (own, spread, predicts)
        if reads_cells:
            yield "output_bias", (predicts,)
        if self.recall is not None:
            yield "recall", (Axis(config.recall, "fixed"), own, spread, predicts)

    def _check_state(self, state: LayerState, feedback: Cells | None, step: Step) -> None:
        """Refuse a state that an engine could not read. This looks at shapes, types and devices alone."""
        config, batch = self.config, len(state.cells.index)
        here = (batch, step.height, step.width)
        dense = (*here, config.cells)
        if isinstance(state.input, Cells):
            self._check_cells("the input", state.input, (batch, *state.input.index.shape[1:]))
        else:
            channels = config.channels_in(self.channels)
            self._check("the input", state.input, (batch, step.input_height, step.input_width, channels))
        self._check_cells("the last cells", state.cells, (*here, config.active_groups))
        if config.recurrent_decay > 0:
            self._check("the trace", state.trace, dense)
        if config.inhibition_decay:
            self._check("the inhibition", state.inhibition, dense)
        if config.recall and not isinstance(state.input, Cells):
            whole = (batch, step.input_height, step.input_width, config.recall * self.channels)
            self._check("the past", state.past, whole)
        if feedback is not None:
            if self.feedback is None:
                raise ValueError("feedback must be None for a layer with none above; got cells")
            self._check_cells("the feedback", feedback, (batch, *feedback.index.shape[1:]))

    def _check_input(self, name: str, x: Tensor | Cells, batch: int, step: Step) -> None:
        if not isinstance(x, Cells):
            self._check(name, x, (batch, step.input_height, step.input_width, self.channels))
            return
        self._check_cells(name, x, (batch, *x.index.shape[1:]))
        if self._grid_of(x) != step.input_grid:
            raise ValueError(f"{name} must be pooled to {tuple(step.input_grid)}; got {tuple(self._grid_of(x))}")

    def _check_cells(self, name: str, cells: Cells, shape: tuple[int, ...]) -> None:
        if len(shape) != 4:
            raise ValueError(f"{name} must be cells [b, h, w, k]; got {list(cells.index.shape)}")
        self._check(name, cells.index, shape, torch.int32)
        self._check(name, cells.value, shape)

    def _check(self, name: str, x: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
        dtype = dtype or self.bias.dtype
        if x is None or tuple(x.shape) != shape or x.dtype != dtype or x.device != self.bias.device:
            got = "None" if x is None else f"{x.dtype} {list(x.shape)} on {x.device}"
            raise ValueError(f"{name} must be {dtype} {list(shape)} on {self.bias.device}; got {got}")

    def _memory(self, state: LayerState) -> Cells | Tensor:
        if not self.config.recurrent:
            index, value = state.cells
            return Cells(torch.full_like(index, -1), torch.zeros_like(value))
        over = self.config.normalisation
        if state.trace is not None:
            trace = state.trace if self.decay is None else self._trace(state)
            return self._dropout(F.normalise(trace, over))
        return state.cells._replace(value=self._dropout(F.normalise(state.cells.value, over)))

    def _trace(self, state: LayerState) -> Tensor:
        """Return the trace with the last cells taken up, where the decay is learned (line 1)."""
        assert state.trace is not None
        assert self.decay is not None
        return torch.maximum(torch.sigmoid(self.decay) * state.trace, F.to_dense(state.cells, self.config.cells))

    def _base(self, input: Tensor | Cells) -> Tensor | None:
        """Return what the decoded cells are added to, a constant."""
        if self.config.changes == "zero" or isinstance(input, Cells):
            return None
        last = input[..., : self.channels].detach()
        return F.safe_logit(last, _SURE) if self.config.activation == "sigmoid" else last

    def _dropout(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.config.dropout, self.training)

    def _grid_of(self, input: Tensor | Cells) -> Grid:
        shape = input.index.shape if isinstance(input, Cells) else input.shape
        if len(shape) != 4 or 0 in shape:
            raise ValueError(f"an input must be a map [b, h, w, c] or cells [b, h, w, k]; got {list(shape)}")
        grid = Grid(*shape[1:3])
        return F.strided_grid(grid, self.input_pool) if isinstance(input, Cells) else grid

    def _step(self, input_grid: Grid) -> Step:
        if input_grid not in self._steps:
            self._steps[input_grid] = self._make_step(input_grid)
        return self._steps[input_grid]

    def _make_step(self, input_grid: Grid) -> Step:
        config = self.config
        if self.input_grid is not None and input_grid != self.input_grid:
            raise ValueError(
                f"this layer's weights fit inputs of {self.input_grid.height} x {self.input_grid.width}; "
                f"got {input_grid.height} x {input_grid.width}"
            )
        if 2 * config.margin >= min(input_grid):
            height, width = input_grid
            raise ValueError(f"margin must leave something of an input of {height} x {width}; got {config.margin}")
        convolutional = config.decoder == "convolutional"
        return Step.of(
            groups=config.groups,
            cells_per_group=config.cells_per_group,
            active_groups=config.active_groups,
            kernel_size=config.kernel_size,
            stride=config.stride,
            recurrent_kernel_size=config.recurrent_kernel_size,
            decoder_kernel_size=(config.decoder_kernel_size or config.kernel_size) if convolutional else 0,
            input_grid=input_grid,
            channels=self.channels,
            input_pool=self.input_pool,
            # Engines know no softmax: the layer applies it to what they decode.
            activation="identity" if config.activation == "softmax" else config.activation,
            margin=config.margin,
            loss=config.loss,
        )

    @property
    def _engine(self) -> Engine:
        return choose_engine(self.engine, self.bias.device, self.bias.dtype)

    @property
    def _weights(self) -> Weights:
        return Weights(self.feedforward, self.recurrent, self.feedback, self.bias, self.decoder, self.output_bias)


def _normal(rows: int, columns: int, deviation: float) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns) * deviation)
