"""What a step costs, by formulas, and how fast it then is: prediction beside measurement for frames of several sizes.

    python benchmarks/scaling.py --json benchmarks/results/scaling.json

The formulas count multiply-adds, bytes and launches of a stack's step; docs/science/scaling.md says them in words. Two
machine constants are measured alone: bytes a second, and what an all-reduce costs. Two more are fitted to each stack at
ONE size, the first of ``--pixels``, in one process: the multiply-adds a second of the sparse sums, and the seconds that
a step takes whatever its size. All other speeds, of larger frames and of two processes, are predicted from these. Every
process has one thread. At last the speed of GPUs is predicted, from published peaks; none of it is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import torchrsm
from torchrsm.learning.distributed import joined
from torchrsm.learning.online import OnlineLearner
from torchrsm.learning.ranks import Ranks
from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.precision import products, products_in
from torchrsm.rectifiers import AnyRectifierConfig
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rectifiers.contract import mean_squared_error
from torchrsm.rectifiers.paper import PaperConfig
from torchrsm.rectifiers.unet import UNetConfig
from torchrsm.rsm import kernels
from torchrsm.rsm.functional import Cells, Grid, max_pool, strided_grid, to_dense
from torchrsm.rsm.kernels.cuda import FEW_INPUTS, CudaEngine
from torchrsm.rsm.kernels.step import Context, Step
from torchrsm.rsm.kernels.vectors import LANES
from torchrsm.streams.settings import make_stream
from torchrsm.streams.share import share_of
from torchrsm.streams.stream import StreamBatch

ROOT = Path(__file__).resolve().parents[1]
STACKS = ("paper", "balls-wide")
PIXELS = (30, 60, 120, 240)
FIT_BATCHES = (2, 16)  # at the first of the sizes: what grows from one to the other is the work, the rest is fixed
WARM_UP = 3  # steps that are not counted
COPIED = 2**24  # bytes, as many as large weights have
MESSAGES = (2**12, 2**22)  # bytes
FLOAT = 4  # bytes

# Of the sparse engine, see torchrsm.rsm.kernels.cpu.
TILE_BYTES, MOST_ENTRIES, NARROWEST = 2**19, 2**21, 64


# The sizes that the formulas are functions of.


class Above(NamedTuple):
    """The layer whose feedback another one hears."""

    grid: Grid
    cells: int
    winners: int


class Layer(NamedTuple):
    """The sizes of a layer.

    Attributes:
        step: those of its step.
        read: channels that it reads: of a frame with those before it and its trace, or cells of the layer below.
        border: rows and columns of border around the map that it reads, which is never 0.
        winners_below: winners of a location of the layer below; 0 for a layer that reads frames.
        memory: entries of its own past at a location: its winners, or all cells where they leave a trace.
        above: the layer above, or None.
        output_bias: how many numbers that has.
    """

    step: Step
    read: int
    border: int
    winners_below: int
    memory: int
    above: Above | None
    output_bias: int

    @property
    def locations(self) -> int:
        """Places of its own grid."""
        return self.step.height * self.step.width

    @property
    def elements(self) -> int:
        """Numbers in the map that it predicts."""
        return self.step.input_height * self.step.input_width * self.step.channels

    @property
    def decoded(self) -> int:
        """Numbers that a location predicts: those of its decoder's kernel, or all."""
        return self.step.decoder_kernel_size**2 * self.step.channels or self.elements

    @property
    def weights(self) -> dict[str, int]:
        """How many numbers each of its weights has."""
        s = self.step
        connected = 1 if s.decoder_kernel_size else self.locations
        return {
            "feedforward": s.kernel_size**2 * self.read * s.groups,
            "recurrent": s.recurrent_kernel_size**2 * s.cells**2,
            "feedback": 0 if self.above is None else self.above.cells * s.cells,
            "bias": s.cells,
            "decoder": connected * s.groups * self.decoded,
            "output_bias": self.output_bias,
        }


def layers_of(model: ModelConfig, height: int, width: int) -> list[Layer]:
    """Return the sizes of the layers of a model for frames of this size, from below."""
    grid, channels, pool, below = Grid(height + 2 * model.pad, width + 2 * model.pad), model.channels, 1, 0
    found = []
    for level, config in enumerate(model.layers):
        step = Step.of(
            groups=config.groups,
            cells_per_group=config.cells_per_group,
            active_groups=config.active_groups,
            kernel_size=config.kernel_size,
            stride=config.stride,
            recurrent_kernel_size=config.recurrent_kernel_size,
            decoder_kernel_size=(
                0 if config.decoder == "fully_connected" else config.decoder_kernel_size or config.kernel_size
            ),
            input_grid=grid,
            channels=channels,
            input_pool=pool,
            activation=config.activation,
            margin=config.margin,
        )
        places = grid.height * grid.width if config.output_bias == "element" else 1
        found.append(
            Layer(
                step=step,
                read=config.channels_in(channels) if level == 0 else channels,
                border=model.pad if level == 0 else 0,
                winners_below=below,
                memory=config.cells if config.recurrent_decay > 0 else config.active_groups,
                above=None,
                output_bias=places * channels,
            )
        )
        grid, channels = strided_grid(step.grid, config.pool), config.cells
        pool, below = config.pool, config.active_groups
    for level, upper in enumerate(found[1:]):
        found[level] = found[level]._replace(above=Above(upper.step.grid, upper.step.cells, upper.step.active_groups))
    return found


def weights_of(layers: Sequence[Layer]) -> int:
    """Return how many weights a stack has."""
    return sum(sum(layer.weights.values()) for layer in layers)


