import itertools

import pytest
import torch
from playing import play
from pydantic import ValidationError

from torchrsm.baselines.dtsbn import DTSBN, DTSBNConfig, Terms, Units, learning_signal, surrogate
from torchrsm.baselines.sequence_model import Window
from torchrsm.predictor import rollout

BATCH, TIME = 3, 7
SHAPE = (BATCH, 2, 3, 4)


def model(order=2, deviation=0.5, **settings):
    torch.manual_seed(0)
    sizes = {"channels": 2, "height": 3, "width": 4, "lower_units": 6, "upper_units": 5, "baseline_units": 4}
    made = DTSBN(DTSBNConfig(**{**sizes, **settings}, order=order))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, deviation)
    return made


def window(time=TIME, starts=()):
    """Random frames; every stream starts with the first, and where ``starts`` says, ``(time, stream)``."""
    torch.manual_seed(1)
    frames, marks = torch.rand(time, *SHAPE), torch.zeros(time, BATCH, dtype=torch.bool)
    marks[0] = True
    for place in starts:
        marks[place] = True
    return Window(frames, marks)


# --- The predictor ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_first_prediction_of_a_new_network_is_grey():
    predictor = DTSBN(DTSBNConfig()).eval()
    frame = predictor.predict(predictor.initial_state((2, 1, 30, 30))).frame
    assert frame.shape == (2, 1, 30, 30)
    torch.testing.assert_close(frame, torch.full_like(frame, 0.5), rtol=0, atol=0.01)


def test_the_network_has_the_published_weights():
    shapes = {name: tuple(value.shape) for name, value in DTSBN(DTSBNConfig()).named_parameters()}
    assert shapes == {
        "generative.upper_from_uppers.weight": (100, 200),
        "generative.upper_from_uppers.bias": (100,),
        "generative.upper_from_lowers.weight": (100, 200),
        "generative.lower_from_upper.weight": (100, 100),
        "generative.lower_from_upper.bias": (100,),
        "generative.lower_from_lowers.weight": (100, 200),
        "generative.lower_from_frames.weight": (100, 1800),
        "generative.frame_from_lower.weight": (900, 100),
        "generative.frame_from_lower.bias": (900,),
        "generative.frame_from_frames.weight": (900, 1800),
        "recognition.lower_from_frame.weight": (100, 900),
        "recognition.lower_from_frame.bias": (100,),
        "recognition.lower_from_frames.weight": (100, 1800),
        "recognition.lower_from_lowers.weight": (100, 200),
        "recognition.upper_from_lower.weight": (100, 100),
        "recognition.upper_from_lower.bias": (100,),
        "recognition.upper_from_lowers.weight": (100, 200),
        "recognition.upper_from_uppers.weight": (100, 200),
        "baseline.hidden.weight": (100, 900),
        "baseline.signal.weight": (1, 100),
    }


def test_the_weights_begin_as_published():
    torch.manual_seed(0)
    for name, value in DTSBN(DTSBNConfig(initial_deviation=0.02)).named_parameters():
        if name.endswith("bias"):
            assert (value == 0).all()
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.25)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_learn_predicts_what_the_predictor_predicts(order):
    predictor, given = model(order).eval(), window()
    with torch.no_grad():
        expected, after = play(predictor, given.frames)
        lesson = predictor.learn(given, predictor.initial_state(SHAPE))
    torch.testing.assert_close(lesson.frames, expected, rtol=0, atol=1e-6)
    for part, other in zip(lesson.state, after, strict=True):
        torch.testing.assert_close(part, other, rtol=0, atol=1e-6)
    assert torch.equal(lesson.scored, ~given.starts)
    assert ((expected > 0) & (expected < 1)).all()


