import json
from typing import Literal, NamedTuple

import pytest
import torch
from device_under_test import device
from lessons import teach
from torch import nn

from torchrsm import NonFiniteError, Trainer, preset
from torchrsm.baselines.sequence_model import (
    BaselineConfig,
    Lesson,
    Predicted,
    SequenceModel,
    Window,
    mean_squared_error,
)
from torchrsm.learning.contract import require_finite_losses
from torchrsm.learning.muon import Muon
from torchrsm.learning.windows import SequenceLearner, SequenceLearningConfig
from torchrsm.runs.trainer import CHECKPOINT_FILE, METRICS_FILE
from torchrsm.state import detach
from torchrsm.storage.tensors import load_tensors
from torchrsm.streams import ArrayStream, BouncingBalls

SHAPE = (2, 1, 4, 4)


class ToyConfig(BaselineConfig):
    kind: Literal["toy"] = "toy"
    height: int = 4
    width: int = 4


class ToyState(NamedTuple):
    frame: torch.Tensor
    trace: torch.Tensor


class Toy(SequenceModel):
    """Predicts a weighted sum of the last frame and of a trace of all frames since the start."""

    def __init__(self, config=None):
        super().__init__(config or ToyConfig())
        self.weight = nn.Parameter(torch.tensor([0.5, 0.25, 0.5]))

    def initial_state(self, shape):
        self.check_shape(shape)
        return ToyState(self.like.new_zeros(shape), self.like.new_zeros(shape))

    def predict(self, state):
        trace = self.weight[2] * state.trace + state.frame
        return Predicted(self.weight[0] * state.frame + self.weight[1] * trace, trace)

    def advance(self, frame, prediction, state):
        return ToyState(frame, prediction.memory)


class TwoLosses(Toy):
    """Each loss reaches both weights."""

    loss_names = ("first", "second")

    def __init__(self):
        super().__init__()
        del self.weight
        self.a, self.b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def weight_groups(self):
        return [self.a], [self.b]

    def learn(self, window, state):
        frames = window.frames.detach()
        losses = ((2 * self.a + 3 * self.b).sum(), (5 * self.a * self.b).sum())
        return Lesson(losses, frames, ~window.starts, state)


def learner(model=None, **config):
    return SequenceLearner(model or Toy(), SequenceLearningConfig(**config), SHAPE, device())


def stream(frames=None, length=20):
    torch.manual_seed(1)
    return ArrayStream(torch.rand(2, length, 4, 4) if frames is None else frames, 2)