class On(NamedTuple):
    """How many entries are not 0, on the average.

    Attributes:
        input: of a place of the map that a layer reads, its border left out.
        memory: of the layer's own past at a location.
        above: of the cells above at one of their locations.
        groups: of the winners' groups at a location.
    """

    input: float
    memory: float
    above: float
    groups: float


def everything_on(layer: Layer) -> On:
    """Return the most that can be on."""
    inputs = layer.winners_below * layer.step.input_pool**2 or layer.read
    winners = 0 if layer.above is None else layer.above.winners
    return On(inputs, layer.memory, winners, layer.step.active_groups)


def counted_on(learner: OnlineLearner) -> list[On]:
    """Count what is on in the state of a learner."""

    def mean(cells: Cells) -> float:
        return float((cells.value != 0).sum(3).float().mean())

    states, configs = learner.state.layers, learner.model.config.layers
    found = []
    for level, (state, config) in enumerate(zip(states, configs, strict=True)):
        if isinstance(state.input, Cells):
            below = configs[level - 1]
            inputs = max_pool(to_dense(state.input, below.cells), below.pool)
        else:
            p = learner.model.config.pad
            inputs = state.input[:, p : state.input.shape[1] - p, p : state.input.shape[2] - p]
        memory = mean(state.cells) if state.trace is None else float((state.trace != 0).sum(3).float().mean())
        values = state.cells.value
        groups = values != 0 if config.cells_per_group == 1 else values > 0
        found.append(
            On(
                input=float((inputs != 0).sum(3).float().mean()),
                memory=memory,
                above=mean(states[level + 1].cells) if level + 1 < len(states) else 0.0,
                groups=float(groups.sum(3).float().mean()),
            )
        )
    return found


# Multiply-adds of the sparse engine, a frame.


def _reached(size: int, stride: int, before: int, locations: int, first: int, end: int) -> int:
    """Return how many pairs of a location and a tap reach one of the places first..end - 1, along one side."""
    return sum(first <= at * stride - before + tap < end for at in range(locations) for tap in range(size))


def encoder_pairs(layer: Layer, border: int = 0) -> int:
    """Return the pairs of a location and a place of the input in its window, the places of a border left out."""
    s = layer.step
    rows = _reached(s.kernel_size, s.stride, s.top, s.height, border, s.input_height - border)
    return rows * _reached(s.kernel_size, s.stride, s.left, s.width, border, s.input_width - border)


def memory_pairs(layer: Layer) -> int:
    """Return the pairs of a location and a neighbour."""
    s = layer.step
    size, before = s.recurrent_kernel_size, s.recurrent_kernel_size // 2
    return _reached(size, 1, before, s.height, 0, s.height) * _reached(size, 1, before, s.width, 0, s.width)


def sparse_forward(layer: Layer, on: On, shown: bool) -> float:
    """Return the multiply-adds of prediction and error; ``shown`` of a layer whose prediction is also shown."""
    s = layer.step
    inner = encoder_pairs(layer, layer.border)
    inputs = inner * on.input + (encoder_pairs(layer) - inner) * layer.read
    feedback = 0.0
    if layer.above is not None:
        above = layer.above.grid.height * layer.above.grid.width
        feedback = above * on.above * s.cells + 2 * s.cells * (s.height * layer.above.grid.width + layer.locations)
    many = s.decoder_kernel_size > 0 and s.channels >= LANES  # then zeros are multiplied, too
    decode = layer.locations * layer.decoded * (s.active_groups if many else on.groups)
    predicted = (s.input_height - 2 * s.margin) * (s.input_width - 2 * s.margin) * s.channels
    memory = memory_pairs(layer) * on.memory * s.cells
    return inputs * s.groups + memory + feedback + decode * (2 if shown else 1) + predicted


def sparse_backward(layer: Layer, on: On) -> float:
    """Return the multiply-adds of the gradients of all weights."""
    s = layer.step
    k = s.active_groups
    if layer.winners_below:
        inputs = encoder_pairs(layer) * on.input * k
    else:
        inputs = layer.locations * on.groups * s.kernel_size**2 * layer.read
    feedback = 0.0
    if layer.above is not None:
        above = layer.above.grid.height * layer.above.grid.width
        feedback = 4 * k * layer.locations + above * on.above * s.cells
    memory = memory_pairs(layer) * on.memory * k
    return inputs + memory + feedback + 2 * layer.locations * k * layer.decoded


def sparse_multiply_adds(layers: Sequence[Layer], on: Sequence[On]) -> tuple[float, float]:
    """Return the multiply-adds of a stack for a frame, forward and backward."""
    pairs = list(zip(layers, on, strict=True))
    forward = sum(sparse_forward(layer, active, level == 0) for level, (layer, active) in enumerate(pairs))
    return forward, sum(sparse_backward(layer, active) for layer, active in pairs)


# Bytes.


class Bytes(NamedTuple):
    """Bytes of a step, by what they belong to.

    Attributes:
        weights: read from memory; on a CPU each once.
        cached: on a CPU, what else is read of weights, and drives, which a core or all of them keep in a cache.
        activations, gradients, optimiser: what they say.
    """

    weights: float
    cached: float
    activations: float
    gradients: float
    optimiser: float


def added(parts: Iterable[Bytes]) -> Bytes:
    """Return the bytes of all layers."""
    return Bytes(*(sum(of_layers) for of_layers in zip(*parts, strict=True)))


def adam_bytes(weights: int) -> int:
    """Return the bytes of a step of Adam: it reads weight, gradient and two averages, and writes all but the second."""
    return 7 * FLOAT * weights


