import json

import pytest
import torch
from warm_kernels import tiny_run

from torchrsm import Trainer, preset
from torchrsm.runs.settings import (
    FORMER_NAMES,
    RUN_FILE,
    BaselineRunConfig,
    RunConfig,
    first_difference,
    flatten_settings,
    load_run_config,
    save_run_config,
)


@pytest.mark.parametrize(("name", "kind"), [("tiny", RunConfig), ("dtsbn", BaselineRunConfig)])
def test_settings_come_back_from_their_file(tmp_path, name, kind):
    run = preset(name)
    (tmp_path / RUN_FILE).write_bytes(save_run_config(run))
    again = load_run_config(tmp_path)
    assert type(again) is kind
    assert again == run


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run: it has no run.json"):
        load_run_config(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"model": 3}', '{"model": {"kind": "oracle"}}', "\xff" * 3])
def test_settings_that_are_none_are_refused(tmp_path, text):
    (tmp_path / RUN_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"run\.json: "):
        load_run_config(tmp_path)


def test_the_first_difference_has_its_path():
    a = tiny_run(steps=5)
    assert first_difference(a, tiny_run(steps=5)) is None
    assert first_difference(a, tiny_run(steps=6)) == ("training.steps", 5, 6)
    assert first_difference(a, preset("dtsbn"))[0] == "name"


def test_settings_have_paths():
    assert flatten_settings({"a": [1, {"b": 2}], "c": None}) == {"a.0": 1, "a.1.b": 2, "c": None}


def test_how_many_frames_a_step_takes():
    assert preset("balls").frames_in_a_step == 1
    assert preset("dtsbn").frames_in_a_step == preset("dtsbn").learning.window


def test_a_run_file_names_every_setting(tmp_path):
    settings = json.loads(save_run_config(preset("dtsbn")))
    assert settings["model"]["kind"] == "dtsbn"
    assert settings["learning"]["optimiser"] == "adam"


@pytest.mark.parametrize(("former", "now"), FORMER_NAMES.items())
def test_a_run_from_before_preset_names_had_hyphens_is_that_of_todays_preset(tmp_path, former, now):
    run = preset(now)
    (tmp_path / RUN_FILE).write_bytes(save_run_config(run).replace(f'"{now}"'.encode(), f'"{former}"'.encode()))
    assert json.loads((tmp_path / RUN_FILE).read_bytes())["name"] == former
    assert load_run_config(tmp_path) == run


def test_a_run_from_before_preset_names_had_hyphens_goes_on(tmp_path):
    run = tiny_run(steps=4, checkpoint_seconds=0).replace(name="balls-1l")
    trainer = Trainer(run, tmp_path)
    trainer.run(lambda record: None)
    weights = trainer.model.state_dict()
    (tmp_path / RUN_FILE).write_bytes((tmp_path / RUN_FILE).read_bytes().replace(b'"balls-1l"', b'"balls_1l"'))
    again = Trainer(run, tmp_path, resume=True)
    assert again.step == 4
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())
