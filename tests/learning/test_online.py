"""`OnlineLearner.teach` against the same written again as a plain loop."""

import copy

import pytest
import torch
from device_under_test import device, here, random_state, set_random_state
from lessons import teach
from online_oracle import PlainOnline
from small_online import SIZE, STREAMS, balls, learner_of

from torchrsm import LayerConfig, LearningConfig, ModelConfig
from torchrsm.learning.contract import NonFiniteError, require_finite_losses
from torchrsm.learning.online import OnlineLearner
from torchrsm.state import flatten
from torchrsm.streams import BouncingBalls, StreamBatch, Turns
from torchrsm.streams.turns import frame_shapes

STEPS = 40


def plain(learner, learning, rectifying):
    model, judge = copy.deepcopy(learner.model), copy.deepcopy(learner.modules["discriminator"])
    return PlainOnline(model, judge, learning, rectifying, STREAMS, (1, SIZE, SIZE))


@pytest.mark.parametrize(
    "settings",
    [
        {"rectifier": "compact"},
        {"rectifier": "unet", "input_frames": 3, "dropout": 0.0},
        {"rectifier": "compact", "share": 0.5, "stack_share": None},
    ],
    ids=["dropout", "four frames side by side", "one after the other"],
)
def test_teaching_is_the_plain_loop(settings):
    """Losses, scores, what each stream hears, how long it dreams, and all weights, step by step."""
    learner, learning, rectifying = learner_of(**settings)
    oracle = plain(learner, learning, rectifying)
    dreamt = set()
    for step, batch in zip(range(STEPS), map(here, balls()), strict=False):
        progress = step / STEPS
        for model in (learner.model, oracle.model):
            model.train(learner.phase(progress) != "rectifier")
        random = random_state()
        taught = learner.teach([batch], progress)
        set_random_state(random)
        expected = oracle.teach(batch.frames, batch.starts, progress)
        assert int(taught.scored) == expected["scored"], step
        assert float(taught.frame_squared_error) == pytest.approx(expected["error"], rel=1e-4), step
        assert taught.losses.tolist() == pytest.approx(expected["losses"], rel=1e-3, abs=1e-6), step
        assert learner.state.alone.tolist() == oracle.alone, step
        torch.testing.assert_close(learner.model.last_frame(learner.state.layers), expected["heard"], atol=1e-4, rtol=0)
        dreamt |= set(oracle.alone)
    assert {-2, -1, 0, 1, 3} <= dreamt
    for got, wanted in ((learner.model, oracle.model), (learner.modules["discriminator"], oracle.judge)):
        for (name, weight), (_, other) in zip(got.named_parameters(), wanted.named_parameters(), strict=True):
            torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4, msg=name)


def test_a_dream_is_what_the_stack_hears_next():
    """Where a stream dreams, its stack holds the model's own frame, not the one that came."""
    learner, *_ = learner_of()
    stream, differs = balls(), 0
    for step in range(STEPS):
        batch = next(stream)
        learner.teach([batch], step / STEPS)
        last = learner.model.last_frame(learner.state.layers)
        for i, alone in enumerate(learner.state.alone.tolist()):
            same = torch.equal(last[i].cpu(), batch.frames[i])
            assert same is (alone <= 0), (step, i)
            differs += not same
    assert differs > 5


def test_the_stack_s_rate_falls_to_its_end_within_its_own_share():
    """The schedule runs over the stack's part of the run, not over the whole."""
    learner, learning, _ = learner_of(share=0.5, stack_share=0.5)
    stream, rates = balls(), []
    for progress in (0.05, 0.1, 0.3, 0.499):
        teach(learner, stream, progress)
        rates.append([float(group["lr"]) for optimiser in learner.optimisers[:2] for group in optimiser.param_groups])
    own = learning.learning_rates
    halfway_down = 0.02 + 0.98 * 0.5
    assert rates[0] == pytest.approx([0.5 * rate for rate in own])
    assert rates[1] == pytest.approx(own)
    assert rates[2] == pytest.approx([halfway_down * rate for rate in own], rel=1e-6)
    assert rates[3] == pytest.approx([0.02 * rate for rate in own], rel=0.01)


def test_what_a_learner_tells_waits_for_nothing():
    """Numbers stay tensors until somebody asks for them."""
    learner, *_ = learner_of()
    taught = teach(learner, balls(), 0.9)
    terms = len(learner.loss_names("rectifier"))
    assert [value.shape for value in taught] == [(), (), (terms,), (2 + terms,), (1, STREAMS), (1, STREAMS)]
    assert not any(value.requires_grad for value in taught)
    assert int(taught.scored) == 0  # first frames
    assert float(taught.frame_squared_error) == 0
    assert not taught.is_scored.any()


