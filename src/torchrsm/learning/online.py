"""How RSM learns from a stream: one update for each frame, the stack first, then the rectifier on what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from torchrsm.learning.captured import Recorder, Updates, recorder_for
from torchrsm.learning.contract import Taught, taught
from torchrsm.learning.local import LearningConfig, LocalLearning
from torchrsm.learning.ranks import Ranks
from torchrsm.learning.rectifying import RectifierLearning, RectifyingConfig
from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.predictor import filled, restart
from torchrsm.rsm import kernels
from torchrsm.rsm.layer import LayerState
from torchrsm.scoring.metrics import frame_squared_error_on_device
from torchrsm.state import map_state
from torchrsm.streams.stream import StreamBatch, StreamInPlace
from torchrsm.streams.turns import FrameShape

Phase = Literal["stack", "both", "rectifier"]
LayerStates = tuple[LayerState, ...]

_CPU = torch.device("cpu")
_ALONE = Ranks()


class OnlineState(NamedTuple):
    """What the streams have seen.

    Attributes:
        layers: the state of each layer.
        alone: ``[b]`` int64, see `RectifierLearning.heard`.
    """

    layers: LayerStates
    alone: Tensor


class _Frames(NamedTuple):
    """What an update takes from a batch.

    Attributes:
        frames: ``[b, c, h, w]``.
        starts: ``[b]`` bool, where a sequence begins.
        seen: ``[b, 1, h, w]`` bool, where the frames show something; None where they do everywhere.
        symbols: ``[b]`` int64, which the frames show; None where they are no symbols.
    """

    frames: Tensor
    starts: Tensor
    seen: Tensor | None
    symbols: Tensor | None


class _Size(NamedTuple):
    """What is kept for the frames of one shape.

    Attributes:
        fresh: the state of layers that have seen nothing.
        updates: runs the updates and holds the state.
    """

    fresh: LayerStates
    updates: Updates[_Frames, OnlineState]


class OnlineLearner:
    """A `torchrsm.learning.contract.Learner`.

    Args:
        model: settings of the model, which is made here.
        learning: of the stack.
        rectifying: of the rectifier; None where there is none that learns.
        stack_learns: false if only the rectifier learns in this run; see `take_stack`.
        shape: batch, channels, height and width of the frames to come.
        device: where the model learns; batches are moved there.
        ranks: the processes that train together; ``shape`` holds the streams of this one.
        recorder_for: returns what records updates on a device; None where they run as they are written.
        others: channels, height and width of frames that take turns with those of ``shape``. What was seen is kept for
            each shape alone.

    Raises:
        ValueError: the model cannot read such frames, or an adversary, which reads frames of one size, is to learn from
            frames of several.
    """

    batches_per_update = 1

    def __init__(
        self,
        model: ModelConfig,
        learning: LearningConfig,
        rectifying: RectifyingConfig | None,
        stack_learns: bool,
        shape: tuple[int, int, int, int],
        device: torch.device = _CPU,
        ranks: Ranks = _ALONE,
        recorder_for: Callable[[torch.device], Recorder | None] = recorder_for,
        others: Sequence[FrameShape] = (),
    ) -> None:
        if others and rectifying is not None and rectifying.adversarial_weight:
            raise ValueError(
                "rectifying.adversarial_weight must be 0 where frames of several sizes take turns; "
                f"got {rectifying.adversarial_weight:g}"
            )
        self._streams = shape[0]
        at_once = learning.streams_per_update or shape[0]
        self._turns = [slice(first, first + at_once) for first in range(0, shape[0], at_once)]
        self._ranks = ranks
        self.model = VideoPredictor(model).to(device)  # made on the CPU: the same weights on any device
        self._learning = LocalLearning(self.model, learning)
        self._rectifying = None if rectifying is None else RectifierLearning(self.model, rectifying, shape, ranks)
        self._rectifier_from = 1.0 if rectifying is None else 1.0 - rectifying.share if stack_learns else 0.0
        self._stack_until = self._rectifier_from
        if rectifying is not None and stack_learns and rectifying.stack_share is not None:
            self._stack_until = rectifying.stack_share
        self._sizes: dict[tuple[int, ...], _Size] = {}  # in the order of the first turns
        for frames in (shape[1:], *others):
            fresh = self.model.initial_state((shape[0], *frames))
            state = OnlineState(fresh, torch.zeros(shape[0], dtype=torch.int64, device=device))
            recorder = recorder_for(device) if ranks.can_be_captured else None
            self._sizes[frames] = _Size(fresh, Updates(state, self.modules, self.optimisers, device, recorder))

    @property
    def state(self) -> OnlineState | tuple[OnlineState, ...]:
        """What the streams have seen; where frames of several sizes take turns, that of each size."""
        first, *others = (size.updates.state for size in self._sizes.values())
        return (first, *others) if others else first

    @state.setter
    def state(self, state: OnlineState | tuple[OnlineState, ...]) -> None:
        states = (state,) if isinstance(state, OnlineState) else state
        for size, one in zip(self._sizes.values(), states, strict=True):
            size.updates.state = one

    def take_stack(self, given: VideoPredictor) -> None:
        """Start from the stack of another model.

        Raises:
            ValueError: it is another kind of stack.
        """
        for name in (
            "layers",
            "channels",
            "height",
            "width",
            "pad",
            "pad_value",
            "feedback",
            "fresh_feedback",
            "symmetry",
        ):
            theirs, ours = getattr(given.config, name), getattr(self.model.config, name)
            if theirs != ours:
                raise ValueError(
                    f"stack_from must be a model of the same stack; its {name} is {theirs}, that of the run {ours}"
                )
        self.model.stack.load_state_dict(given.stack.state_dict())

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The model and, where there is one, the rectifier's discriminator."""
        modules: dict[str, nn.Module] = {"model": self.model}
        if self._rectifying is not None and self._rectifying.discriminator is not None:
            modules["discriminator"] = self._rectifying.discriminator
        return modules

    @property
    def optimisers(self) -> Sequence[torch.optim.Optimizer]:
        """One for each layer, then the rectifier's."""
        rectifying = [] if self._rectifying is None else self._rectifying.optimisers
        return [*self._learning.optimisers, *rectifying]

    def phase(self, progress: float) -> Phase:
        """Return what learns: the stack first, the rectifier last, both where their shares of the run overlap."""
        if self._rectifier_from == 1:
            return "stack"
        if progress >= self._stack_until and self._stack_until < 1:
            return "rectifier"
        return "both" if progress >= self._rectifier_from else "stack"

    def loss_names(self, phase: str) -> Sequence[str]:
        """Return the layers and the head, or the rectifier's terms, or all of these."""
        layers = [f"loss/layer_{number}" for number in range(1, len(self.model.stack.layers) + 1)]
        layers += [] if self.model.head is None else ["loss/head"]
        terms = [] if self._rectifying is None else [f"rectifier/{name}" for name in self._rectifying.loss_names]
        return {"stack": layers, "rectifier": terms, "both": [*layers, *terms]}[phase]

    def begin(self, phase: str, threads: int) -> None:
        """Give the cores to what does most of the work in a phase, and freeze the stack where it does not learn."""
        if phase == "stack":
            # A run that was extended may return to this phase from a later one, in which streams were dreaming.
            for _, updates in self._sizes.values():
                updates.state = updates.state._replace(alone=torch.zeros_like(updates.state.alone))
        # Threads that share the streams out wait for each other less than those that share each operation out.
        alone = phase != "stack" and self._streams == 1
        kernels.set_threads(1 if alone else threads, torch_threads=threads if alone else 1)
        if phase == "rectifier":
            self.model.zero_grad()  # gradients that no one needs any more
        self.model.train(phase != "rectifier")

    def warm_up(self) -> None:
        """Compile the kernels, so that no budget in minutes pays for it."""
        fresh, updates = next(iter(self._sizes.values()))
        learn, device = torch.ones_like(updates.state.alone, dtype=torch.bool), updates.state.alone.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            prediction = self.model.predict_raw(fresh)
            nothing = torch.zeros_like(prediction.raw)
            for loss in self._learning.losses(prediction, nothing, learn, torch.zeros_like(updates.state.alone)):
                loss.backward()
        self.model.zero_grad()

    def teach(self, batches: Sequence[StreamBatch], progress: float) -> Taught:
        """Take one update from one frame of each stream: predict it, learn from the error, hear it (or a dream)."""
        (batch,) = batches
        phase, updates = self._set_progress(progress), self._size_of(batch.frames).updates
        return updates.run(phase, partial(self._update, phase), _frames(batch))

    def teach_in_place(self, stream: StreamInPlace, progress: float) -> Taught:
        """Take one update from the next frames of a stream that is made on the device; see `teach`."""
        phase, updates = self._set_progress(progress), self._size_of(stream.batch.frames).updates
        return updates.run_in_place(phase, partial(self._update, phase), stream, _frames)

    def _size_of(self, frames: Tensor) -> _Size:
        """Return what is kept for frames of this shape; frames of an unknown one are refused later on."""
        return self._sizes.get(tuple(frames.shape[1:]), next(iter(self._sizes.values())))

    def _set_progress(self, progress: float) -> Phase:
        """Let all that changes through a run, but for weights and states, follow the ``progress``, in 0..1.

        Returns:
            The phase.
        """
        phase = self.phase(progress)
        if phase != "rectifier":
            self._learning.set_progress(progress / self._stack_until)
        if phase != "stack":
            assert self._rectifying is not None
            self._rectifying.set_progress((progress - self._rectifier_from) / (1 - self._rectifier_from))
        return phase

    def _update(self, phase: Phase, inputs: _Frames, state: OnlineState) -> tuple[Taught, OnlineState]:
        """Change the weights, return what the update was made of and the state after it; nothing waits for the device.

        Args:
            phase: what learns.
            inputs: on the device of the model.
            state: what the streams have seen.
        """
        frames, *_ = inputs
        fresh = self._size_of(frames).fresh
        if phase != "stack" or len(self._turns) == 1:
            return self._update_at_once(phase, inputs, state, fresh)
        parts, states = [], []
        for turn in self._turns:
            of_turn = partial(map_state, itemgetter(turn))
            part, after = self._update_at_once(phase, of_turn(inputs), of_turn(state), of_turn(fresh))
            parts.append(part)
            states.append(after)
        return _together(parts), map_state(lambda *tensors: torch.cat(tensors), *states)

    def _update_at_once(
        self, phase: Phase, inputs: _Frames, state: OnlineState, fresh: LayerStates
    ) -> tuple[Taught, OnlineState]:
        """Do what `_update` does, with all streams that are given.

        Args:
            phase: what learns.
            inputs: on the device of the model.
            state: what these streams have seen.
            fresh: the state of layers that have seen nothing.
        """
        frames, starts, seen, symbols = inputs
        layers, alone = restart(state.layers, fresh, starts), state.alone
        learn = ~starts
        scored = learn & (alone == 0)  # neither the score nor the stack compares a dream with the frames that came
        losses: list[Tensor] = []
        weights: list[nn.Parameter] = []
        with torch.set_grad_enabled(phase != "rectifier"):
            prediction = self.model.predict_raw(layers)
        predicted, heard = prediction.raw, filled(frames, prediction.frame, seen)
        if phase != "rectifier":
            # Where nothing is seen the target is the prediction itself, so nothing is learned there.
            errors = self._learning.losses(prediction, heard, scored, symbols)
            if self._ranks.count > 1:  # sums in place of means; `_divide` makes means over all processes of them
                errors = tuple(error * scored.sum() for error in errors)
            self._learning.find_gradients(errors)
            losses += [error.detach() for error in errors]
            weights += chain.from_iterable(self._learning.weights)
        if phase != "stack":
            assert self._rectifying is not None
            last = self.model.last_frame(layers)
            rectified = self._rectifying.find_gradients(prediction, frames, learn, last, alone, seen)
            losses += rectified.losses.unbind()
            weights += self._rectifying.weights
            predicted = rectified.frame
            heard, alone = self._rectifying.heard(filled(frames, predicted, seen), predicted, learn, alone)
        shown = filled(frames, predicted, seen)
        errors_of_frames = torch.where(scored, frame_squared_error_on_device(predicted, shown), 0.0)
        figures = torch.stack((scored.sum().to(errors_of_frames.dtype), errors_of_frames.sum()))
        values = torch.stack(losses)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        wins = [] if phase == "rectifier" else self._learning.wins(prediction)
        self._ranks.sum([*gradients, values, figures, *wins])
        if phase != "rectifier":
            if self._ranks.count > 1:
                self._divide(values, figures[0])
            self._learning.step(prediction, wins)
        if self._rectifying is not None and phase != "stack":
            self._rectifying.step()
        after = OnlineState(self.model.observe(heard, prediction, layers), alone)
        mean = figures[1] / figures[0].clamp(min=1)
        return taught(figures[0], mean, values, errors_of_frames[None], scored[None]), after

    def _divide(self, losses: Tensor, scored: Tensor) -> None:
        """Divide the stack's sums over all processes, losses (the first ones) and gradients, by the scored streams."""
        share = (1 / scored.clamp(min=1)).to(losses.dtype)
        losses[: len(self._learning.weights)] *= share
        weights = chain.from_iterable(self._learning.weights)
        torch._foreach_mul_([weight.grad for weight in weights if weight.grad is not None], share)


def _together(parts: Sequence[Taught]) -> Taught:
    """Return the figures of all turns of an update."""
    sums = torch.stack([part.sums for part in parts]).sum(0)
    scored, means = sums[0], sums[1:] / sums[0].clamp(min=1)
    errors, is_scored = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("errors", "is_scored"))
    return Taught(scored, means[0], means[1:].to(parts[0].losses.dtype), sums, errors, is_scored)


def _frames(batch: StreamBatch) -> _Frames:
    return _Frames(batch.frames, batch.starts, batch.seen, batch.symbols)
