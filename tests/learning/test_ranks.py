"""Two real processes learn what one learns from the same streams."""

import pytest
import torch
from launch import results
from warm_kernels import rectified_run, tiny_run

from torchrsm.baselines.dtsbn import DTSBNConfig
from torchrsm.baselines.lstm import LSTMConfig
from torchrsm.baselines.pgn import PGNConfig
from torchrsm.baselines.simvp import SimVPConfig
from torchrsm.baselines.unet import FramesUNetConfig
from torchrsm.learning.randomness import seed_of
from torchrsm.learning.ranks import Ranks
from torchrsm.learning.windows import SequenceLearningConfig
from torchrsm.rsm import kernels
from torchrsm.runs.settings import BaselineRunConfig, TrainingConfig
from torchrsm.state import flatten
from torchrsm.streams import BouncingBalls, StreamBatch
from torchrsm.streams.share import share_of

BATCH = 4


# --- What processes do together ---------------------------------------------------------------------------------------


def together(ranks):
    tensors = [torch.full((2, 3), 1.0 + ranks.rank), torch.tensor([0.5, ranks.rank], dtype=torch.float64)]
    tensors.append(torch.arange(6.0).view(3, 2).t() * (1 + ranks.rank))  # laid out in another order
    ranks.sum(tensors)
    ranks.sum([])
    try:
        ranks.from_first(refuse)
    except FileExistsError as error:
        refused = str(error)
    try:
        ranks.map(refuse_three, range(4))
    except ValueError as error:
        refused_item = str(error)
    return {
        "rank": (ranks.rank, ranks.count),
        "sums": tensors,
        "totals": ranks.totals((0.1 * (1 - ranks.rank), 1.0)),
        "everyone": ranks.everyone(f"rank {ranks.rank}"),
        "first": ranks.from_first(lambda: ranks.rank),
        "refused": (refused, refused_item),
        "mapped": ranks.map(lambda item: (item, ranks.rank), range(5)),
        "threads": kernels.threads(),
    }


def refuse():
    raise FileExistsError("a folder is taken")


def refuse_three(item):
    if item == 3:
        raise ValueError("not 3")


def test_two_processes_sum_decide_and_share_work():
    one, other = results(together)
    assert (one.pop("rank"), other.pop("rank")) == ((0, 2), (1, 2))
    for sums in (one.pop("sums"), other.pop("sums")):
        assert torch.equal(sums[0], torch.full((2, 3), 3.0))
        assert torch.equal(sums[1], torch.tensor([1.0, 1.0], dtype=torch.float64))
        assert torch.equal(sums[2], 3 * torch.arange(6.0).view(3, 2).t())
    assert one == other
    assert one["totals"] == [0.1, 2.0]
    assert one["everyone"] == ["rank 0", "rank 1"]
    assert one["first"] == 0
    assert one["refused"] == ("a folder is taken", "not 3")
    assert one["mapped"] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]


def test_a_process_alone_is_all_of_them():
    alone, tensor = Ranks(), torch.ones(2)
    alone.sum([tensor])
    alone.wait()
    assert torch.equal(tensor, torch.ones(2))
    assert (alone.totals((1, 2)), alone.everyone(3), alone.from_first(lambda: 4)) == ([1, 2], [3], 4)
    assert alone.map(str, (1, 2)) == ["1", "2"]


def test_each_rank_draws_other_numbers_and_rank_0_those_of_a_process_alone():
    assert seed_of(0, 7) == 7
    seeds = {seed_of(rank, seed) % 2**32 for rank in range(64) for seed in (0, 2**63 - 1)}
    assert len(seeds) == 128
    assert all(0 <= seed_of(rank, 2**63 - 1) < 2**63 for rank in range(64))


# --- What they learn --------------------------------------------------------------------------------------------------


def learnt(ranks, run, steps, progress, double=False):
    """Return weights, states and figures after some updates, without the trainer around them."""
    kernels.set_threads(1)
    before = torch.get_default_dtype()
    if double:
        torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        stream = share_of(BouncingBalls(BATCH, resolution=12, sequence_length=9), ranks.rank, ranks.count)
        learner = run.make_learner((stream.batch_size, *stream.frame_shape), torch.device("cpu"), True, ranks)
        figures = []
        for step in range(steps):
            at = progress[0] + (progress[1] - progress[0]) * step / steps
            if step == 0:
                learner.begin(learner.phase(at), 1)
            batches = [next(stream) for _ in range(learner.batches_per_update)]
            if double:
                batches = [StreamBatch(batch.frames.double(), *batch[1:]) for batch in batches]
            taught = learner.teach(batches, at)
            figures.append([float(taught.scored), float(taught.frame_squared_error), *taught.losses.tolist()])
        weights = {name: value for part in learner.modules.values() for name, value in part.state_dict().items()}
        return weights, flatten("state", learner.state), torch.tensor(figures, dtype=torch.float64)
    finally:
        torch.set_default_dtype(before)


