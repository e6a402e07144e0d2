"""Draws: they repeat for a seed and differ between seeds, and a rectifier that takes no noise refuses them."""

import pytest
import torch
from device_under_test import here
from drawing import DRAWS, small_model

from torchrsm import Evaluator
from torchrsm.learning.ranks import Ranks
from torchrsm.learning.rectifying import RectifierLearning, RectifyingConfig
from torchrsm.model import VideoPredictor
from torchrsm.predictor import rollout
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rectifiers.unet import UNetConfig
from torchrsm.rsm import functional as F
from torchrsm.runs.presets import preset
from torchrsm.sampling import Sampled, SampledWinners

RECTIFIERS = {
    "unet": UNetConfig(features=4, width=6, blocks=1, sees_frames=False, noise_channels=3, noise_side=2),
    "local": DRAWS,
}
SHAPE = (2, 1, 10, 7)


def build(rectifier):
    return here(small_model(rectifier))


@pytest.fixture(params=RECTIFIERS)
def model(request):
    return build(RECTIFIERS[request.param])


def seen(model, steps=4):
    frames = here(torch.rand(steps, *SHAPE, generator=torch.Generator().manual_seed(0)))
    state = model.initial_state(SHAPE)
    for frame in frames:
        state = model.observe(frame, model.predict(state), state)
    return state


def generator(model, seed):
    return torch.Generator(next(model.parameters()).device).manual_seed(seed)


def test_draws_repeat_for_a_seed_and_differ_between_seeds(model):
    state = seen(model)
    one, again, other = (model.predict(state, 3, generator(model, seed)).samples for seed in (1, 1, 2))
    assert one.shape == (3, *SHAPE)
    assert torch.equal(one, again)
    for a, b in ((one, other), (one[0], one[1]), (one[:, 0], one[:, 1])):
        assert (a - b).abs().max() > 1e-3
    assert one.min() >= 0
    assert one.max() <= 1


def test_the_frame_itself_has_no_chance(model):
    state = seen(model)
    plain, drawn = model.predict(state), model.predict(state, 2)
    assert torch.equal(plain.frame, drawn.frame)
    assert plain.samples is None
    noise = here(torch.zeros(2, *model.rectifier.noise_shape(*SHAPE[2:])))
    torch.testing.assert_close(model.rectify(plain, noise), plain.frame, rtol=0, atol=1e-6)


def test_noise_is_as_coarse_as_it_is_said_to_be(model):
    # With a border of 1 the frame is 12 x 9, at half the resolution 6 x 5, two rows and columns to a value 3 x 3.
    assert model.rectifier.noise_shape(10, 7) == (3, 3, 3)


