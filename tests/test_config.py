"""Settings: what types they take, how they change, what is said of a bad value, and that saved ones load."""

import json
import pickle
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from pydantic import Field, ValidationError

import torchrsm
from torchrsm.baselines import ConvLSTMConfig
from torchrsm.config import Config, first_error
from torchrsm.model import ModelConfig
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rectifiers.unet import UNetConfig
from torchrsm.rsm.layer import LayerConfig
from torchrsm.runs.fitting import on_stack_of
from torchrsm.runs.presets import PRESETS, preset
from torchrsm.runs.settings import BaselineRunConfig, RunConfig, TrainingConfig, load_run_config
from torchrsm.storage.folders import load_model
from torchrsm.streams.settings import VideoConfig


class Part(Config):
    """A section with a setting that acts only where another one is on."""

    size: int = Field(default=2, gt=0)
    on: bool = False
    strength: float = 0.5

    def without_effect(self):
        if not self.on:
            yield "strength", "on is False"


class Whole(Config):
    """Every type that settings have."""

    parts: tuple[Part, ...] = (Part(),)
    other: Part | None = None
    name: str = "a"
    rates: tuple[float, ...] = (1.0,)
    channels: Literal[1, 3] = 1
    path: Path | None = None
    share: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def without_effect(self):
        if self.share == 0:
            yield "parts.0.on", "share is 0"


def refused(message):
    return pytest.raises(ValueError, match=message)


# --- Types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Part, {"size": "64"}),
        (Part, {"size": 64.0}),
        (Part, {"size": True}),
        (Part, {"size": np.float64(64)}),
        (Part, {"size": np.True_}),
        (Part, {"size": np.array([3])}),
        (Part, {"size": None}),
        (Part, {"on": 1}),
        (Part, {"on": "yes"}),
        (Part, {"on": np.int64(1)}),
        (Part, {"strength": "0.5", "on": True}),
        (Part, {"strength": True, "on": True}),
        (Part, {"strength": float("nan"), "on": True}),
        (Part, {"strength": float("inf"), "on": True}),
        (Whole, {"rates": (1.0, "2")}),
        (Whole, {"rates": [True]}),
        (Whole, {"rates": 1.0}),
        (Whole, {"rates": {1.0, 2.0}}),
        (Whole, {"channels": True}),
        (Whole, {"channels": 3.0}),
        (Whole, {"channels": "3"}),
        (Whole, {"channels": 2}),
        (Whole, {"name": 3}),
        (Whole, {"name": b"a"}),
        (Whole, {"path": "a"}),
        (Whole, {"parts": [Whole()]}),
        (Whole, {"parts": Part()}),
        (Whole, {"parts": [{"size": "2"}]}),
        (Whole, {"part": Part()}),
    ],
)
def test_no_value_is_converted_in_silence(kind, settings):
    with pytest.raises(ValidationError) as caught:
        kind(**settings)
    line = first_error(caught.value)
    assert "\n" not in line
    assert next(iter(settings)) in line


@pytest.mark.parametrize("number", [np.int8(3), np.uint64(3), np.int64(3)])
def test_numpy_integers_are_integers(number):
    config = Part(size=number)
    assert config == Part(size=3)
    assert type(config.size) is int
    assert type(Whole(channels=number).channels) is int
    assert Whole(rates=(number,)).rates == (3.0,)


def test_what_says_the_same_thing_is_taken():
    config = Whole(parts=[{"size": 3}, Part()], rates=[1, np.float32(0.5), np.float64(2)], path=Path("a"), share=0)
    assert config == Whole(parts=(Part(size=3), Part()), rates=(1.0, 0.5, 2.0), path=Path("a"))
    assert [type(rate) for rate in config.rates] == [float] * 3
    assert type(config.share) is float


def test_the_real_settings_take_no_strings_for_numbers():
    for changes in ({"groups": "64"}, {"active_groups": True}, {"dropout": "0.5"}, {"stride": 2.0}):
        with refused(f"^{next(iter(changes))} must be"):
            LayerConfig(groups=4, active_groups=2).replace(**changes)


def test_a_film_may_be_a_path():
    assert VideoConfig(path=Path("films") / "a.mp4") == VideoConfig(path="films/a.mp4")


