import math

import pytest
import torch
from pydantic import ValidationError

from torchrsm.layer import LayerConfig
from torchrsm.learning import LearningConfig, LocalLearning
from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.predictor import restart
from torchrsm.streams import BouncingBalls


def build(layers=2, **settings):
    torch.manual_seed(0)
    layer = LayerConfig(**{"groups": 8, "active_groups": 2, "output_bias": "channel", **settings})
    return VideoPredictor(ModelConfig(layers=(layer,) * layers))


def predicted(model, steps=4):
    """A prediction after some frames, and its losses."""
    frames = torch.rand(steps, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    state = model.initial_state((2, 1, 8, 8))
    for frame in frames:
        prediction = model.predict(state)
        state = model.observe(frame, prediction, state)
    return prediction, model.losses(prediction, frames[0])


# --- Schedule ---------------------------------------------------------------------------------------------------------


def test_a_constant_rate_stays():
    assert {LearningConfig().rate_factor(p) for p in (0.0, 0.3, 1.0)} == {1.0}


def test_cosine_warms_up_and_comes_down():
    config = LearningConfig(schedule="cosine", warmup_share=0.2, final_share=0.1)
    assert 0 < config.rate_factor(0.0) <= 1e-3
    assert config.rate_factor(0.05) == pytest.approx(0.25)
    assert config.rate_factor(0.2) == pytest.approx(1)
    assert config.rate_factor(0.6) == pytest.approx(0.55)  # half way down to 0.1
    assert config.rate_factor(0.4) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert config.rate_factor(1.0) == pytest.approx(0.1)
    assert config.rate_factor(1.5) == pytest.approx(0.1)  # a run by the clock may end a little late
    factors = [config.rate_factor(p / 100) for p in range(101)]
    assert factors[:21] == sorted(factors[:21])
    assert factors[20:] == sorted(factors[20:], reverse=True)


def test_cosine_without_warm_up_begins_at_the_full_rate():
    assert LearningConfig(schedule="cosine", warmup_share=0.0).rate_factor(0.0) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rates": ()}, "learning_rates\n.*at least 1"),
        ({"schedule": "linear"}, "schedule\n.*'constant' or 'cosine'"),
        ({"warmup_share": 1.0}, "warmup_share\n.*less than 1"),
        ({"final_share": 1.5}, "final_share\n.*less than or equal to 1"),
        ({"epsilon": 0.0}, "epsilon\n.*greater than 0"),
        ({"momentum": 0.9}, "momentum\n.*not permitted"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        LearningConfig(**settings)


# --- One step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rates", [(1e-3, 2e-3, 3e-3), (1e-3,) * 3])
def test_refuses_another_number_of_rates(rates):
    with pytest.raises(ValueError, match="learning_rates must have 1 or 2 entries, one a layer; got 3"):
        LocalLearning(build(2), LearningConfig(learning_rates=rates))


def test_one_rate_serves_all_layers():
    assert LocalLearning(build(3), LearningConfig(learning_rates=(1e-3,))).learning_rates == (1e-3,) * 3


def test_the_first_step_is_as_long_as_the_rate():
    """Adam's first step moves each weight that has a gradient by its layer's rate."""
    model = build()
    config = LearningConfig(learning_rates=(1e-3, 4e-3), schedule="cosine", warmup_share=0.5, epsilon=1e-30)
    learning = LocalLearning(model, config)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    prediction, losses = predicted(model)
    learning.step(losses, prediction, progress=0.25)
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).abs()
        rate = 0.5 * (1e-3 if ".0." in name else 4e-3)
        assert moved.max().item() == pytest.approx(rate, rel=1e-3), name
        assert (moved[parameter.grad == 0] == 0).all()


def test_a_layer_learns_from_its_own_error_alone():
    """Silencing one layer's error leaves its weights as they are and changes nothing in the other's step."""
    moved = []
    for factors in ((1, 1), (1, 0), (0, 1)):
        model = build()
        learning = LocalLearning(model, LearningConfig(learning_rates=(1e-2,)))
        before = [p.detach().clone() for p in model.parameters()]
        prediction, losses = predicted(model)
        learning.step(tuple(f * loss for f, loss in zip(factors, losses, strict=True)), prediction, 0.0)
        changes = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
        first = len(list(model.stack.layers[0].parameters()))
        moved.append((changes[:first], changes[first:]))
    both, lower, upper = moved
    assert all(map(torch.equal, both[0], lower[0]))
    assert all(map(torch.equal, both[1], upper[1]))
    assert not any(change.any() for change in (*lower[1], *upper[0]))


def test_a_step_does_not_add_to_the_gradients_of_the_last():
    model = build(1).eval()
    model.stack.layers[0].bias.data.normal_()  # where all cells are equal, the smallest step changes the winners
    learning = LocalLearning(model, LearningConfig(learning_rates=(1e-12,)))
    gradients = []
    for _ in range(2):
        prediction, losses = predicted(model)
        learning.step(losses, prediction, 0.0)
        gradients.append(model.stack.layers[0].decoder.grad.clone())
    torch.testing.assert_close(*gradients)


def test_a_step_counts_the_wins():
    model = build(1, boost=1.0, inhibition_decay=None, boost_decay=0.0)
    prediction, losses = predicted(model)
    LocalLearning(model, LearningConfig()).step(losses, prediction, 0.0)
    duty = model.stack.layers[0].duty
    assert duty.sum().item() == pytest.approx(2)  # so many cells win at a location


def test_a_tiny_model_learns(engine):
    """Bouncing balls of 12 x 12: the error of the last steps is far below that of the first."""
    torch.manual_seed(0)
    layer = LayerConfig(
        groups=32,
        active_groups=4,
        normalisation="location",
        activation="sigmoid",
        output_bias="channel",
        recurrent_kernel_size=3,
        dropout=0.0,
    )
    model = VideoPredictor(ModelConfig(layers=(layer,), pad=1), engine)
    learning = LocalLearning(model, LearningConfig(learning_rates=(5e-3,)))
    stream = BouncingBalls(8, resolution=12)
    fresh = state = model.initial_state((8, 1, 12, 12))
    steps = 300
    errors = []
    for step, batch in zip(range(steps), stream, strict=False):
        state = restart(state, fresh, batch.starts)
        prediction = model.predict(state)
        losses = model.losses(prediction, batch.frames, ~batch.starts)
        learning.step(losses, prediction, step / steps)
        state = model.observe(batch.frames, prediction, state)
        errors.append((prediction.frame - batch.frames).square().mean().item())
    errors = torch.tensor(errors)
    assert errors[-30:].mean() < 0.5 * errors[5:35].mean()
