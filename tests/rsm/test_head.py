"""The head that names symbols: what it computes, what it learns from, and what is refused."""

import pytest
import torch
from device_under_test import here
from pydantic import ValidationError
from torch.nn import functional as F

from torchrsm.learning.local import LearningConfig, LocalLearning
from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.rsm.functional import Cells, Grid, to_dense
from torchrsm.rsm.head import HeadConfig, SymbolHead
from torchrsm.rsm.layer import LayerConfig

SYMBOLS = 5


def layer(**settings):
    return LayerConfig(**{"groups": 8, "cells_per_group": 2, "active_groups": 3, "kernel_size": 3, **settings})


def build(hidden_units=None, **settings):
    torch.manual_seed(0)
    layers = (layer(pool=2, activation="sigmoid"), layer(groups=6))
    config = ModelConfig(
        **{"layers": layers, "height": 6, "width": 8, "head": HeadConfig(symbols=SYMBOLS, hidden_units=hidden_units)}
        | settings
    )
    return here(VideoPredictor(config))


def frames(steps=3, batch=4):
    return here(torch.rand(steps, batch, 1, 6, 8, generator=torch.Generator().manual_seed(0)))


def watched(model):
    state = model.initial_state((4, 1, 6, 8))
    for frame in frames():
        prediction = model.predict(state)
        state = model.observe(frame, prediction, state)
    return model.predict(state)


def symbols():
    return here(torch.tensor([0, 4, 2, 2]))


@pytest.mark.parametrize("hidden_units", [None, 7])
def test_it_reads_the_winners_of_all_places_of_all_layers(hidden_units):
    model = build(hidden_units).eval()
    prediction = watched(model)
    cells = [part.cells for part in prediction.layers]
    counts = [config.cells for config in model.config.layers]
    dense = torch.cat([to_dense(part, count).flatten(1) for part, count in zip(cells, counts, strict=True)], 1)
    head = model.head
    assert head.weight.shape[0] == dense.shape[1] == 3 * 4 * 16 + 1 * 1 * 12
    x = dense @ head.weight + head.bias
    if hidden_units is not None:
        x = head.readout(F.leaky_relu(x))
    torch.testing.assert_close(prediction.symbols, F.log_softmax(x, 1))
    torch.testing.assert_close(prediction.symbols.exp().sum(1), here(torch.ones(4)))


def test_a_place_without_winners_says_nothing():
    head = here(SymbolHead(HeadConfig(symbols=3), [4], [Grid(1, 1)]))
    none = here(Cells(torch.full((2, 1, 1, 2), -1, dtype=torch.int32), torch.zeros(2, 1, 1, 2)))
    torch.testing.assert_close(head([Cells(*none)]), F.log_softmax(head.bias, 0).expand(2, 3))


def test_no_gradient_crosses_to_or_from_the_head():
    model = build(7)
    prediction = watched(model)
    learn = here(torch.ones(4, dtype=torch.bool))
    *layers, head = LocalLearning(model, LearningConfig()).losses(prediction, frames()[0], learn, symbols())
    head.backward(retain_graph=True)
    assert all(weight.grad is None or not weight.grad.any() for weight in model.stack.parameters())
    assert all(weight.grad.abs().max() > 0 for weight in model.head.parameters())
    model.zero_grad()
    for loss in layers:
        loss.backward(retain_graph=True)
    assert all(weight.grad is None or not weight.grad.any() for weight in model.head.parameters())


def test_a_step_of_the_head_changes_the_head_alone():
    model = build()
    learning = LocalLearning(model, LearningConfig(head_learning_rate=0.1))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    prediction, learn = watched(model), here(torch.ones(4, dtype=torch.bool))
    *layers, head = learning.losses(prediction, frames()[0], learn, symbols())
    learning.find_gradients((*(0 * loss for loss in layers), head))
    learning.step(prediction)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_the_loss_is_the_cross_entropy_of_those_that_learn():
    model = build().eval()
    prediction = watched(model)
    learn = here(torch.tensor([True, False, True, False]))
    expected = F.nll_loss(prediction.symbols[[0, 2]], symbols()[[0, 2]])
    torch.testing.assert_close(model.symbol_loss(prediction, symbols(), learn), expected)
    assert model.symbol_loss(prediction, symbols(), ~learn & learn) == 0


def test_it_is_saved_with_the_model(tmp_path):
    model = build(7)
    model.save(tmp_path)
    loaded = VideoPredictor.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert all(torch.equal(a.cpu(), b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.tensor([0, 1, 2, 5]), r"symbols must be in 0\.\.4; got 5"),
        (torch.tensor([0, 1, 2, -1]), r"symbols must be in 0\.\.4; got -1"),
        (torch.tensor([0, 1, 2]), r"symbols must be torch.int64 \[4\]; got torch.int64 \[3\]"),
        (torch.tensor([0.0, 1, 2, 3]), r"symbols must be torch.int64 \[4\]; got torch.float32 \[4\]"),
        ([0, 1, 2, 3], "symbols must be .*; got list"),
    ],
)
def test_other_symbols_are_refused(given, message):
    model = build()
    prediction, learn = watched(model), here(torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=message):
        model.symbol_loss(prediction, given, learn)


def test_without_a_head_there_are_no_symbols():
    model = build(head=None)
    prediction, learn = watched(model), here(torch.ones(4, dtype=torch.bool))
    assert prediction.symbols is None
    with pytest.raises(ValueError, match="model must have a head to learn symbols"):
        model.symbol_loss(prediction, symbols(), learn)
    with pytest.raises(ValueError, match="the stream must be one of symbols for a model with a head"):
        LocalLearning(build(), LearningConfig()).losses(watched(build()), frames()[0], learn, None)


def test_bad_settings_are_refused():
    with pytest.raises(ValidationError, match="height and width must be given: a head sees the winners of each place"):
        ModelConfig(layers=(layer(output_bias="channel"),), head=HeadConfig(symbols=3))
    for settings in ({"symbols": 1}, {"symbols": 3, "hidden_units": 0}, {"symbols": 3, "dropout": 1.0}):
        with pytest.raises(ValidationError):
            HeadConfig(**settings)
