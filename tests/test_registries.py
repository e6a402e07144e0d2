"""Each registry takes one more entry in one line; what it adds then trains, is saved, loaded and scored as all others.

The toys below are what a file of the package would hold.
"""

from typing import Literal, NamedTuple

import pytest
import torch
from pydantic import Field
from torch import nn
from warm_kernels import rectified_run, tiny_run

from torchrsm import BaselineRunConfig, Evaluator, ModelConfig, RunConfig, Trainer, TrainingConfig, load
from torchrsm.baselines import BASELINES
from torchrsm.baselines.sequence_model import BaselineConfig, Predicted, SequenceModel
from torchrsm.learning.windows import SequenceLearningConfig
from torchrsm.rectifiers import RECTIFIERS, InputSizes
from torchrsm.rectifiers.contract import Rectifier, RectifierConfig, WeightGroup, kernels_of, mean_squared_error
from torchrsm.rsm.kernels import ENGINES, EngineEntry
from torchrsm.rsm.kernels.reference import ReferenceEngine
from torchrsm.runs.settings import load_run_config
from torchrsm.streams import ArrayStream, check_stream
from torchrsm.streams.settings import STREAMS, StreamConfig, make_stream
from torchrsm.systems import systems

# --- A rectifier of two stages, each with its own loss ----------------------------------------------------------------


class TwoStagesConfig(RectifierConfig):
    kind: Literal["two-stages"] = "two-stages"
    width: int = Field(default=3, gt=0)


class TwoStages(Rectifier):
    """Each stage is a convolution that learns the frame from what the one before it made, detached."""

    stage_names = ("of the first stage", "of the second stage")

    def __init__(self, config, sizes):
        super().__init__()
        self.config = config
        self.first = nn.Conv2d(sizes.channels, sizes.channels, config.width, padding="same")
        self.second = nn.Conv2d(sizes.channels, sizes.channels, config.width, padding="same")

    def forward(self, raw, cells, seen, noise=None):
        return self.stages(raw, cells, seen, noise)[-1]

    def stages(self, raw, cells, seen, noise=None):
        first = self.first(raw).sigmoid()
        return first, self.second(first.detach()).sigmoid()

    def weight_groups(self):
        return tuple(WeightGroup(list(part.parameters()), kernels_of(part)) for part in (self.first, self.second))


def test_a_rectifier(tmp_path, monkeypatch):
    monkeypatch.setitem(RECTIFIERS, "two-stages", (TwoStagesConfig, TwoStages))
    settings = rectified_run(steps=30, log_steps=10).model_dump()
    settings["model"]["rectifier"] = {"kind": "two-stages", "width": 5}
    run = RunConfig.model_validate(settings)
    trainer, seen = Trainer(run, tmp_path / "run"), []
    before = {name: weight.clone() for name, weight in trainer.model.rectifier.state_dict().items()}
    model = trainer.run(seen.append)
    own = ("squared error of the first stage", "squared error of the second stage")
    names = (*own, "adversarial loss", "discriminator's loss", "motion loss")
    assert seen[-1].loss_names == tuple(f"rectifier/{name}" for name in names)
    assert not any(torch.equal(weight, before[name]) for name, weight in model.rectifier.state_dict().items())
    assert load_run_config(tmp_path / "run") == run
    again = load(tmp_path / "run")
    assert again.config.rectifier == TwoStagesConfig(width=5)
    frames = torch.rand(2, 5, 1, 12, 12)
    assert Evaluator(frames).evaluate(again).by_frame == Evaluator(frames).evaluate(model).by_frame


def test_stages_learn_from_their_own_loss_alone():
    """The gradient of each stage is that of its own loss: no graph leads from one to the other."""
    rectifier = TwoStages(TwoStagesConfig(), InputSizes(channels=1, layer_cells=(4,), seen_channels=1))
    raw, frame = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    losses = rectifier.losses(rectifier.stages(raw, (), raw), frame, torch.tensor([True, True]), mean_squared_error)
    for number, own in enumerate(rectifier.weight_groups()):
        for other, loss in enumerate(losses):
            found = torch.autograd.grad(loss, own.weights, retain_graph=True, allow_unused=True)
            assert all((gradient is not None) is (number == other) for gradient in found)


# --- A system ---------------------------------------------------------------------------------------------------------


class FadingConfig(BaselineConfig):
    kind: Literal["fading"] = "fading"
    start: float = Field(default=0.5, gt=0, lt=1)


class FadingState(NamedTuple):
    frame: torch.Tensor


