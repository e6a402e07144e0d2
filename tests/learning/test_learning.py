import math

import numpy as np
import pytest
import torch
from device_under_test import here
from lessons import follow
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter

from torchrsm.learning.local import LearningConfig, LocalLearning
from torchrsm.learning.muon import Muon
from torchrsm.learning.ranks import Ranks
from torchrsm.learning.rectifying import RectifierLearning, RectifyingConfig, motion, motion_loss
from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.predictor import restart
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rectifiers.local import LocalConfig
from torchrsm.rectifiers.unet import UNetConfig
from torchrsm.rsm import kernels
from torchrsm.rsm.layer import LayerConfig
from torchrsm.streams import BouncingBalls


def build(layers=2, **settings):
    torch.manual_seed(0)
    layer = LayerConfig(**{"groups": 8, "active_groups": 2, "output_bias": "channel", **settings})
    return here(VideoPredictor(ModelConfig(layers=(layer,) * layers)))


def predicted(model, steps=4):
    """A prediction after some frames, and its losses."""
    frames = here(torch.rand(steps, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    state = model.initial_state((2, 1, 8, 8))
    for frame in frames:
        prediction = model.predict(state)
        state = model.observe(frame, prediction, state)
    return prediction, model.losses(prediction, frames[0])


# --- Schedule ---------------------------------------------------------------------------------------------------------


def test_a_constant_rate_stays():
    assert {LearningConfig().rate_factor(p) for p in (0.0, 0.3, 1.0)} == {1.0}


def test_what_is_not_said_is_as_published():
    said = LearningConfig()
    assert (said.learning_rates, said.schedule, said.betas, said.epsilon) == ((5e-4,), "constant", (0.9, 0.999), 1e-8)


def test_cosine_warms_up_and_comes_down():
    config = LearningConfig(schedule="cosine", warmup_share=0.2, final_share=0.1)
    assert config.rate_factor(0.0) == config.rate_factor(1e-4) == 1e-3  # the first step is not lost
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
    follow(learning, losses, prediction, progress=0.25)
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
        follow(learning, tuple(f * loss for f, loss in zip(factors, losses, strict=True)), prediction)
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
        follow(learning, losses, prediction)
        gradients.append(model.stack.layers[0].decoder.grad.clone())
    torch.testing.assert_close(*gradients)


def test_a_step_counts_the_wins():
    model = build(1, boost=1.0, inhibition_decay=None, boost_decay=0.0)
    prediction, losses = predicted(model)
    follow(LocalLearning(model, LearningConfig()), losses, prediction)
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
    model = here(VideoPredictor(ModelConfig(layers=(layer,), pad=1), engine))
    learning = LocalLearning(model, LearningConfig(learning_rates=(5e-3,)))
    stream = BouncingBalls(8, resolution=12)
    fresh = state = model.initial_state((8, 1, 12, 12))
    steps = 300
    errors = []
    for step, batch in zip(range(steps), map(here, stream), strict=False):
        state = restart(state, fresh, batch.starts)
        prediction = model.predict(state)
        losses = model.losses(prediction, batch.frames, ~batch.starts)
        follow(learning, losses, prediction, step / steps)
        state = model.observe(batch.frames, prediction, state)
        errors.append((prediction.frame - batch.frames).square().mean().item())
    errors = torch.tensor(errors)
    assert errors[-30:].mean() < 0.5 * errors[5:35].mean()


# --- The rectifier's learning -----------------------------------------------------------------------------------------

STREAMS = 4


def rectified_model(rectifier=None):
    torch.manual_seed(0)
    layers = (LayerConfig(groups=8, active_groups=2, output_bias="channel"),) * 2
    config = ModelConfig(layers=layers, pad=1, rectifier=rectifier or CompactConfig(width=8, blocks=2))
    return here(VideoPredictor(config).eval())


def begin(model=None, **settings):
    model = model or rectified_model()
    dreams = {"loop_share": 0.5} if settings.keys() & {"motion_weight", "loop_error"} else {}
    return RectifierLearning(model, RectifyingConfig(**dreams | settings), (STREAMS, 1, 8, 8), Ranks())


def some_prediction(model):
    """A prediction of the stack, and frames that a rectifier can find in it."""
    state = model.initial_state((STREAMS, 1, 8, 8))
    model.stack.layers[0].decoder.data.normal_()
    model.stack.layers[0].bias.data.normal_()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        with torch.no_grad():
            prediction = model.predict_raw(state)
        state = model.observe(here(torch.rand(STREAMS, 1, 8, 8, generator=generator)), prediction, state)
    raw = here(torch.rand(STREAMS, 1, 8, 8, generator=generator))
    return prediction._replace(frame=raw, raw=raw), (raw > 0.5).float()


def teach(learning, prediction, frame, progress=1.0, learn=None, last=None, alone=None):
    learning.set_progress(progress)
    rectified = learning.find_gradients(
        prediction,
        frame,
        here(torch.ones(STREAMS, dtype=torch.bool)) if learn is None else here(torch.tensor(learn)),
        torch.zeros_like(frame) if last is None else last,
        here(torch.zeros(STREAMS, dtype=torch.int64)) if alone is None else here(torch.tensor(alone)),
    )
    learning.step()
    return rectified


def copies(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def moved(module, before):
    return [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]


@pytest.mark.parametrize("matrix_learning_rate", [None, 2e-2])
def test_a_rectifier_learns(matrix_learning_rate):
    learning = begin(learning_rate=1e-2, matrix_learning_rate=matrix_learning_rate)
    prediction, frame = some_prediction(learning.model)
    errors = [teach(learning, prediction, frame).losses[0].item() for _ in range(60)]
    assert errors[0] == pytest.approx((prediction.raw - frame).square().mean().item(), rel=0.02)
    assert errors[-1] < 0.2 * errors[0]


def test_the_stack_hears_nothing_of_a_rectifier_s_losses():
    learning = begin(motion_weight=1.0)
    model = learning.model
    prediction, frame = some_prediction(model)
    before = copies(model.stack)
    for _ in range(3):
        teach(learning, prediction, frame, alone=[0, 0, 1, 1])
        assert all(parameter.grad is None for parameter in model.stack.parameters())
    assert moved(model.stack, before) == []
    assert len(moved(model.rectifier, {k: torch.zeros_like(v) for k, v in copies(model.rectifier).items()})) > 5


def moved_by_scipy(frame, last, blur):
    """Return the motion of one stream, ``[c, h, w]``."""
    changed = (frame - last).double().cpu().numpy()
    if blur:
        reach = int(np.ceil(3 * blur))
        changed = gaussian_filter(changed, (0, blur, blur), mode="constant", radius=(0, reach, reach))
    return np.sqrt((changed**2).sum())


def softplus(x):
    return np.logaddexp(0, x)


def test_a_step_s_losses_are_their_formulas():
    """Both frames are seen through the same noise, and the discriminator judges what was generated before the step."""
    motion_settings = {"motion_weight": 0.5, "motion_blur": 0.7}
    learning = begin(**motion_settings, noise_deviation=0.3, real_label=0.8, adversarial_weight=0.1)
    prediction, frame = some_prediction(learning.model)
    last, learn, alone = here(torch.rand(STREAMS, 1, 8, 8)), [True, True, True, False], [0, 0, 2, 0]
    settings = {"learn": learn, "alone": alone, "last": last}
    teach(learning, prediction, frame, **settings)  # so that the generator is none that changes nothing
    rectified = learning.model.rectify(prediction).detach()
    d = {name: value.double().cpu().numpy() for name, value in copies(learning.discriminator).items()}
    torch.manual_seed(7)
    got = teach(learning, prediction, frame, **settings)
    torch.manual_seed(7)
    follows = [0, 1]  # the dream is too far from what comes, 64 pixels of random values
    noise = 0.3 * torch.randn_like(frame)[follows].double().cpu().numpy()  # drawn for all streams, taught or not
    x, y, condition = (v[follows].double().cpu().numpy() for v in (rectified, frame, prediction.raw))

    def logits(images):
        seen = (images + noise).reshape(2, 64) @ d["frame.weight"].T + d["frame.bias"]
        given = condition.reshape(2, 64) @ d["condition.weight"].T + d["condition.bias"]
        both = np.concatenate([seen, given], 1)
        return (np.where(both > 0, both, 0.2 * both) @ d["unit.weight"].T + d["unit.bias"])[:, 0]

    real, generated = logits(y), logits(x)
    own, *world = (moved_by_scipy(now[n], last[n], 0.7) for now, n in ((rectified, 2), (frame, 0), (frame, 1)))
    expected = (
        ((x - y) ** 2).mean(),
        softplus(-generated).mean(),
        (0.8 * softplus(-real) + 0.2 * softplus(real)).mean() + softplus(generated).mean(),
        (own / np.mean(world) - 1) ** 2,
    )
    assert ((rectified[2] - frame[2]) ** 2).sum() > 2
    assert [loss.item() for loss in got.losses] == pytest.approx(expected, rel=1e-4)
    assert learning.loss_names == ("squared error", "adversarial loss", "discriminator's loss", "motion loss")
    assert torch.equal(got.frame, rectified)
    assert not got.frame.requires_grad
    assert not got.losses.requires_grad


def gradient(settings, **step):
    """The generator's gradient, where none of its weights is 0."""
    learning = begin(**settings)
    torch.manual_seed(1)  # whether a discriminator has drawn its weights or not
    prediction, frame = some_prediction(learning.model)
    with torch.no_grad():
        for weight in learning.model.rectifier.parameters():
            weight.normal_(0, 0.1)
    torch.manual_seed(3)
    teach(learning, prediction, frame, **step)
    return torch.cat([weight.grad.flatten() for weight in learning.model.rectifier.parameters()])


@pytest.mark.cpu_only
@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize(
    ("rectifier", "settings"),
    [
        (None, {"motion_weight": 0.5, "loop_error": 1e9, "adversarial_weight": 0.1}),
        (UNetConfig(features=4, width=8, blocks=1), {"matrix_learning_rate": 1e-2, "adversarial_weight": 0.0}),
        (LocalConfig(stages=2, width=8), {"gradient_norm": 0.1, "adversarial_weight": 0.0}),
        (LocalConfig(stages=2, width=8, noise_channels=2), {"loss": "energy_score", "adversarial_weight": 0.0}),
    ],
)
def test_threads_share_the_streams_out_and_learn_the_same(rectifier, settings, threads):
    """Losses, frames and gradients of threads that each take a part of the streams are those of one thread."""
    ends = []
    for count in (1, threads):
        torch.manual_seed(0)
        learning = begin(rectified_model(rectifier), **settings)
        prediction, frame = some_prediction(learning.model)
        seen = torch.rand(STREAMS, 1, 8, 8) > 0.1
        alone = here(torch.tensor([1, 0, 0, 2]))
        learn, last = here(torch.tensor([True, True, False, True])), torch.rand_like(frame)
        losses = []
        with kernels.threads_in_use(count):
            for _ in range(3):  # so that the copies of the rectifier must follow it
                learning.set_progress(0.5)
                made = learning.find_gradients(prediction, frame, learn, last, alone, here(seen))
                gradients = [weight.grad.clone() for weight in learning.weights]
                losses.append(made.losses)
                learning.step()
        ends.append((torch.stack(losses), made.frame, gradients))
    one, shared = ends
    assert one[0].min() > 0
    torch.testing.assert_close(shared[0], one[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shared[1], one[1], rtol=1e-4, atol=1e-5)
    longest = max(gradient.abs().max() for gradient in one[2])
    for own, other in zip(one[2], shared[2], strict=True):
        torch.testing.assert_close(other, own, rtol=1e-3, atol=1e-4 * longest.item())


def test_the_terms_are_weighed():
    """Of the same generator: lambda times the adversarial gradient is added to that of the squared error."""
    still = {"learning_rate": 1e-30, "adversarial_weight": 0.0}
    plain = gradient(still)
    judged = {**still, "discriminator_learning_rate": 1e-30}
    once, twice = (gradient({**judged, "adversarial_weight": w}) for w in (0.01, 0.02))
    assert (once - plain).abs().max() > 1e-6
    torch.testing.assert_close(twice - plain, 2 * (once - plain), rtol=1e-3, atol=1e-6)
    dream = {"alone": [0, 0, 9, 9], "last": here(torch.full((STREAMS, 1, 8, 8), 0.5))}
    plain, once, twice = (gradient({**still, "motion_weight": w}, **dream) for w in (0.0, 0.01, 0.02))
    assert (once - plain).abs().max() > 1e-6
    torch.testing.assert_close(twice - plain, 2 * (once - plain), rtol=1e-3, atol=1e-6)


def test_without_an_adversarial_term_there_is_no_discriminator():
    learning = begin(adversarial_weight=0.0)
    prediction, frame = some_prediction(learning.model)
    random = torch.get_rng_state()
    losses = teach(learning, prediction, frame).losses
    assert learning.discriminator is None
    assert [type(o) for o in learning.optimisers] == [torch.optim.Adam]
    assert learning.loss_names == ("squared error",)
    assert torch.equal(torch.get_rng_state(), random)  # no noise is drawn
    assert losses.shape == (1,)
    assert losses[0] > 0


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        ((0.0, 0.0), ["squared error"]),
        ((0.0, 0.1), ["squared error", "motion loss"]),
        ((0.1, 0.0), ["squared error", "adversarial loss", "discriminator's loss"]),
    ],
)
def test_only_terms_with_a_weight_are_named_and_recorded(weights, names):
    learning = begin(adversarial_weight=weights[0], motion_weight=weights[1])
    assert list(learning.loss_names) == names
    prediction, frame = some_prediction(learning.model)
    for alone in ([0, 0, 1, 1], [0, 0, 0, 0], [-1, -1, -1, -1]):
        assert len(teach(learning, prediction, frame, alone=alone).losses) == len(names)


def test_the_discriminator_learns_to_tell_the_frames_apart():
    learning = begin(learning_rate=1e-9, discriminator_learning_rate=0.05)
    prediction, frame = some_prediction(learning.model)
    losses = [teach(learning, prediction, frame).losses for _ in range(100)]
    assert losses[-1][2] < 0.7 * losses[0][2]
    assert losses[-1][1] > losses[0][1]  # which is bad for the generator


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_long_gradient_is_shortened(share):
    settings = {"learning_rate": 1e-30, "adversarial_weight": 0.0}
    free = gradient(settings)
    limit = share * free.norm().item()
    assert limit > 0
    torch.testing.assert_close(gradient({**settings, "gradient_norm": limit}), share * free, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(gradient({**settings, "gradient_norm": 1.1 / share * limit}), free)


def test_muon_has_the_kernels_and_adam_the_rest():
    learning = begin(matrix_learning_rate=1e-2)
    adam, muon, descent = learning.optimisers
    assert [type(o) for o in learning.optimisers] == [torch.optim.Adam, Muon, torch.optim.SGD]
    names = {id(weight): name for name, weight in learning.model.rectifier.named_parameters()}
    given = [sorted(names[id(w)] for group in o.param_groups for w in group["params"]) for o in (adam, muon)]
    blocks = [f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in (1, 3)]
    assert given[1] == [*blocks, "head.weight", "tail.weight"]
    assert sorted(given[0] + given[1]) == sorted(names.values())
    discriminator = {id(weight) for weight in learning.discriminator.parameters()}
    assert {id(weight) for weight in descent.param_groups[0]["params"]} == discriminator


def test_without_a_rate_for_matrices_adam_has_all():
    learning = begin()
    assert [type(o) for o in learning.optimisers] == [torch.optim.Adam, torch.optim.SGD]
    assert len(learning.optimisers[0].param_groups[0]["params"]) == len(list(learning.model.rectifier.parameters()))


def test_the_rates_follow_the_schedule():
    settings = {"schedule": "cosine", "warmup_share": 0.5, "final_share": 0.1}
    rates = {"learning_rate": 1e-3, "matrix_learning_rate": 2e-3, "discriminator_learning_rate": 3e-3}
    learning = begin(**settings, **rates)
    prediction, frame = some_prediction(learning.model)
    for progress, factor in ((0.25, 0.5), (0.5, 1.0), (0.75, 0.55), (1.0, 0.1)):
        teach(learning, prediction, frame, progress)
        adam, muon, descent = ({float(group["lr"]) for group in o.param_groups} for o in learning.optimisers)
        assert (*adam, *muon) == pytest.approx((factor * 1e-3, factor * 2e-3))
        assert descent == {3e-3}


def test_streams_that_begin_are_not_learned():
    """What comes to them changes nothing: no loss and no weight."""
    ends = []
    for value in (0.0, 1.0):
        learning = begin(learning_rate=1e-2, motion_weight=0.1)
        prediction, frame = some_prediction(learning.model)
        frame[1] = value
        torch.manual_seed(0)
        losses = teach(learning, prediction, frame, learn=[True, False, True, True]).losses
        ends.append((losses, copies(learning.model), copies(learning.discriminator)))
    assert all(map(torch.equal, ends[0][0], ends[1][0]))
    for one, other in zip(ends[0][1:], ends[1][1:], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_where_nothing_can_be_learned_nothing_changes():
    learning = begin(loop_error=1e-6, motion_weight=0.1)
    prediction, frame = some_prediction(learning.model)
    before, judge = copies(learning.model), copies(learning.discriminator)
    for settings in ({"learn": [False] * 4}, {"alone": [1] * 4}):  # all begin; all dream of something else
        result = teach(learning, prediction, frame, **settings)
        assert result.losses.tolist() == [0, 0, 0, 0]
        torch.testing.assert_close(result.frame, prediction.raw, rtol=0, atol=2e-3)
    assert moved(learning.model, before) == []
    assert moved(learning.discriminator, judge) == []


@pytest.mark.parametrize(("loop_error", "follows"), [(1e-6, [0, 1]), (100.0, [0, 1, 2, 3])])
def test_a_dream_far_from_what_comes_has_no_target(loop_error, follows):
    learning = begin(loop_error=loop_error)
    prediction, frame = some_prediction(learning.model)
    result = teach(learning, prediction, frame, alone=[0, 0, 1, 3])
    expected = (result.frame - frame)[follows].square().mean().item()
    assert result.losses[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("blur", [0.0, 0.4, 2.0])
def test_motion_is_that_of_scipy(blur):
    generator = torch.Generator().manual_seed(0)
    frames, last = (here(torch.rand(3, 2, 9, 7, generator=generator)) for _ in range(2))
    expected = [moved_by_scipy(now, before, blur) for now, before in zip(frames, last, strict=True)]
    assert motion(frames, last, blur).tolist() == pytest.approx(expected, rel=1e-5)
    assert motion(frames, frames, blur).tolist() == [0, 0, 0]


def test_motion_grows_with_the_distance_and_not_with_flicker():
    rows, columns = torch.meshgrid(torch.arange(30.0), torch.arange(30.0), indexing="ij")

    def ball(x, edge=0.5):
        distance = ((columns - x).square() + (rows - 15).square()).sqrt()
        return here(torch.sigmoid((3.5 - distance) / edge)[None, None])

    sharp, blurred = ([motion(ball(12 + way), ball(12), blur).item() for way in (1, 2, 3)] for blur in (0.0, 2.0))
    assert blurred[1:] == pytest.approx([2 * blurred[0], 3 * blurred[0]], rel=0.07)
    assert sharp[2] < 2.6 * sharp[0]
    # Edges that get sharper look like motion, less so where frames are blurred.
    assert motion(ball(12, 0.3), ball(12, 0.6), 2.0) < 0.3 * blurred[0]
    assert motion(ball(12, 0.3), ball(12, 0.6), 0.0) > 0.5 * sharp[0]


def test_the_motion_loss_is_that_of_numpy():
    own, world = here(torch.tensor([3.0, 8.0, 6.0])), here(torch.tensor(4.0))
    dreams = here(torch.tensor([True, False, True]))
    expected = ((3 / 4 - 1) ** 2 + (6 / 4 - 1) ** 2) / 2
    assert motion_loss(own, world, dreams).item() == pytest.approx(expected, rel=1e-6)
    assert motion_loss(own, here(torch.tensor(3.0)), here(torch.tensor([True, False, False]))) == 0
    assert motion_loss(own, world, ~dreams & dreams) == 0  # nobody dreams
    assert motion_loss(own, here(torch.tensor(0.0)), dreams) == 0  # a still world asks for nothing
    # What stands still is as wrong as what moves twice as far.
    assert motion_loss(0 * own, world, dreams) == motion_loss(0 * own + 8, world, dreams) == 1


@pytest.mark.parametrize("blur", [0.0, 2.0])
def test_motion_s_gradient_makes_a_slow_dream_move_more(blur):
    rectified = here(torch.full((1, 1, 2, 2), 0.1)).requires_grad_()
    still, dreams = here(torch.zeros(1, 1, 2, 2)), here(torch.tensor([True]))
    motion_loss(motion(rectified, still, blur), here(torch.tensor(1.0)), dreams).backward()
    assert (rectified.grad < 0).all()


def test_a_dream_that_stands_still_has_a_finite_gradient():
    rectified = here(torch.full((1, 1, 2, 2), 0.1)).requires_grad_()
    dreams = here(torch.tensor([True]))
    motion_loss(motion(rectified, rectified.detach(), 2.0), here(torch.tensor(1.0)), dreams).backward()
    assert rectified.grad.isfinite().all()


def test_a_still_world_changes_no_weight():
    _, frame = some_prediction(rectified_model())
    plain = gradient({"adversarial_weight": 0.0, "loop_error": 1e-6}, alone=[0, 0, 1, 1], last=frame)
    still = gradient(
        {"adversarial_weight": 0.0, "loop_error": 1e-6, "motion_weight": 1.0}, alone=[0, 0, 1, 1], last=frame
    )
    assert plain.isfinite().all()
    assert torch.equal(plain, still)


def test_motion_needs_a_dream_and_the_world():
    for alone in ([0, 0, 0, 0], [1, 2, 3, 1]):
        learning = begin(motion_weight=1.0, loop_error=100.0)
        assert teach(learning, *some_prediction(learning.model), alone=alone).losses[3] == 0


# --- What a stack hears -----------------------------------------------------------------------------------------------


def hear(alone, errors=(0.5,) * STREAMS, learn=(True,) * STREAMS, progress=1.0, **settings):
    """Whether each stream hears itself, and for how long it then has; ``errors`` are squared errors of a frame."""
    dreams = {"loop_share": 0.5, "loop_steps": 3, "loop_error": 1.0, **settings}
    learning = begin(**dreams if dreams["loop_share"] else {})
    frame = here(torch.full((STREAMS, 1, 8, 8), 0.25))
    rectified = frame + (here(torch.tensor(errors)) / 64).sqrt().view(-1, 1, 1, 1)
    learning.set_progress(progress)
    heard, count = learning.heard(frame, rectified, here(torch.tensor(learn)), here(torch.tensor(alone)))
    own = [torch.equal(heard[n], rectified[n]) for n in range(STREAMS)]
    assert own == [not torch.equal(heard[n], frame[n]) for n in range(STREAMS)]
    assert count.dtype == torch.int64
    return own, count.tolist()


def test_a_share_of_the_streams_dreams():
    assert hear([0] * 4) == ([True, True, False, False], [1, 1, 0, 0])
    assert hear([0] * 4, loop_share=0.25) == ([True, False, False, False], [1, 0, 0, 0])
    assert hear([0] * 4, loop_share=0.0) == ([False] * 4, [0] * 4)
    assert hear([0] * 4, loop_share=0.9) == ([True] * 4, [1] * 4)  # rounded


def test_dreams_begin_with_their_time():
    assert hear([0] * 4, progress=0.49, loop_from=0.5) == ([False] * 4, [0] * 4)
    assert hear([0] * 4, progress=0.5, loop_from=0.5) == ([True, True, False, False], [1, 1, 0, 0])


def test_a_dream_begins_near_to_what_comes_and_goes_on_from_there():
    assert hear([0, 0, 0, 0], (0.9, 1.1, 0.9, 1.1)) == ([True, False, False, False], [1, 0, 0, 0])
    assert hear([1, 1, 0, 0], (0.9, 8.0, 0.9, 8.0)) == ([True, True, False, False], [2, 2, 0, 0])


def test_a_dream_ends_after_its_steps():
    assert hear([2, 3, 0, 0]) == ([True, False, False, False], [3, -2, 0, 0])
    alone, lengths = [0] * 4, []
    for _ in range(9):
        alone = hear(alone)[1]
        lengths.append(alone[0])
    assert lengths == [1, 2, 3, -2, -1, 0, 1, 2, 3]


def test_a_stream_that_wakes_up_teaches_nothing():
    learning = begin(adversarial_weight=0.0, motion_weight=1.0, loop_error=1e9)
    prediction, frame = some_prediction(learning.model)
    awake = teach(learning, prediction, frame, learn=[True, False, False, True]).losses[0]
    learning = begin(adversarial_weight=0.0, motion_weight=1.0, loop_error=1e9)
    assert teach(learning, prediction, frame, alone=[0, -2, -1, 0]).losses[0] == awake
    assert teach(learning, prediction, frame, alone=[-1, -2, -1, -2]).losses.tolist() == [0, 0]


def test_a_dream_ends_where_a_sequence_begins():
    assert hear([2, 2, 0, 0], learn=(False, True, True, True)) == ([False, True, False, False], [0, 3, 0, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.1}, "share\n.*less than or equal to 1"),
        ({"share": 1.0}, "stack_share must be > 0 where share is 1, or the stack would never learn; got None"),
        ({"stack_share": 1.1}, "stack_share\n.*less than or equal to 1"),
        ({"learning_rate": 0.0}, "learning_rate\n.*greater than 0"),
        ({"matrix_learning_rate": -1.0}, "matrix_learning_rate\n.*greater than 0"),
        ({"adversarial_weight": -1e-4}, "adversarial_weight\n.*greater than or equal to 0"),
        ({"real_label": 1.1}, "real_label\n.*less than or equal to 1"),
        ({"noise_deviation": -0.1}, "noise_deviation\n.*greater than or equal to 0"),
        ({"gradient_norm": 0.0}, "gradient_norm\n.*greater than 0"),
        ({"loop_share": 1.0}, "loop_share\n.*less than 1"),
        ({"loop_from": 1.0}, "loop_from\n.*less than 1"),
        ({"loop_error": math.inf}, "loop_error\n.*finite"),
        ({"loop_steps": 0}, "loop_steps\n.*greater than 0"),
        ({"motion_weight": math.nan}, "motion_weight\n.*finite"),
        ({"lambda": 1.0}, "lambda\n.*not permitted"),
    ],
)
def test_rectifying_refuses_bad_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        RectifyingConfig(**settings)
