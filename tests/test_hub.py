"""Models on a hub: pushed to and pulled from a server of our own; nothing else is reached."""

import json

import pytest
import torch
from hub_server import hub_server

import torchrsm
from torchrsm import cli
from torchrsm.model import VideoPredictor
from torchrsm.runs.settings import save_run_config


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server, with what huggingface_hub keeps in a folder of the test."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub_server() as (content, address):
        yield content, {"endpoint": address, "token": "secret"}


@pytest.fixture
def run_folder(tmp_path):
    """A model with the settings of its run."""
    run = torchrsm.preset("tiny")
    torch.manual_seed(0)
    model = VideoPredictor(run.model).eval()
    model.save(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_bytes(save_run_config(run))
    return tmp_path / "run", model


def test_a_model_comes_back_as_it_was_pushed(served, run_folder, tmp_path):
    content, server = served
    folder, model = run_folder
    address = torchrsm.push_to_hub(folder, "ada/tiny", **server)
    assert address == f"{server['endpoint']}/ada/tiny"
    files = content.repositories["ada/tiny"]
    assert files.keys() == {"README.md", "config.json", "model.safetensors", "run.json"}
    assert files["run.json"] == (folder / "run.json").read_bytes()
    pulled = torchrsm.from_pretrained("ada/tiny", cache=tmp_path / "cache", **server)
    assert not pulled.training
    for name, weight in model.state_dict().items():
        assert torch.equal(pulled.state_dict()[name], weight)
    asked = len(content.requests)
    again = torchrsm.from_pretrained("ada/tiny", cache=tmp_path / "cache", **server)
    assert torch.equal(next(again.parameters()), next(model.parameters()))
    later = content.requests[asked:]
    assert not any("resolve" in path and method == "GET" for method, path in later)  # nothing is fetched again


def test_the_card_says_what_the_model_is_and_how_it_is_used(served, run_folder):
    content, server = served
    folder, _ = run_folder
    torchrsm.push_to_hub(folder, "ada/tiny", **server)
    card = content.repositories["ada/tiny"]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: torchrsm\ntags:\n- video-prediction\n")
    assert "# tiny\n" in card
    assert "Trained on bouncing balls: preset `tiny`" in card
    assert 'model = torchrsm.from_pretrained("ada/tiny")' in card
    torchrsm.push_to_hub("balls", "ada/balls", **server)
    card = content.repositories["ada/balls"]["README.md"].decode()
    assert "## Scores on the 200 test sequences" in card


def test_a_private_repository_is_read_with_the_token_alone(served, run_folder, tmp_path):
    content, server = served
    torchrsm.push_to_hub(run_folder[0], "ada/secret", private=True, **server)
    assert content.private == {"ada/secret"}
    with pytest.raises(FileNotFoundError, match="no model folder ada/secret, and no repository of this name"):
        torchrsm.from_pretrained("ada/secret", cache=tmp_path / "cache", endpoint=server["endpoint"], token="other")
    assert torchrsm.from_pretrained("ada/secret", cache=tmp_path / "cache", **server).config == run_folder[1].config


def test_a_folder_and_a_shipped_model_need_no_network(run_folder, monkeypatch):
    def reached(*arguments, **settings):
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", reached)
    assert torchrsm.from_pretrained(run_folder[0]).config == run_folder[1].config
    assert torchrsm.from_pretrained("balls").config == torchrsm.load("balls").config


@pytest.mark.parametrize("name", ["tiny", "/tiny", "ada/", "ada/tiny/more", " ada/tiny"])
def test_what_is_no_repository_is_refused_before_anything_is_sent(served, run_folder, name):
    content, server = served
    with pytest.raises(ValueError, match="repository must be user/name; got"):
        torchrsm.push_to_hub(run_folder[0], name, **server)
    assert content.requests == []


def test_a_token_that_may_not_write_is_an_error_that_says_so(served, run_folder):
    content, server = served
    with pytest.raises(OSError, match="401"):
        torchrsm.push_to_hub(run_folder[0], "ada/tiny", endpoint=server["endpoint"], token="other")
    assert content.repositories == {}


def test_what_comes_from_a_hub_is_checked_as_any_folder_is(served, run_folder, tmp_path):
    content, server = served
    torchrsm.push_to_hub(run_folder[0], "ada/tiny", **server)
    files = content.repositories["ada/tiny"]
    settings = json.loads(files["config.json"])
    files["config.json"] = json.dumps({**settings, "pad": -1}).encode()
    with pytest.raises(ValueError, match="pad"):
        torchrsm.from_pretrained("ada/tiny", cache=tmp_path / "cache", **server)
    del files["config.json"]
    with pytest.raises(FileNotFoundError, match="no model folder"):
        torchrsm.from_pretrained("ada/tiny", cache=tmp_path / "other", **server)


def test_the_commands_push_and_pull(served, run_folder, tmp_path, capsys, monkeypatch):
    _, server = served
    folder = str(run_folder[0])
    connect = ["--endpoint", server["endpoint"]]
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert cli.main(["push", folder, "ada/tiny", *connect]) == 0
    assert capsys.readouterr().out == f"{folder} is at {server['endpoint']}/ada/tiny\n"
    assert cli.main(["pull", "ada/tiny", "--out", str(tmp_path / "got"), *connect]) == 0
    assert torchrsm.load(tmp_path / "got").config == run_folder[1].config
    assert cli.main(["pull", "ada/tiny", "--out", str(tmp_path / "got"), *connect]) == 2
    assert "must be new" in capsys.readouterr().err
    assert cli.main(["pull", "ada/none", "--out", str(tmp_path / "none"), *connect]) == 2
    assert "no repository of this name" in capsys.readouterr().err
