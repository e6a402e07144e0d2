import copy
import itertools
import math

import pytest
import torch
from device_under_test import here
from playing import play

from torchrsm.baselines.unet import FramesUNet, FramesUNetConfig
from torchrsm.learning.local import LearningConfig, LocalLearning
from torchrsm.learning.online import OnlineLearner
from torchrsm.learning.windows import SequenceLearner
from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rectifiers.contract import InputSizes
from torchrsm.rectifiers.local import LocalConfig
from torchrsm.rectifiers.unet import UNetConfig, UNetGenerator
from torchrsm.rsm import kernels
from torchrsm.rsm import symmetry as ties_of_weights
from torchrsm.rsm.symmetry import (
    Axis,
    find_ties,
    give,
    give_anywhere,
    take_firsts,
    take_firsts_anywhere,
    take_means,
    take_means_anywhere,
    tie,
    turns,
)
from torchrsm.runs.presets import preset
from torchrsm.storage.folders import FORMAT, WEIGHTS_FILE
from torchrsm.storage.tensors import load_tensors, save_tensors
from torchrsm.streams.stream import StreamBatch

SIZE = 12
SQUARE = {
    "left to right": lambda x: x.flip(-1),
    "upside down": lambda x: x.flip(-2),
    "a quarter": lambda x: x.rot90(1, (-2, -1)),
    "half": lambda x: x.rot90(2, (-2, -1)),
    "three quarters": lambda x: x.rot90(3, (-2, -1)),
    "transposed": lambda x: x.transpose(-1, -2),
    "transposed, half": lambda x: x.transpose(-1, -2).rot90(2, (-2, -1)),
}
CASES = [*(("square", name) for name in SQUARE), ("mirror", "left to right")]


def config(symmetry, **changes):
    """A stack of two layers whose windows cover a frame alike from both sides.

    Of cells that are equal those of the lowest numbers win, which no turn can know. So there is no inhibition, which
    would act before the first frame, and there is place for whole blocks: where nothing is seen, all cells of a block
    are equal.
    """
    below = {"groups": 24, "active_groups": 8, "kernel_size": 6, "recurrent_kernel_size": 3, "changes": "last"}
    below |= {"activation": "sigmoid", "recurrent_deviation": 0.3, "decoder_deviation": 0.3, "input_decay": 0.5}
    above = {"groups": 16, "active_groups": 8, "kernel_size": 4, "decoder_kernel_size": 2}
    common = {"output_bias": "channel", "normalisation": "location", "dropout": 0.0, "inhibition_decay": None}
    layers = [{**layer, **common} for layer in (below, above)]
    settings = {"layers": layers, "pad": 2, "fresh_feedback": True, "symmetry": symmetry}
    settings["rectifier"] = CompactConfig(width=16, blocks=2)
    return ModelConfig.model_validate({**settings, **changes})


def learner(symmetry, **changes):
    torch.manual_seed(0)
    run = preset("balls").replace(**{"rectifying.share": 0.8, "rectifying.stack_share": 1.0})
    device = here(torch.zeros(())).device
    return OnlineLearner(config(symmetry, **changes), run.learning, run.rectifying, True, (3, 1, SIZE, SIZE), device)


def after_updates(symmetry, count=20, **changes):
    """A model that has learned, stack and rectifier, from frames that have no symmetry.

    It is in double precision, in which no two cells are so close that rounding decides which of them wins.
    """
    made = learner(symmetry, **changes)
    for step, batch in enumerate(uneven(count)):
        made.begin(made.phase(step / count), 1)
        made.teach([batch], step / count)
    tails = [weight for name, weight in made.model.rectifier.named_parameters() if name.endswith("tail.weight")]
    assert all(weight.abs().max() > 1e-3 for weight in tails)  # they began at 0, where any rectifier keeps a symmetry
    return made.model.double().eval()


@torch.no_grad()
def predictions(model, frames):
    return play(model, frames)[0]