def test_stack_and_rectifier_learn_at_once_from_beginning_to_end_where_both_shares_are_1():
    learner, *_ = learner_of(share=1.0, stack_share=1.0)
    assert [learner.phase(progress) for progress in (0.0, 0.5, 1.0)] == ["both"] * 3
    stream = balls()
    teach(learner, stream, 0.0)
    before = [weight.detach().clone() for weight in learner.model.parameters()]
    learner.begin("both", 1)
    taught = teach(learner, stream, 0.0)
    names = [name for name, _ in learner.model.named_parameters()]
    changed = {
        name.partition(".")[0]
        for name, weight, old in zip(names, learner.model.parameters(), before, strict=True)
        if not torch.equal(weight, old)
    }
    assert changed == {"stack", "rectifier"}
    assert len(taught.losses) == len(learner.loss_names("both"))


def test_the_errors_of_the_frames_are_those_of_the_mean():
    learner, *_ = learner_of()
    stream = balls()
    for _ in range(5):
        taught = teach(learner, stream, 0.9)
        mean = taught.errors[taught.is_scored].sum() / taught.is_scored.sum().clamp(min=1)
        assert float(taught.frame_squared_error) == pytest.approx(float(mean))
    assert int(taught.scored) == int(taught.is_scored.sum()) > 0


def test_an_update_takes_one_batch():
    learner, *_ = learner_of()
    batch = next(balls())
    assert learner.batches_per_update == 1
    with pytest.raises(ValueError, match="values to unpack"):
        learner.teach([batch, batch], 0.1)


def test_a_loss_that_is_not_finite_is_told_and_named_by_whoever_looks():
    learner, *_ = learner_of()
    stream = balls()
    teach(learner, stream, 0.9)
    with torch.no_grad():
        learner.model.rectifier.tail.bias.fill_(float("nan"))
    losses = teach(learner, stream, 0.9).losses
    with pytest.raises(NonFiniteError, match="rectifier/squared error is nan"):
        require_finite_losses(learner.loss_names("rectifier"), losses)


def test_the_names_of_the_losses_are_those_of_what_learns():
    learner, *_ = learner_of()
    terms = ["squared error", "adversarial loss", "discriminator's loss", "motion loss"]
    layers = ["loss/layer_1", "loss/layer_2"]
    assert learner.loss_names("stack") == layers
    assert learner.loss_names("rectifier") == [f"rectifier/{term}" for term in terms]
    assert learner.loss_names("both") == [*layers, *(f"rectifier/{term}" for term in terms)]