# --- Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_values(name):
    run, again = preset(name), preset(name)
    assert run == again
    assert len({run, again, run.replace(**{"training.seed": 7})}) == 2
    assert type(run).from_json(run.model_dump_json()) == run
    assert type(run).model_validate(run.model_dump(mode="json")) == run
    assert type(run).model_validate(run.model_dump()) == run
    assert pickle.loads(pickle.dumps(run)) == run
    with pytest.raises(ValidationError, match="frozen"):
        run.name = "other"


def test_repr_is_python_that_makes_them_again():
    config = Whole(parts=(Part(on=True, strength=0.25),), share=0.5, other=Part())
    assert repr(config).startswith("Whole(parts=(Part(size=2, on=True, strength=0.25),), other=Part(")
    assert eval(repr(config)) == config


# --- Changes ----------------------------------------------------------------------------------------------------------


def test_replace_changes_what_it_names_and_nothing_else():
    run = preset("balls-window")
    changed = run.replace(**{"training.minutes": 5, "model.layers.0.groups": 128, "name": "mine"})
    expected = run.model_dump()
    expected["training"]["minutes"] = 5.0
    expected["model"]["layers"][0]["groups"] = 128
    expected["name"] = "mine"
    assert changed.model_dump() == expected
    assert type(changed) is RunConfig
    assert run == preset("balls-window")
    assert run.replace() == run


def test_a_section_is_replaced_by_settings_or_by_a_dict():
    run = preset("balls-window")
    compact = CompactConfig(width=8)
    assert run.replace(**{"model.rectifier": compact}).model.rectifier == compact
    assert run.replace(**{"model.rectifier": {"kind": "compact", "width": 8}}).model.rectifier == compact
    layers = run.model.layers
    assert run.model.replace(layers=list(layers)).layers == layers
    assert run.replace(**{"model.layers": [layers[0]], "model.fresh_feedback": False}).model.layers == layers[:1]
    assert run.replace(stream={"kind": "video", "path": "a.mp4"}).stream == VideoConfig(path="a.mp4")
    baseline = preset("convlstm")
    other = baseline.replace(model={"kind": "lstm"})
    assert (type(other), other.model.kind) == (BaselineRunConfig, "lstm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 5}, r"^minutes: unknown setting; nearest known: training\.minutes$"),
        ({"training.minuts": 5}, r"^training\.minuts: unknown setting; nearest known: training\.minutes"),
        ({"minuts": 5}, r"^minuts: unknown setting; nearest known: training\.minutes"),
        ({"model.layers.0.group": 5}, r"nearest known: model\.layers\.0\.groups, "),
        ({"model.layers.2.groups": 5}, r"^model\.layers\.2\.groups: .*nearest known: model\.layers\.0\.groups"),
        ({"model.layers.-1.groups": 5}, r"^model\.layers\.-1\.groups: unknown setting"),
        ({"zzz": 5}, "^zzz: unknown setting; known: name, model, learning, rectifying"),
        ({"": 5}, "unknown setting; known: name"),
        ({"training..steps": 5}, r"^training\.\.steps: unknown setting"),
        (
            {"training.minutes.x": 5},
            r"^training\.minutes\.x: unknown setting; training\.minutes is 15\.0, not a section",
        ),
        ({"model.pad": 3, "model": {}}, "^model cannot be replaced as a whole and in part at once"),
        ({"model.pad": -5}, r"^model\.pad must be greater than or equal to 0; got -5$"),
        ({"model.layers.0.groups": "64"}, r"^model\.layers\.0\.groups must be a valid integer; got '64'$"),
        (
            {"model.layers.1.active_groups": 65},
            r"^model\.layers\.1: active_groups must be in 1\.\.groups = 1\.\.64; got 65",
        ),
        ({"model.rectifier.width": -2}, r"^model\.rectifier\.width must be greater than 0; got -2$"),
        ({"model.rectifier.kind": "compact"}, r"^model\.rectifier\.features: unknown setting$"),
        ({"model.rectifier": {"kind": "magic"}}, r"^model\.rectifier: kind must be one of .*; got 'magic'$"),
        ({"model.rectifier": None}, "rectifying must be given only with a rectifier that learns; got settings"),
        ({"model.layers": ()}, r"^model\.layers must have at least 1 item; got \(\)$"),
        ({"model.layers": None}, r"^model\.layers must be a valid tuple; got None"),
        (
            {"training.steps": 5},
            r"^training: exactly one of steps and minutes .*; got 5 and 15\.0; .*training\.steps=None",
        ),
        ({"training.minutes": None}, r"^training: exactly one of steps and minutes must be given; got None and None$"),
        ({"rectifying.stack_share": 0.01}, r"^rectifying: stack_share must be >= 1 - share = 0\.03, .*; got 0\.01$"),
        (
            {"rectifying.loop_share": 0.0},
            r"^rectifying: loop_from, loop_steps and motion_weight must be 0\.5, 1 and 0\.0",
        ),
        (
            {"training.batch_size": 4},
            r"^rectifying\.loop_share must be 0\.0, .* above 0\.5 / .* = 0\.125 .*; got 0\.125$",
        ),
    ],
)
def test_a_bad_change_is_refused_in_one_line(changes, message):
    run = preset("balls-window")
    for change in (run.replace, lambda **changes: run.model_copy(update=changes), lambda **c: run.copy(update=c)):
        with refused(message) as caught:
            change(**changes)
        assert "\n" not in str(caught.value)
    assert run == preset("balls-window")


