"""The deep temporal sigmoid belief network: two layers of stochastic binary units over time, learnt by NVIL.

Zhe Gan, Chunyuan Li, Ricardo Henao, David Carlson, Lawrence Carin, "Deep Temporal Sigmoid Belief Networks for Sequence
Modeling", NIPS 2015, arXiv 1509.07087; learnt as in Andriy Mnih, Karol Gregor, "Neural Variational Inference and
Learning in Belief Networks", ICML 2014, arXiv 1402.0030.

At each step the generative network draws the upper units from the last steps of both layers, the lower units from the
upper ones and from the last lower units and frames, and the frame from the lower units and the last frames; all are
Bernoulli with a logistic mean. The recognition network goes the other way: the lower units from the frame, the last
frames and the last lower units; the upper units from the lower ones and the last units of both layers. A frame is
predicted from the last frames and from what the recognition network thinks the last units were.

The past of a step is a value here. A step that does not exist has the value 0, which drops it out of every sum, as in
the equations, so the first frames of a sequence need no special case.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from torchrsm.baselines.sequence_model import BaselineConfig, Lesson, Predicted, SequenceModel, Window
from torchrsm.state import detach


class DTSBNConfig(BaselineConfig):
    """Settings of the network; the defaults are the published ones.

    Attributes:
        lower_units, upper_units: of the layer next to the frames and of the one above it.
        order: steps back that a step depends on.
        baseline_units: of the network that guesses the learning signal from the frame.
        initial_deviation: of the weights before they learn; biases begin at 0.
        signal: the reward of the recognition network at each step, see `learning_signal`.
        signal_momentum: share of the old value in the running mean and variance of the learning signal.
    """

    kind: Literal["dtsbn"] = "dtsbn"
    lower_units: int = Field(default=100, gt=0)
    upper_units: int = Field(default=100, gt=0)
    order: int = Field(default=2, gt=0)
    baseline_units: int = Field(default=100, gt=0)
    initial_deviation: float = Field(default=1e-3, gt=0)
    signal: Literal["step", "future"] = "step"
    signal_momentum: float = Field(default=0.8, ge=0, lt=1)


class Past(NamedTuple):
    """The last steps of each stream, the latest first; 0 for a step before the first. Also the model's state.

    Attributes:
        frames: ``[..., order, pixels]`` in 0..1.
        lower: ``[..., order, lower units]``, samples in {0, 1} while training, else their means in 0..1.
        upper: ``[..., order, upper units]``, likewise.
    """

    frames: Tensor
    lower: Tensor
    upper: Tensor


class Units(NamedTuple):
    """The units of a step, ``[..., lower units]`` and ``[..., upper units]``: values, or logits."""

    lower: Tensor
    upper: Tensor


class Terms(NamedTuple):
    """The two logarithms of a step, ``[time, b]``, given all that came before it.

    Attributes:
        generative: log p of the frame and the units.
        recognition: log q of the units.
    """

    generative: Tensor
    recognition: Tensor

    @property
    def bound(self) -> Tensor:
        """What each step adds to the variational lower bound, a sample, in nats."""
        return self.generative - self.recognition


class Generative(nn.Module):
    """Draws the upper units, then the lower ones, then the frame.

    Args:
        config: sizes.
        pixels: of a frame.
    """

    def __init__(self, config: DTSBNConfig, pixels: int) -> None:
        super().__init__()
        lower, upper, order = config.lower_units, config.upper_units, config.order
        self.upper_from_uppers = nn.Linear(order * upper, upper)
        self.upper_from_lowers = nn.Linear(order * lower, upper, bias=False)
        self.lower_from_upper = nn.Linear(upper, lower)
        self.lower_from_lowers = nn.Linear(order * lower, lower, bias=False)
        self.lower_from_frames = nn.Linear(order * pixels, lower, bias=False)
        self.frame_from_lower = nn.Linear(lower, pixels)
        self.frame_from_frames = nn.Linear(order * pixels, pixels, bias=False)

    def from_past(self, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the past alone adds to the logits of the upper units, the lower units and the frame."""
        frames, lower, upper = (part.flatten(-2) for part in past)
        return (
            self.upper_from_uppers(upper) + self.upper_from_lowers(lower),
            self.lower_from_lowers(lower) + self.lower_from_frames(frames),
            self.frame_from_frames(frames),
        )


class Recognition(nn.Module):
    """Guesses the lower units, then the upper ones.

    Args:
        config: sizes.
        pixels: of a frame.
    """

    def __init__(self, config: DTSBNConfig, pixels: int) -> None:
        super().__init__()
        lower, upper, order = config.lower_units, config.upper_units, config.order
        self.lower_from_frame = nn.Linear(pixels, lower)
        self.lower_from_frames = nn.Linear(order * pixels, lower, bias=False)
        self.lower_from_lowers = nn.Linear(order * lower, lower, bias=False)
        self.upper_from_lower = nn.Linear(lower, upper)
        self.upper_from_lowers = nn.Linear(order * lower, upper, bias=False)
        self.upper_from_uppers = nn.Linear(order * upper, upper, bias=False)

    def from_frames(self, frames: Tensor, past: Tensor) -> Tensor:
        """Return what frames ``[..., pixels]`` and those before, ``[..., order, pixels]``, add to the lower logits."""
        logits: Tensor = self.lower_from_frame(frames) + self.lower_from_frames(past.flatten(-2))
        return logits

    def from_lower(self, lower: Tensor, past: Tensor) -> Tensor:
        """Return what lower units and those before them add to the upper logits."""
        logits: Tensor = self.upper_from_lower(lower) + self.upper_from_lowers(past.flatten(-2))
        return logits


