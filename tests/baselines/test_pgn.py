import math

import pytest
import torch
from lessons import teach
from pydantic import ValidationError

from torchrsm.baselines.lstm import Memory
from torchrsm.baselines.pgn import PGN, Encoder, PGNConfig, Recurrence
from torchrsm.baselines.sequence_model import Window
from torchrsm.learning.windows import SequenceLearner, SequenceLearningConfig
from torchrsm.predictor import rollout
from torchrsm.streams import ArrayStream, BouncingBalls

SHAPE = (3, 1, 10, 12)


def model(**settings):
    torch.manual_seed(0)
    small = {"height": 10, "width": 12, "filters": (4, 6), "hidden_units": 20}
    if settings.get("adversarial_weight"):
        small["discriminator_units"] = 8
    return PGN(PGNConfig(**{**small, **settings})).eval()


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


@pytest.mark.parametrize("settings", [{}, {"filters": (4,), "kernel_size": 5}, {"adversarial_weight": 0.1}])
def test_frames_have_their_shape_and_are_in_range(settings):
    predictor = model(**settings)
    dream, _ = rollout(predictor, step_by_step(predictor, window().frames)[1], 20)
    assert dream.shape == (3, 20, 1, 10, 12)
    assert dream.isfinite().all()
    assert 0 <= dream.min() <= dream.max() <= 1


def test_the_future_changes_nothing():
    frames = window().frames
    before, _ = step_by_step(model(), frames)
    frames[4:] = 1 - frames[4:]
    after, _ = step_by_step(model(), frames)
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5], after[5])


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_learning_sees_what_predicting_sees(weight):
    predictor, (frames, starts, _) = model(adversarial_weight=weight), window()
    lesson = predictor.learn(Window(frames, starts), predictor.initial_state(SHAPE))
    whole, state = step_by_step(predictor, frames)
    assert torch.allclose(lesson.frames[:, [0, 2]], whole[:, [0, 2]], atol=1e-6)
    assert torch.allclose(lesson.state.memory.cell[[0, 2]], state.memory.cell[[0, 2]], atol=1e-6)
    assert torch.equal(lesson.scored, ~starts)
    fresh, _ = step_by_step(predictor, frames[4:, 1:2])
    assert torch.allclose(lesson.frames[4:, 1:2], fresh, atol=1e-6)


def test_windows_that_follow_each_other_are_one():
    predictor, (frames, starts, _) = model(), window()
    whole = predictor.learn(Window(frames, starts), predictor.initial_state(SHAPE))
    first = predictor.learn(Window(frames[:3], starts[:3]), predictor.initial_state(SHAPE))
    second = predictor.learn(Window(frames[3:], starts[3:]), first.state)
    assert torch.allclose(torch.cat((first.frames, second.frames)), whole.frames, atol=1e-6)
    assert not any(part.requires_grad for part in (second.state.frame, *second.state.memory))


def test_it_learns_what_follows_what():
    torch.manual_seed(0)
    predictor = PGN(PGNConfig(height=12, width=12, filters=(8, 8), hidden_units=64))
    pictures = (torch.rand(3, 12, 12) > 0.5).float()
    stream = ArrayStream(pictures.repeat(4, 10, 1, 1), 4, dephased=True)
    config = SequenceLearningConfig(learning_rates=(3e-3,), window=5, gradient_norm=1.0)
    learner = SequenceLearner(predictor, config, (4, 1, 12, 12))
    learner.begin("sequence", 1)
    errors = [teach(learner, stream, 0.5).frame_squared_error for _ in range(220)]
    mean_picture = (pictures - pictures.mean(0)).square().sum((1, 2)).mean().item()
    assert sum(errors[-10:]) / 10 < 0.4 * mean_picture


# --- The LSTM ---------------------------------------------------------------------------------------------------------


def test_the_recurrence_is_an_lstm():
    torch.manual_seed(2)
    recurrence, vectors = Recurrence(7, 5), torch.randn(6, 3, 7)
    reference = torch.nn.LSTM(7, 5)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(reference, f"{name}_l0").copy_(getattr(recurrence.cell, name))
    memory = Memory(torch.randn(3, 5), torch.randn(3, 5))
    outputs, after = recurrence.run(vectors, memory, torch.zeros(6, 3, dtype=torch.bool))
    expected, (hidden, cell) = reference(vectors, (memory.hidden[None], memory.cell[None]))
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close((after.hidden, after.cell), (hidden[0], cell[0]))