def test_a_frame_without_a_prediction_is_not_scored():
    learner, *_ = learner_of()
    frames = torch.rand(3, STREAMS, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    starts = torch.tensor([[True] * 4, [False, True, False, False], [False] * 4])
    scored = []
    for frame, start in zip(frames, starts, strict=True):
        batch = StreamBatch(frame, start, torch.zeros(4, dtype=torch.int64))
        scored.append(int(learner.teach([batch], 0.1).scored))
    assert scored == [0, 3, 4]


def test_what_learns_follows_the_shares_to_the_end_of_the_run():
    points = (0.0, 0.3, 0.5, 0.8, 1.0)
    alone = OnlineLearner(
        ModelConfig(layers=(LayerConfig(groups=4, active_groups=2, output_bias="channel"),)),
        LearningConfig(),
        None,
        True,
        (1, 1, SIZE, SIZE),
    )
    assert [alone.phase(point) for point in points] == ["stack"] * 5
    both, learning, rectifying = learner_of(share=0.75, stack_share=0.5)
    assert [both.phase(point) for point in points] == ["stack", "both", "rectifier", "rectifier", "rectifier"]
    one_after_the_other, *_ = learner_of(share=0.5, stack_share=None)
    assert [one_after_the_other.phase(point) for point in points] == ["stack"] * 2 + ["rectifier"] * 3
    kept = OnlineLearner(both.model.config, learning, rectifying, False, (1, 1, SIZE, SIZE))
    assert kept.phase(0.0) == kept.phase(1.0) == "rectifier"


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_streams_that_take_turns_learn_one_after_the_other(at_once):
    """Each turn is an update of a learner of these streams alone, from the weights that the turn before left."""
    _, learning, rectifying = settings = learner_of(share=0.3, stack_share=None, dropout=0.0)
    model = settings[0].model.config

    def made(streams, **changes):
        torch.manual_seed(2)
        shape = (streams, 1, SIZE, SIZE)
        return OnlineLearner(model, learning.replace(**changes), rectifying, True, shape, device())

    learner = made(STREAMS, streams_per_update=at_once)
    turns = [slice(first, first + at_once) for first in range(0, STREAMS, at_once)]
    alone = [made(len(range(STREAMS)[turn])) for turn in turns]
    weights, steps = made(STREAMS).model.state_dict(), [{} for _ in learner.optimisers[:2]]
    for step, batch in zip(range(20), map(here, balls()), strict=False):
        progress = 0.7 * step / 20
        taught, parts = learner.teach([batch], progress), []
        for turn, one in zip(turns, alone, strict=True):
            one.model.load_state_dict(weights)
            for optimiser, kept in zip(one.optimisers[:2], steps, strict=True):
                if kept:
                    optimiser.load_state_dict(kept)
            parts.append(one.teach([StreamBatch(batch.frames[turn], batch.starts[turn], batch.index[turn])], progress))
            weights = copy.deepcopy(one.model.state_dict())
            steps = [copy.deepcopy(optimiser.state_dict()) for optimiser in one.optimisers[:2]]
        for name, weight in learner.model.state_dict().items():
            torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-6, msg=name)
        scored = torch.stack([part.scored for part in parts])
        errors = torch.stack([part.frame_squared_error for part in parts])
        assert float(taught.scored) == float(scored.sum())
        torch.testing.assert_close(taught.frame_squared_error, (scored * errors).sum() / scored.sum().clamp(min=1))
        torch.testing.assert_close(taught.sums, torch.stack([part.sums for part in parts]).sum(0))
        torch.testing.assert_close(taught.errors, torch.cat([part.errors for part in parts], 1))
        assert torch.equal(taught.is_scored, torch.cat([part.is_scored for part in parts], 1))
    heard = torch.cat([one.model.last_frame(one.state.layers) for one in alone])
    assert torch.equal(learner.model.last_frame(learner.state.layers), heard)
    assert learner.phase(0.8) == "rectifier"
    assert int(learner.teach([batch], 0.8).scored) == STREAMS  # all at once again


def of_sizes(**how):
    """A learner of frames of two sizes, its settings, and a stream of both."""
    learner, learning, rectifying = learner_of(dropout=0.0)
    rectifying = rectifying.replace(adversarial_weight=0.0, discriminator_learning_rate=5e-4)
    torch.manual_seed(2)
    shape, others = (STREAMS, 1, SIZE, SIZE), ((1, 14, 14),)
    both = OnlineLearner(learner.model.config, learning, rectifying, True, shape, device(), others=others, **how)
    large = BouncingBalls(STREAMS, resolution=14, sequence_length=17, seed=1, first_sequence=1000)
    return both, learning, rectifying, Turns([balls(), large])


def test_each_size_goes_on_where_it_was(monkeypatch):
    """What a learner of two sizes knows of each is what a learner of that size alone knows, if no weight changes."""
    learner, learning, rectifying, stream = of_sizes()
    model, shapes = learner.model.config, frame_shapes(stream)
    torch.manual_seed(2)
    alone = [OnlineLearner(model, learning, rectifying, True, (STREAMS, *shape), device()) for shape in shapes]
    for one in (learner, *alone):
        one.model.load_state_dict(learner.model.state_dict())
        for optimiser in one.optimisers:
            monkeypatch.setattr(optimiser, "step", lambda: None)
    for step, batch in zip(range(STEPS), map(here, stream), strict=False):
        mine, theirs = (one.teach([batch], step / STEPS) for one in (learner, alone[step % 2]))
        torch.testing.assert_close(mine.losses, theirs.losses)
        torch.testing.assert_close(mine.frame_squared_error, theirs.frame_squared_error)
    states = [flatten("state", state) for state in learner.state]
    for mine, other in zip(states, alone, strict=True):
        theirs = flatten("state", other.state)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert [state.alone.shape for state in learner.state] == [(STREAMS,)] * 2


def test_an_adversary_needs_frames_of_one_size():
    _, learning, rectifying = learner_of()
    model, shape = learner_of()[0].model.config, (STREAMS, 1, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"adversarial_weight must be 0 where frames of several sizes .*; got 0\.02"):
        OnlineLearner(model, learning, rectifying, True, shape, others=((1, 14, 14),))