class Baseline(nn.Module):
    """Guesses the learning signal of a step from its frame: one hidden layer of tanh units, without biases.

    Args:
        config: sizes.
        pixels: of a frame.
    """

    def __init__(self, config: DTSBNConfig, pixels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(pixels, config.baseline_units, bias=False)
        self.signal = nn.Linear(config.baseline_units, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Return one number for each frame ``[..., pixels]``."""
        signal: Tensor = self.signal(torch.tanh(self.hidden(frames))).squeeze(-1)
        return signal


class DTSBN(SequenceModel):
    """The `Predictor`; the state is a `Past`.

    The units are samples while it trains. In evaluation their means take their place, in the recognition and in the
    prediction (mean field), so an evaluation is deterministic.

    Args:
        config: its settings.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("negative bound", "baseline error")
    config: DTSBNConfig

    def __init__(self, config: DTSBNConfig) -> None:
        super().__init__(config)
        pixels = config.channels * config.height * config.width
        self.generative = Generative(config, pixels)
        self.recognition = Recognition(config, pixels)
        self.baseline = Baseline(config, pixels)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, 0.0, config.initial_deviation)
        self.signal_mean: Tensor
        self.signal_variance: Tensor
        self.register_buffer("signal_mean", torch.zeros(()))
        self.register_buffer("signal_variance", torch.zeros(()))

    def initial_state(self, shape: tuple[int, int, int, int]) -> Past:
        """Return a past of zeros."""
        self.check_shape(shape)
        config, like = self.config, self.signal_mean
        sizes = (config.channels * config.height * config.width, config.lower_units, config.upper_units)
        return Past(*(like.new_zeros(shape[0], config.order, size) for size in sizes))

    def predict(self, state: Past) -> Predicted:
        """Return the frame that the generative network expects."""
        frame = self._expected_frame(*self.generative.from_past(state))
        return Predicted(self._as_frames(frame))

    def advance(self, frame: Tensor, prediction: Predicted, state: Past) -> Past:
        """Let the recognition network guess the units of the step."""
        starts = torch.zeros(1, len(frame), dtype=torch.bool, device=frame.device)
        return self._recognise(frame.flatten(1)[None], starts, state)[-1]

    def weight_groups(self) -> tuple[list[nn.Parameter], ...]:
        """Return the weights of both networks, and those of the baseline."""
        networks = [*self.generative.parameters(), *self.recognition.parameters()]
        return networks, list(self.baseline.parameters())

    def learn(self, window: Window, state: Past) -> Lesson:
        """Return the NVIL losses of a window, whose units are drawn once.

        The value of the first loss is the negative bound of a frame, in nats; its gradient is that of `surrogate`. The
        running mean and variance of the signal take the window in.
        """
        frames = window.frames.flatten(2)
        units, past, after = self._recognise(frames, window.starts, state)
        from_past = self.generative.from_past(past)
        terms = self._terms(frames, units, past, from_past)
        signal = learning_signal(terms.bound.detach(), window.starts, self.config.signal)
        guess = self.baseline(frames)
        unexplained = signal - guess.detach()
        mean, variance = self._statistics(unexplained)
        deviation = variance.sqrt().clamp(min=1)
        loss = -surrogate(terms, (unexplained - mean) / deviation).mean()
        error = 0.5 * (signal - mean - guess).square().mean() / deviation
        with torch.no_grad():
            predicted = self._expected_frame(*from_past)
        every = torch.ones_like(window.starts).sum()
        return Lesson((loss, error), self._as_frames(predicted), ~window.starts, detach(after), every)

    def terms(self, window: Window, units: Units, state: Past) -> Terms:
        """Return log p and log q of given units, step by step: no sampling.

        Args:
            window: the frames.
            units: ``[time, b, units]`` of each layer.
            state: after the frames before the window.
        """
        frames = window.frames.flatten(2)
        values = (frames, units.lower, units.upper)
        parts = [_pasts(now, before, window.starts)[0] for now, before in zip(values, state, strict=True)]
        past = Past(*parts)
        return self._terms(frames, units, past, self.generative.from_past(past))

    def _terms(self, frames: Tensor, units: Units, past: Past, from_past: tuple[Tensor, Tensor, Tensor]) -> Terms:
        network = self.generative
        upper, lower, frame = from_past
        generative = (
            _log_probability(units.upper, upper)
            + _log_probability(units.lower, lower + network.lower_from_upper(units.upper))
            + _log_probability(frames, frame + network.frame_from_lower(units.lower))
        )
        guess = self.recognition
        lower = guess.from_frames(frames, past.frames) + guess.lower_from_lowers(past.lower.flatten(-2))
        upper = guess.from_lower(units.lower, past.lower) + guess.upper_from_uppers(past.upper.flatten(-2))
        recognition = _log_probability(units.lower, lower) + _log_probability(units.upper, upper)
        return Terms(generative, recognition)

    def _expected_frame(self, upper: Tensor, lower: Tensor, frame: Tensor) -> Tensor:
        """Return the means of the frame ``[..., pixels]``, each layer taken at the means of the one above it."""
        network = self.generative
        lower = lower + network.lower_from_upper(torch.sigmoid(upper))
        return torch.sigmoid(frame + network.frame_from_lower(torch.sigmoid(lower)))

    @torch.no_grad()
    def _recognise(self, frames: Tensor, starts: Tensor, state: Past) -> tuple[Units, Past, Past]:
        """Draw the units of ``[time, b, pixels]`` frames.

        Returns:
            The units, ``[time, b, units]``; the past of each step, ``[time, b, order, ...]``; that after the last.
        """
        network = self.recognition
        past_frames, frames_after = _pasts(frames, state.frames, starts)
        logits = network.from_frames(frames, past_frames)
        lower, past_lower, lower_after = self._draw(logits, network.lower_from_lowers, state.lower, starts)
        logits = network.from_lower(lower, past_lower)
        upper, past_upper, upper_after = self._draw(logits, network.upper_from_uppers, state.upper, starts)
        past = Past(past_frames, past_lower, past_upper)
        return Units(lower, upper), past, Past(frames_after, lower_after, upper_after)

    def _draw(
        self, logits: Tensor, from_own_past: nn.Linear, before: Tensor, starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the units of a layer step by step; ``logits`` lacks what their own past adds."""
        units, pasts = [], []
        for rest, start in zip(logits, starts, strict=True):
            before = before.masked_fill(start.view(-1, 1, 1), 0)
            mean = torch.sigmoid(rest + from_own_past(before.flatten(1)))
            now = torch.bernoulli(mean) if self.training else mean
            units.append(now)
            pasts.append(before)
            before = _push(now, before)
        return torch.stack(units), torch.stack(pasts), before

    def _statistics(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Return the running mean and variance of the signal with ``signal`` taken in; kept while training only."""
        mean, variance = signal.mean(), signal.var(correction=0)
        seen = (self.signal_mean != 0) | (self.signal_variance != 0)
        momentum = self.config.signal_momentum
        mean = torch.where(seen, torch.lerp(mean, self.signal_mean, momentum), mean)
        variance = torch.where(seen, torch.lerp(variance, self.signal_variance, momentum), variance)
        if self.training:
            self.signal_mean.copy_(mean)
            self.signal_variance.copy_(variance)
        return mean, variance

    def _as_frames(self, pixels: Tensor) -> Tensor:
        config = self.config
        return pixels.view(*pixels.shape[:-1], config.channels, config.height, config.width)


def learning_signal(bound: Tensor, starts: Tensor, signal: Literal["step", "future"]) -> Tensor:
    """Return the reward of the recognition network at each step, ``[time, b]``.

    Args:
        bound: what each step adds to the bound, ``[time, b]``.
        starts: ``[time, b]`` bool, true where a sequence starts.
        signal: "step", its own share of the bound, as published: what its units do to the steps to come is left out.
            "future", the shares of all steps of its sequence from it to the end of the window: the gradient is then
            without bias, but for the end of the window, and more noisy.
    """
    if signal == "step":
        return bound
    total, sums = torch.zeros_like(bound[0]), []
    for share, start in zip(bound.flip(0), starts.flip(0), strict=True):
        total = total + share
        sums.append(total)
        total = total.masked_fill(start, 0)
    return torch.stack(sums).flip(0)


def surrogate(terms: Terms, signal: Tensor) -> Tensor:
    """Return ``[time, b]`` numbers with the value of the bound and the gradient of NVIL.

    That is the gradient of log p for the generative weights, and ``signal`` times that of log q for the recognition's.
    Averaged over draws of the units, with the signal "future", it is the gradient of the bound.

    Args:
        terms: of sampled units.
        signal: ``[time, b]``, the learning signal, centred and scaled.
    """
    score = signal.detach() * terms.recognition
    return terms.generative + score - (score + terms.recognition).detach()


def _log_probability(values: Tensor, logits: Tensor) -> Tensor:
    """Return the Bernoulli log-likelihood of ``[..., n]`` values in 0..1, summed over the last dimension."""
    return (values * logits - F.softplus(logits)).sum(-1)


def _push(now: Tensor, before: Tensor) -> Tensor:
    """Return the past ``[b, order, n]`` after one more step ``[b, n]``."""
    return torch.cat((now[:, None], before[:, :-1]), 1)


def _pasts(values: Tensor, before: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the past of each step of ``[time, b, n]`` values, ``[time, b, order, n]``, and that after the last."""
    pasts = []
    for now, start in zip(values, starts, strict=True):
        before = before.masked_fill(start.view(-1, 1, 1), 0)
        pasts.append(before)
        before = _push(now, before)
    return torch.stack(pasts), before
