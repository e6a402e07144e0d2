import re

import pytest
import torch
from warm_kernels import tiny_run

from torchrsm import PRESETS, Trainer, VideoConfig, VideoPredictor, fit, load, preset
from torchrsm.runs.settings import BaselineRunConfig, RunConfig
from torchrsm.streams import BouncingBalls
from torchrsm.streams.settings import frame_shape
from torchrsm.streams.splits import TEST_SEED, VALIDATION_SEED

RSM = [name for name in PRESETS if isinstance(preset(name), RunConfig)]
BASELINES = [name for name in PRESETS if isinstance(preset(name), BaselineRunConfig)]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_one_complete_run(name):
    run = preset(name)
    assert run.name == name
    assert type(run).model_validate_json(run.model_dump_json()) == run
    # Copies with changes skip the validation; a preset must pass it.
    assert type(run).model_validate(run.model_dump()) == run
    assert run.training.seed not in (TEST_SEED, VALIDATION_SEED)


@pytest.mark.parametrize("name", RSM)
def test_a_preset_fits_its_frames(name):
    run = preset(name)
    assert len(run.learning.learning_rates) in (1, len(run.model.layers))
    size = (run.model.height, run.model.width)
    assert size in ((None, None), frame_shape(run.stream)[1:])


@pytest.mark.parametrize("name", RSM)
def test_a_preset_trains(tmp_path, name):
    run = preset(name)
    # A second layer hears its first cells at the third step.
    # Two streams, of which one dreams if streams do.
    training = run.training.replace(steps=20, minutes=None, batch_size=2, threads=1)
    if run.rectifying is not None and run.rectifying.loop_share:
        run = run.replace(**{"rectifying.loop_share": 0.5})
    trainer = Trainer(run.replace(training=training), tmp_path)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    model = trainer.run()
    assert trainer.step == 20
    learned = [f"stack.layers.{layer}.decoder" for layer in range(len(run.model.layers))]
    if run.rectifying is not None:
        # Only the last layer: those below it may start at 0.
        learned.append([name for name, _ in model.named_parameters() if name.startswith("rectifier")][-1])
    for name in learned:
        assert not torch.equal(before[name], model.get_parameter(name)), name
    assert load(tmp_path).config == run.model


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_trains_and_loads(tmp_path, name):
    run = preset(name)
    if name == "lstm":  # a checkpoint of the published sizes has 730 MB
        run = run.replace(**{"model.hidden_units": (64, 32, 32, 32)})
    # A first frame teaches nothing, and weights behind some that start at 0 begin to learn an update later.
    steps = 2 if run.learning.window > 1 else 4
    training = run.training.replace(steps=steps, minutes=None, batch_size=2, threads=1)
    learning = run.learning.replace(window=min(run.learning.window, 22))
    trainer = Trainer(run.replace(training=training, learning=learning), tmp_path)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    model = trainer.run()
    assert trainer.step == (steps if before else 0)
    changed = [name for name, weight in model.named_parameters() if not torch.equal(before[name], weight)]
    assert len(changed) >= len(before) / 2
    loaded = load(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config == run.model
    state = loaded.initial_state((2, *frame_shape(run.stream)))
    assert torch.equal(loaded.predict(state).frame, model.predict(state).frame)


def test_every_call_gives_the_same_preset():
    assert all(preset(name) == preset(name) == make() for name, make in PRESETS.items())


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    known = ", ".join(PRESETS)
    with pytest.raises(ValueError, match=rf"^preset must be one of {known}; got 'papers', did you mean 'paper'\?$"):
        preset("papers")
    with pytest.raises(ValueError, match="got 'balls_1l', did you mean 'balls-1l'"):
        preset("balls_1l")
    with pytest.raises(ValueError, match="got 'quux'$"):
        preset("quux")


def test_names_of_presets_have_hyphens_and_are_those_of_their_runs():
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) for name in PRESETS)
    assert all(preset(name).name == name for name in PRESETS)


PUBLISHED = {  # both layers
    "cells_per_group": 8,
    "stride": 2,
    "decoder": "convolutional",
    "decoder_kernel_size": None,  # that of the encoder
    "recurrent_kernel_size": 1,
    "recurrent_decay": 0,
    "input_frames": 1,
    "input_decay": None,
    "normalisation": "sample",
    "inhibition_decay": 0,
    "boost": 0,
    "dropout": 0.5,
    "output_bias": "element",
    "margin": 0,
}
PUBLISHED_LAYERS = (
    {"groups": 64, "active_groups": 3, "kernel_size": 5, "pool": 2, "activation": "sigmoid"},
    {"groups": 128, "active_groups": 5, "kernel_size": 3, "pool": 1, "activation": "identity"},
)


