"""The law of the update: nothing in it asks the host for a value, and nothing in it leaves the device.

A step that waits for a value leaves an accelerator idle, and it cannot be a CUDA graph. On the CPU every way to ask is
made an error; on the device ``meta``, whose tensors have no values, whatever depends on a value or mixes devices
fails by itself.
"""

import pytest
import torch
from elsewhere import look_at_no_values
from no_waiting import NoWaiting, WaitedError

from torchrsm import preset
from torchrsm.baselines import make_baseline
from torchrsm.baselines.sequence_model import Window
from torchrsm.learning.online import OnlineLearner
from torchrsm.learning.windows import SequenceLearner
from torchrsm.rsm.layer import RSMLayer
from torchrsm.runs.presets import PRESETS
from torchrsm.runs.settings import BaselineRunConfig
from torchrsm.state import flatten
from torchrsm.streams import BouncingBalls
from torchrsm.streams.settings import BouncingBallsConfig, make_stream

STREAMS = 4
CPU, META = torch.device("cpu"), torch.device("meta")
LEARN = [
    name
    for name in PRESETS
    if isinstance(preset(name), BaselineRunConfig) and make_baseline(preset(name).model).weight_groups()[0]
]
ASK = {"seq2seq-convlstm-multi-decoder"}  # how many frames it decodes depends on how many updates there were


def not_recorded(device):
    return None


def on_the_dense_engine(learner):
    for part in learner.model.modules():
        if isinstance(part, RSMLayer):
            part.engine = "reference"
    return learner


def online(name, device=CPU, **changes):
    run = preset(name)
    if run.rectifying is not None and run.rectifying.loop_share:
        run = run.replace(**{"rectifying.loop_share": 0.5, "rectifying.loop_error": 1e6})
    run = run.replace(**changes)
    size = run.model.height or 16
    shape = (STREAMS, 1, size, size)
    learner = OnlineLearner(run.model, run.learning, run.rectifying, True, shape, device, recorder_for=not_recorded)
    return on_the_dense_engine(learner), BouncingBalls(STREAMS, resolution=size, sequence_length=7, seed=1)


def progress_by_phase(learner):
    """A point of a run for each of its phases, late in it."""
    return {learner.phase(point): point for point in (k / 200 for k in range(200))}


RSM = {
    "paper": {},
    "balls-wide": {},
    "balls": {},
    "balls with a discriminator": {"rectifying.adversarial_weight": 0.01},
    "paper-fast": {},
}


def case(name):
    return name.partition(" ")[0], RSM[name]


@pytest.mark.parametrize("name", RSM)
def test_no_update_asks_the_host(name, monkeypatch):
    look_at_no_values(monkeypatch)
    preset_name, changes = case(name)
    learner, stream = online(preset_name, **changes)
    dreamt = 0
    for phase, progress in progress_by_phase(learner).items():
        learner.begin(phase, 1)
        for _ in range(4):
            batch = next(stream)
            with NoWaiting():
                taught = learner.teach([batch], progress)
            assert taught.losses.isfinite().all()
            assert taught.losses.shape == (len(learner.loss_names(phase)),)
            dreamt += int((learner.state.alone > 0).sum())
    dreams = learner._rectifying is not None and learner._rectifying.config.loop_share > 0
    assert (dreamt > 0) is dreams


@pytest.mark.parametrize("name", LEARN)
def test_a_baseline_asks_the_host_only_where_it_says_so(name, monkeypatch):
    look_at_no_values(monkeypatch)
    run = preset(name)
    learning = run.learning.replace(window=10)
    of_balls = isinstance(run.stream, BouncingBallsConfig)
    stream = BouncingBalls(2, sequence_length=7, seed=1) if of_balls else make_stream(run.stream, 2, 1)
    shape = (2, *stream.frame_shape)
    learner = SequenceLearner(make_baseline(run.model), learning, shape, recorder_for=not_recorded)
    batches = [next(stream) for _ in range(10)]
    assert learner.model.asks_for_values is (name in ASK)
    if name in ASK:
        with pytest.raises(WaitedError), NoWaiting():
            learner.teach(batches, 0.5)
    else:
        with NoWaiting():
            taught = learner.teach(batches, 0.5)
        assert taught.losses.isfinite().all()


# --- Tensors without values -------------------------------------------------------------------------------------------


@pytest.fixture
def without_adam(monkeypatch):
    """Its step is one operator of torch on an accelerator, but not here."""
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)


def places(*parts):
    return {tensor.device for part in parts for tensor in flatten("part", part).values()}


def gone_through(learner):
    """All that learns, and what optimisers remember of it."""
    yield from (weight for module in learner.modules.values() for weight in module.parameters())
    for optimiser in learner.optimisers:
        yield from (value for entry in optimiser.state.values() for value in entry.values())


@pytest.mark.parametrize("masked", [False, True], ids=["all seen", "a part is hidden"])
@pytest.mark.parametrize("name", RSM)
@pytest.mark.usefixtures("without_adam")
def test_an_update_stays_on_its_device(name, masked):
    """Weights, states, what optimisers remember, and figures."""
    preset_name, changes = case(name)
    learner, _ = online(preset_name, META, **changes)
    frames = torch.zeros(*learner.model.last_frame(learner.state.layers).shape, device=META)
    seen = torch.ones(STREAMS, 1, *frames.shape[2:], dtype=torch.bool, device=META) if masked else None
    inputs = (frames, torch.zeros(STREAMS, dtype=torch.bool, device=META), seen, None)
    for phase, progress in progress_by_phase(learner).items():
        learner.begin(phase, 1)
        learner._set_progress(progress)
        for _ in range(2):
            with NoWaiting():
                taught, learner.state = learner._update(phase, inputs, learner.state)
        assert places(taught, learner.state) == {META}
        assert taught.losses.shape == (len(learner.loss_names(phase)),)
    assert places(tuple(gone_through(learner))) == {META}


@pytest.mark.parametrize("masked", [False, True], ids=["all seen", "a part is hidden"])
@pytest.mark.parametrize("name", ["simvp", "unet", "predrnn", "convlstm-wide"])
@pytest.mark.usefixtures("without_adam")
def test_a_window_stays_on_its_device(name, masked):
    run = preset(name)
    model = make_baseline(run.model)
    shape = (2, 1, run.model.height, run.model.width)
    learner = SequenceLearner(model, run.learning, shape, META, recorder_for=not_recorded)
    time = run.learning.window
    window = Window(torch.zeros(time, *shape, device=META), torch.zeros(time, 2, dtype=torch.bool, device=META))
    seen = torch.ones(time, 2, 1, *shape[2:], dtype=torch.bool, device=META) if masked else None
    for _ in range(2):
        with NoWaiting():
            taught, learner.state = learner._update((window, seen), learner.state)
    assert places(taught, learner.state, tuple(gone_through(learner))) == {META}


def test_a_number_of_the_host_in_an_update_would_show():
    """What the two tests above stand on."""
    here, there = torch.zeros(2, device=META), torch.zeros(2)
    with pytest.raises(RuntimeError):
        here + there
    with pytest.raises(RuntimeError):
        here[here > 0]
    with NoWaiting(), pytest.raises(WaitedError):
        there.to(META)
    with NoWaiting(), pytest.raises(WaitedError):
        torch.where(here > 0, here, 1.0)[here > 0]
