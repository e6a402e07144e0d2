import itertools

import numpy as np
import pytest
import torch
from lessons import teach
from pydantic import ValidationError

from torchrsm.baselines.rtrbm import RTRBM, Machine, RTRBMConfig, contrastive_divergence
from torchrsm.baselines.sequence_model import Window
from torchrsm.baselines.srtrbm import SRTRBM, SRTRBMConfig
from torchrsm.learning.windows import SequenceLearner, SequenceLearningConfig
from torchrsm.predictor import rollout
from torchrsm.streams import BouncingBalls

SHAPE = (3, 1, 6, 6)
KINDS = ["rtrbm", "srtrbm"]


def model(kind="rtrbm", **settings):
    torch.manual_seed(0)
    settings = {"height": 6, "width": 6, "hidden_units": 12, "initial_deviation": 0.3, **settings}
    if kind == "rtrbm":
        return RTRBM(RTRBMConfig(**settings)).eval()
    return SRTRBM(SRTRBMConfig(**{"tile": 3, **settings})).eval()


def window(time=7, shape=SHAPE):
    torch.manual_seed(1)
    starts = torch.zeros(time, shape[0], dtype=torch.bool)
    starts[0] = starts[4, 1] = True
    return Window(torch.rand(time, *shape), starts)


def step_by_step(predictor, frames):
    state, predicted = predictor.initial_state(tuple(frames.shape[1:])), []
    with torch.no_grad():
        for frame in frames:
            prediction = predictor.predict(state)
            predicted.append(prediction.frame)
            state = predictor.observe(frame, prediction, state)
    return torch.stack(predicted), state


# --- The contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direct", [False, True])
def test_frames_have_their_shape_and_are_in_range(kind, direct):
    predictor = model(kind, direct=direct)
    dream, _ = rollout(predictor, step_by_step(predictor, window().frames)[1], 20)
    assert dream.shape == (3, 20, 1, 6, 6)
    assert dream.isfinite().all()
    assert 0 <= dream.min() <= dream.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_changes_nothing(kind):
    frames = window().frames
    before, _ = step_by_step(model(kind), frames)
    frames[4:] = 1 - frames[4:]
    after, _ = step_by_step(model(kind), frames)
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5], after[5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direct", [False, True])
def test_learning_sees_what_predicting_sees(kind, direct):
    predictor = model(kind, direct=direct)
    for end in (3, 7):  # the last step alone is predicted
        frames, starts = (part[:end] for part in window()[:2])
        lesson = predictor.learn(Window(frames, starts), predictor.initial_state(SHAPE))
        whole, state = step_by_step(predictor, frames)
        assert torch.allclose(lesson.frames[-1, [0, 2]], whole[-1, [0, 2]], atol=1e-6)
        assert torch.allclose(lesson.state.past[[0, 2]], state.past[[0, 2]], atol=1e-6)
        assert lesson.scored.sum() == 3
        assert lesson.scored[-1].all()
    fresh, _ = step_by_step(predictor, frames[4:, 1:2])
    assert torch.allclose(lesson.frames[-1, 1], fresh[-1, 0], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_that_follow_each_other_are_one(kind):
    predictor, (frames, starts, _) = model(kind), window()
    whole = predictor.learn(Window(frames, starts), predictor.initial_state(SHAPE))
    first = predictor.learn(Window(frames[:3], starts[:3]), predictor.initial_state(SHAPE))
    second = predictor.learn(Window(frames[3:], starts[3:]), first.state)
    assert torch.allclose(second.frames[-1], whole.frames[-1], atol=1e-6)
    assert not any(part.requires_grad for part in second.state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direct", [False, True])
def test_the_gradient_reaches_every_weight(kind, direct):
    predictor = model(kind, direct=direct)
    (loss,) = predictor.learn(window(), predictor.initial_state(SHAPE)).losses
    loss.backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(kind):
    torch.manual_seed(0)
    settings = {"height": 12, "width": 12, "hidden_units": 64}
    predictor = RTRBM(RTRBMConfig(**settings)) if kind == "rtrbm" else SRTRBM(SRTRBMConfig(tile=3, **settings))
    stream = BouncingBalls(8, resolution=12, balls=1, radius=2.0, sequence_length=20)
    config = SequenceLearningConfig(learning_rates=(1e-2,), window=8)
    learner = SequenceLearner(predictor, config, (8, 1, 12, 12))
    learner.begin("sequence", 1)
    errors = [teach(learner, stream, 0.5).frame_squared_error for _ in range(200)]
    assert sum(errors[-20:]) < 0.6 * sum(errors[:20])


# --- The machine of a step, against all of its configurations ---------------------------------------------------------


def some_machine(hidden=3, visible=4):
    torch.manual_seed(2)
    parts = (torch.randn(hidden, visible), torch.randn(hidden), torch.randn(visible))
    return Machine(*(part.double().requires_grad_() for part in parts))


def corners(count):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=count)), dtype=torch.float64)


def energies(machine):
    """``[visible configurations, hidden configurations]``, from the definition."""
    w, b, c = (part.detach().numpy() for part in machine)
    return np.array([[-(v @ c) - h @ w @ v - h @ b for h in corners(3).numpy()] for v in corners(4).numpy()])


def test_conditionals_are_those_of_the_energy():
    machine = some_machine()
    joint = np.exp(-energies(machine))
    h, v = corners(3).numpy(), corners(4).numpy()
    np.testing.assert_allclose(
        machine.hidden(corners(4)).detach().numpy(), joint @ h / joint.sum(1, keepdims=True), atol=1e-12
    )
    np.testing.assert_allclose(
        machine.visible(corners(3)).detach().numpy(), (joint.T @ v) / joint.sum(0)[:, None], atol=1e-12
    )


