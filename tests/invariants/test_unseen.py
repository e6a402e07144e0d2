"""What is not seen teaches nothing and has no effect: in its place stands the model's own prediction."""

import pytest
import torch
from device_under_test import here
from small_online import RECTIFIERS

from torchrsm import Evaluator, preset
from torchrsm.baselines import make_baseline
from torchrsm.learning.online import OnlineLearner
from torchrsm.learning.windows import SequenceLearner
from torchrsm.predictor import filled
from torchrsm.runs.fitting import without_dreams
from torchrsm.scoring.sequences import predict_sequences
from torchrsm.streams.disturbed import Shown
from torchrsm.streams.stream import StreamBatch

SHAPE = (3, 1, 12, 12)
SYSTEMS = ("compact", "unet", "no rectifier", "simvp", "convlstm-wide", "predrnn", "lstm")


def learner_of(system):
    torch.manual_seed(0)
    device = here(torch.zeros(())).device
    if system in ("compact", "unet", "no rectifier"):
        run = preset("balls-compact")
        layers = tuple(layer.replace(groups=16, active_groups=4) for layer in run.model.layers)
        rectifier = RECTIFIERS.get(system)
        model = run.model.replace(layers=layers, rectifier=rectifier)
        both = {"share": 0.9, "stack_share": 0.9, "adversarial_weight": 0.0}
        rectifying = None if rectifier is None else without_dreams(run.rectifying).replace(**both)
        return OnlineLearner(model, run.learning, rectifying, True, SHAPE, device)
    run = preset(system)
    small = {"lstm": {"hidden_units": (8,)}, "simvp": {"context": 2}}.get(system, {})
    model = make_baseline(run.model.replace(height=12, width=12, **small))
    return SequenceLearner(model, run.learning.replace(window=4), SHAPE, device)


def batches(masks, garbage=0):
    """Frames of which a part is not shown, where there is garbage."""
    generator = torch.Generator().manual_seed(3)
    other = torch.Generator().manual_seed(garbage)
    for step, seen in enumerate(masks):
        frames = torch.rand(SHAPE, generator=generator)
        noise = torch.rand(SHAPE, generator=other)
        frames = frames if seen is None else torch.where(seen, frames, noise)
        starts = torch.full((SHAPE[0],), step == 0)
        numbers = torch.arange(SHAPE[0])
        yield StreamBatch(here(frames), here(starts), here(numbers), None if seen is None else here(seen))


def taught(system, masks, garbage=0):
    """The learner after it has learned from these frames."""
    learner = learner_of(system)
    played = list(batches(masks, garbage))
    count = learner.batches_per_update
    torch.manual_seed(1)
    for first in range(0, len(played), count):
        learner.begin(learner.phase(0.5), 1)
        learner.teach(played[first : first + count], 0.5)
    return learner


def weights(learner):
    return {name: value.clone() for name, value in learner.modules["model"].state_dict().items()}


def bar(steps=8):
    seen = torch.ones(SHAPE[0], 1, 12, 12, dtype=torch.bool)
    seen[..., 4:8] = False
    return [seen] * steps


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_not_seen_has_no_effect(system):
    one, other = (weights(taught(system, bar(), garbage)) for garbage in (1, 2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_all_seen_is_learned_as_without_a_mask(system):
    everything = torch.ones(SHAPE[0], 1, 12, 12, dtype=torch.bool)
    with_mask, without = (weights(taught(system, [mask] * 8)) for mask in (everything, None))
    for name in without:
        torch.testing.assert_close(with_mask[name], without[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("system", SYSTEMS)
def test_where_nothing_is_seen_nothing_is_learned(system):
    before = weights(learner_of(system))
    nothing = torch.zeros(SHAPE[0], 1, 12, 12, dtype=torch.bool)
    after = weights(taught(system, [nothing] * 4))
    above = "stack.layers.1."  # this layer learns what the one below has chosen, whatever made that choose it
    for name in before:
        if not name.startswith(above):
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-4, msg=name)
    learned = weights(taught(system, [None] * 4))
    assert max(float((learned[name] - before[name]).abs().max()) for name in before) > 5e-4


def test_the_stack_hears_its_own_prediction_where_nothing_is_seen():
    learner = learner_of("unet")
    first, second = batches([None, bar()[0]])
    learner.begin("stack", 1)
    learner.teach([first], 0.0)
    model = learner.model
    expected = model.predict_raw(learner.state.layers).frame.detach()
    learner.teach([second], 0.0)
    heard = model.last_frame(learner.state.layers)
    threshold = model.config.layers[0].input_threshold
    wanted = torch.where(second.seen, second.frames, expected)
    torch.testing.assert_close(heard, torch.where(wanted > threshold, wanted, 0.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_model_observes_its_own_prediction(system):
    model = learner_of(system).modules["model"].eval()
    frames = here(torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)))
    seen = here(bar(1)[0])
    with torch.no_grad():
        masked, plain = model.initial_state(SHAPE), model.initial_state(SHAPE)
        for frame in frames:
            a, b = model.predict(masked), model.predict(plain)
            torch.testing.assert_close(a.frame, b.frame, rtol=0, atol=0)
            masked = model.observe(frame, a, masked, seen=seen)
            plain = model.observe(torch.where(seen, frame, b.frame), b, plain)


def test_the_scorer_shows_what_is_seen_and_scores_the_truth():
    model = learner_of("compact").model.eval()
    frames = torch.rand(2, 6, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    seen = torch.ones(2, 6, 1, 12, 12, dtype=torch.bool)
    seen[:, 2:4] = False
    shown = Shown(torch.where(seen, frames, 0.0), seen)
    predicted = predict_sequences(model, shown.frames, seen).frames
    expected = (predicted - frames)[:, 1:].square().sum((2, 3, 4)).mean(0).tolist()
    scores = Evaluator(frames, similarity=False, shown=shown).evaluate(model)
    assert scores.by_frame[1:] == pytest.approx(expected, rel=1e-5)
    blind = Evaluator(frames, similarity=False, shown=Shown(shown.frames, None)).evaluate(model)
    assert blind.by_frame[1:3] == pytest.approx(scores.by_frame[1:3])
    assert blind.by_frame[4] != scores.by_frame[4]
    with pytest.raises(ValueError, match=r"shown must have frames of the shape \[2, 6, 1, 12, 12\] that are scored"):
        Evaluator(frames, similarity=False, shown=Shown(frames[:, :5], None))


@pytest.mark.parametrize(
    "seen",
    [torch.ones(3, 1, 12, 12), torch.ones(3, 12, 12, dtype=torch.bool), torch.ones(2, 1, 12, 12, dtype=torch.bool)],
)
def test_a_mask_of_another_form_is_refused(seen):
    frame = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"seen must be torch.bool \[3, 1, 12, 12\] on cpu, as the frame; got "):
        filled(frame, frame, seen)
