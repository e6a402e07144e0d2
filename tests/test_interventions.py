import pytest
import torch
from torch import nn

from torchrsm.interventions import with_shuffled_winners, without_feedback, without_memory
from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rectifiers.sharpening import SharpeningConfig
from torchrsm.rsm.functional import empty_cells
from torchrsm.rsm.layer import LayerConfig
from torchrsm.scoring.evaluation import Evaluator

SHAPE = (3, 1, 10, 8)
LAYER = {"groups": 9, "active_groups": 3, "kernel_size": 3, "output_bias": "channel", "inhibition_decay": None}
BELOW, ABOVE = LayerConfig(**LAYER, recurrent_kernel_size=3, activation="sigmoid"), LayerConfig(**LAYER)


SEES_WINNERS = CompactConfig(width=4, blocks=1)


def build(layers=(BELOW, ABOVE), fresh_feedback=True, rectifier=SEES_WINNERS):
    torch.manual_seed(0)
    fresh = {"fresh_feedback": fresh_feedback} if len(layers) > 1 else {}
    model = VideoPredictor(ModelConfig(layers=layers, pad=1, rectifier=rectifier, **fresh)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def frames(count=6, seed=0):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def watch(model, video, hear=lambda state: state):
    """The predictions of a video; ``hear`` changes what the model remembers before each of them."""
    state, found = model.initial_state(SHAPE), []
    for frame in video:
        found.append(model.predict(hear(state)))
        state = model.observe(frame, found[-1], state)
    return found


def differs(a, b):
    return (a - b).abs().max() > 1e-3


CUTS = {
    "memory": without_memory,
    "feedback": without_feedback,
    "locations": lambda model: with_shuffled_winners(model, "locations"),
    "cells": lambda model: with_shuffled_winners(model, "cells"),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_changes_what_is_predicted_and_not_the_model(cut):
    model = build()
    before = watch(model, frames())
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    other = watch(CUTS[cut](model), frames())
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert all(torch.equal(a.frame, b.frame) for a, b in zip(before, watch(model, frames()), strict=True))
    assert differs(before[-1].frame, other[-1].frame)
    assert torch.equal(before[-1].raw, other[-1].raw) == (cut in ("locations", "cells"))


@pytest.mark.parametrize("fresh_feedback", [True, False])
def test_without_memory_the_layers_own_last_cells_are_not_heard(fresh_feedback):
    """Feedback is, so a layer below hears of the past by way of the one above, of whose input it was."""
    model = build(fresh_feedback=fresh_feedback)
    empty = [empty_cells(SHAPE[0], part.cells.index.shape[1:3], 3) for part in model.initial_state(SHAPE)]

    def forget(state):
        if not fresh_feedback:  # the cells of the layer above are what is fed back
            return (state[0]._replace(cells=empty[0]), state[1])
        return tuple(part._replace(cells=none) for part, none in zip(state, empty, strict=True))

    if not fresh_feedback:
        model.stack.layers[1].recurrent.data.zero_()
    for cut, forgetful in zip(watch(without_memory(model), frames()), watch(model, frames(), forget), strict=True):
        torch.testing.assert_close(cut.raw, forgetful.raw, rtol=0, atol=1e-6)


def test_one_layer_without_memory_sees_the_last_frame_alone():
    cut, video = without_memory(build((BELOW,))), frames()
    other = torch.cat((frames(seed=1)[:-2], video[-2:]))
    assert torch.equal(watch(cut, video)[-1].frame, watch(cut, other)[-1].frame)
    assert differs(watch(build((BELOW,)), video)[-1].frame, watch(build((BELOW,)), other)[-1].frame)


def test_without_feedback_the_layer_below_is_as_if_alone():
    model = build()
    alone = build((BELOW,))
    own = {name: weight for name, weight in model.stack.layers[0].state_dict().items() if name != "feedback"}
    alone.stack.layers[0].load_state_dict(own)
    for cut, single in zip(watch(without_feedback(model), frames()), watch(alone, frames()), strict=True):
        torch.testing.assert_close(cut.raw, single.raw, rtol=0, atol=1e-6)


def test_cuts_add_up():
    model = build()
    both = watch(without_feedback(without_memory(model)), frames())
    other = torch.cat((frames(seed=1)[:-2], frames()[-2:]))
    assert torch.equal(both[-1].raw, watch(without_memory(without_feedback(model)), other)[-1].raw)


class Recorder(nn.Module):
    """Keeps the winners that a rectifier is shown."""

    def __init__(self, rectifier):
        super().__init__()
        self.rectifier, self.shown = rectifier, []

    @property
    def sees(self):
        return self.rectifier.sees

    def forward(self, raw, cells, seen, noise=None):
        self.shown.append(cells)
        return self.rectifier(raw, cells, seen, noise)


def shown(among, seed=0):
    """The winners of both layers as the stack chose them, and as the rectifier is shown them."""
    model = build()
    model.rectifier = Recorder(model.rectifier)
    cut = with_shuffled_winners(model, among, seed)
    prediction = watch(cut, frames())[-1]
    return [layer.cells for layer in prediction.layers], cut.rectifier.rectifier.shown[-1]


def test_locations_are_permuted_with_their_winners():
    for chosen, seen in zip(*shown("locations"), strict=True):
        assert not torch.equal(chosen.index, seen.index)
        rows = [
            [torch.cat((c.index[n].flatten(0, 1), c.value[n].flatten(0, 1)), 1).tolist() for n in range(SHAPE[0])]
            for c in (chosen, seen)
        ]
        for before, after in zip(*rows, strict=True):
            assert sorted(before) == sorted(after)


def test_cells_are_renamed_the_same_everywhere():
    for chosen, seen in zip(*shown("cells"), strict=True):
        assert torch.equal(chosen.value, seen.value)
        names = set(zip(chosen.index.flatten().tolist(), seen.index.flatten().tolist(), strict=True))
        old, new = ({pair[side] for pair in names} for side in (0, 1))
        assert len(names) == len(old) == len(new)  # one name for each cell, another for each other one
        assert any(a != b for a, b in names)
        assert new <= set(range(9))


def test_a_seed_names_the_permutation():
    first, same, other = (shown("cells", seed)[1][0].index for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_model_is_scored_and_dreams_as_any_other(cut):
    model, video = build(), torch.rand(4, 6, *SHAPE[1:], generator=torch.Generator().manual_seed(2))
    scores = [
        Evaluator(video, size, similarity=False).evaluate(CUTS[cut](model)).frame_squared_error.all_predictable.mean
        for size in (1, 4)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)  # no sample hears another
    assert scores[0] != Evaluator(video, similarity=False).evaluate(model).frame_squared_error.all_predictable.mean
    state = CUTS[cut](model).initial_state(SHAPE)
    assert CUTS[cut](model).rollout(state, 3)[0].shape == (SHAPE[0], 3, *SHAPE[1:])


def test_what_is_not_there_cannot_be_cut():
    with pytest.raises(ValueError, match=r"^model must have feedback; got one of 1 layer\(s\) without it$"):
        without_feedback(build((BELOW,)))
    with pytest.raises(ValueError, match="^rectifier must see the winners .*; got one that sees prediction$"):
        with_shuffled_winners(build(rectifier=SharpeningConfig()))
    with pytest.raises(ValueError, match="^rectifier must see the winners .*; got one that sees nothing$"):
        with_shuffled_winners(build(rectifier=None))
    with pytest.raises(ValueError, match="^among must be one of locations, cells; got 'samples'$"):
        with_shuffled_winners(build(), "samples")