def test_a_start_empties_the_memory():
    recurrence, vectors = Recurrence(7, 5), torch.randn(4, 2, 7)
    starts = torch.zeros(4, 2, dtype=torch.bool)
    starts[2, 1] = True
    outputs, _ = recurrence.run(vectors, Memory(torch.randn(2, 5), torch.randn(2, 5)), starts)
    fresh, _ = recurrence.run(vectors[2:, 1:], recurrence.empty(1), starts[:2, :1])
    torch.testing.assert_close(outputs[2:, 1:], fresh)


@pytest.mark.parametrize(("height", "width"), [(30, 30), (32, 32), (5, 9)])
def test_frames_of_any_size_fit(height, width):
    config = PGNConfig(height=height, width=width, filters=(4, 6), hidden_units=8)
    assert Encoder(config)(torch.rand(2, 1, height, width)).shape == (2, Encoder(config).size)
    predictor = PGN(config)
    assert predictor.predict(predictor.initial_state((2, 1, height, width))).frame.shape == (2, 1, height, width)


# --- The discriminator ------------------------------------------------------------------------------------------------


def test_without_a_weight_there_is_no_discriminator():
    predictor = model()
    assert predictor.discriminator is None
    assert not any("discriminator" in name for name in predictor.state_dict())
    assert predictor.loss_names == ("prediction loss",)
    (group,) = predictor.weight_groups()
    assert {id(weight) for weight in group} == {id(weight) for weight in predictor.parameters()}


def test_the_two_groups_are_all_weights_and_share_none():
    predictor = model(adversarial_weight=0.1)
    generator, judges = ({id(weight) for weight in group} for group in predictor.weight_groups())
    assert not generator & judges
    assert generator | judges == {id(weight) for weight in predictor.parameters()}
    assert judges == {id(weight) for weight in predictor.discriminator.parameters()}


def test_a_verdict_by_chance_costs_log_2():
    predictor = model(adversarial_weight=1.0)
    with torch.no_grad():
        predictor.discriminator.logit.weight.zero_()
        predictor.discriminator.logit.bias.zero_()
    prediction, verdict = predictor.learn(window(), predictor.initial_state(SHAPE)).losses
    assert verdict.item() == pytest.approx(math.log(2))
    plain = model()
    plain.load_state_dict(predictor.state_dict(), strict=False)
    error = plain.learn(window(), plain.initial_state(SHAPE)).losses[0]
    assert (prediction - error).item() == pytest.approx(math.log(2), rel=1e-5)


def test_the_gradient_reaches_every_weight_of_its_group_and_the_discriminators_no_other():
    predictor = model(adversarial_weight=1.0)
    losses, groups = predictor.learn(window(), predictor.initial_state(SHAPE)).losses, predictor.weight_groups()
    for loss, group in zip(losses, groups, strict=True):
        for gradient in torch.autograd.grad(loss, group, retain_graph=True):
            assert gradient.any()
    none = torch.autograd.grad(losses[1], groups[0], allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in none)


def test_the_discriminator_learns_to_tell_noise_from_the_world():
    torch.manual_seed(0)
    predictor = PGN(PGNConfig(height=12, width=12, filters=(4,), hidden_units=8, adversarial_weight=1e-9))
    stream = BouncingBalls(8, resolution=12, balls=1, radius=2.0, sequence_length=20)
    config = SequenceLearningConfig(learning_rates=(1e-9, 3e-3), window=4)
    learner = SequenceLearner(predictor, config, (8, 1, 12, 12))
    learner.begin("sequence", 1)
    verdicts = [teach(learner, stream, 0.5).losses[1] for _ in range(40)]
    assert verdicts[0] == pytest.approx(math.log(2), abs=0.1)
    assert verdicts[-1] < 0.1


def test_the_discriminator_sees_no_frame_after_the_one_it_judges():
    predictor = model(adversarial_weight=1.0)
    frames, starts = window().frames, torch.zeros(7, 3, dtype=torch.bool)
    before = predictor.discriminator.context(frames, starts)
    frames[4:] = 1 - frames[4:]
    after = predictor.discriminator.context(frames, starts)
    assert torch.equal(before[:4], after[:4])
    assert not torch.equal(before[4:], after[4:])


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd; got 4"),
        ({"filters": ()}, "at least 1 item"),
        ({"filters": (4, 0)}, "greater than 0"),
        ({"hidden_units": 0}, "greater than 0"),
        ({"adversarial_weight": -1}, "greater than or equal to 0"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        model(**settings)


def test_frames_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="this model reads frames of 1 x 10 x 12; got 1 x 12 x 12"):
        model().initial_state((2, 1, 12, 12))
