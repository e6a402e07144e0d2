"""How the rectifier learns: its optimisers, the discriminator, and the dreams during training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.learning.energy import windowed_energy_score
from torchrsm.learning.optimisers import adam, forget_gradients, set_rate, with_muon
from torchrsm.learning.ranks import Ranks
from torchrsm.learning.schedules import ScheduleConfig
from torchrsm.model import Prediction, VideoPredictor
from torchrsm.precision import layers_of
from torchrsm.predictor import filled
from torchrsm.rectifiers.contract import Rectifier, WeightGroup, mean_over, mean_squared_error
from torchrsm.rectifiers.discriminator import Discriminator, adversarial_loss, discriminator_loss
from torchrsm.rsm import kernels
from torchrsm.rsm.functional import Cells
from torchrsm.rsm.symmetry import tied_parts
from torchrsm.scoring.metrics import frame_squared_error_on_device

_ModuleT = TypeVar("_ModuleT", bound=nn.Module | None)

_WAKING_STEPS = 2  # the fewest steps after a dream until a stream predicts as if it had not dreamt


class RectifyingConfig(ScheduleConfig):
    """How the rectifier learns, and which share of the run is its own.

    Attributes:
        loss: of a frame that a stage makes. With ``squared_error`` it is an average where the future is not certain.
            With ``energy_score`` the rectifier has noise, makes two draws and learns to draw one future, see
            `torchrsm.learning.energy`.
        energy_window: pixels, the side of the windows in which the energy score compares frames.
        share: of the run's budget in which the rectifier learns, the last of it.
        stack_share: of the budget in which the stack learns, the first of it; None, as published, until the rectifier
            begins. Where the two overlap both learn from each frame, each from its own error; with 1 for both shares,
            always.
        learning_rate: of the generator, Adam.
        matrix_learning_rate: of the generator's kernels, each taken as a matrix, by `Muon`; None for Adam there, too.
        adversarial_weight: lambda, the weight of the adversarial term beside the mean squared error; at 0 there is no
            discriminator.
        discriminator_learning_rate: plain gradient descent.
        real_label: label of the frames that came; below 1 it keeps the discriminator from being too sure.
        noise_deviation: of the Gaussian noise that is added to what the discriminator sees, the same for both frames.
        gradient_norm: longest gradient of a stage; a longer one is shortened to it. None for no limit.
        loop_share: share of the streams, rounded to whole ones, that dream on the way: once their error is below
            ``loop_error`` their stack hears the rectified frame in place of the one that came, for up to ``loop_steps``
            steps.
        loop_from: progress through the phase from which streams dream.
        loop_error: squared error of a frame up to which a dream still follows what comes. Beyond it the frame that came
            is no target any more.
        loop_steps: most steps of such a dream; then the stream hears the frames that come again.
        motion_weight: weight of the error of a dream's motion, see `motion_loss`.
        motion_blur: pixels, the deviation of a Gaussian; motion is seen through this blur, see `motion`. 0 for none.
    """

    loss: Literal["squared_error", "energy_score"] = "squared_error"
    energy_window: int = Field(default=10, gt=0)
    share: float = Field(default=0.5, ge=0, le=1)
    stack_share: float | None = Field(default=None, gt=0, le=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    matrix_learning_rate: float | None = Field(default=None, gt=0)
    adversarial_weight: float = Field(default=2e-4, ge=0)
    discriminator_learning_rate: float = Field(default=5e-4, gt=0)
    real_label: float = Field(default=0.9, gt=0, le=1)
    noise_deviation: float = Field(default=0.1, ge=0)
    gradient_norm: float | None = Field(default=None, gt=0)
    loop_share: float = Field(default=0.0, ge=0, lt=1)
    loop_from: float = Field(default=0.5, ge=0, lt=1)
    loop_error: float = Field(default=2.0, gt=0)
    loop_steps: int = Field(default=1, gt=0)
    motion_weight: float = Field(default=0.0, ge=0)
    motion_blur: float = Field(default=2.0, ge=0)

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List settings of the schedule, the discriminator or dreams where there are none."""
        yield from super().without_effect()
        if self.loss != "energy_score":
            yield "energy_window", "loss is squared_error"
        if self.adversarial_weight == 0:
            for name in ("discriminator_learning_rate", "real_label", "noise_deviation"):
                yield name, "adversarial_weight is 0"
        if self.loop_share == 0:
            for name in ("loop_from", "loop_error", "loop_steps", "motion_weight", "motion_blur"):
                yield name, "loop_share is 0"
        elif self.motion_weight == 0:
            yield "motion_blur", "motion_weight is 0"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.loss == "energy_score" and self.adversarial_weight:
            raise ValueError(
                f"adversarial_weight must be 0 where loss is energy_score; got {self.adversarial_weight:g}"
            )
        if self.share == 1 and self.stack_share is None:
            raise ValueError("stack_share must be > 0 where share is 1, or the stack would never learn; got None")
        if self.stack_share is not None and self.stack_share < 1 - self.share:
            raise ValueError(
                f"stack_share must be >= 1 - share = {1 - self.share:g}, or nothing would learn between; "
                f"got {self.stack_share:g}"
            )
        return self