class Fading(SequenceModel):
    """The last frame, times a number that is learned."""

    def __init__(self, config=None):
        super().__init__(config or FadingConfig())
        self.gain = nn.Parameter(torch.tensor(self.config.start))

    def initial_state(self, shape):
        self.check_shape(shape)
        return FadingState(self.like.new_zeros(shape))

    def predict(self, state):
        return Predicted((self.gain * state.frame).clamp(0, 1))

    def advance(self, frame, prediction, state):
        return FadingState(frame)


def fading_run(**training):
    return BaselineRunConfig(
        name="fading",
        model=FadingConfig(height=12, width=12, start=0.9),
        learning=SequenceLearningConfig(window=5, learning_rates=(0.02,)),
        stream={"kind": "balls", "resolution": 12, "sequence_length": 20},
        training=TrainingConfig(batch_size=3, threads=1, **training),
    )


def test_a_system(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="model must be one of CopyLastConfig, .*; got FadingConfig"):
        fading_run(steps=30)
    monkeypatch.setitem(BASELINES, "fading", (FadingConfig, Fading))
    assert systems()["fading"].config is FadingConfig
    run = fading_run(steps=30)
    model = Trainer(run, tmp_path / "run").run()
    assert abs(model.gain.item() - 0.9) > 0.02
    assert load_run_config(tmp_path / "run") == run
    again = load(tmp_path / "run")
    assert type(again) is Fading
    assert again.gain == model.gain
    scores = Evaluator(torch.rand(2, 5, 1, 12, 12)).evaluate(again)
    assert scores.frame_squared_error.all_predictable.mean > 0


def test_a_kind_that_is_not_registered_is_named(tmp_path):
    settings = tiny_run(steps=1).model_dump()
    settings["model"]["rectifier"] = {"kind": "two-stages"}
    with pytest.raises(
        ValueError, match="kind must be one of compact, unet, local, paper, sharpening; got 'two-stages'"
    ):
        RunConfig.model_validate(settings)
    for given, message in (
        ({"width": 3}, "kind must be one of compact, .*; got none"),
        ({"kind": 3}, "kind must be one of compact, .*; got 3"),
        ("compact", "rectifier must be settings with a kind; got 'compact'"),
        (TwoStagesConfig(), "rectifier must be one of CompactConfig, .*; got TwoStagesConfig"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig.model_validate(settings["model"] | {"rectifier": given})


# --- An engine --------------------------------------------------------------------------------------------------------


class CountingEngine(ReferenceEngine):
    """The reference, which counts how often it chose winners."""

    chosen = 0

    def select(self, step, weights, context):
        self.chosen += 1
        return super().select(step, weights, context)


def test_an_engine(tmp_path, monkeypatch):
    Trainer(tiny_run(steps=2), tmp_path / "run").run()
    engine = CountingEngine()
    monkeypatch.setitem(ENGINES, "counting", EngineEntry(engine))
    frames = torch.rand(2, 5, 1, 12, 12)
    scores = [Evaluator(frames).evaluate(load(tmp_path / "run", name)) for name in ("counting", "reference")]
    assert engine.chosen > 10
    assert scores[0].by_frame == scores[1].by_frame


# --- A stream ---------------------------------------------------------------------------------------------------------


class FlickerConfig(StreamConfig):
    kind: Literal["flicker"] = "flicker"
    period: int = Field(default=4, gt=1)


def flicker(config, batch_size, seed):
    """Frames that are black but for one in a period."""
    frames = torch.zeros(batch_size, 20, 1, 12, 12)
    frames[:, :: config.period] = 1
    return ArrayStream(frames, batch_size)


def test_a_stream(tmp_path, monkeypatch):
    settings = tiny_run(steps=12, batch_size=4).model_dump()
    settings["stream"] = {"kind": "flicker", "period": 3}
    with pytest.raises(
        ValueError,
        match="kind must be one of balls, varied-balls, kicked-balls, .*, words, video; got 'flicker'",
    ):
        RunConfig.model_validate(settings)
    monkeypatch.setitem(STREAMS, "flicker", (FlickerConfig, flicker))
    run = RunConfig.model_validate(settings)
    check_stream(make_stream(run.stream, 4, 0), steps=50)
    trainer = Trainer(run, tmp_path / "run")
    trainer.run()
    assert trainer.step == 12
    assert load_run_config(tmp_path / "run").stream == FlickerConfig(period=3)
    assert Trainer(run, tmp_path / "run", resume=True).step == 12
