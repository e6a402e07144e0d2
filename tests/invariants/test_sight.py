"""What a rectifier sees: its output follows from what `sees` names, and changes with each of these."""

import pytest
import torch
from device_under_test import here
from pydantic import TypeAdapter

from torchrsm.interventions import with_shuffled_winners
from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.rectifiers import RECTIFIERS, AnyRectifierConfig
from torchrsm.rsm.layer import LayerConfig
from torchrsm.runs.presets import preset
from torchrsm.runs.settings import RunConfig

SHAPE = (2, 1, 10, 8)
LAYER = {"groups": 8, "active_groups": 3, "kernel_size": 3, "output_bias": "channel"}
LAYERS = (LayerConfig(**LAYER, activation="sigmoid", input_frames=2, input_decay=0.5), LayerConfig(**LAYER))


def variants():
    """Every kind of rectifier with its defaults, and with each setting that decides what it sees."""
    choices = {"sees_cells": (False,), "sees_frames": (False,), "changes": ("last",)}
    for kind, (config, _) in RECTIFIERS.items():
        yield pytest.param({"kind": kind}, id=kind)
        for name, values in choices.items():
            for value in values if name in config.model_fields else ():
                yield pytest.param({"kind": kind, name: value}, id=f"{kind}, {name} {value}")


def made(settings):
    """A model none of whose weights is 0."""
    torch.manual_seed(0)
    rectifier = TypeAdapter(AnyRectifierConfig).validate_python(settings)
    model = VideoPredictor(ModelConfig(layers=LAYERS, pad=2, fresh_feedback=True, rectifier=rectifier)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=variants())
def model(request):
    return here(made(request.param))


@pytest.fixture(params=[one for one in variants() if "frames" not in made(*one.values).rectifier.sees])
def without_frames(request):
    """A model whose rectifier says that it sees no frames."""
    return here(made(request.param))


@torch.no_grad()
def prediction_after(model, seed, steps=5):
    """What a model predicts after some frames."""
    frames = here(torch.rand(steps, *SHAPE, generator=torch.Generator().manual_seed(seed)))
    state = model.initial_state(SHAPE)
    for frame in frames:
        state = model.observe(frame, model.predict(state), state)
    return model.predict(state)


def with_cells_of(prediction, other, level):
    """A prediction with the winners that another one has in a layer."""
    layers = list(prediction.layers)
    layers[level] = layers[level]._replace(cells=other.layers[level].cells)
    return prediction._replace(layers=tuple(layers))


@torch.no_grad()
def test_a_rectifier_sees_what_it_says(model):
    one, other = prediction_after(model, 1), prediction_after(model, 2)
    changed = {
        "prediction": [one._replace(raw=other.raw)],
        "cells": [with_cells_of(one, other, level) for level in range(len(LAYERS))],
        "frames": [one._replace(seen=other.seen)],
    }
    for what, predictions in changed.items():
        for prediction in predictions:
            frame = model.rectify(prediction)
            assert torch.equal(frame, one.frame) == (what not in model.rectifier.sees), what
    assert set(model.rectifier.sees) <= changed.keys()


@torch.no_grad()
def test_the_same_prediction_and_winners_give_the_same_frame_whatever_came_before(without_frames):
    """Of a rectifier that sees no frames: those may be of another history, or no numbers at all."""
    model = without_frames
    prediction = prediction_after(model, 1)
    for history in (2, 3):
        other = prediction_after(model, history, steps=history)
        assert not torch.equal(other.frame, prediction.frame)
        same = with_cells_of(with_cells_of(other, prediction, 0), prediction, 1)._replace(raw=prediction.raw)
        assert not torch.equal(same.seen, prediction.seen)
        assert torch.equal(model.rectify(same), prediction.frame)
        unseen = same._replace(seen=torch.full_like(same.seen, float("nan")))
        assert torch.equal(model.rectify(unseen), prediction.frame)


@torch.no_grad()
def test_every_stage_sees_no_more_than_the_rectifier(without_frames):
    model = without_frames
    prediction = prediction_after(model, 1)
    cells = [layer.cells for layer in prediction.layers]
    made = [
        model.rectifier.stages(prediction.raw, cells, seen)
        for seen in (prediction.seen, torch.full_like(prediction.seen, float("nan")))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_shuffled_winners_are_seen_as_they_were(model):
    if "cells" in model.rectifier.sees:
        assert with_shuffled_winners(model).rectifier.sees == model.rectifier.sees


WITHOUT_FRAMES = (
    "balls",
    "balls-large",
    "balls-local",
    "balls-any",
    "balls-compact",
    "balls-wide",
    "paper",
    "paper-1l",
    "paper-rectifier",
)


@pytest.mark.parametrize("name", WITHOUT_FRAMES)
def test_presets_whose_rectifier_has_no_frames(name):
    run = preset(name)
    assert isinstance(run, RunConfig)
    assert "frames" not in VideoPredictor(run.model).rectifier.sees