class Rectified(NamedTuple):
    """The result of a step of `RectifierLearning`.

    Attributes:
        frame: ``[b, c, h, w]``, as it was before the update, detached.
        losses: ``[n]``, those of `RectifierLearning.loss_names`; 0 where a step had none.
    """

    frame: Tensor
    losses: Tensor


def motion(frames: Tensor, last: Tensor, blur: float) -> Tensor:
    """Return how far what is bright has moved from one frame to the next: the length of their difference, ``[b]``.

    The blur makes it grow with the distance, as long as that is not much more than the blur. In sharp frames it also
    grows where edges get sharper or flicker.

    Args:
        frames: ``[b, c, h, w]``.
        last: the frames before them, ``[b, c, h, w]``.
        blur: pixels, the deviation of the Gaussian through which both are seen; 0 for none.
    """
    length: Tensor = torch.linalg.vector_norm(_blurred(frames - last, blur), dim=(1, 2, 3))
    return length


def _blurred(frames: Tensor, deviation: float) -> Tensor:
    """Return frames ``[b, c, h, w]`` blurred by a Gaussian, cut at three deviations; there is nothing outside them."""
    if deviation == 0:
        return frames
    reach = math.ceil(3 * deviation)
    offsets = torch.arange(-reach, reach + 1, device=frames.device, dtype=frames.dtype)
    weights = torch.softmax(-0.5 * (offsets / deviation).square(), 0)
    planes = frames.flatten(0, 1)[:, None]
    planes = F.conv2d(planes, weights.view(1, 1, -1, 1), padding=(reach, 0))
    return F.conv2d(planes, weights.view(1, 1, 1, -1), padding=(0, reach)).view_as(frames)


def motion_loss(own: Tensor, world: Tensor, dreams: Tensor) -> Tensor:
    """Return how far dreams are from moving as much as the world does, a scalar: the mean of ``(own / world - 1)^2``.

    An average of futures moves less than any of them, so dreams slow down. A dream that has left the frames that came
    cannot be compared with them. But it should move as far from frame to frame.

    Args:
        own: `motion` of each stream, ``[b]``.
        world: the world's, a scalar. If it is 0, the world stands still or is unknown, and the loss is 0.
        dreams: ``[b]`` bool, the streams that dream. If there are none, the loss is 0.
    """
    moves = world > 0
    loss = mean_over((own / torch.where(moves, world, 1.0) - 1).square(), dreams)
    return torch.where(moves, loss, 0.0)