def test_the_state_goes_on_from_window_to_window():
    """Without learning, windows of any length make the same predictions of the same frames."""
    errors = []
    for window in (1, 4, 12):
        taught = learner(window=window, optimiser="sgd", learning_rates=(1e-30,))
        source = stream()
        updates = [teach(taught, source, 0.5) for _ in range(12 // window)]
        assert sum(one.scored for one in updates) == 2 * 11  # the first frame of each stream is not scored
        errors.append(float(sum(one.scored * one.frame_squared_error for one in updates)))
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)
    assert errors[0] == pytest.approx(errors[2], rel=1e-6)


def by_hand(frames, window):
    """The gradient of the last window's error; the state that it begins with has no graph."""
    model, state, errors = Toy(), Toy().initial_state(SHAPE), []
    for t, frame in enumerate(frames):
        if t == len(frames) - window:
            state, errors = detach(state), []
        prediction = model.predict(state)
        errors.append((prediction.frame - frame).square().mean())
        state = model.observe(frame, prediction, state)
    (gradient,) = torch.autograd.grad(torch.stack(errors).mean(), [model.weight])
    return gradient


def test_the_gradient_goes_back_through_the_window_and_no_further():
    source = stream()
    frames = torch.stack([next(source).frames for _ in range(8)])
    gradients = {}
    for window in (2, 4):
        model, source = Toy(), stream()
        still = learner(model, window=window, optimiser="sgd", learning_rates=(1e-30,))
        for _ in range(8 // window - 1):
            teach(still, source, 0.5)
        taught = learner(model, window=window, optimiser="sgd", learning_rates=(1.0,), momentum=0.0)
        taught.state = still.state
        teach(taught, source, 0.5)
        gradients[window] = Toy().weight.detach() - model.weight.detach().cpu()
        assert torch.allclose(gradients[window], by_hand(frames, window), atol=1e-6)
    assert not torch.allclose(gradients[2], gradients[4], atol=1e-3)


def test_a_start_cuts_the_past():
    frames = torch.rand(8, 2, 1, 4, 4)
    starts = torch.zeros(8, 2, dtype=torch.bool)
    starts[0] = starts[5, 1] = True
    model = Toy()
    whole = model.learn(Window(frames, starts), model.initial_state(SHAPE))
    alone = model.learn(Window(frames[5:, 1:], starts[5:, 1:]), model.initial_state((1, *SHAPE[1:])))
    assert torch.equal(whole.frames[5:, 1:], alone.frames)
    assert torch.equal(whole.scored, ~starts)
    assert not any(part.requires_grad for part in (whole.frames, *whole.state))


def test_each_loss_changes_its_own_weights_from_the_same_state():
    model = TwoLosses()
    taught = learner(model, optimiser="sgd", learning_rates=(0.1, 0.01), momentum=0.0, window=2)
    update = teach(taught, stream(), 0.5)
    assert update.losses.tolist() == [5.0, 5.0]
    assert model.a.item() == pytest.approx(1 - 0.1 * 2)
    assert model.b.item() == pytest.approx(1 - 0.01 * 5)  # with a as it was
    assert model.a.grad is None
    assert model.b.grad is None
    assert taught.loss_names("sequence") == ["loss/first", "loss/second"]


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop", "sgd"])
def test_every_optimiser_learns(optimiser):
    rate = {"adam": 0.02, "rmsprop": 0.002, "sgd": 0.2}[optimiser]
    still = torch.rand(2, 1, 4, 4).expand(2, 40, 4, 4)
    taught = learner(optimiser=optimiser, learning_rates=(rate,), window=4)
    source = ArrayStream(still, 2)
    errors = [teach(taught, source, 0.5).frame_squared_error for _ in range(60)]
    assert errors[-1] < 0.2 * errors[0]


def test_the_schedule_and_the_limit_of_the_gradient_hold():
    moved = []
    for progress, norm in ((0.5, None), (1.0, None), (0.5, 1e-4)):
        model = Toy()
        settings = {"optimiser": "sgd", "learning_rates": (1.0,), "momentum": 0.0, "window": 4}
        taught = learner(model, schedule="cosine", warmup_share=0.0, final_share=0.1, gradient_norm=norm, **settings)
        before = model.weight.detach().clone()
        teach(taught, stream(), progress)
        moved.append((model.weight.detach() - before).norm().item())
    assert moved[1] == pytest.approx(moved[0] * 0.1 / 0.55, rel=1e-4)
    assert moved[2] == pytest.approx(0.55e-4, rel=1e-2)


class ToyConvolution(Toy):
    """Convolves the last frame."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def predict(self, state):
        return Predicted(self.convolution(state.frame) + self.weight, state.trace)


def test_kernels_have_a_rate_of_their_own_which_follows_the_schedule():
    model = ToyConvolution()
    rates = {"learning_rates": (0.1,), "matrix_learning_rate": 0.02}
    taught = learner(model, schedule="cosine", warmup_share=0.0, final_share=0.1, window=4, **rates)
    adam, muon = taught.optimisers
    assert isinstance(muon, Muon)
    before = model.convolution.weight.detach().clone()
    teach(taught, stream(), 1.0)
    followed = [group["lr"] for optimiser in (adam, muon) for group in optimiser.param_groups]
    assert followed == pytest.approx([0.01, 0.002])
    moved = (model.convolution.weight.detach() - before).norm().item()
    assert moved == pytest.approx(0.002, rel=0.5)  # one row: the step has the length of the rate, or nearly so
    assert model.convolution.weight.grad is None
    with pytest.raises(ValueError, match="^matrix_learning_rate must be None for a model without kernels .* 0.02$"):
        learner(Toy(), **rates)


def test_another_number_of_rates_than_losses_is_refused():
    with pytest.raises(ValueError, match="learning_rates must have 1 or 2 entries, one a loss; got 3"):
        learner(TwoLosses(), learning_rates=(0.1, 0.1, 0.1))


def test_a_window_that_is_too_short_is_refused_before_anything_is_written(tmp_path):
    run = preset("seq2seq-convlstm")
    run = run.replace(learning=run.learning.replace(window=8))
    with pytest.raises(ValueError, match="window must be >= 9 for this model; got 8"):
        Trainer(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_frames_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="this model reads frames of 1 x 4 x 4; got 1 x 5 x 4"):
        SequenceLearner(Toy(), SequenceLearningConfig(), (2, 1, 5, 4))


def test_a_loss_that_is_not_finite_is_told():
    model = Toy()
    with torch.no_grad():
        model.weight.fill_(1e30)
    taught = learner(model, window=4)
    losses = teach(taught, stream(), 0.5).losses
    with pytest.raises(NonFiniteError, match="loss/squared error is inf"):
        require_finite_losses(taught.loss_names("sequence"), losses)


def test_weights_that_are_not_finite_show_at_the_next_update():
    flicker = torch.cat([torch.ones(2, 2, 4, 4), torch.zeros(2, 2, 4, 4)], 1).repeat(1, 5, 1, 1)
    taught = learner(window=4, optimiser="sgd", learning_rates=(1e45,), momentum=0.0)
    source = ArrayStream(flicker, 2)
    teach(taught, source, 0.5)
    assert teach(taught, source, 0.5).losses.isnan().all()


def test_the_mean_is_over_scored_frames_only():
    frames, truth = torch.rand(3, 2, 1, 4, 4), torch.rand(3, 2, 1, 4, 4)
    scored = torch.tensor([[True, False], [False, False], [True, True]])
    error = (frames - truth).square()
    assert mean_squared_error(frames, truth, scored).item() == pytest.approx(error[scored].mean().item())
    assert mean_squared_error(frames, truth, torch.zeros(3, 2, dtype=torch.bool)) == 0


def test_detached_keeps_the_form():
    tensor = torch.ones(2, requires_grad=True) * 2
    state = detach(ToyState(tensor, (tensor, None)))
    assert isinstance(state, ToyState)
    assert state.trace[1] is None
    assert not state.frame.requires_grad
    assert not state.trace[0].requires_grad


# --- Runs -------------------------------------------------------------------------------------------------------------


def small_run(name="dtsbn", **training):
    run = preset(name)
    changes = {"steps": 6, "minutes": None, "batch_size": 3, "threads": 1, "log_steps": 2, **training}
    return run.replace(
        training=run.training.replace(**changes),
        stream=run.stream.replace(sequence_length=25),
        learning=run.learning.replace(window=10),
    )


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    Trainer(small_run(), tmp_path / "whole").run()

    def stop(record):
        if record.step == 4:
            raise RuntimeError("power cut")

    config = small_run(checkpoint_seconds=0.0)
    with pytest.raises(RuntimeError, match="power cut"):
        Trainer(config, tmp_path / "stopped").run(stop)
    resumed = Trainer(config, tmp_path / "stopped", resume=True)
    assert 0 < resumed.step < 6
    resumed.run()
    whole, stopped = (load_tensors(tmp_path / name / CHECKPOINT_FILE)[0] for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, stopped[name]), name
    lines = [(tmp_path / name / METRICS_FILE).read_text() for name in ("whole", "stopped")]
    assert lines[0] == lines[1]
    assert [json.loads(line)["step"] for line in lines[0].splitlines()] == [2, 4, 6]


def test_frames_a_second_count_all_frames_of_the_windows(tmp_path):
    records = []
    trainer = Trainer(small_run(), tmp_path / "run")
    assert isinstance(trainer.stream, BouncingBalls)
    trainer.run(records.append)
    frames = sum(one.frames_per_second * (one.seconds - before) for before, one in pairs(records))
    assert frames == pytest.approx(6 * 10 * 3, rel=0.2)
    assert {one.phase for one in records} == {"sequence"}


def pairs(records):
    return zip([0.0, *(one.seconds for one in records)], records, strict=False)
