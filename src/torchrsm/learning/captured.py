"""How updates run: as they are written, or recorded once and replayed, on an accelerator as one CUDA graph a step.

A graph reads and writes the same tensors at each replay. So what comes in is copied to tensors that stay, the state is
overwritten in place, and what comes out lies where it lay before. Weights and optimisers are changed in place anyway.
What changes through a run, such as learning rates, must be a tensor that is written between two steps. What Python
alone knows, such as the precision of products, stays as it was recorded, so a change of it asks for another graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from torchrsm.learning.contract import Taught
from torchrsm.precision import Precision, fixed_sums, precision
from torchrsm.state import flatten, map_state
from torchrsm.streams.stream import StreamBatch, StreamInPlace

InputsT = TypeVar("InputsT")
StateT = TypeVar("StateT")

Update = Callable[[InputsT, StateT], tuple[Taught, StateT]]
"""Changes weights and optimisers in place, returns the figures and the state after it; nothing in it waits."""

_WARM_UPS = 3


class Recorder(Protocol):
    """Records work on a device, so that it can be done again at the cost of one launch."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work a few times, so that all that it makes on first use is there before it is recorded."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what does the work, each time on the same tensors; none of it is done yet."""
        ...


class CudaGraphs:
    """A `Recorder` that makes CUDA graphs.

    Random numbers come from the default generator of the device, as without a graph: a graph takes as many of them from
    where the generator stands, so states of the generator can be saved and set between two steps.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work a few times on the stream on which it is recorded later."""
        here = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                work()
        here.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return the replay of a graph of the work."""
        graph = torch.cuda.CUDAGraph()
        here = torch.cuda.stream(torch.cuda.current_stream(self._stream.device))  # torch's graph stays away if it fails
        # What other threads of the program do meanwhile is no part of the graph and must not break it.
        with here, torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


def recorder_for(device: torch.device) -> Recorder | None:
    """Return what records updates on a device; None where they run as they are written."""
    return CudaGraphs(device) if device.type == "cuda" and torch.cuda.is_available() else None


class _Key(NamedTuple):
    """What a recorded update was recorded for; `stream` is the one that makes its frames, if one does."""

    phase: str
    stream: StreamInPlace | None
    precision: Precision