def all_reduce_bytes(layers: Sequence[Layer], ranks: int) -> float:
    """Return the bytes that each rank sends for a step: gradients, a loss for each layer, two figures."""
    return 2 * (ranks - 1) / ranks * FLOAT * (weights_of(layers) + len(layers) + 2)


def tiles(layer: Layer) -> int:
    """Return in how many tiles the sparse engine takes the locations of a sample."""
    return -(-layer.locations // max(1, TILE_BYTES // (FLOAT * layer.step.cells)))


def sparse_bytes(layer: Layer, on: On, batch: int, packed: bool, shown: bool, ranks: int = 1) -> Bytes:
    """Return the bytes of a step of the sparse engine.

    Each tile of locations reads the weights of the drive, each sample those of feedback and decoder, of both as many
    rows as are named there. Their gradients are added up sample by sample.

    Args:
        layer: sizes.
        on: how much is not 0.
        batch: of one process.
        packed: whether weights that read cells are rounded to bfloat16 first.
        shown: whether the prediction is also shown.
        ranks: processes.
    """
    s, w = layer.step, layer.weights
    own, every = layer.locations, sum(w.values())
    in_tile = own / tiles(layer)
    of_cells = FLOAT / 2 if packed else FLOAT
    memory = of_cells * tiles(layer) * w["recurrent"] * _named(in_tile * on.memory, s.cells)
    inputs = tiles(layer) * w["feedforward"]
    inputs *= of_cells * _named(in_tile * on.input, layer.read) if layer.winners_below else FLOAT
    of_sample = (4 + shown) * w["decoder"] * _named(own * s.active_groups, s.groups)
    if layer.above is not None:
        named = layer.above.grid.height * layer.above.grid.width * on.above
        of_sample += 3 * w["feedback"] * _named(named, layer.above.cells)
    rounded = (w["recurrent"] + w["feedforward"] * (layer.winners_below > 0)) * of_cells * packed
    # Winners: index, value, drive, their gradients, lists sorted by cell. Maps: input, state, target, prediction.
    lists = own * (4 * layer.memory + 12 * s.active_groups)
    maps = (4 + 4 * (layer.winners_below == 0)) * layer.elements
    return Bytes(
        weights=FLOAT * every + rounded,
        cached=batch * (memory + inputs + FLOAT * (of_sample + 2 * own * s.cells)),
        activations=FLOAT * batch * (lists + maps),
        # Summed, then scaled; for others also copied to the message and back, and scaled again.
        gradients=FLOAT * every * (3 if ranks == 1 else 9),
        optimiser=adam_bytes(every),
    )


def _named(entries: float, rows: int) -> float:
    """Return the share of rows that so many entries name, if they name different ones."""
    return min(1.0, entries / rows)


def sparse_calls(layer: Layer, batch: int, packed: bool, shown: bool) -> int:
    """Return how often a step calls a compiled kernel, with one thread."""
    s = layer.step
    packs = packed * ((s.cells >= NARROWEST) + (layer.winners_below > 0 and s.groups >= NARROWEST))

    def pieces(most: int) -> int:
        return -(-batch // max(1, min(batch, MOST_ENTRIES // max(most, 1))))

    lists = 2 * pieces(layer.locations * layer.memory)
    if layer.winners_below:
        lists += 2 * pieces(s.input_height * s.input_width * layer.winners_below * s.input_pool**2)
    return packs + 3 + shown + lists  # cells, error, gradients of the drive; the prediction that is shown


# The dense engine for CUDA.


def dense_forward(layer: Layer, shown: bool) -> int:
    """Return the multiply-adds of its products for a frame; see `sparse_forward`."""
    s = layer.step
    drive = layer.locations * (s.kernel_size**2 * layer.read * s.groups + s.recurrent_kernel_size**2 * s.cells**2)
    feedback = 0
    if layer.above is not None:
        (height, width), above = layer.above.grid, layer.above.cells
        feedback = height * width * above * s.cells + _resized(s, height, width)
    return drive + feedback + layer.locations * s.groups * layer.decoded * (2 if shown else 1)


def dense_backward(layer: Layer) -> int:
    """Return the multiply-adds of the gradients of all weights for a frame."""
    s = layer.step
    drive = layer.locations * (s.kernel_size**2 * layer.read * s.groups + s.recurrent_kernel_size**2 * s.cells**2)
    feedback = 0
    if layer.above is not None:
        (height, width), above = layer.above.grid, layer.above.cells
        feedback = height * width * above * s.cells + _resized(s, height, width)
    return drive + feedback + 2 * layer.locations * s.groups * layer.decoded


def _resized(s: Step, height: int, width: int) -> int:
    """Return the multiply-adds of a resize by two small matrices, columns first, or of its gradient."""
    return height * width * s.width * s.cells + height * s.height * s.width * s.cells


def dense_bytes(layer: Layer, batch: int, shown: bool, of_map: int = FLOAT) -> Bytes:
    """Return the bytes that the kernels of a step read and write.

    Args:
        layer: sizes.
        batch: of one process.
        shown: whether the prediction is also shown.
        of_map: bytes of a number in a map that only goes into products.
    """
    s, w = layer.step, layer.weights
    own, elements = layer.locations, layer.elements
    decodes = 2 if shown else 1

    def windows(size: int, channels: int, source: int) -> int:
        """Return the bytes of reading a map by its windows, which are collected where they are few."""
        if size == 1:
            return of_map * source
        if size**2 * channels <= FEW_INPUTS:
            return of_map * (3 * source + 2 * own * size**2 * channels)
        return of_map * 3 * source  # a border is put around it

    memory = windows(s.recurrent_kernel_size, s.cells, own * s.cells)
    source = s.input_height * s.input_width * layer.read
    inputs = windows(s.kernel_size, layer.read, source)
    if layer.winners_below:
        pooled = s.input_pool**2 if s.input_pool > 1 else 0
        inputs_made = of_map * source * (1 + (1 + 2 * pooled if pooled else 0))
    else:
        inputs_made = 0
    # Written and read: the drive, what groups share, the past as a map; then what each location predicts.
    drive = of_map * own * s.cells + 2 * FLOAT * own * (s.cells + s.groups) + memory + inputs + inputs_made
    predicted = of_map * 2 * own * s.groups + FLOAT * (2 * own * layer.decoded + 6 * elements)
    forward = drive + decodes * predicted + FLOAT * 8 * elements
    back = FLOAT * own * (5 * s.cells + 2 * s.groups) + memory + inputs
    back += FLOAT * (5 * own * layer.decoded + 8 * elements + 3 * own * s.groups)
    if layer.above is not None:
        (height, width), above = layer.above.grid, layer.above.cells
        between, small = height * s.width * s.cells, height * width * s.cells
        forward += 2 * of_map * height * width * above + FLOAT * (2 * small + 2 * between + 2 * own * s.cells)
        back += of_map * height * width * above + FLOAT * (own * s.cells + 2 * between + 2 * small)
    convolved = (s.recurrent_kernel_size**2 * s.cells > FEW_INPUTS) and s.recurrent_kernel_size > 1
    arranged = w["recurrent"] * (2 if convolved else 0)
    convolved = (s.kernel_size**2 * layer.read > FEW_INPUTS) and s.kernel_size > 1
    arranged += w["feedforward"] * (2 if convolved else 0)
    read = w["feedforward"] + w["recurrent"] + w["feedback"] + (3 * decodes + 1) * w["decoder"] + arranged
    every = sum(w.values())
    return Bytes(FLOAT * read, 0, batch * (forward + back), FLOAT * (every + arranged), adam_bytes(every))


# Counts of what torch is told to do: the rectifiers, which are torch's modules, and the kernels of a step.

_FREE = ("empty", "new_empty", "empty_like", "_unsafe_view", "_reshape_alias", "detach", "alias", "lift_fresh")


class Counted(NamedTuple):
    """What was counted."""

    multiply_adds: int
    bytes: int
    kernels: int


class _Counter(TorchDispatchMode):
    """Counts each operation of torch that is no view as one kernel, which reads its inputs and writes its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.kernels = 0
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not (self.paused or func.is_view or func.overloadpacket.__name__ in _FREE):
            self.add((args, kwargs, out))
        return out

    def add(self, moved: Any) -> None:
        """Count one kernel that moves the tensors in a nested structure."""
        self.kernels += 1
        for part in tree_leaves(moved):
            if isinstance(part, Tensor):
                self.bytes += min(part.numel() * part.itemsize, part.untyped_storage().nbytes())


class _CountingEngine(CudaEngine):
    """The engine for CUDA on tensors of the CPU, where each of Triton's kernels counts as one."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__(triton=False)
        self.counter = counter

    def dense(self, cells: Cells, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Count one kernel."""
        with self._as_one(cells) as moved:
            moved.append(super().dense(cells, count, dtype))
        return moved[-1]

    def winners(self, step: Step, shared: Tensor, own: Tensor, bias: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Count one kernel."""
        with self._as_one(shared, own) as moved:
            moved.append(super().winners(step, shared, own, bias, context))
        return moved[-1]

    @contextlib.contextmanager
    def _as_one(self, *read: Any) -> Iterator[list[Any]]:
        moved: list[Any] = [read]
        self.counter.paused = True
        try:
            yield moved
        finally:
            self.counter.paused = False
        self.counter.add(moved)


@contextlib.contextmanager
def _counting_engine() -> Iterator[_Counter]:
    """Put an engine ``counting`` into the registry."""
    counter = _Counter()
    kernels.ENGINES["counting"] = kernels.EngineEntry(_CountingEngine(counter))
    try:
        yield counter
    finally:
        del kernels.ENGINES["counting"]


def _of_products(out: Any, a: Sequence[int], b: Sequence[int], **_: Any) -> int:
    """Return the operations of products that are added in place, which torch's own counter leaves out."""
    return 2 * a[0] * a[1] * a[2] * b[2]


@contextlib.contextmanager
def _counting(counter: _Counter, found: list[Counted]) -> Iterator[None]:
    """Count what is done in the block, once it has ended."""
    counter.bytes = counter.kernels = 0
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: _of_products}) as flops, counter:
        yield
    found.append(Counted(flops.get_total_flops() // 2, counter.bytes, counter.kernels))


def sized(model: ModelConfig, pixels: int) -> ModelConfig:
    """Return the model for square frames of this size."""
    return model if model.height is None else model.replace(height=pixels, width=pixels)


class Rectifying(NamedTuple):
    """What is counted of a step in which only the rectifier learns: what the stack predicts, the rectifier's passes."""

    predicted: Counted
    forward: Counted
    backward: Counted


def counted_rectifier(config: AnyRectifierConfig, model: ModelConfig, pixels: int, batch: int = 1) -> Rectifying:
    """Count what a rectifier does with square frames, optimisers left out; nothing is computed, so any size will do."""
    found: list[Counted] = []
    with _counting_engine() as counter:
        predictor = VideoPredictor(sized(model, pixels).replace(rectifier=config), "counting")
        state = predictor.initial_state((batch, model.channels, pixels, pixels))
        rectifier = predictor.rectifier
        assert rectifier is not None
        with FakeTensorMode(allow_non_fake_inputs=True):
            with _counting(counter, found), torch.no_grad():
                prediction = predictor.predict_raw(state)
            cells = [layer.cells for layer in prediction.layers]
            with _counting(counter, found):
                made = rectifier.stages(prediction.raw, cells, prediction.seen)
                learn = torch.ones(batch, dtype=torch.bool)
                losses = rectifier.losses(made, prediction.raw, learn, mean_squared_error)
                total = sum(losses[1:], losses[0])
            with _counting(counter, found):
                total.backward()
    return Rectifying(*found)


def counted_update(run: torchrsm.RunConfig, progress: float, pixels: int, batch: int) -> Counted:
    """Count one update of a run, optimisers included, with the engine for CUDA, but in float32 on the CPU.

    Its kernels are as many for any size and batch.

    Args:
        run: its settings.
        progress: through the run, in 0..1; tells what learns.
        pixels: height and width of a frame.
        batch: streams.
    """
    shape = (batch, run.model.channels, pixels, pixels)
    found: list[Counted] = []
    with _counting_engine() as counter:
        learner = run.replace(model=sized(run.model, pixels)).make_learner(shape, torch.device("cpu"), True)
        for layer in learner.model.stack.layers:
            layer.engine = "counting"
        with kernels.threads_in_use(1):
            learner.begin(learner.phase(progress), 1)
            # All begin anew, or the CPU would spare itself the work of beginning.
            batches = [StreamBatch(torch.zeros(shape), torch.ones(batch, dtype=torch.bool), torch.zeros(batch))]
            learner.teach(batches, progress)  # makes what the optimisers keep
            with _counting(counter, found):
                learner.teach(batches, progress)
    return found[0]


# What a machine does in a second, and what a step then takes.


class Machine(NamedTuple):
    """Constants of this machine, each measured alone.

    Attributes:
        bytes_per_second: copied by one thread, read and written bytes added up.
        multiply_adds_per_second: of a dense float32 product, one thread; says how far from arithmetic a step is.
        packed: whether the sparse engine rounds weights to bfloat16 here.
    """

    bytes_per_second: float
    multiply_adds_per_second: float
    packed: bool


class Messages(NamedTuple):
    """What an all-reduce takes: seconds for any, and for each byte of what is summed."""

    seconds: float
    seconds_per_byte: float


class Fit(NamedTuple):
    """Constants of a stack on this machine.

    Attributes:
        multiply_adds_per_second: of the sparse sums, with all that grows as they do.
        fixed_seconds: of a step, whatever its size.
    """

    multiply_adds_per_second: float
    fixed_seconds: float


def costs(layers: Sequence[Layer], on: Sequence[On], batch: int, packed: bool, ranks: int = 1) -> tuple[float, float]:
    """Return multiply-adds of one process in a step of the sparse engine, and bytes of memory; ``batch`` is its own.

    What is read from caches is no part of the bytes: it grows as the multiply-adds do, whose speed it tells.
    """
    moved = added(
        sparse_bytes(layer, active, batch, packed, level == 0, ranks)
        for level, (layer, active) in enumerate(zip(layers, on, strict=True))
    )
    return batch * sum(sparse_multiply_adds(layers, on)), sum(moved) - moved.cached


def fitted(
    layers: Sequence[Layer], on: Sequence[On], machine: Machine, batches: Sequence[int], seconds: Sequence[float]
) -> Fit:
    """Return the constants with which two steps of different batches take as long as they took.

    Noise may tell that a step has no fixed part, or nothing else; the fixed part is at least 0, and the sums have at
    least a tenth of the larger step.
    """
    sums, moved = [], []
    for batch in batches:
        work, size = costs(layers, on, batch, machine.packed)
        sums.append(work)
        moved.append(size / machine.bytes_per_second)
    (small, large), work = seconds, sums[1] - sums[0]
    of_sums = max(large - small - (moved[1] - moved[0]), 0.1 * large * work / sums[1])
    fixed = max(0.0, large - moved[1] - of_sums * sums[1] / work)
    if fixed == 0.0:
        of_sums = max(large - moved[1], 0.1 * large) * work / sums[1]
    return Fit(work / of_sums, fixed)


def predicted(
    layers: Sequence[Layer],
    on: Sequence[On],
    batch: int,
    ranks: int,
    machine: Machine,
    fit: Fit,
    messages: Messages | None,
) -> dict[str, float]:
    """Return the seconds of a step by what takes them; ``batch`` is that of all ranks."""
    work, moved = costs(layers, on, batch // ranks, machine.packed, ranks)
    seconds = {
        "launches": fit.fixed_seconds,
        "cache": work / fit.multiply_adds_per_second,
        "memory": moved / machine.bytes_per_second,
    }
    if ranks > 1 and messages is not None:
        summed = all_reduce_bytes(layers, ranks) * ranks / (2 * (ranks - 1))
        seconds["all-reduce"] = messages.seconds + messages.seconds_per_byte * summed
    return seconds


def binds(seconds: dict[str, float]) -> str:
    """Name what takes most of a step."""
    return max(seconds, key=lambda name: seconds[name])


class Card(NamedTuple):
    """A GPU: published peaks, and the shares of them that are assumed to be reached.

    Attributes:
        multiply_adds_per_second: of dense products in tf32.
        bytes_per_second: of its memory.
        link_bytes_per_second: that it sends to others.
        products, memory, link: the shares.
        kernel_seconds: from the end of a short kernel of a graph to that of the next, assumed.
    """

    multiply_adds_per_second: float
    bytes_per_second: float
    link_bytes_per_second: float
    products: float
    memory: float
    link: float
    kernel_seconds: float


H100 = Card(
    multiply_adds_per_second=494.5e12 / 2,
    bytes_per_second=3.35e12,
    link_bytes_per_second=450e9,
    products=0.4,
    memory=0.6,
    link=0.7,
    kernel_seconds=2e-6,
)
"""NVIDIA's data sheet of the H100 SXM: 989 TFLOP/s in tf32 with sparsity, half of it without; memory 3.35 TB/s; NVLink
900 GB/s, half of it in each direction."""


def predicted_on_gpus(work: float, moved: float, launched: int, sent: float, card: Card = H100) -> dict[str, float]:
    """Return the seconds of a step by what takes them; nothing is assumed to happen at the same time.

    Args:
        work: multiply-adds of one GPU.
        moved: bytes that its kernels read and write.
        launched: its kernels.
        sent: bytes that it sends for an all-reduce.
        card: the GPU.
    """
    return {
        "arithmetic": work / (card.multiply_adds_per_second * card.products),
        "memory": moved / (card.bytes_per_second * card.memory),
        "launches": launched * card.kernel_seconds,
        "all-reduce": sent / (card.link_bytes_per_second * card.link),
    }


# Measurement: processes with one thread each.


def stack_alone(name: str, pixels: int) -> torchrsm.RunConfig:
    """Return the run of a preset without its rectifier, on balls of this size."""
    run = torchrsm.preset(name)
    model = sized(run.model, pixels).replace(rectifier=None)
    return run.replace(model=model, rectifying=None, **{"stream.resolution": pixels})


def copied_bytes_per_second() -> float:
    """Copy memory."""
    source = torch.zeros(COPIED // FLOAT)
    target = torch.ones_like(source)
    return 2 * COPIED / _least_seconds(lambda: target.copy_(source))


def dense_multiply_adds_per_second() -> float:
    """Multiply large matrices."""
    a = torch.randn(1024, 1024)
    return 1024**3 / _least_seconds(lambda: a @ a)


def message_seconds() -> Messages:
    """Sum messages of two sizes over all processes."""
    small, large = MESSAGES
    seconds = []
    for size in MESSAGES:
        message = torch.zeros(size // FLOAT)
        seconds.append(_least_seconds(lambda: dist.all_reduce(message)))  # noqa: B023
    per_byte = max(0.0, seconds[1] - seconds[0]) / (large - small)
    return Messages(max(0.0, seconds[0] - per_byte * small), per_byte)


def _least_seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(11):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def step_seconds(name: str, pixels: int, batch: int, steps: int, ranks: Ranks) -> tuple[float, list[On]]:
    """Return the median seconds of a training step of a stack, stream included, and what was on after the last."""
    run = stack_alone(name, pixels)
    stream = share_of(make_stream(run.stream, batch, run.training.seed), ranks.rank, ranks.count)
    torch.manual_seed(run.training.seed)
    shape = (stream.batch_size, *stream.frame_shape)
    learner = run.make_learner(shape, torch.device("cpu"), True, ranks)
    learner.begin("stack", 1)
    learner.warm_up()
    times = []
    for _ in range(WARM_UP + steps):
        begun = time.perf_counter()
        learner.teach([next(stream)], 0.0)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[WARM_UP:]), counted_on(learner)


def child(name: str, cases: Sequence[tuple[int, int, int]]) -> None:
    """Measure in this process, one of a launch; the first of them prints what it found.

    Args:
        name: of the preset.
        cases: pixels, batch of all processes, steps.
    """
    with joined("scaling") as ranks, kernels.threads_in_use(1), products_in("auto"):
        found: dict[str, Any] = {}
        if ranks.count > 1:
            found["messages"] = message_seconds()
        else:
            packed = products(torch.device("cpu")) == "bfloat16"
            found["machine"] = Machine(copied_bytes_per_second(), dense_multiply_adds_per_second(), packed)
        measured = [step_seconds(name, *case, ranks) for case in cases]
        found["seconds"] = [seconds for seconds, _ in measured]
        found["on"] = [on for _, on in measured]
        if ranks.rank == 0:
            print(json.dumps(found), flush=True)


def launch(name: str, cases: Sequence[tuple[int, int, int]], ranks: int) -> dict[str, Any]:
    """Let processes with one thread each measure, and return what the first of them found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--child", json.dumps([name, cases])],
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
            env={**os.environ, **place, "RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    output, _ = processes[0].communicate()
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit("a measurement has failed; its message is above")
    return json.loads(output)


def compare(name: str, pixels: Sequence[int], batch: int, frames: int) -> dict[str, Any]:
    """Measure a stack, and predict all but the first from the first two measurements, those of `FIT_BATCHES`.

    Args:
        name: of the preset.
        pixels: sizes of frames.
        batch: of all processes.
        frames: steps of the smallest frames; larger ones get fewer, by their sides.

    Returns:
        An entry of ``stacks`` and those of ``speeds`` in the result file.
    """

    def case(size: int, streams: int) -> tuple[int, int, int]:
        return size, streams, max(3, frames * pixels[0] // size)

    first = [case(pixels[0], streams) for streams in FIT_BATCHES]
    alone = launch(name, [*first, *(case(size, batch) for size in pixels)], 1)
    together = launch(name, [case(size, batch) for size in pixels], 2)
    machine, messages = Machine(*alone["machine"]), Messages(*together["messages"])
    on = [On(*layer) for layer in alone["on"][1]]

    def layers(size: int) -> list[Layer]:
        return layers_of(stack_alone(name, size).model, size, size)

    fit = fitted(layers(pixels[0]), on, machine, FIT_BATCHES, alone["seconds"][:2])
    speeds = []
    for ranks, measured in ((1, alone["seconds"][2:]), (2, together["seconds"])):
        for size, seconds in zip(pixels, measured, strict=True):
            terms = predicted(layers(size), on, batch, ranks, machine, fit, messages)
            expected = sum(terms.values())
            speeds.append(
                {
                    "stack": name,
                    "pixels": size,
                    "ranks": ranks,
                    "predicted_frames_per_second": batch / expected,
                    "measured_frames_per_second": batch / seconds,
                    "ratio": expected / seconds,
                    "milliseconds": {what: 1e3 * value for what, value in terms.items()},
                    "binds": binds(terms),
                }
            )
    stack = {
        "stack": name,
        "weights": weights_of(layers(pixels[0])),
        **machine._asdict(),
        "message_seconds": messages.seconds,
        "message_seconds_per_byte": messages.seconds_per_byte,
        "sparse_multiply_adds_per_second": fit.multiply_adds_per_second,
        "fixed_milliseconds": 1e3 * fit.fixed_seconds,
        "kernels": counted_update(stack_alone(name, pixels[0]), 0.0, pixels[0], 1).kernels,
        "on": [layer._asdict() for layer in on],
    }
    return {"stacks": [stack], "speeds": speeds, "counts": [counts(name, size, batch, on, machine) for size in pixels]}


def counts(name: str, pixels: int, batch: int, on: Sequence[On], machine: Machine) -> dict[str, Any]:
    """Return what a step of a stack costs with both engines; multiply-adds for a frame, all else for a step."""
    layers = layers_of(stack_alone(name, pixels).model, pixels, pixels)
    forward, backward = sparse_multiply_adds(layers, on)
    sparse = added(
        sparse_bytes(layer, active, batch, machine.packed, level == 0)
        for level, (layer, active) in enumerate(zip(layers, on, strict=True))
    )
    dense = added(dense_bytes(layer, batch, level == 0) for level, layer in enumerate(layers))
    calls = [sparse_calls(layer, batch, machine.packed, level == 0) for level, layer in enumerate(layers)]
    return {
        "stack": name,
        "pixels": pixels,
        "sparse": {"forward": forward, "backward": backward, "bytes": sparse._asdict(), "calls": sum(calls)},
        "dense": {
            "forward": sum(dense_forward(layer, level == 0) for level, layer in enumerate(layers)),
            "backward": sum(dense_backward(layer) for layer in layers),
            "bytes": dense._asdict(),
        },
        "all_reduce_bytes": all_reduce_bytes(layers, 2),
    }


RECTIFIERS: dict[str, AnyRectifierConfig] = {"compact": CompactConfig(), "unet": UNetConfig(), "paper": PaperConfig()}


def rectifier_counts(pixels: Sequence[int]) -> list[dict[str, Any]]:
    """Return what the rectifiers cost beside the stack of `balls-wide`, for a frame."""
    model = torchrsm.preset("balls-wide").model
    found = []
    for kind, config in RECTIFIERS.items():
        for size in pixels:
            counted = counted_rectifier(config, model, size)
            found.append(
                {
                    "rectifier": kind,
                    "pixels": size,
                    "forward": counted.forward.multiply_adds,
                    "backward": counted.backward.multiply_adds,
                    "bytes": counted.forward.bytes + counted.backward.bytes,
                    "kernels": counted.forward.kernels + counted.backward.kernels,
                }
            )
    return found


# Preset, what learns, pixels, channels, GPUs, batch of each.
ON_GPUS = (
    ("paper", "stack", 30, 1, 1, 256),
    ("balls-wide", "stack", 30, 1, 1, 64),
    *(
        (name, what, 256, 3, gpus, 32)
        for name in ("paper", "balls-wide")
        for what in ("stack", "rectifier")
        for gpus in (1, 8)
    ),
)


def on_gpus(name: str, what: str, pixels: int, channels: int, gpus: int, batch: int) -> dict[str, Any]:
    """Return the predicted speed of a step on GPUs, an entry of ``gpus`` in the result file."""
    run = torchrsm.preset(name)
    launched = counted_update(run, 0.0 if what == "stack" else 0.999, 30, 1).kernels
    model = sized(run.model, pixels).replace(channels=channels)
    layers = layers_of(model, pixels, pixels)
    if what == "stack":
        moved = sum(added(dense_bytes(layer, batch, level == 0) for level, layer in enumerate(layers)))
        work = batch * sum(
            dense_forward(layer, level == 0) + dense_backward(layer) for level, layer in enumerate(layers)
        )
        weights = weights_of(layers)
    else:
        assert model.rectifier is not None
        counted = counted_rectifier(model.rectifier, model, pixels, batch)
        rectifier = VideoPredictor(model).rectifier
        assert rectifier is not None
        weights = sum(weight.numel() for weight in rectifier.parameters())
        work = sum(part.multiply_adds for part in counted)
        moved = sum(part.bytes for part in counted) + adam_bytes(weights)
    seconds = predicted_on_gpus(work, moved, launched, 2 * (gpus - 1) / gpus * FLOAT * weights)
    return {
        "preset": name,
        "learns": what,
        "pixels": pixels,
        "channels": channels,
        "gpus": gpus,
        "batch": batch,
        "multiply_adds_per_frame": work / batch,
        "bytes_per_frame": moved / batch,
        "kernels": launched,
        "milliseconds": {part: 1e3 * value for part, value in seconds.items()},
        "frames_per_second": gpus * batch / sum(seconds.values()),
        "binds": binds(seconds),
    }


# The tables.


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines])


def _millions(value: float) -> str:
    return f"{value / 1e6:,.2f}" if value < 1e7 else f"{value / 1e6:,.0f}"


def tables(result: dict[str, Any]) -> str:
    """Return the tables of a result file, as docs/science/scaling.md shows them."""
    fit, stacks = result["fit"], result["stacks"]
    constants = _table(
        [
            "stack",
            "weights",
            "sparse sums, G multiply-adds/s",
            "dense product, G multiply-adds/s",
            "copy, GB/s",
            "fixed, ms a step",
            "all-reduce, ms and ms a MB",
        ],
        (
            [
                f"`{stack['stack']}`",
                f"{stack['weights']:,}",
                f"{stack['sparse_multiply_adds_per_second'] / 1e9:.2f}",
                f"{stack['multiply_adds_per_second'] / 1e9:.1f}",
                f"{stack['bytes_per_second'] / 1e9:.1f}",
                f"{stack['fixed_milliseconds']:.2f}",
                f"{1e3 * stack['message_seconds']:.2f}, {1e9 * stack['message_seconds_per_byte']:.2f}",
            ]
            for stack in stacks
        ),
    )
    speeds = _table(
        ["stack", "pixels", "ranks", "predicted, frames/s", "measured, frames/s", "measured / predicted", "binds"],
        (
            [
                f"`{row['stack']}`",
                str(row["pixels"]),
                str(row["ranks"]),
                f"{row['predicted_frames_per_second']:,.1f}",
                f"{row['measured_frames_per_second']:,.1f}",
                f"{row['ratio']:.2f}",
                row["binds"],
            ]
            for row in result["speeds"]
        ),
    )
    counted = _table(
        [
            "stack",
            "pixels",
            "sparse: forward, backward, M multiply-adds",
            "MB",
            "kernel calls",
            "dense: forward, backward, M multiply-adds",
            "MB",
        ],
        (
            [
                f"`{row['stack']}`",
                str(row["pixels"]),
                f"{_millions(row['sparse']['forward'])}, {_millions(row['sparse']['backward'])}",
                _millions(sum(row["sparse"]["bytes"].values())),
                str(row["sparse"]["calls"]),
                f"{_millions(row['dense']['forward'])}, {_millions(row['dense']['backward'])}",
                _millions(sum(row["dense"]["bytes"].values())),
            ]
            for row in result["counts"]
        ),
    )
    rectifiers = _table(
        ["rectifier", "pixels", "forward, backward, M multiply-adds", "MB", "GPU kernels"],
        (
            [
                f"`{row['rectifier']}`",
                str(row["pixels"]),
                f"{_millions(row['forward'])}, {_millions(row['backward'])}",
                _millions(row["bytes"]),
                str(row["kernels"]),
            ]
            for row in result["rectifiers"]
        ),
    )
    gpus = _table(
        ["preset", "learns", "frame", "GPUs", "batch of each", "ms a step", "frames/s, predicted", "binds"],
        (
            [
                f"`{row['preset']}`",
                row["learns"],
                f"{row['pixels']} x {row['pixels']} x {row['channels']}",
                str(row["gpus"]),
                str(row["batch"]),
                f"{sum(row['milliseconds'].values()):.2f}",
                f"{row['frames_per_second']:,.0f}",
                f"{row['binds']} ({row['milliseconds'][row['binds']] / sum(row['milliseconds'].values()):.0%})",
            ]
            for row in result["gpus"]
        ),
    )
    kernels_of = ", ".join(f"{stack['kernels']} for `{stack['stack']}`" for stack in stacks)
    batches = " and ".join(map(str, fit["batches"]))
    return "\n\n".join(
        [
            f"Constants of this machine, {result['cores']} cores, one thread a process; sums and fixed time from steps"
            f" of {batches} frames of {fit['pixels']} pixels in one process:",
            constants,
            f"Training speed, prediction beside measurement, {result['batch']} streams in all:",
            speeds,
            f"What a step costs: multiply-adds for a frame, bytes and calls for a step of {result['batch']} frames. The"
            f" kernels of the dense engine in a step are as many at any size: {kernels_of}.",
            counted,
            "The rectifiers beside the stack of `balls-wide`, for one frame:",
            rectifiers,
            "**A prediction, not a measurement**: H100 GPUs, from the formulas for the dense engine.",
            gpus,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", nargs="+", default=list(STACKS), help="presets, whose stacks are taken")
    parser.add_argument("--pixels", nargs="+", type=int, default=list(PIXELS), help="height and width of frames")
    parser.add_argument("--batch", type=int, default=8, help="streams of all processes")
    parser.add_argument(
        "--steps", type=int, default=24, help="that are timed at the first size; fewer of larger frames"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*json.loads(options.child))
        return
    if options.batch < 2 or options.batch % 2:
        raise SystemExit(f"batch must be even, two processes share it; got {options.batch}")
    result: dict[str, Any] = {
        "cores": kernels.threads(),
        "batch": options.batch,
        "fit": {"pixels": options.pixels[0], "batches": FIT_BATCHES},
        "stacks": [],
        "speeds": [],
        "counts": [],
    }
    for name in options.stacks:
        for part, rows in compare(name, options.pixels, options.batch, options.steps).items():
            result[part] += rows
    result["rectifiers"] = rectifier_counts(options.pixels)
    result["gpus"] = [on_gpus(*case) for case in ON_GPUS]
    print(tables(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