def test_a_path_into_nothing_says_so():
    with refused(r"^rectifying\.share: unknown setting; rectifying is None; replace it as a whole first$"):
        preset("tiny").replace(**{"rectifying.share": 0.3})


def test_one_budget_takes_the_place_of_the_other_if_both_are_named():
    run = preset("balls-window").replace(**{"training.minutes": None, "training.steps": 10})
    assert (run.training.minutes, run.training.steps) == (None, 10)
    assert preset("balls-window").replace(training=TrainingConfig(minutes=3)).training.minutes == 3


def test_settings_that_skipped_their_checks_are_checked_where_they_are_used():
    bad = LayerConfig.model_construct(**{**LayerConfig(groups=4, active_groups=2).model_dump(), "active_groups": 9})
    with pytest.raises(ValidationError, match="active_groups must be in"):
        ModelConfig(layers=(bad,), height=8, width=8)
    with refused("active_groups must be in"):
        ModelConfig(layers=(LayerConfig(groups=4, active_groups=2),), height=8, width=8).replace(layers=(bad,))


def test_a_copy_without_changes_is_equal():
    run = preset("balls-window")
    assert run.model_copy() == run.model_copy(deep=True) == run.model_copy(update={}) == run


# --- Messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"parts": [{"size": 0}]}, "parts.0.size must be greater than 0; got 0"),
        ({"share": 1}, "share must be less than 1; got 1"),
        ({"share": -0.5}, "share must be greater than or equal to 0; got -0.5"),
        ({"name": None}, "name must be a valid string; got None"),
        ({"channels": 2}, "channels must be 1 or 3; got 2"),
        ({"channels": True}, "channels must be one of 1, 3; got True"),
        ({"wide": 1}, "wide: unknown setting"),
        ({"parts": [{"size": "x" * 1000}]}, f"parts.0.size must be a valid integer; got '{'x' * 96}..."),
        (
            {"parts": [{"strength": 0.1}]},
            "parts.0: strength must be 0.5, its default, where on is False: it has no effect there; got 0.1",
        ),
        (
            {"parts": [{"on": True}]},
            "parts.0.on must be False, its default, where share is 0: it has no effect there; got True",
        ),
    ],
)
def test_messages(settings, line):
    with pytest.raises(ValidationError) as caught:
        Whole(**settings)
    assert first_error(caught.value) == line


def test_what_is_missing_is_named():
    with refused(r"^layers\.0\.groups must be given$"):
        ModelConfig.from_json('{"layers": [{"active_groups": 3}]}')


# --- Saved settings ---------------------------------------------------------------------------------------------------


def test_saved_settings_without_effect_become_their_defaults():
    text = '{"parts": [{"on": true, "strength": 0.25}, {"strength": 0.1, "size": 7}], "other": {"strength": 3}}'
    # First on, which needs a share; then the strength, which needs it on.
    assert Whole.from_json(text) == Whole(parts=(Part(), Part(size=7)), other=Part())
    assert Whole.from_json('{"share": 0.5, "parts": [{"on": true, "strength": 0.25}]}').parts[0].strength == 0.25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^invalid JSON"),
        ("{", "^invalid JSON"),
        ("[" * 100_000, "^invalid JSON"),
        ("[1, 2]", r"^settings must be an object; got \[1, 2\]$"),
        ("3", "^settings must be an object; got 3$"),
        ('{"rates": ["1"]}', r"^rates\.0 must be a valid number; got '1'$"),
        ('{"parts": [{"size": 2.0}]}', r"^parts\.0\.size must be a valid integer; got 2\.0$"),
        ('{"parts": [{"on": "yes"}]}', r"^parts\.0\.on must be a valid boolean; got 'yes'$"),
        ('{"speed": 2}', "^speed: unknown setting$"),
        ('{"share": NaN}', "^share must be a finite number; got nan$"),
    ],
)
def test_what_else_is_wrong_with_saved_settings_is_refused(text, message):
    with refused(message) as caught:
        Whole.from_json(text)
    assert "\n" not in str(caught.value)