def test_the_free_energy_sums_the_hidden_units_out():
    machine = some_machine()
    expected = -np.log(np.exp(-energies(machine)).sum(1))
    np.testing.assert_allclose(machine.free_energy(corners(4)).detach().numpy(), expected, atol=1e-12)


def test_the_gradient_is_that_of_contrastive_divergence():
    machine = some_machine()
    torch.manual_seed(3)
    data, sample = torch.rand(5, 4).double(), torch.rand(5, 4).double()
    contrastive_divergence(machine, data, sample).backward()
    w, b, _ = (part.detach().numpy() for part in machine)

    def statistics(v):
        h = 1 / (1 + np.exp(-(v @ w.T + b)))
        return h.T @ v / len(v), h.mean(0), v.mean(0)

    expected = (
        negative - positive
        for positive, negative in zip(statistics(data.numpy()), statistics(sample.numpy()), strict=True)
    )
    for part, gradient in zip(machine, expected, strict=True):
        np.testing.assert_allclose(part.grad.numpy(), gradient, atol=1e-12)


def test_with_all_samples_the_gradient_is_that_of_the_likelihood():
    """With the model's own distribution for the sample, contrastive divergence is maximum likelihood."""
    machine = some_machine()
    data = corners(4)[[3, 5, 9]]
    probabilities = torch.softmax(-machine.free_energy(corners(4)), 0).detach()
    loss = machine.free_energy(data).mean() - (probabilities * machine.free_energy(corners(4))).sum()
    got = torch.autograd.grad(loss, list(machine))
    likelihood = -machine.free_energy(data).mean() - torch.logsumexp(-machine.free_energy(corners(4)), 0)
    expected = torch.autograd.grad(-likelihood, list(machine))
    torch.testing.assert_close(got, expected)


def test_samples_follow_the_machine():
    """Far from where it began a Gibbs chain is distributed as the machine says."""
    machine = Machine(*(part.detach().float() for part in some_machine()))
    torch.manual_seed(4)
    means = machine.sample(torch.zeros(20_000, 4), 30).mean(0)
    probabilities = torch.softmax(-machine.free_energy(corners(4).float()), 0)
    assert torch.allclose(means, probabilities @ corners(4).float(), atol=0.02)


def test_the_past_sets_the_biases_by_the_equations():
    predictor, frames = model(), window().frames
    w, u, b, b0, c = (
        part.detach().double().numpy()
        for part in (
            predictor.weights,
            predictor.recurrent,
            predictor.hidden_bias,
            predictor.first_bias,
            predictor.visible_bias,
        )
    )
    past = None
    v = frames.flatten(2).double().numpy()
    for t in range(3):
        bias = np.tile(b0, (3, 1)) if past is None else past @ u.T + b
        last = v[t - 1] if t else np.zeros_like(v[0])
        for _ in range(predictor.config.prediction_steps):
            last = sigmoid(sigmoid(last @ w.T + bias) @ w + c)
        predicted, _ = step_by_step(predictor, frames[: t + 1])
        np.testing.assert_allclose(predicted[t].flatten(1).numpy(), last, atol=1e-5)
        past = sigmoid(v[t] @ w.T + bias)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# --- Structure --------------------------------------------------------------------------------------------------------


def test_with_open_gates_it_is_the_plain_machine():
    plain, gated = model(), model("srtrbm", sparsity=0.0)
    gated.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        gated.visible_gates.fill_(50.0)
        gated.recurrent_gates.fill_(50.0)
    for a, b in zip(step_by_step(plain, window().frames), step_by_step(gated, window().frames), strict=True):
        torch.testing.assert_close(a, type(a)(*b) if isinstance(a, tuple) else b)


def test_a_closed_gate_separates_two_tiles():
    predictor = model("srtrbm")
    with torch.no_grad():
        predictor.visible_gates.fill_(-200.0)
        predictor.visible_gates[1, 2] = 50.0
    weights, _ = predictor.matrices()
    picture = weights.detach().view(4, 3, 6, 6)  # units of four tiles, pixels
    assert picture[1, :, 3:, :3].abs().min() > 0  # the tile at the lower left is the third
    picture[1, :, 3:, :3] = 0
    assert not picture.any()


def test_the_penalty_closes_gates():
    predictor = model("srtrbm", sparsity=5.0)
    before = torch.sigmoid(predictor.visible_gates).mean()
    learner = SequenceLearner(predictor, SequenceLearningConfig(learning_rates=(0.05,), window=4), (2, 1, 6, 6))
    stream = BouncingBalls(2, resolution=6, balls=1, radius=2.0)
    for _ in range(40):
        teach(learner, stream, 0.5)
    assert torch.sigmoid(predictor.visible_gates).mean() < 0.9 * before


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("rtrbm", {"hidden_units": 0}, "greater than 0"),
        ("rtrbm", {"gibbs_steps": 0}, "greater than 0"),
        ("rtrbm", {"colour": 1}, "Extra inputs"),
        ("srtrbm", {"tile": 4}, "tile must divide height 6 and width 6; got 4"),
        ("srtrbm", {"hidden_units": 10}, "hidden_units must be divisible by the 4 tiles; got 10"),
        ("srtrbm", {"sparsity": -1}, "greater than or equal to 0"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ValidationError, match=message):
        model(kind, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_another_shape_are_refused(kind):
    with pytest.raises(ValueError, match="this model reads frames of 1 x 6 x 6; got 1 x 6 x 7"):
        model(kind).initial_state((2, 1, 6, 7))