def assert_two_learn_what_one_learns(run, steps, progress=(0.0, 0.0), tolerance=1e-5, double=False):
    weights, state, figures = learnt(Ranks(), run, steps, progress, double)
    one, other = results(learnt, run, steps, progress, double)
    for name in weights:
        assert torch.equal(one[0][name], other[0][name]), name
        torch.testing.assert_close(one[0][name], weights[name], rtol=0, atol=tolerance)
    for name, value in state.items():
        joined = torch.cat([one[1][name], other[1][name]])
        if value.is_floating_point():
            torch.testing.assert_close(joined, value, rtol=0, atol=100 * tolerance)
        else:
            assert torch.equal(joined, value), name  # winners, and which streams dream
    assert torch.equal(one[2], other[2])
    torch.testing.assert_close(one[2], figures, rtol=1e-4 if tolerance > 1e-9 else 1e-9, atol=1e-6)


def without_dropout(run):
    layers = tuple(layer.replace(dropout=0.0, output_bias="channel") for layer in run.model.layers)
    return run.replace(model=run.model.replace(layers=layers, height=12, width=12))


STACK = without_dropout(tiny_run(steps=1))


def rectified(**changes):
    settings = {"share": 0.7, "stack_share": 0.6, "loop_from": 0.0, "loop_error": 1000.0, "noise_deviation": 0.0}
    if changes.get("adversarial_weight") == 0:
        del settings["noise_deviation"]
    return without_dropout(rectified_run({**settings, **changes}, steps=1))


def test_the_stack_in_single_precision():
    assert_two_learn_what_one_learns(STACK, 200)


def test_the_stack_in_double_precision():
    """Sums over the batch are taken in two parts, so the last bits differ, and nothing else."""
    assert_two_learn_what_one_learns(STACK, 200, tolerance=1e-12, double=True)


@pytest.mark.parametrize("adversarial_weight", [0.0, 0.01])
@pytest.mark.parametrize("progress", [(0.35, 0.55), (0.7, 1.0)], ids=["both", "rectifier"])
def test_stack_and_rectifier_with_dreams(progress, adversarial_weight):
    run = rectified(adversarial_weight=adversarial_weight)
    assert_two_learn_what_one_learns(run, 40, progress)


def test_stack_and_rectifier_in_double_precision():
    assert_two_learn_what_one_learns(rectified(), 40, (0.35, 0.55), tolerance=1e-10, double=True)


def test_boosted_layers_count_the_wins_of_all_streams():
    layers = tuple(
        layer.replace(boost=1.0, boost_decay=0.9, inhibition_decay=None, dropout=0.0) for layer in STACK.model.layers
    )
    run = STACK.replace(model=STACK.model.replace(layers=layers))
    weights, *_ = learnt(Ranks(), run, 30, (0.0, 0.0))
    (one, *_), (other, *_) = results(learnt, run, 30, (0.0, 0.0))
    duties = [name for name in weights if name.endswith("duty")]
    assert len(duties) == 2
    for name in duties:
        assert weights[name].any()
        assert torch.equal(one[name], weights[name])
        assert torch.equal(other[name], weights[name])


SIZE = {"height": 12, "width": 12}
BASELINES = {
    "lstm": LSTMConfig(**SIZE, hidden_units=(16,)),
    "simvp": SimVPConfig(**SIZE),
    "pgn": PGNConfig(**SIZE),
    "unet": FramesUNetConfig(**SIZE),
}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines(name):
    learning = SequenceLearningConfig(window=6, gradient_norm=0.1)
    run = BaselineRunConfig(name=name, model=BASELINES[name], learning=learning, training=TrainingConfig(steps=1))
    assert_two_learn_what_one_learns(run, 5)


def test_running_statistics_of_a_baseline_are_the_same_on_all_ranks():
    run = BaselineRunConfig(
        name="dtsbn",
        model=DTSBNConfig(**SIZE, lower_units=8, upper_units=4),
        learning=SequenceLearningConfig(window=4),
        training=TrainingConfig(steps=1),
    )
    (one, *_), (other, *_) = results(learnt, run, 3, (0.0, 0.0))
    assert one["signal_variance"] > 0
    for name in one:
        assert torch.equal(one[name], other[name]), name