def test_paper_is_what_was_published():
    run = preset("paper").model_dump()
    for layer, published in zip(run["model"]["layers"], PUBLISHED_LAYERS, strict=True):
        expected = PUBLISHED | published
        assert {name: layer[name] for name in expected} == expected
    frame = {"channels": 1, "height": 30, "width": 30, "pad": 2, "pad_value": 0.5}
    assert {name: run["model"][name] for name in frame} == frame
    learning = {"learning_rates": (5e-4,), "schedule": "constant", "betas": (0.9, 0.999), "epsilon": 1e-8}
    assert {name: run["learning"][name] for name in learning} == learning
    world = {"balls": 3, "radius": 1.2, "resolution": 30, "sequence_length": 100, "speed": 1.0}
    undisturbed = {"noise": (), "flicker": (), "blackout": (), "blackout_from": 51, "bar": ()}
    assert run["stream"] == {"kind": "balls", "disturbance": undisturbed, **world}
    assert (run["training"]["steps"], run["training"]["batch_size"]) == (200_000 + 50_000, 256)
    assert run["model"]["rectifier"] == {"kind": "paper"}
    assert run["rectifying"] == {
        "share": 50_000 / 250_000,
        "stack_share": None,
        "learning_rate": 5e-4,
        "adversarial_weight": 2e-4,
        "discriminator_learning_rate": 5e-4,
        "real_label": 0.9,
        "noise_deviation": 0.1,
        "schedule": "constant",
        # and nothing of what is not theirs
        "loss": "squared_error",
        "energy_window": 10,
        "warmup_share": 0.02,
        "final_share": 0.02,
        "matrix_learning_rate": None,
        "gradient_norm": None,
        "loop_share": 0,
        "loop_from": 0.5,
        "loop_error": 2.0,
        "loop_steps": 1,
        "motion_weight": 0,
        "motion_blur": 2.0,
    }


def test_the_paper_s_stack_has_exactly_its_steps(tmp_path):
    """The boundary between the phases is a share; at these numbers it falls on step 200,000."""
    trainer = Trainer(preset("paper"), tmp_path, stream=BouncingBalls(1))
    phases = {}
    for trainer.step in (0, 199_999, 200_000, 249_999):
        phases[trainer.step] = trainer.phase
    assert phases == {0: "stack", 199_999: "stack", 200_000: "rectifier", 249_999: "rectifier"}


def test_paper_has_the_published_grids():
    model = VideoPredictor(preset("paper").model)
    prediction = model.predict(model.initial_state((1, 1, 30, 30)))
    assert [layer.cells.index.shape for layer in prediction.layers] == [(1, 17, 17, 3), (1, 5, 5, 5)]
    assert [tuple(layer.input_grid) for layer in prediction.layers] == [(34, 34), (9, 9)]
    assert prediction.frame.shape == (1, 1, 30, 30)


def test_paper_1l_is_the_first_layer_of_paper():
    both, alone = preset("paper"), preset("paper-1l")
    below = both.model.layers[0].replace(pool=1)  # nothing stands above it
    expected = both.replace(name="paper-1l", model=both.model.replace(layers=(below,)))
    assert alone == expected


def test_paper_fast_keeps_the_architecture_of_paper():
    paper, fast = preset("paper"), preset("paper-fast")
    architecture = {"groups", "cells_per_group", "active_groups", "kernel_size", "stride", "pool", "activation"}
    for published, layer in zip(paper.model.layers, fast.model.layers, strict=True):
        assert published.model_dump(include=architecture) == layer.model_dump(include=architecture)


def test_balls_fits_frames_of_any_size_and_any_number_of_balls():
    model = VideoPredictor(preset("balls").model).eval()
    assert (model.config.height, model.config.width) == (None, None)
    for height, width, stream in (
        (30, 30, BouncingBalls(2, balls=5, radius=0.8, resolution=30)),
        (41, 41, BouncingBalls(2, balls=1, radius=2.0, resolution=41)),
        (20, 24, None),
    ):
        state = model.initial_state((2, 1, height, width))
        for _ in range(3):
            frames = torch.rand(2, 1, height, width) if stream is None else next(stream).frames
            prediction = model.predict(state)
            losses = model.losses(prediction, frames)
            state = model.observe(frames, prediction, state)
            assert prediction.frame.shape == (2, 1, height, width)
            assert prediction.frame.isfinite().all()
            assert all(loss.isfinite() for loss in losses)


@pytest.mark.parametrize("name", RSM)
def test_a_rectifier_that_learns_has_its_settings(name):
    run = preset(name)
    assert (run.model.rectifier is None) == (run.rectifying is None) == (name not in RECTIFIED)


RECTIFIED = (
    *("paper", "paper-1l", "paper-rectifier"),
    *(
        "balls",
        "balls-large",
        "balls-local",
        "balls-1l",
        "balls-compact",
        "balls-wide",
        "balls-any",
        "balls-window",
        "balls-window-1l",
    ),
)


def test_tiny_has_every_mechanism_of_paper():
    # What holds for `tiny` in the tests is to hold for `paper`.
    neutral = {"groups", "cells_per_group", "active_groups"}
    for small, published in zip(tiny_run(steps=1).model.layers, preset("paper").model.layers, strict=True):
        assert small.model_dump(exclude=neutral) == published.model_dump(exclude=neutral)


@pytest.mark.parametrize(("size", "patch"), [((30, 30), 3), ((32, 32), 4), ((64, 78), 2), ((48, 113), 1), ((9, 60), 3)])
def test_patches_divide_the_frame(size, patch):
    run = fit(preset("convlstm-wide"), (1, *size), VideoConfig(path="-"))
    assert (run.model.height, run.model.width, run.model.patch) == (*size, patch)