class Updates(Generic[InputsT, StateT]):
    """Runs the updates of a learner and holds its state.

    Without a recorder an update runs as it is written, and each makes a new state. With one the state stays where it
    is, and the first update of a phase, and of a precision of products, is warmed up and recorded; warming up has no
    effect. On CUDA both take their sums in a fixed order.

    Args:
        state: before the first update.
        modules: all weights that updates may change.
        optimisers: all that updates may use.
        device: where all of them are.
        recorder: records updates; None for none.
    """

    def __init__(
        self,
        state: StateT,
        modules: Mapping[str, nn.Module],
        optimisers: Sequence[torch.optim.Optimizer],
        device: torch.device,
        recorder: Recorder | None,
    ) -> None:
        self._device = device
        self._recorder = recorder
        self._state = state if recorder is None else map_state(torch.clone, state)
        self._modules = modules
        self._optimisers = optimisers
        self._recorded: tuple[_Key, _Recorded[InputsT]] | None = None
        self._advance: tuple[StreamInPlace, Callable[[], None]] | None = None

    @property
    def state(self) -> StateT:
        """What the streams have seen; set anew, it is written to the tensors that recorded updates read."""
        return self._state

    @state.setter
    def state(self, state: StateT) -> None:
        if self._recorder is None:
            self._state = state
        else:
            overwrite(self._state, state)

    def run(self, phase: str, update: Update[InputsT, StateT], inputs: InputsT) -> Taught:
        """Run an update on inputs from anywhere and return its figures, which hold until the next one.

        Args:
            phase: names the update; of a recorded one, the same name stands for the same update.
            update: the update.
            inputs: (nested) tuples of tensors; they are moved to the device.

        Raises:
            ValueError: recorded inputs had another shape.
        """
        if self._recorder is None:
            here = map_state(lambda part: part.to(self._device, non_blocking=True), inputs)
            return self._run_as_written(update, here)
        recorded = self._of(phase, None)
        if recorded is None:
            own = map_state(lambda part: part.to(self._device, copy=True), inputs)
            recorded = self._record(phase, None, update, own)
        overwrite(recorded.inputs, inputs)
        recorded.replay()
        return recorded.taught

    def run_in_place(
        self, phase: str, update: Update[InputsT, StateT], stream: StreamInPlace, read: Callable[[StreamBatch], InputsT]
    ) -> Taught:
        """Run an update on the next frames of a stream that is made on the device; a recorded one makes them, too.

        Args:
            phase: see `run`.
            update: the update.
            stream: where the frames come from.
            read: takes the inputs from a batch, without a copy.
        """
        if self._recorder is None:
            return self._run_as_written(update, read(next(stream)))
        stream.prepare()
        recorded = self._of(phase, stream)
        if recorded is None:
            recorded = self._record(phase, stream, update, read(stream.batch))
        recorded.replay()
        return recorded.taught

    def next_of(self, stream: StreamInPlace) -> StreamBatch:
        """Return the next batch of a stream that is made on the device; its step is recorded, too."""
        if self._recorder is None:
            return next(stream)
        if self._advance is None or self._advance[0] is not stream:
            self._advance = stream, self._recorded_or_written(stream.advance)
        stream.prepare()
        self._advance[1]()
        return map_state(torch.clone, stream.batch)

    def _run_as_written(self, update: Update[InputsT, StateT], inputs: InputsT) -> Taught:
        with self._fixed_sums():
            taught, self._state = update(inputs, self._state)
        return taught

    def _fixed_sums(self) -> AbstractContextManager[None]:
        return fixed_sums() if self._device.type == "cuda" else nullcontext()

    def _of(self, phase: str, stream: StreamInPlace | None) -> _Recorded[InputsT] | None:
        if self._recorded is not None:
            recorded_for, recorded = self._recorded
            same_work = recorded_for.phase == phase and recorded_for.precision == precision()
            if same_work and recorded_for.stream is stream:
                return recorded
        self._recorded = None  # the memory of the last phase's graph is free for the next
        return None

    def _record(
        self, phase: str, stream: StreamInPlace | None, update: Update[InputsT, StateT], inputs: InputsT
    ) -> _Recorded[InputsT]:
        assert self._recorder is not None
        recorded = _Recorded(inputs)

        def work() -> None:
            with self._fixed_sums():
                recorded.taught, after = update(inputs, self._state)
            overwrite(self._state, after)

        def whole() -> None:
            if stream is not None:
                stream.advance()
            work()

        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                if "capturable" in group and group["params"][0].device.type == "cuda":
                    group["capturable"] = True
        changed = [t for module in self._modules.values() for t in (*module.parameters(), *module.buffers())]
        changed += flatten("state", self._state).values()
        with put_back(changed, self._optimisers), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            self._recorder.warm_up(work)  # not the stream, which has no way back
        recorded.replay = self._recorded_or_written(whole)
        self._recorded = _Key(phase, stream, precision()), recorded
        return recorded

    def _recorded_or_written(self, work: Callable[[], None]) -> Callable[[], None]:
        assert self._recorder is not None
        try:
            return self._recorder.record(work)
        except RuntimeError as error:
            # Torch says "due to a previous error" when a recording ends that went wrong before.
            reason = str(error.__context__ or error).partition("\n")[0]
            warnings.warn(
                f"work could not be recorded and runs as it is written, which is slower: {reason}", stacklevel=2
            )
            return work


class _Recorded(Generic[InputsT]):
    """A recorded update: the tensors that it reads, what replays it, and the figures that a replay writes."""

    replay: Callable[[], None]
    taught: Taught

    def __init__(self, inputs: InputsT) -> None:
        self.inputs = inputs


def overwrite(kept: StateT, new: StateT) -> None:
    """Write a state to the tensors of another one, which stay where they are.

    Parts of ``new`` may lie in the memory of other parts of ``kept``.

    Raises:
        ValueError: a part has another shape.
    """
    mine, theirs = flatten("state", kept), flatten("state", new)
    memories = {tensor.untyped_storage().data_ptr() for tensor in mine.values()}
    for name, tensor in theirs.items():
        if tensor.shape != mine[name].shape:
            raise ValueError(f"{name} must be {list(mine[name].shape)}; got {list(tensor.shape)}")
        if tensor.untyped_storage().data_ptr() in memories:
            theirs[name] = tensor.clone()
    for name, tensor in theirs.items():
        mine[name].copy_(tensor, non_blocking=True)


@contextmanager
def put_back(tensors: Sequence[Tensor], optimisers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """After the block let tensors, what optimisers remember, and random numbers be as before it, in the same places.

    What an optimiser begins to remember in the block becomes 0, with which all optimisers here begin. Gradients of
    weights are dropped.
    """
    before = [tensor.detach().clone() for tensor in tensors]
    remembered = {place: value.clone() for place, value in _remembered(optimisers).items()}
    devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
                tensor.grad = None
            for place, tensor in _remembered(optimisers).items():
                if place in remembered:
                    tensor.copy_(remembered[place])
                else:
                    tensor.zero_()


def _remembered(optimisers: Sequence[torch.optim.Optimizer]) -> dict[tuple[int, str], Tensor]:
    return {
        (id(weight), key): value
        for optimiser in optimisers
        for weight, entry in optimiser.state.items()
        for key, value in entry.items()
        if isinstance(value, Tensor)
    }
