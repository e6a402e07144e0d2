import json

import pytest
import torch

from torchrsm import VideoPredictor, load, preset
from torchrsm.baselines import BASELINES, WITHOUT_WEIGHTS, make_baseline
from torchrsm.baselines.copy_last import CopyLast, CopyLastConfig
from torchrsm.baselines.sequence_model import BaselineConfig
from torchrsm.storage.folders import CONFIG_FILE, model_kind


def test_rsm_by_name_and_by_folder(tmp_path):
    model = load("balls")
    assert isinstance(model, VideoPredictor)
    model.save(tmp_path)
    assert model_kind(tmp_path) is None
    again = load(tmp_path)
    assert isinstance(again, VideoPredictor)
    assert again.config == model.config


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_baselines_without_weights_by_name(name):
    model = load(name)
    assert type(model) is BASELINES[name][1]
    assert not list(model.parameters())
    assert not model.training


def test_a_folder_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load("balls").save(tmp_path / "copy-last")
    assert isinstance(load("copy-last"), VideoPredictor)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_comes_back_from_its_folder(tmp_path, name):
    config_type, model_type = BASELINES[name]
    torch.manual_seed(3)
    model = make_baseline(config_type())
    assert type(model) is model_type
    model.save(tmp_path)
    assert model_kind(tmp_path) == name
    again = load(tmp_path)
    assert type(again) is model_type
    assert again.config == model.config
    assert not again.training
    for key, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[key]), key


def test_unknown_names_and_kinds_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder nothing; shipped by name: .*; baselines: copy-last"):
        load("nothing")
    CopyLast().save(tmp_path)
    settings = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(settings | {"kind": "oracle"}))
    with pytest.raises(ValueError, match=r"kind must be one of copy-last, .*; got 'oracle'"):
        load(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "invalid JSON"), ("[1]", "must hold a JSON object; got list")])
def test_settings_that_are_no_object_are_refused(tmp_path, text, message):
    CopyLast().save(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_unknown_settings_of_a_baseline_are_refused(tmp_path):
    CopyLast().save(tmp_path)
    settings = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(settings | {"speed": 3}))
    with pytest.raises(ValueError, match="speed: unknown setting"):
        load(tmp_path)


def test_only_settings_of_a_baseline_make_one():
    with pytest.raises(TypeError, match="no baseline has the settings BaselineConfig"):
        make_baseline(BaselineConfig(kind="oracle"))
    assert isinstance(make_baseline(CopyLastConfig()), CopyLast)


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "copy-last"])
def test_the_preset_of_a_name_has_its_kind(name):
    assert preset(name).model.kind == name