def saved(name, *changes):
    """A run as an earlier version saved it, with settings by their path that had no effect."""
    settings = preset(name).model_dump(mode="json")
    for path, value in changes:
        *way, last = path.split(".")
        holder = settings
        for part in way:
            holder = holder[int(part)] if isinstance(holder, list) else holder[part]
        holder[last] = value
    return json.dumps(settings)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("paper-1l", [("model.layers.0.pool", 2)]),
        ("balls-window", [("model.layers.1.boost_decay", 0.5), ("learning.schedule", "cosine")]),
        ("tiny", [("model.layers.1.pool", 3), ("model.layers.0.boost_decay", 0.1)]),
        ("copy-last", [("learning.window", 4), ("learning.schedule", "cosine"), ("learning.warmup_share", 0.3)]),
        ("pgn", [("model.discriminator_units", 3)]),
        ("simvp", [("model.groups", 3), ("model.kernel_sizes", [4])]),
        ("convlstm", [("learning.final_share", 0.5)]),
    ],
)
def test_runs_of_earlier_versions_load(tmp_path, name, changes):
    (tmp_path / "run.json").write_text(saved(name, *changes))
    assert load_run_config(tmp_path) == preset(name)


def test_a_run_on_a_film_from_an_earlier_version_is_the_same_as_today_s(tmp_path):
    today = torchrsm.fit(preset("balls-window"), (1, 48, 64), VideoConfig(path="a.mp4"))
    settings = today.model_dump(mode="json")
    settings["rectifying"] |= {"loop_from": 0.85, "loop_steps": 60}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    assert load_run_config(tmp_path) == today


def test_a_run_with_too_few_streams_to_dream_loads_without_dreams(tmp_path):
    (tmp_path / "run.json").write_text(saved("balls-window", ("training.batch_size", 2)))
    rectifying = load_run_config(tmp_path).rectifying
    assert (rectifying.loop_share, rectifying.loop_steps, rectifying.motion_weight) == (0.0, 1, 0.0)


def test_a_run_on_a_given_stack_loads(tmp_path):
    (tmp_path / "run.json").write_text(saved("balls-window", ("stack_from", "runs/a")))
    assert load_run_config(tmp_path) == on_stack_of(preset("balls-window"), "runs/a")


def test_a_model_of_an_earlier_version_loads(tmp_path):
    model = torchrsm.VideoPredictor(preset("tiny").model)
    model.save(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["layers"][1]["pool"] = 2
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert load_model(tmp_path, ModelConfig, torchrsm.VideoPredictor).config == model.config


def test_the_shipped_model_has_nothing_without_effect():
    text = Path(__file__).parents[1].joinpath("models", "balls-window", "config.json").read_text()
    assert ModelConfig.model_validate_json(text) == ModelConfig.from_json(text)


# --- Modes that a preset can be put in --------------------------------------------------------------------------------


def test_on_the_stack_of_another_model_only_the_rectifier_s_settings_are_kept():
    run = on_stack_of(preset("balls-window"), "runs/a")
    assert (run.stack_from, run.model, run.training) == (
        "runs/a",
        preset("balls-window").model,
        preset("balls-window").training,
    )
    assert run.learning == type(run.learning)()
    assert run.rectifying == preset("balls-window").rectifying.replace(share=0.5, stack_share=None)
    with refused("stack_from needs a rectifier that learns"):
        on_stack_of(preset("tiny"), "runs/a")


def test_other_rectifiers_of_a_preset_are_one_change_away():
    run = preset("balls-compact").replace(**{"model.rectifier": UNetConfig(features=8)})
    assert run.model.rectifier == UNetConfig(features=8)
    with refused("^model: the last of hidden_channels must be 4"):
        preset("convlstm").replace(**{"model.patch": 2})
    assert isinstance(
        preset("convlstm").replace(**{"model.residual": True, "model.readout_kernel_size": 3}).model, ConvLSTMConfig
    )