def test_dreams_repeat_for_a_seed_and_differ_between_seeds(model):
    state = seen(model)
    one, again, other = (model.rollout(state, 5, sample=True, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 1e-3
    plain = model.rollout(state, 5)[0]
    assert torch.equal(plain, model.rollout(state, 5)[0])
    assert (one[:, 0] - one[:, 1]).abs().max() > 1e-3


def test_a_dream_by_draws_is_fed_back():
    """Each step predicts from what was drawn before it."""
    model = build(RECTIFIERS["unet"])
    drawn, after = model.rollout(seen(model), 4, sample=True, seed=3)
    state, chance = seen(model), generator(model, 3)
    for step in range(4):
        prediction = model.predict(state)
        frame = model.draw(prediction, chance)
        assert torch.equal(frame, drawn[:, step])
        state = model.observe(frame, prediction, state)
    assert torch.equal(model.last_frame(state), model.last_frame(after))


def test_a_sampled_model_is_scored_as_any_other(model):
    frames = torch.rand(3, 6, 1, 10, 7, generator=torch.Generator().manual_seed(0))
    scores = [
        Evaluator(frames, similarity=False).evaluate(Sampled(model, seed)).frame_squared_error.all_predictable.mean
        for seed in (0, 0, 1)
    ]
    assert scores[0] == scores[1] != scores[2]


def test_what_takes_no_noise_cannot_draw():
    model = build(CompactConfig(width=4, blocks=1))
    assert not model.draws_futures
    with pytest.raises(ValueError, match="rectifier must take noise .* got one that takes none"):
        model.rollout(seen(model), 2, sample=True)
    with pytest.raises(ValueError, match="rectifier must take noise"):
        model.predict(seen(model), samples=1)
    bare = here(VideoPredictor(model.config.replace(rectifier=None)).eval())
    with pytest.raises(ValueError, match="rectifier must take noise"):
        bare.predict(bare.initial_state(SHAPE), samples=1)


def test_what_is_out_of_range_is_refused(model):
    with pytest.raises(ValueError, match=r"samples must be >= 0; got -1"):
        model.predict(seen(model), samples=-1)
    with pytest.raises(ValueError, match=r"seed must be in 0\.\.2\^63 - 1; got -1"):
        Sampled(model, -1)


# --- Draws by winners -------------------------------------------------------------------------------------------------


def test_cells_win_in_proportion_to_how_likely_they_are():
    """Of one winner the shares are those of the softmax; the second is drawn from the cells that are left."""
    r = here(torch.tensor([0.0, 0.5, 1.0, -1.0])).repeat(1, 200, 200, 1)
    chance = F.Chance(0.7, torch.Generator(r.device).manual_seed(0))
    winners = F.select_winners(F.rank_by_chance(r, chance), 4, 2).cpu().flatten(0, 2).long()
    likely = torch.softmax(r[0, 0, 0].double().cpu() / 0.7, 0)
    shares = torch.bincount(winners[:, 0], minlength=4) / len(winners)
    torch.testing.assert_close(shares.double(), likely, rtol=0, atol=0.012)
    expected = sum(likely[first] * likely * (torch.arange(4) != first) / (1 - likely[first]) for first in range(4))
    shares = torch.bincount(winners[:, 1], minlength=4) / len(winners)
    torch.testing.assert_close(shares.double(), expected, rtol=0, atol=0.012)


def test_without_heat_the_winners_are_those_that_are_chosen(model):
    state = seen(model)
    cold, hot = (model.predict_raw(state, F.Chance(t, generator(model, 0))) for t in (1e-6, 3.0))
    chosen = model.predict_raw(state)
    for drawn, expected in zip(cold.layers, chosen.layers, strict=True):
        assert torch.equal(drawn.cells.index, expected.cells.index)
        torch.testing.assert_close(drawn.cells.value, expected.cells.value, rtol=1e-5, atol=1e-6)
    assert not torch.equal(hot.layers[0].cells.index, chosen.layers[0].cells.index)


def test_dreams_by_winners_repeat_for_a_seed_and_need_no_noise():
    model = here(small_model(CompactConfig(width=4, blocks=1)))
    state = seen(model)
    one, again, other = (model.rollout(state, 5, sample=True, seed=seed, temperature=1.0)[0] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 1e-3
    drawn = SampledWinners(model, 1.0, 1)
    assert torch.equal(rollout(drawn, state, 5)[0], one)
    prediction = SampledWinners(model, 1.0).predict(state, 3, generator(model, 4))
    assert torch.equal(prediction.frame, model.predict(state).frame)
    assert prediction.samples.shape == (3, *SHAPE)
    assert (prediction.samples[0] - prediction.samples[1]).abs().max() > 1e-3


def test_a_temperature_needs_a_draw_and_is_above_0(model):
    state = model.initial_state(SHAPE)
    with pytest.raises(ValueError, match="temperature is that of draws and must be None without sample; got 1"):
        model.rollout(state, 2, temperature=1.0)
    with pytest.raises(ValueError, match=r"temperature must be > 0; got 0\.0"):
        model.rollout(state, 2, sample=True, temperature=0.0)


# --- Learning to draw -------------------------------------------------------------------------------------------------


def test_draws_learn_both_of_two_futures():
    """What comes is black or white, each half the time: the squared error learns grey, the energy score both."""
    torch.manual_seed(0)
    model = build(UNetConfig(features=4, width=8, blocks=1, sees_frames=False, noise_channels=4, noise_side=8))
    config = RectifyingConfig(loss="energy_score", energy_window=6, adversarial_weight=0.0, learning_rate=1e-2)
    learning = RectifierLearning(model, config, (16, 1, 8, 8), Ranks())
    shape = (16, 1, 8, 8)
    prediction = model.predict_raw(model.initial_state(shape))
    every = here(torch.ones(16, dtype=torch.bool))
    for _ in range(300):
        frame = here((torch.rand(16, 1, 1, 1) < 0.5).float()).expand(shape)
        learning.find_gradients(prediction, frame, every, frame, here(torch.zeros(16, dtype=torch.int64)))
        learning.step()
    drawn = model.predict(model.initial_state(shape), samples=8).samples.flatten(0, 1).mean((1, 2, 3))
    assert ((drawn < 0.25) | (drawn > 0.75)).float().mean() > 0.7
    assert 0.25 < (drawn > 0.5).float().mean() < 0.75
    assert learning.loss_names == ("energy score",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.rectifier.noise_channels": 8}, "rectifying.loss must be energy_score .* got squared_error and 8"),
        ({"rectifying.loss": "energy_score"}, "rectifying.loss must be energy_score .* got energy_score and 0"),
        (
            {"model.rectifier.noise_channels": 3},
            "symmetry 'square' needs noise_channels of 8 or a multiple of it; got 3",
        ),
        ({"rectifying.adversarial_weight": 0.1, "rectifying.loss": "energy_score"}, "adversarial_weight must be 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        preset("balls").replace(**changes)