@torch.no_grad()
def test_a_window_goes_on_where_the_last_one_ended():
    predictor, given = model().eval(), window(starts=[(4, 1), (5, 2)])
    whole = predictor.learn(given, predictor.initial_state(SHAPE))
    state, frames = predictor.initial_state(SHAPE), []
    for span in (slice(0, 1), slice(1, 5), slice(5, TIME)):
        lesson = predictor.learn(Window(given.frames[span], given.starts[span]), state)
        state = lesson.state
        frames.append(lesson.frames)
    torch.testing.assert_close(torch.cat(frames), whole.frames, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("t", [1, 3, 6])
def test_a_frame_changes_later_predictions_only(t):
    predictor, given = model().eval(), window()
    other = given.frames.clone()
    other[t] = 1 - other[t]
    before = predictor.learn(given, predictor.initial_state(SHAPE)).frames
    after = predictor.learn(given._replace(frames=other), predictor.initial_state(SHAPE)).frames
    assert torch.equal(before[: t + 1], after[: t + 1])
    if t + 1 < TIME:
        assert not torch.allclose(before[t + 1], after[t + 1], atol=1e-3)


@torch.no_grad()
def test_a_prediction_remembers_more_than_the_order_says():
    """The units carry what the frames have left behind."""
    predictor, given = model(order=1).eval(), window()
    other = given.frames.clone()
    other[0] = 1 - other[0]
    before = predictor.learn(given, predictor.initial_state(SHAPE)).frames
    after = predictor.learn(given._replace(frames=other), predictor.initial_state(SHAPE)).frames
    assert not torch.allclose(before[3], after[3], rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_start_cuts_the_past():
    predictor, given = model().eval(), window(starts=[(4, 1), (5, 2)])
    frames = predictor.learn(given, predictor.initial_state(SHAPE)).frames
    for stream, start in ((0, 0), (1, 4), (2, 5)):
        alone, _ = play(predictor, given.frames[start:, stream : stream + 1])
        torch.testing.assert_close(frames[start:, stream : stream + 1], alone, rtol=0, atol=1e-6)
    plain = predictor.learn(window(), predictor.initial_state(SHAPE)).frames
    assert not torch.allclose(plain[5, 1], frames[5, 1], atol=1e-3)


@torch.no_grad()
def test_streams_do_not_meet():
    predictor, given = model().eval(), window(starts=[(4, 1)])
    order = torch.tensor([2, 0, 1])
    before = predictor.learn(given, predictor.initial_state(SHAPE))
    after = predictor.learn(Window(given.frames[:, order], given.starts[:, order]), predictor.initial_state(SHAPE))
    torch.testing.assert_close(after.frames, before.frames[:, order], rtol=0, atol=1e-6)


@torch.no_grad()
def test_units_are_samples_while_training_and_means_in_evaluation():
    predictor, given = model(), window()
    torch.manual_seed(0)
    first = predictor.learn(given, predictor.initial_state(SHAPE))
    second = predictor.learn(given, predictor.initial_state(SHAPE))
    assert set(first.state.lower.unique().tolist()) == {0, 1}
    assert set(first.state.upper.unique().tolist()) == {0, 1}
    assert not torch.equal(first.state.lower, second.state.lower)
    predictor.eval()
    first = predictor.learn(given, predictor.initial_state(SHAPE))
    second = predictor.learn(given, predictor.initial_state(SHAPE))
    assert ((first.state.lower > 0) & (first.state.lower < 1)).all()
    assert torch.equal(first.frames, second.frames)


@torch.no_grad()
def test_samples_have_the_means_of_the_recognition_network():
    """The first step, 4000 times."""
    predictor, frame = model(), torch.rand(1, 2, 3, 4)
    many = Window(frame.expand(1, 4000, 2, 3, 4), torch.ones(1, 4000, dtype=torch.bool))
    torch.manual_seed(0)
    sampled = predictor.learn(many, predictor.initial_state((4000, 2, 3, 4))).state
    network = predictor.recognition
    lower = torch.sigmoid(network.lower_from_frame(frame.flatten(1)))
    torch.testing.assert_close(sampled.lower[:, 0].mean(0, keepdim=True), lower, rtol=0, atol=0.03)
    upper = torch.sigmoid(network.upper_from_lower(sampled.lower[:, 0])).mean(0)
    torch.testing.assert_close(sampled.upper[:, 0].mean(0), upper, rtol=0, atol=0.03)


@torch.no_grad()
def test_it_dreams():
    predictor = model().eval()
    _, state = play(predictor, window().frames)
    frames, _ = rollout(predictor, state, 20)
    assert frames.shape == (BATCH, 20, 2, 3, 4)
    assert frames.isfinite().all()
    assert ((frames >= 0) & (frames <= 1)).all()


# --- The bound and its gradient, by enumeration -----------------------------------------------------------------------
# Three frames of three pixels, two units in each layer: 4096 configurations of the hidden units.

STEPS, PIXELS, LOWER, UPPER = 3, 3, 2, 2


def tiny(**settings):
    made = model(
        deviation=0.7,
        **{"channels": 1, "height": 1, "width": PIXELS, "lower_units": LOWER, "upper_units": UPPER, **settings},
    )
    return made.double()


def every_configuration():
    """``[time, 4096, units]`` of both layers."""
    bits = torch.tensor(list(itertools.product((0.0, 1.0), repeat=STEPS * (LOWER + UPPER))), dtype=torch.float64)
    bits = bits.view(-1, STEPS, LOWER + UPPER).transpose(0, 1)
    return Units(bits[..., :LOWER], bits[..., LOWER:])


def log_bernoulli(values, logits):
    mean = torch.sigmoid(logits)
    return (values * torch.log(mean) + (1 - values) * torch.log(1 - mean)).sum(-1)


def logit(named, values, t):
    """The sum of what other units, at t and before, add to some units; ``named`` maps a weight to its input and lag.

    Written from the paper's equations, a lag at a time: a weight matrix has its lags side by side.
    """
    total = 0.0
    for weight, (name, order) in named.items():
        size = values[name].shape[-1]
        for lag in range(1, order + 1) if order else (0,):
            if t - lag >= 0:
                block = weight.weight[:, (lag - 1) * size : lag * size] if order else weight.weight
                total = total + values[name][t - lag] @ block.T
        if weight.bias is not None:
            total = total + weight.bias
    return total


def by_hand(predictor, frames, units):
    """Log p and log q of every configuration at every step, ``[time, 4096]``, from the paper's equations."""
    order = predictor.config.order
    values = {"v": frames[:, None].expand(-1, units.lower.shape[1], -1), "h": units.lower, "z": units.upper}
    p, q = predictor.generative, predictor.recognition
    generative, recognition = [], []
    for t in range(len(frames)):
        upper = logit({p.upper_from_uppers: ("z", order), p.upper_from_lowers: ("h", order)}, values, t)
        lower = logit(
            {p.lower_from_upper: ("z", 0), p.lower_from_lowers: ("h", order), p.lower_from_frames: ("v", order)},
            values,
            t,
        )
        frame = logit({p.frame_from_lower: ("h", 0), p.frame_from_frames: ("v", order)}, values, t)
        generative.append(
            log_bernoulli(values["z"][t], upper)
            + log_bernoulli(values["h"][t], lower)
            + log_bernoulli(values["v"][t], frame)
        )
        lower = logit(
            {q.lower_from_frame: ("v", 0), q.lower_from_frames: ("v", order), q.lower_from_lowers: ("h", order)},
            values,
            t,
        )
        upper = logit(
            {q.upper_from_lower: ("h", 0), q.upper_from_lowers: ("h", order), q.upper_from_uppers: ("z", order)},
            values,
            t,
        )
        recognition.append(log_bernoulli(values["h"][t], lower) + log_bernoulli(values["z"][t], upper))
    return torch.stack(generative), torch.stack(recognition)


def enumerated(predictor):
    """The frames, all configurations, and the model's own terms of them."""
    torch.manual_seed(2)
    frames, units = torch.rand(STEPS, PIXELS, dtype=torch.float64), every_configuration()
    count = units.lower.shape[1]
    given = Window(
        frames.view(STEPS, 1, 1, 1, PIXELS).expand(-1, count, -1, -1, -1),
        torch.arange(STEPS).view(-1, 1).expand(-1, count) == 0,
    )
    state = predictor.initial_state((count, 1, 1, PIXELS))
    return frames, units, given, predictor.terms(given, units, state)


def gradients(predictor, value, groups=(0,)):
    weights = [weight for group in groups for weight in predictor.weight_groups()[group]]
    return torch.autograd.grad(value, weights, retain_graph=True)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_terms_are_the_equations(order):
    predictor = tiny(order=order)
    frames, units, _, terms = enumerated(predictor)
    generative, recognition = by_hand(predictor, frames, units)
    torch.testing.assert_close(terms.generative, generative)
    torch.testing.assert_close(terms.recognition, recognition)
    assert recognition.sum(0).exp().sum().item() == pytest.approx(1)


def test_the_bound_is_below_the_likelihood():
    predictor = tiny()
    _, _, _, terms = enumerated(predictor)
    likelihood = terms.generative.sum(0).logsumexp(0)
    sure = terms.recognition.sum(0).exp()
    bound = (sure * terms.bound.sum(0)).sum()
    posterior = terms.generative.sum(0) - likelihood
    divergence = (sure * (terms.recognition.sum(0) - posterior)).sum()
    assert bound < likelihood - 0.1
    assert (likelihood - bound).item() == pytest.approx(divergence.item())


def test_the_gradient_of_the_whole_future_is_that_of_the_bound():
    """Whatever is taken off the signal, as long as it does not know the units: the frame's baseline, a mean."""
    predictor = tiny()
    _, _, given, terms = enumerated(predictor)
    sure = terms.recognition.sum(0).exp()
    exact = gradients(predictor, (sure * terms.bound.sum(0)).sum())
    signal = learning_signal(terms.bound, given.starts, "future")
    signal = signal - predictor.baseline(given.frames.flatten(2)) - 7
    expected = gradients(predictor, (sure.detach() * surrogate(terms, signal).sum(0)).sum())
    for ours, true in zip(expected, exact, strict=True):
        assert true.abs().max() > 1e-4
        torch.testing.assert_close(ours, true, rtol=1e-9, atol=1e-12)


def test_the_published_gradient_is_that_of_each_step_by_itself():
    """What the units of a step do to later steps is left out of the recognition's gradient, and of no other."""
    predictor = tiny()
    _, _, given, terms = enumerated(predictor)
    each, sure = terms.recognition, terms.recognition.sum(0).exp().detach()
    signal = learning_signal(terms.bound, given.starts, "step")
    signal = signal - predictor.baseline(given.frames.flatten(2)) - 7
    expected = gradients(predictor, (sure * surrogate(terms, signal).sum(0)).sum())
    alone = []  # of step t alone: the draws of the other steps are as they are
    for t in range(STEPS):
        others = (each.sum(0) - each[t]).exp().detach()
        alone.append((others * each[t].exp() * (terms.generative[t] - each[t])).sum())
    by_step = gradients(predictor, torch.stack(alone).sum())
    for ours, true in zip(expected, by_step, strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-9, atol=1e-12)
    whole = gradients(predictor, (each.sum(0).exp() * terms.bound.sum(0)).sum())
    own = dict(zip([name for name, _ in named(predictor)], zip(expected, whole, strict=True), strict=True))
    for name, (ours, true) in own.items():
        same = torch.allclose(ours, true, rtol=1e-9, atol=1e-12)
        assert same == name.startswith("generative")


def named(predictor):
    return [(name, weight) for name, weight in predictor.named_parameters() if not name.startswith("baseline")]


def test_the_surrogate_has_the_value_of_the_bound():
    terms = Terms(torch.randn(4, 3), torch.randn(4, 3))
    torch.testing.assert_close(surrogate(terms, torch.randn(4, 3)), terms.bound)


def test_the_signal_of_the_future_ends_with_its_sequence():
    bound = torch.tensor([[1.0, 10], [2, 20], [4, 40], [8, 80]])
    starts = torch.tensor([[1, 0], [0, 0], [1, 0], [0, 1]], dtype=torch.bool)
    assert torch.equal(learning_signal(bound, starts, "step"), bound)
    assert learning_signal(bound, starts, "future").tolist() == [[3, 70], [2, 60], [12, 40], [8, 80]]


# --- Learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", ["step", "future"])
def test_the_losses_are_the_estimator(signal):
    """Written again from what a window draws, with the statistics of the signal by hand."""
    predictor, given = model(signal=signal, signal_momentum=0.75), window(starts=[(4, 1)])
    predictor.signal_mean.fill_(-3.0)
    predictor.signal_variance.fill_(40.0)
    state = predictor.initial_state(SHAPE)
    torch.manual_seed(3)
    units, _, _ = predictor._recognise(given.frames.flatten(2), given.starts, state)
    torch.manual_seed(3)
    lesson = predictor.learn(given, state)
    terms = predictor.terms(given, units, state)
    assert lesson.losses[0].item() == pytest.approx(-terms.bound.mean().item(), rel=1e-5)
    guess = predictor.baseline(given.frames.flatten(2))
    left = (learning_signal(terms.bound, given.starts, signal) - guess).detach()
    mean = 0.75 * -3 + 0.25 * left.mean()
    variance = 0.75 * 40 + 0.25 * left.var(correction=0)
    torch.testing.assert_close(predictor.signal_mean, mean)
    torch.testing.assert_close(predictor.signal_variance, variance)
    scaled = (left - mean) / variance.sqrt()
    ours = gradients(predictor, lesson.losses[0])
    expected = gradients(predictor, -(terms.generative + scaled * terms.recognition).mean())
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    # the baseline climbs where the signal is better than it guessed
    ours = gradients(predictor, lesson.losses[1], groups=(1,))
    expected = gradients(predictor, -(scaled * guess).mean(), groups=(1,))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_first_window_sets_the_statistics():
    predictor, given = model(), window()
    state = predictor.initial_state(SHAPE)
    torch.manual_seed(3)
    units, _, _ = predictor._recognise(given.frames.flatten(2), given.starts, state)
    torch.manual_seed(3)
    predictor.learn(given, state)
    left = predictor.terms(given, units, state).bound - predictor.baseline(given.frames.flatten(2))
    torch.testing.assert_close(predictor.signal_mean, left.mean().detach())
    torch.testing.assert_close(predictor.signal_variance, left.var(correction=0).detach())


@torch.no_grad()
def test_statistics_rest_in_evaluation():
    predictor = model().eval()
    predictor.learn(window(), predictor.initial_state(SHAPE))
    assert predictor.signal_mean == predictor.signal_variance == 0


def test_a_small_signal_is_not_blown_up():
    """Deviations below 1 are left as they are."""
    predictor, given = model(deviation=1e-3), window()
    given = given._replace(frames=torch.full_like(given.frames, 0.5))
    predictor.signal_mean.fill_(-10.0)
    predictor.signal_variance.fill_(1e-6)
    state = predictor.initial_state(SHAPE)
    torch.manual_seed(3)
    units, _, _ = predictor._recognise(given.frames.flatten(2), given.starts, state)
    torch.manual_seed(3)
    lesson = predictor.learn(given, state)
    terms = predictor.terms(given, units, state)
    left = (terms.bound - predictor.baseline(given.frames.flatten(2))).detach() - predictor.signal_mean
    assert predictor.signal_variance.sqrt() < 0.1
    expected = gradients(predictor, -(terms.generative + left * terms.recognition).mean())
    for one, other in zip(gradients(predictor, lesson.losses[0]), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_every_weight_learns_from_one_loss():
    predictor = model()
    lesson = predictor.learn(window(), predictor.initial_state(SHAPE))
    groups = predictor.weight_groups()
    assert len(lesson.losses) == len(groups) == len(predictor.loss_names) == 2
    listed = [weight for group in groups for weight in group]
    assert len(listed) == len(set(listed)) == len(list(predictor.parameters()))
    for loss, group, other in zip(lesson.losses, groups, reversed(groups), strict=True):
        for gradient in torch.autograd.grad(loss, group, retain_graph=True):
            assert gradient.isfinite().all()
            assert gradient.abs().max() > 0
        assert not any(g is not None for g in torch.autograd.grad(loss, other, retain_graph=True, allow_unused=True))
    assert not any(part.requires_grad for part in lesson.state)
    assert not lesson.frames.requires_grad


@pytest.mark.parametrize("signal", ["step", "future"])
def test_it_learns_to_see_a_dot_move(signal):
    """A dot that goes left or right round a ring: one frame does not say which, two do."""
    torch.manual_seed(0)
    predictor = DTSBN(DTSBNConfig(height=1, width=8, lower_units=8, upper_units=4, baseline_units=8, signal=signal))
    groups = predictor.weight_groups()
    optimisers = [torch.optim.Adam(group, 0.05) for group in groups]
    steps = torch.arange(10)[:, None]
    starts = (steps == 0).expand(-1, 16)
    bounds, errors = [], []
    for _ in range(100):
        way = torch.randint(2, (16,)) * 2 - 1
        place = (torch.randint(8, (16,)) + steps * way) % 8
        frames = torch.nn.functional.one_hot(place, 8).float()[:, :, None, None]
        lesson = predictor.learn(Window(frames, starts), predictor.initial_state((16, 1, 1, 8)))
        for loss, group, optimiser in zip(lesson.losses, groups, optimisers, strict=True):
            for weight, gradient in zip(group, torch.autograd.grad(loss, group), strict=True):
                weight.grad = gradient
            optimiser.step()
        bounds.append(float(lesson.losses[0].detach()))
        errors.append(float((lesson.frames - frames)[2:].square().sum((2, 3, 4)).mean()))
    assert bounds[0] > 8 * 0.69  # nats: it begins with a coin for each pixel
    assert sum(bounds[-10:]) / 10 < 0.5 * bounds[0]
    assert sum(errors[-10:]) / 10 < 0.3  # at its start 2, of a black frame 1, with an eye for the last frame alone 0.5


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_refuses_frames_of_another_shape():
    with pytest.raises(ValueError, match="reads frames of 2 x 3 x 4; got 2 x 4 x 3"):
        model().initial_state((1, 2, 4, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lower_units": 0}, "lower_units\n.*greater than 0"),
        ({"upper_units": 0}, "upper_units\n.*greater than 0"),
        ({"order": 0}, "order\n.*greater than 0"),
        ({"baseline_units": 0}, "baseline_units\n.*greater than 0"),
        ({"initial_deviation": 0.0}, "initial_deviation\n.*greater than 0"),
        ({"signal": "past"}, "signal\n.*'step' or 'future'"),
        ({"signal_momentum": 1.0}, "signal_momentum\n.*less than 1"),
        ({"kind": "tsbn"}, "kind\n.*'dtsbn'"),
        ({"layers": 2}, "layers\n.*not permitted"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        DTSBNConfig(**settings)
