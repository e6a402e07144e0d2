import pytest
import torch
from playing import play
from pydantic import ValidationError

from torchrsm.baselines.sequence_model import Window
from torchrsm.baselines.unet import FramesUNet, FramesUNetConfig
from torchrsm.learning.muon import Muon
from torchrsm.learning.windows import SequenceLearner
from torchrsm.predictor import rollout
from torchrsm.rectifiers.contract import InputSizes
from torchrsm.rectifiers.unet import UNetConfig, UNetGenerator
from torchrsm.runs.presets import preset
from torchrsm.streams import BouncingBalls

BATCH, TIME, CONTEXT = 3, 9, 4
SHAPE = (BATCH, 2, 7, 10)
SMALL = {"channels": 2, "height": 7, "width": 10, "features": 4, "inner_features": 6, "blocks": 2}
VARIANTS = [{}, {"context": 2}, {"pad": 0}]


def model(**settings):
    """A small network none of whose weights is 0."""
    torch.manual_seed(0)
    predictor = FramesUNet(FramesUNetConfig(**{**SMALL, **settings})).eval()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.normal_(0, 0.3)
    return predictor


def window(time=TIME, starts=(), seed=1):
    """Random frames; every stream starts with the first, and where ``starts`` says, ``(time, stream)``."""
    generator = torch.Generator().manual_seed(seed)
    frames, marks = torch.rand(time, *SHAPE, generator=generator), torch.zeros(time, BATCH, dtype=torch.bool)
    marks[0] = True
    for place in starts:
        marks[place] = True
    return Window(frames, marks)


# --- The predictor ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", VARIANTS)
def test_shapes_and_range(settings):
    predictor = model(**settings)
    fresh = predictor.initial_state(SHAPE)
    predicted, state = play(predictor, *window()[:2])
    assert predicted.shape == (TIME, *SHAPE)
    assert 0 <= predicted.min() < predicted.max() <= 1
    assert [(part.shape, part.dtype) for part in state] == [(part.shape, part.dtype) for part in fresh]


@torch.no_grad()
def test_works_on_whole_frames_and_dreams():
    predictor = FramesUNet().eval()
    dream, state = rollout(predictor, predictor.initial_state((2, 1, 30, 30)), 12)
    assert dream.shape == (2, 12, 1, 30, 30)
    assert dream.isfinite().all()
    assert state.history.shape == (2, CONTEXT, 1, 34, 34)


def test_it_is_the_rectifier_s_network_without_a_stack():
    """Its prediction is the last frame, its input the frames before that, and there are no winners."""
    predictor, seen = model(), window()
    network = UNetConfig(features=4, width=6, blocks=2, sees_cells=False)
    generator = UNetGenerator(network, InputSizes(2, (), 3 * 2, 2, 0.5))
    generator.load_state_dict(predictor.generator.state_dict())
    before = torch.full((BATCH, 3, 2, 11, 14), 0.5)
    before[..., 2:9, 2:12] = seen.frames[-4:-1].flip(0).transpose(0, 1)
    expected = generator(seen.frames[-1], (), before.flatten(1, 2))
    assert torch.equal(predictor.predict(play(predictor, *seen[:2])[1]).frame, expected)


def test_it_has_the_weights_of_the_rectifier_of_balls_but_for_what_it_does_not_see():
    def count(parameters):
        return sum(parameter.numel() for parameter in parameters)

    channels = 16 * 9  # kernels for one more channel of input
    rectifier = UNetGenerator(UNetConfig(sees_cells=False), InputSizes(1, (), 4, 2, 0.5))
    assert count(FramesUNet().parameters()) == count(rectifier.parameters()) - channels


@torch.no_grad()
def test_what_is_older_than_the_context_is_forgotten():
    predictor, seen = model(), window()
    other = seen.frames.clone()
    other[:-CONTEXT] = window(seed=2).frames[:-CONTEXT]
    oldest = seen.frames.clone()
    oldest[-CONTEXT] = window(seed=2).frames[-CONTEXT]
    first, second, third = (
        predictor.predict(play(predictor, frames, seen.starts)[1]).frame for frames in (seen.frames, other, oldest)
    )
    assert torch.equal(first, second)
    assert (first - third).abs().max() > 1e-4


@torch.no_grad()
def test_no_frame_is_not_a_black_frame():
    predictor = model()
    fresh = predictor.initial_state(SHAPE)
    black = predictor.observe(torch.zeros(SHAPE), predictor.predict(fresh), fresh)
    again = predictor.observe(torch.zeros(SHAPE), predictor.predict(black), black)
    assert (predictor.predict(again).frame - predictor.predict(black).frame).abs().max() > 1e-4


@torch.no_grad()
def test_an_element_of_a_batch_is_alone():
    predictor, seen = model(), window()
    other = seen.frames.clone()
    other[:, 1] = 1 - other[:, 1]
    first, second = (play(predictor, frames, seen.starts)[0] for frames in (seen.frames, other))
    torch.testing.assert_close(first[:, [0, 2]], second[:, [0, 2]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 30, 30), (1, 3, 9, 5)])
