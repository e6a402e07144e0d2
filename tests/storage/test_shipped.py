from pathlib import Path

import pytest
import torch

import torchrsm
from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.rsm.layer import LayerConfig
from torchrsm.runs.settings import load_run_config
from torchrsm.storage import shipped
from torchrsm.storage.shipped import find_model, models_folder, shipped_models
from torchrsm.systems import load

ROOT = Path(__file__).parents[1]


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder with two models, two things that are none, and an empty folder to work in beside it."""
    shelf = tmp_path / "shelf"
    for name, groups in (("zebra", 4), ("ant", 5)):
        layer = LayerConfig(groups=groups, active_groups=2, output_bias="channel")
        VideoPredictor(ModelConfig(layers=(layer,))).save(shelf / name)
    (shelf / "README.md").write_text("what lives here")
    (shelf / "unfinished").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(shipped, "MODELS_FOLDER", shelf)
    return shelf


def test_the_names_are_those_of_the_model_folders(shelf):
    assert shipped_models() == ["ant", "zebra"]


def test_a_model_is_loaded_by_its_name(shelf):
    for name, groups in (("ant", 5), ("zebra", 4), (Path("zebra"), 4)):
        assert load(name).config.layers[0].groups == groups
    assert VideoPredictor.from_pretrained("ant", "reference").stack.layers[0].engine == "reference"


def test_a_folder_that_exists_goes_before_a_name(shelf):
    load("zebra").save("ant")
    assert load("ant").config.layers[0].groups == 4
    Path("zebra").mkdir()
    with pytest.raises(FileNotFoundError, match=r"zebra is no model folder: it has no config\.json"):
        load("zebra")


@pytest.mark.parametrize(
    "name",
    [
        "ANT",
        "an",
        "unfinished",
        "README.md",
        "../shelf/../elsewhere",
        "./ant",
        "ant/",
        "ant/../zebra",
        "zebra/config.json",
        "~/ant",
        "*",
        "ant\0",
        "a" * 5000,
        Path("models/ant"),
    ],
)
def test_anything_else_is_refused_with_the_names(shelf, name):
    with pytest.raises(FileNotFoundError) as caught:
        find_model(name)
    assert str(caught.value) == f"no model folder {name}; shipped by name: ant, zebra"


def test_where_nothing_is_shipped_the_message_says_so(shelf, monkeypatch):
    monkeypatch.setattr(shipped, "MODELS_FOLDER", shelf / "nowhere")
    assert shipped_models() == []
    with pytest.raises(FileNotFoundError, match="no model folder ant; shipped by name: none"):
        load("ant")


def test_an_installed_package_holds_its_models_and_a_checkout_has_them_beside_its_source(tmp_path):
    assert models_folder(tmp_path / "site-packages" / "torchrsm") == tmp_path / "site-packages" / "torchrsm" / "models"
    checkout = tmp_path / "src" / "torchrsm"
    assert models_folder(checkout) == tmp_path / "models"
    (checkout / "models").mkdir(parents=True)  # installed into a folder that happens to have this name
    assert models_folder(checkout) == checkout / "models"


def test_every_shipped_model_works_and_has_a_card():
    assert Path(torchrsm.__file__).parent != ROOT / "src" / "torchrsm" or shipped.MODELS_FOLDER == ROOT / "models"
    for name in torchrsm.shipped_models():
        folder = find_model(name)
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "run.json", "card.md"}
        model = load(name)
        assert load_run_config(folder).model == model.config
        config = model.config
        shape = (1, config.channels, config.height or 30, config.width or 30)
        with torch.no_grad():
            frame = model.predict(model.initial_state(shape)).frame
        assert frame.shape == shape
        assert frame.isfinite().all()