def uneven(steps):
    """Batches of frames that have no symmetry."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        frames = torch.rand(3, 1, SIZE, SIZE, generator=generator) * torch.linspace(0, 1, SIZE)
        yield StreamBatch(here(frames), here(torch.zeros(3, dtype=torch.bool)), torch.zeros(3).long())


@pytest.fixture(scope="module")
def learned():
    return {symmetry: after_updates(symmetry) for symmetry in ("none", "mirror", "square")}


@pytest.mark.parametrize(("symmetry", "name"), CASES)
def test_the_prediction_of_a_turned_film_is_the_turned_prediction(learned, symmetry, name):
    frames = here(torch.rand(6, 2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double())
    turn, model = SQUARE[name], learned[symmetry]
    straight, turned = predictions(model, frames), predictions(model, turn(frames).contiguous())
    torch.testing.assert_close(turned, turn(straight), atol=1e-5, rtol=0)
    assert (turned - straight).abs().max() > 0.01


@pytest.mark.parametrize(("symmetry", "name"), [("none", "left to right"), ("mirror", "upside down")])
def test_no_other_turn_is_promised(learned, symmetry, name):
    frames = here(torch.rand(6, 2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double())
    turn, model = SQUARE[name], learned[symmetry]
    difference = predictions(model, turn(frames).contiguous()) - turn(predictions(model, frames))
    assert difference.abs().max() > 0.01


@pytest.mark.parametrize("sees_frames", [True, False])
@pytest.mark.parametrize("name", SQUARE)
def test_a_u_net_keeps_the_symmetry(unets, name, sees_frames):
    frames = here(torch.rand(4, 1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double())
    turn, model = SQUARE[name], unets[sees_frames]
    turned = predictions(model, turn(frames).contiguous())
    torch.testing.assert_close(turned, turn(predictions(model, frames)), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def unets():
    return {
        sees_frames: after_updates(
            "square", rectifier=UNetConfig(features=16, width=16, blocks=1, sees_frames=sees_frames)
        )
        for sees_frames in (True, False)
    }


@pytest.mark.parametrize("name", SQUARE)
def test_local_stages_keep_the_symmetry(local_stages, name):
    frames = here(torch.rand(4, 1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double())
    turn = SQUARE[name]
    turned = predictions(local_stages, turn(frames).contiguous())
    torch.testing.assert_close(turned, turn(predictions(local_stages, frames)), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def local_stages():
    return after_updates("square", rectifier=LocalConfig(stages=2, width=16))


@pytest.mark.parametrize("name", SQUARE)
def test_a_u_net_without_a_stack_keeps_the_symmetry(name):
    torch.manual_seed(0)
    model = FramesUNet(FramesUNetConfig(height=SIZE, width=SIZE, features=16, inner_features=16, symmetry="square"))
    learning = preset("unet").learning
    made = SequenceLearner(here(model), learning, (3, 1, SIZE, SIZE), here(torch.zeros(())).device)
    for step, batch in enumerate(uneven(4)):
        made.teach([batch], step / 4)
    assert model.generator.tail.weight.abs().max() > 1e-3
    frames = here(torch.rand(6, 1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double())
    model, turn = model.double().eval(), SQUARE[name]
    turned = predictions(model, turn(frames).contiguous())
    torch.testing.assert_close(turned, turn(predictions(model, frames)), atol=1e-5, rtol=0)


def test_every_engine_keeps_the_symmetry(engine):
    torch.manual_seed(0)
    model = here(VideoPredictor(config("square"), engine=engine)).eval()
    frames = here(torch.rand(3, 2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(
        predictions(model, frames.mT.contiguous()), predictions(model, frames).mT, atol=1e-5, rtol=0
    )


def test_weights_begin_with_the_same_deviation():
    torch.manual_seed(0)
    plain, tied = (VideoPredictor(config(symmetry)).stack.layers[0] for symmetry in ("none", "square"))
    for name in ("feedforward", "recurrent", "feedback", "decoder"):
        ratio = getattr(tied, name).std() / getattr(plain, name).std()
        assert 0.8 < ratio < 1.25, name


def test_what_is_no_chance_is_not_scaled():
    model = VideoPredictor(config("square", rectifier=UNetConfig(features=16, width=16)))
    assert (model.rectifier.draw.norm.weight == 1).all()


def test_turns_are_a_group():
    for symmetry, count in (("none", 1), ("mirror", 2), ("square", 8)):
        every = turns(symmetry)
        assert len(set(every)) == count
        products = {
            tuple((torch.tensor(a).view(2, 2) @ torch.tensor(b).view(2, 2)).flatten().tolist())
            for a, b in itertools.product(every, every)
        }
        assert products == set(every)


def classes_of(axes, symmetry):
    """The sets of places of a flat weight that are tied."""
    first, blocks = find_ties(axes, symmetry)
    return [{place + block * len(one) for place in one} for one in first.tolist() for block in range(blocks)]


AXES = [
    (Axis(9, "window"), Axis(3, "fixed"), Axis(16, "cells")),
    (Axis(16, "cells"), Axis(4, "window"), Axis(2, "fixed")),
    (Axis(8, "cells"), Axis(9, "window"), Axis(24, "cells")),
]


@pytest.mark.parametrize("axes", AXES)
def test_every_number_is_tied_to_as_many_as_there_are_turns(axes):
    classes = classes_of(axes, "square")
    assert sorted(place for tied in classes for place in tied) == list(range(math.prod(axis.size for axis in axes)))
    assert {len(tied) for tied in classes} == {8}


def test_a_mirror_ties_left_and_right():
    # A window of 2 x 2 and a block of 2 cells: cell 0 at a place is tied to cell 1 at the place beside it.
    classes = classes_of((Axis(4, "window"), Axis(2, "cells")), "mirror")
    assert sorted(map(sorted, classes)) == [[0, 3], [1, 2], [4, 7], [5, 6]]


def test_places_are_tied_where_there_are_no_cells():
    classes = classes_of((Axis(9, "window"),), "square")
    assert sorted(map(sorted, classes)) == [[0, 2, 6, 8], [1, 3, 5, 7], [4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tying_takes_the_mean(dtype):
    weight = here(torch.arange(8, dtype=dtype).view(4, 2))
    tie(weight, ties_here((Axis(4, "window"), Axis(2, "cells")), "mirror"))
    assert weight.tolist() == [[1.5, 1.5], [1.5, 1.5], [5.5, 5.5], [5.5, 5.5]]


def ties_here(axes, symmetry):
    ties = find_ties(axes, symmetry)
    return ties._replace(first=here(ties.first))


@pytest.mark.parametrize("axes", [*AXES, (Axis(9, "window"),)])
def test_numbers_are_taken_once_and_given_to_all_places(axes):
    ties, classes = ties_here(axes, "square"), classes_of(axes, "square")
    generator = torch.Generator().manual_seed(0)
    shape = math.prod(axis.size for axis in axes)
    weight, gradient = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    mean = torch.empty_like(gradient)
    for tied in map(list, classes):
        weight[tied], mean[tied] = weight[tied[0]].clone(), gradient[tied].mean()
    assert ties.sets == len(classes)
    ways = (take_firsts, take_means, give), (take_firsts_anywhere, take_means_anywhere, give_anywhere)
    for take_these, take_their_means, give_these in ways:
        numbers, means = (here(torch.empty(len(classes), dtype=torch.float64)) for _ in range(2))
        take_these(here(weight), numbers, ties)
        take_their_means(here(gradient), means, ties)
        for values, expected in ((numbers, weight), (means, mean)):
            given = here(torch.zeros_like(expected))
            give_these(values, given, ties)
            torch.testing.assert_close(given.cpu(), expected)


def test_a_weight_that_is_no_row_after_row_is_tied():
    axes = (Axis(9, "window"), Axis(8, "cells"))
    weight = here(torch.randn(8, 9, generator=torch.Generator().manual_seed(0)))
    straight, turned = weight.t().contiguous(), weight.t()
    for either in (straight, turned):
        tie(either, ties_here(axes, "square"))
    assert torch.equal(straight, turned)


def test_a_kernel_whose_channels_are_last_is_tied_in_place():
    """Weights and gradients of both memory formats end as equal numbers, in the format that they had."""
    sizes = InputSizes(channels=1, layer_cells=(24,), seen_channels=1, symmetry="square")
    network = here(UNetGenerator(UNetConfig(features=16, width=16, blocks=1, sees_frames=False), sizes))
    names = [name for name, weight in network.named_parameters() if not weight.is_contiguous()]
    assert len(names) >= 5
    for name in names:
        weight = network.get_parameter(name)
        drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        ends = []
        for memory_format in (torch.contiguous_format, torch.channels_last):
            weight.data = here(drawn).clone(memory_format=memory_format)
            network.tied.tie_weights(network)
            assert weight.is_contiguous(memory_format=memory_format)
            ends.append(weight.detach().clone())
        assert torch.equal(*ends)
        assert not torch.equal(ends[0], here(drawn))


def test_classes_of_the_same_rows_follow_each_other():
    axes = (Axis(9, "window"), Axis(16, "cells"), Axis(24, "cells"))
    rows = [tuple(sorted(set(tied))) for tied in (find_ties(axes, "square").first // 24).tolist()]
    changes = sum(a != b for a, b in itertools.pairwise(rows))
    assert changes + 1 == len(set(rows)) == 9 * 16 // 8


def test_an_optimiser_knows_tied_numbers_once():
    made = learner("square")
    below, above = made.optimisers[:2]
    for optimiser, layer in zip((below, above), made.model.stack.layers, strict=True):
        known = sum(weight.numel() for group in optimiser.param_groups for weight in group["params"])
        weights = dict(layer.named_parameters())
        tied = sum(weights[name].numel() for name in layer.tied.repeated())
        assert known == tied // 8 + sum(weight.numel() for weight in weights.values()) - tied
        assert tied > 100


def test_a_step_is_that_of_the_mean_gradient():
    made = learner("square")
    layers = made.model.stack.layers
    weights = [weight for layer in layers for weight in layer.parameters()]
    generator = torch.Generator().manual_seed(0)
    for weight in weights:
        weight.grad = here(torch.randn(weight.shape, generator=generator))
    expected = copy.deepcopy(layers)
    for layer, other, rate in zip(layers, expected, made._learning.learning_rates, strict=True):
        for weight, like in zip(layer.parameters(), other.parameters(), strict=True):
            like.grad = weight.grad.clone()
        other.tied.tie_gradients(other)
        torch.optim.Adam(other.parameters(), rate, betas=(0.9, 0.99)).step()
    with torch.no_grad():
        made._learning.step(made.model.predict_raw(made.state.layers))
    for layer, other in zip(layers, expected, strict=True):
        for (name, weight), like in zip(layer.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(weight, like, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("symmetry", ["none", "mirror", "square"])
def test_a_file_holds_tied_numbers_once(learned, symmetry, tmp_path):
    model = copy.deepcopy(learned[symmetry]).float()
    model.save(tmp_path)
    written, _ = load_tensors(tmp_path / WEIGHTS_FILE)
    count = len(turns(symmetry))
    for name in ("feedforward", "recurrent", "feedback", "decoder", "bias"):
        weight = getattr(model.stack.layers[0], name)
        assert written[f"stack.layers.0.{name}"].numel() * count == weight.numel()
    assert written["rectifier.tail.weight"].numel() * count == model.rectifier.tail.weight.numel()
    loaded = VideoPredictor.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.cpu()), name


def test_a_weight_whose_tied_numbers_differ_is_written_whole(tmp_path):
    torch.manual_seed(0)
    model = VideoPredictor(config("square"))
    with torch.no_grad():
        model.stack.layers[0].recurrent[3, 5] += 1
    model.save(tmp_path)
    written, _ = load_tensors(tmp_path / WEIGHTS_FILE)
    assert torch.equal(written["stack.layers.0.recurrent"], model.stack.layers[0].recurrent)
    assert written["stack.layers.0.decoder"].numel() * 8 == model.stack.layers[0].decoder.numel()
    assert torch.equal(
        VideoPredictor.from_pretrained(tmp_path).stack.layers[0].recurrent, model.stack.layers[0].recurrent
    )


def test_a_file_of_whole_weights_is_read(tmp_path):
    torch.manual_seed(0)
    model = VideoPredictor(config("square"))
    model.save(tmp_path)
    save_tensors(tmp_path / WEIGHTS_FILE, model.state_dict(), {"format": FORMAT})
    for name, weight in VideoPredictor.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_settings_may_ask_for_as_many_more_numbers_as_there_are_turns():
    assert [config(symmetry).copies for symmetry in ("none", "mirror", "square")] == [1, 2, 8]
    assert [FramesUNetConfig(height=SIZE, width=SIZE, symmetry=s).copies for s in ("none", "mirror")] == [1, 2]
    assert preset("simvp").model.copies == 1


def test_too_few_numbers_of_a_tied_weight_are_refused(tmp_path):
    model = VideoPredictor(config("square"))
    model.save(tmp_path)
    written, header = load_tensors(tmp_path / WEIGHTS_FILE)
    save_tensors(tmp_path / WEIGHTS_FILE, written | {"stack.layers.0.decoder": torch.zeros(7)}, header)
    with pytest.raises(ValueError, match=r"weight stack\.layers\.0\.decoder must be \(24, 36\) .*; got \(7,\)"):
        VideoPredictor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers.1.groups": 12},
            "symmetry 'square' needs groups of one cell, 8 or a multiple of it; layer 2 has 12 of 1",
        ),
        ({"layers.0.cells_per_group": 2}, "layer 1 has 24 of 2"),
        ({"rectifier": UNetConfig(width=24)}, "symmetry 'square' needs width, .* of 16 or .*; got 24"),
        ({"rectifier.width": 12}, "symmetry 'square' needs a width of 8 or a multiple of it; got 12"),
        (
            {"layers.1.output_bias": "element", "height": 12, "width": 12},
            "layer 2 has decoder 'convolutional' and output_bias 'element'",
        ),
    ],
)
def test_a_stack_that_cannot_be_turned_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config("square").replace(**changes)


def test_a_symmetry_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="none.*mirror.*square"):
        config("round")


@pytest.mark.cpu_only
def test_ties_in_pieces_are_the_ties(monkeypatch):
    layer = learner("square").model.stack.layers[0]
    for name in layer.tied.repeated():
        (everything,) = layer.tied.pieces(name)
        monkeypatch.setattr(ties_of_weights, "_PIECE", 100)
        pieces = layer.tied.pieces(name)
        monkeypatch.undo()
        assert len(pieces) > 1 or everything[1].sets < 100
        numbers = torch.arange(everything[1].sets, dtype=torch.float32)
        whole, given = (torch.zeros_like(layer.get_parameter(name).cpu()) for _ in range(2))
        give(numbers, whole, everything[1]._replace(first=everything[1].first.cpu()))
        for part, ties in pieces:
            assert ties.sets == len(numbers[part])
            give(numbers[part], given, ties._replace(first=ties.first.cpu()))
        assert torch.equal(given, whole)


@pytest.mark.cpu_only
def test_a_step_in_pieces_and_threads_is_that_of_one(monkeypatch):
    ends = []
    for threads, piece in ((1, ties_of_weights._PIECE), (3, 100)):
        monkeypatch.setattr(ties_of_weights, "_PIECE", piece)
        torch.manual_seed(0)
        model = VideoPredictor(config("square"))
        before = [weight.detach().clone() for weight in model.stack.parameters()]
        learning = LocalLearning(model, LearningConfig())
        for number, weight in enumerate(model.stack.parameters()):
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        with kernels.threads_in_use(threads):
            learning.step(model.predict_raw(model.initial_state((1, 1, SIZE, SIZE))))
        ends.append([weight.detach().clone() for weight in model.stack.parameters()])
    assert all(map(torch.equal, *ends))
    assert not any(map(torch.equal, before, ends[0]))
