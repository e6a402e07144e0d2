"""A state is made where its model is: nothing that a model remembers is made without saying where.

The device ``meta`` has shapes and no values. What is made on the CPU by mistake meets it and fails; so does what asks
for a value, which on an accelerator would wait for all its work.
"""

import pytest
import torch

from torchrsm import LearningConfig, RectifyingConfig, VideoPredictor, preset
from torchrsm.baselines import BASELINES, make_baseline
from torchrsm.baselines.sequence_model import Window
from torchrsm.learning.online import OnlineLearner
from torchrsm.learning.windows import SequenceLearner, SequenceLearningConfig
from torchrsm.rectifiers import RECTIFIERS
from torchrsm.state import flatten, to_device
from torchrsm.systems import load

META = torch.device("meta")

LOOKS_AT_VALUES = {"constant-velocity"}  # it finds balls, which needs pixels

COUNTS = {"seq2seq-convlstm-multi-decoder"}  # reads a number of its own once in an update

LEARNS = sorted(set(BASELINES) - LOOKS_AT_VALUES - COUNTS - {"copy-last"})


def devices(*states):
    return {tensor.device for state in states for tensor in flatten("state", state).values()}


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_remembers_where_it_is(name):
    config = BASELINES[name][0]()
    model = make_baseline(config).to(META)
    shape = (2, config.channels, config.height, config.width)
    state = model.initial_state(shape)
    assert devices(state) == {META}
    assert model.like.device == META
    if name in LOOKS_AT_VALUES:
        return
    prediction = model.predict(state)
    after = model.observe(torch.zeros(shape, device=META), prediction, state)
    assert devices(prediction.frame, after) == {META}


@pytest.mark.parametrize("name", LEARNS)
def test_a_baseline_learns_where_it_is(name):
    config = BASELINES[name][0]()
    learner = SequenceLearner(make_baseline(config), SequenceLearningConfig(window=12), (2, *shape_of(config)), META)
    frames = torch.zeros(12, 2, *shape_of(config), device=META)
    lesson = learner.model.learn(Window(frames, torch.zeros(12, 2, dtype=torch.bool, device=META)), learner.state)
    assert devices(lesson.state, lesson.losses, lesson.frames, lesson.scored) == {META}
    assert devices(learner.state) == {META}


def shape_of(config):
    return config.channels, config.height, config.width


@pytest.mark.parametrize("name", ["paper", "balls", "tiny", "paper-fast"])
def test_rsm_remembers_where_it_is(name):
    config = preset(name).model
    model = VideoPredictor(config).to(META)
    shape = (2, config.channels, config.height or 30, config.width or 30)
    state = model.initial_state(shape)
    assert devices(state) == {META}
    prediction = model.predict(state)
    frame = torch.zeros(shape, device=META)
    after = model.observe(frame, prediction, state)
    assert devices(prediction.frame, prediction.raw, prediction.seen, after, model.last_frame(after)) == {META}
    assert devices(model.losses(prediction, frame)) == {META}
    assert [s.shape for s in flatten("s", after).values()] == [s.shape for s in flatten("s", state).values()]


@pytest.mark.parametrize("kind", RECTIFIERS)
def test_all_that_learns_is_where_the_run_says(kind):
    run = preset("balls")
    settings = run.model.model_dump() | {"rectifier": {"kind": kind}}
    model = type(run.model).model_validate(settings)
    learns = RECTIFIERS[kind][0].learns
    rectifying = RectifyingConfig(matrix_learning_rate=1e-3) if learns else None
    learner = OnlineLearner(model, LearningConfig(), rectifying, True, (2, 1, 30, 30), META)
    tensors = [tensor for module in learner.modules.values() for tensor in (*module.parameters(), *module.buffers())]
    assert devices(learner.state, tuple(tensors)) == {META}
    assert ("discriminator" in learner.modules) is learns
    learner.warm_up()


def test_a_seed_gives_the_same_weights_on_any_device():
    """They are drawn on the CPU and then moved."""
    run = preset("tiny")
    weights = []
    for device in ("cpu", "meta"):
        torch.manual_seed(3)
        OnlineLearner(run.model, run.learning, run.rectifying, True, (2, 1, 12, 12), torch.device(device))
        weights.append(torch.rand(1))
    assert torch.equal(*weights)  # as many numbers were drawn


def test_a_state_moves_with_its_model():
    model = load("balls")
    state = model.initial_state((1, 1, 30, 30))
    assert devices(to_device(state, META)) == {META}