class RectifierLearning:
    """How a rectifier learns from the stack's predictions; the stack does not change.

    Each stage of the rectifier follows its own loss, by Adam (and Muon). What the last stage makes, the rectified
    frame, follows two more where they have a weight: that of a discriminator, which learns beside it, and that of the
    motion of dreams.

    Args:
        model: its rectifier learns.
        config: how.
        shape: batch (of this process), channels, height and width of the frames to come.
        ranks: the processes that train together.
    """

    def __init__(
        self, model: VideoPredictor, config: RectifyingConfig, shape: tuple[int, int, int, int], ranks: Ranks
    ) -> None:
        assert model.rectifier is not None
        self.model = model
        self.rectifier = model.rectifier
        self.config = config
        self._ranks = ranks
        self._streams = shape[0] * ranks.count
        device = next(self.rectifier.parameters()).device
        self._dreamers = torch.zeros((), dtype=torch.int64, device=device)
        self.discriminator = Discriminator(math.prod(shape[1:])) if config.adversarial_weight else None
        if self.discriminator is not None:
            self.discriminator.to(device)
            self._discriminator = torch.optim.SGD(self.discriminator.parameters(), config.discriminator_learning_rate)
        self._copies = [_Networks.of(self.rectifier, self.discriminator)]  # the first are the networks themselves
        self._waking_steps = max(_WAKING_STEPS, model.config.layers[0].input_frames)
        self._groups = self.rectifier.weight_groups()
        self._tied = tied_parts(self.rectifier)
        self._stages = [optimiser for group in self._groups for optimiser in _stage_optimisers(group, config)]

    @property
    def loss_names(self) -> tuple[str, ...]:
        """One a stage of the rectifier, then the terms that have a weight."""
        loss = self.config.loss.replace("_", " ")
        own = (f"{loss} {stage}".strip() for stage in self.rectifier.stage_names)
        adversarial = ("adversarial loss", "discriminator's loss") if self.config.adversarial_weight else ()
        motion = ("motion loss",) if self.config.motion_weight else ()
        return (*own, *adversarial, *motion)

    @property
    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Those of the rectifier, then the discriminator's."""
        judge = [] if self.discriminator is None else [self._discriminator]
        return [*(optimiser for optimiser, _ in self._stages), *judge]

    def set_progress(self, progress: float) -> None:
        """Set what depends on the ``progress`` through this phase, in 0..1: rates, and how many streams may dream."""
        config = self.config
        factor = config.rate_factor(progress)
        for optimiser, rate in self._stages:
            set_rate(optimiser, rate * factor)
        self._dreamers.fill_(round(config.loop_share * self._streams) if progress >= config.loop_from else 0)

    def find_gradients(
        self,
        prediction: Prediction,
        frame: Tensor,
        learn: Tensor,
        last: Tensor,
        alone: Tensor,
        seen: Tensor | None = None,
    ) -> Rectified:
        """Find the gradients of all weights. No size depends on how many streams teach, so nothing waits.

        Args:
            prediction: of the stack, from `VideoPredictor.predict_raw`.
            frame: the frame that came, ``[b, c, h, w]``.
            learn: ``[b]`` bool, false for streams to leave out.
            last: the frame that the stack heard before, ``[b, c, h, w]``.
            alone: ``[b]`` steps for which each stream has heard its own frames; below 0 for one that wakes up, which
                teaches nothing.
            seen: ``[b, 1, h, w]`` bool, false where the frame shows nothing: there nothing is learned. None for all.
        """
        config, batch = self.config, len(frame)
        copies = self._copies_for(batch, frame.device)
        bounds = [number * batch // len(copies) for number in range(len(copies) + 1)]
        parts = [(copy, slice(*ends)) for copy, ends in zip(copies, pairwise(bounds), strict=True)]
        noise = self._noise(prediction.raw)
        made = kernels.side_by_side([partial(self._draws, *part, prediction, noise) for part in parts])
        # Of the last stage the one draw, or the first of two.
        firsts = [draws[-1][: part.stop - part.start] for draws, (_, part) in zip(made, parts, strict=True)]
        rectified = torch.cat(firsts).detach() if len(firsts) > 1 else firsts[0].detach()
        frame = filled(frame, rectified, seen)
        dreams, awake = learn & (alone > 0), learn & (alone == 0)
        follows = awake | (dreams & (frame_squared_error_on_device(rectified, frame) <= config.loop_error))
        moved = frame.new_zeros(())
        if config.motion_weight:
            moved = torch.where(awake, motion(frame, last, config.motion_blur), 0.0).sum()
        every = torch.stack((follows.sum().to(frame), dreams.sum().to(frame), awake.sum().to(frame), moved))
        self._ranks.sum([every])  # from here on: over the streams of all processes
        condition = prediction.raw
        disturbance = config.noise_deviation * torch.randn_like(frame) if self.discriminator is not None else None

        def learn_from(number: int) -> Tensor:
            """Find the gradients of one part of the streams; return its share of each loss."""
            (rectifier, judge, own, judging), part = parts[number]
            counts = torch.stack((follows[part].sum(), dreams[part].sum())).to(frame)
            shares = counts / every[:2].clamp(min=1)
            score = partial(self._score, None if seen is None else seen[part])
            found = rectifier.losses(made[number], frame[part], follows[part], score)
            losses = [loss * shares[0] for loss in found]
            total = sum(losses[1:], losses[0])
            if judge is not None and disturbance is not None:
                generated = judge(firsts[number] + disturbance[part], condition[part])
                losses.append(adversarial_loss(generated, follows[part]) * shares[0])
                total = total + config.adversarial_weight * losses[-1]
            if config.motion_weight:
                moves, world = motion(firsts[number], last[part], config.motion_blur), every[3] / every[2].clamp(min=1)
                too_slow_or_fast = motion_loss(moves, world, dreams[part]) * shares[1]
                total = total + config.motion_weight * too_slow_or_fast
            forget_gradients(own)
            total.backward()
            if judge is not None and disturbance is not None:
                forget_gradients(judging)  # clears what the rectifier's loss left there
                real, generated = (
                    judge(image[part] + disturbance[part], condition[part]) for image in (frame, rectified)
                )
                losses.append(discriminator_loss(real, generated, follows[part], config.real_label) * shares[0])
                losses[-1].backward()
            if config.motion_weight:
                losses.append(too_slow_or_fast)
            return torch.stack([loss.detach() for loss in losses])

        losses = kernels.side_by_side([partial(learn_from, number) for number in range(len(parts))])
        for other in copies[1:]:
            _add_gradients(copies[0], other)
        return Rectified(rectified, sum(losses[1:], losses[0]))

    def _copies_for(self, batch: int, device: torch.device) -> list[_Networks]:
        """Return networks for each part of a batch: on the CPU as many as there are threads, elsewhere one."""
        count = max(1, min(kernels.threads(), batch)) if device.type == "cpu" else 1
        while len(self._copies) < count:
            self._copies.append(_Networks.of(_sharing(self.rectifier), _sharing(self.discriminator)))
        return self._copies[:count]

    def _noise(self, raw: Tensor) -> Tensor | None:
        """Return noise for two draws from each prediction, ``[2, b, ...]``; None where there is one without noise."""
        if self.config.loss != "energy_score":
            return None
        shape = self.rectifier.noise_shape(*raw.shape[2:])
        assert shape is not None  # a run checks that
        return torch.randn(2 * len(raw), *shape, device=raw.device).view(2, len(raw), *shape)

    def _draws(
        self, networks: _Networks, part: slice, prediction: Prediction, noise: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return what the stages make of some predictions, ``[b, c, h, w]``; with noise two of each, ``[2 b]``."""
        raw, seen = prediction.raw[part], prediction.seen[part]
        cells = [Cells(*(entry[part] for entry in layer.cells)) for layer in prediction.layers]
        if noise is not None:
            raw, seen = torch.cat((raw, raw)), torch.cat((seen, seen))
            cells = [Cells(*(torch.cat((entry, entry)) for entry in layer)) for layer in cells]
            noise = noise[:, part].flatten(0, 1)
        with layers_of(raw.device):
            return networks.rectifier.stages(raw, cells, seen, noise)

    def _score(self, seen: Tensor | None, made: Tensor, frame: Tensor) -> Tensor:
        """Return how far the frames that a stage makes are from those that came where these were seen, ``[b]``."""
        if seen is not None:
            draws = len(made) // len(frame)
            made = torch.where(seen.repeat(draws, 1, 1, 1), made, frame.repeat(draws, 1, 1, 1))
        if self.config.loss == "energy_score":
            first, second = made.chunk(2)
            return windowed_energy_score(first, second, frame, self.config.energy_window)
        return mean_squared_error(made, frame)

    @property
    def weights(self) -> list[nn.Parameter]:
        """All that learn here: the rectifier's and the discriminator's."""
        return [*self._copies[0].own, *self._copies[0].judging]

    def step(self) -> None:
        """Take one step of each optimiser along the gradients that `find_gradients` found."""
        for part, tied in self._tied:
            tied.tie_gradients(part)
        if self.config.gradient_norm is not None:
            for stage in self._groups:
                torch.nn.utils.clip_grad_norm_(stage.weights, self.config.gradient_norm)
        for optimiser in self.optimisers:
            optimiser.step()
        for part, tied in self._tied:
            tied.tie_weights(part)

    def heard(self, frame: Tensor, rectified: Tensor, learn: Tensor, alone: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each stack hears, the frame that came or its own, and for how many steps it has been alone.

        No stream can predict the frame after a dream, which is a jump. It needs one more frame, or as many as the stack
        reads side by side, to see a motion again. For these steps the number is below 0.

        Args:
            frame: the frame that came, ``[b, c, h, w]``.
            rectified: the model's own, ``[b, c, h, w]``.
            learn: ``[b]`` bool, false where ``frame`` is the first of a sequence.
            alone: ``[b]`` int64, what this returned for the frame before.
        """
        first = self._ranks.rank * len(frame)
        dreamers = torch.arange(first, first + len(frame), device=frame.device) < self._dreamers
        starts = frame_squared_error_on_device(rectified, frame) < self.config.loop_error
        own = dreamers & learn & ((starts & (alone == 0)) | (alone > 0)) & (alone < self.config.loop_steps)
        awake = torch.where(alone > 0, -self._waking_steps, (alone + 1).clamp(max=0))
        alone = torch.where(own, alone + 1, torch.where(learn, awake, 0))
        return torch.where(own.view(-1, 1, 1, 1), rectified, frame), alone


class _Networks(NamedTuple):
    """Networks for a part of the streams, which learns in a thread of its own: with gradients of their own.

    Attributes:
        rectifier: it learns from this part.
        judge: the discriminator; None where there is none.
        own: the rectifier's weights.
        judging: the discriminator's.
    """

    rectifier: Rectifier
    judge: Discriminator | None
    own: list[nn.Parameter]
    judging: list[nn.Parameter]

    @classmethod
    def of(cls, rectifier: Rectifier, judge: Discriminator | None) -> Self:
        """Return the networks with their weights."""
        return cls(rectifier, judge, list(rectifier.parameters()), [] if judge is None else list(judge.parameters()))


def _sharing(module: _ModuleT) -> _ModuleT:
    """Return a copy of a module that shares its weights, but not their gradients; of None, None."""
    if module is None:
        return module
    shared: dict[int, object] = {id(weight): nn.Parameter(weight.detach()) for weight in module.parameters()}
    shared |= {id(buffer): buffer for buffer in module.buffers()}
    return deepcopy(module, shared)


def _add_gradients(networks: _Networks, others: _Networks) -> None:
    """Add the gradients of other networks to those of the first, in place."""
    pairs = zip([*networks.own, *networks.judging], [*others.own, *others.judging], strict=True)
    gradients = [(one.grad, other.grad) for one, other in pairs if one.grad is not None and other.grad is not None]
    torch._foreach_add_([one for one, _ in gradients], [other for _, other in gradients])


def _stage_optimisers(group: WeightGroup, config: RectifyingConfig) -> list[tuple[torch.optim.Optimizer, float]]:
    """Return the optimisers of one stage and the learning rate of each: Adam and, where it has a rate, Muon."""
    rate = config.learning_rate
    return with_muon(
        group.weights, group.kernels, rate, config.matrix_learning_rate, lambda weights: adam(weights, rate)
    )