@torch.no_grad()
def test_before_it_has_learned_it_repeats_the_last_frame(shape):
    _, channels, height, width = shape
    predictor = FramesUNet(FramesUNetConfig(channels=channels, height=height, width=width)).eval()
    frame = torch.rand(shape)
    fresh = predictor.initial_state(shape)
    state = predictor.observe(frame, predictor.predict(fresh), fresh)
    expected = frame.clamp(1e-3, 1 - 1e-3)
    torch.testing.assert_close(predictor.predict(state).frame, expected, rtol=0, atol=1e-6)


# --- Learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("cut", [1, 3, 6])
@torch.no_grad()
def test_learning_predicts_as_step_by_step(settings, cut):
    predictor, seen = model(**settings), window(starts=[(3, 0), (4, 1), (8, 1)])
    expected, after = play(predictor, *seen[:2])
    state, frames = predictor.initial_state(SHAPE), []
    for part in (slice(0, cut), slice(cut, TIME)):
        lesson = predictor.learn(Window(seen.frames[part], seen.starts[part]), state)
        assert torch.equal(lesson.scored, ~seen.starts[part])
        frames.append(lesson.frames)
        state = lesson.state
    torch.testing.assert_close(torch.cat(frames), expected, rtol=0, atol=1e-6)
    assert torch.equal(state.history, after.history)


@torch.no_grad()
def test_loss_is_the_mean_squared_error():
    predictor, seen = model(), window(starts=[(3, 0)])
    predicted, _ = play(predictor, *seen[:2])
    expected = (predicted - seen.frames).square().mean((2, 3, 4))[~seen.starts].mean()
    loss = predictor.learn(seen, predictor.initial_state(SHAPE)).losses[0]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("settings", VARIANTS)
def test_gradient_reaches_every_weight_and_no_state(settings):
    predictor = model(**settings).train()
    lesson = predictor.learn(window(), predictor.initial_state(SHAPE))
    lesson.losses[0].backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert not any(part.requires_grad for part in (*lesson.state, lesson.frames))


def test_it_learns_as_the_rectifier_of_balls_does():
    run, rectifying = preset("unet"), preset("balls-window").rectifying
    assert run.model.context == preset("balls-window").model.layers[0].input_frames
    assert run.training.batch_size * run.learning.window == preset("balls-window").training.batch_size
    assert run.learning.learning_rates == (rectifying.learning_rate,)
    assert run.learning.matrix_learning_rate == rectifying.matrix_learning_rate
    assert run.learning.schedule == rectifying.schedule
    learner = run.make_learner((2, 1, 30, 30), torch.device("cpu"), True)
    adam, muon = learner.optimisers
    assert isinstance(muon, Muon)
    assert isinstance(adam, torch.optim.Adam)
    by_muon = {id(weight) for group in muon.param_groups for weight in group["params"]}
    kernels = {id(weight) for weight in learner.model.parameters() if weight.dim() == 4 and weight.shape[-1] > 1}
    assert by_muon == kernels
    assert {id(weight) for group in adam.param_groups for weight in group["params"]} | kernels == {
        id(weight) for weight in learner.model.parameters()
    }


def test_learns_the_motion_of_a_ball():
    size = {"channels": 1, "height": 12, "width": 12}
    torch.manual_seed(0)
    predictor = FramesUNet(FramesUNetConfig(**size, features=8, inner_features=16, blocks=2))
    learner = SequenceLearner(predictor, preset("unet").learning.replace(window=6), (4, 1, 12, 12))
    stream = BouncingBalls(4, balls=1, resolution=12, sequence_length=20, seed=5)
    batches = [next(stream) for _ in range(60)]
    for update in range(200):
        start = 6 * (update % 10)
        learner.teach(batches[start : start + 6], update / 200)
    still = sum((a.frames - b.frames).square().sum() for a, b in zip(batches, batches[1:], strict=False)) / (4 * 59)
    scored, error, *_ = learner.teach(batches[:6], 1.0).sums.tolist()
    assert error / scored < 0.3 * float(still)


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 1}, "context\n.*greater than 1"),
        ({"pad": -1}, "pad\n.*greater than or equal to 0"),
        ({"features": 5}, "features\n.*multiple of 2"),
        ({"inner_features": 0}, "inner_features\n.*greater than 0"),
        ({"blocks": 0}, "blocks\n.*greater than 0"),
        ({"sees_cells": True}, "sees_cells\n.*not permitted"),
    ],
)
def test_refuses_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        FramesUNetConfig(**settings)


def test_refuses_frames_of_another_shape():
    with pytest.raises(ValueError, match="reads frames of 1 x 30 x 30; got 1 x 28 x 28"):
        FramesUNet().initial_state((2, 1, 28, 28))
