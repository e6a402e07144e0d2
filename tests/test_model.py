import json
import os
import pickle
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rectifiers.paper import PaperConfig
from torchrsm.rectifiers.sharpening import SharpeningConfig
from torchrsm.rsm.layer import LayerConfig
from torchrsm.storage.folders import load_weights
from torchrsm.storage.tensors import load_tensors, save_tensors
from torchrsm.systems import load

FREE = LayerConfig(groups=6, active_groups=2, kernel_size=3, output_bias="channel")
FIXED = LayerConfig(groups=6, active_groups=2, kernel_size=3)


def build(layers=(FREE,), **settings):
    torch.manual_seed(0)
    return VideoPredictor(ModelConfig(layers=layers, **settings)).eval()


def watch(model, shape, steps=3):
    frames = torch.rand(steps, *shape, generator=torch.Generator().manual_seed(0))
    state = model.initial_state(shape)
    for frame in frames:
        prediction = model.predict(state)
        state = model.observe(frame, prediction, state)
    return prediction, state


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 8}, "height and width go together; got 8 and None"),
        ({"width": 8}, "height and width go together; got None and 8"),
        ({"layers": (FREE, FIXED)}, "height and width must be given: a layer has output_bias 'element'"),
        (
            {"layers": (FREE.replace(margin=2),), "pad": 1},
            r"margin of the first .* 0\.\.pad = 0\.\.1; got 2",
        ),
        ({"layers": ()}, "layers\n.*at least 1"),
        ({"channels": 0}, "channels\n.*greater than 0"),
        ({"pad": -1}, "pad\n.*greater than or equal to 0"),
        ({"pad_value": 1.5}, "pad_value\n.*less than or equal to 1"),
        (
            {"layers": ({"groups": 4, "active_groups": 5},)},
            r"layers\.0\n.*active_groups must be in 1\.\.groups = 1\.\.4; got 5",
        ),
        ({"depth": 2}, "depth\n.*not permitted"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**{"layers": (FREE,), **settings})


def test_settings_survive_json():
    config = ModelConfig(layers=(FIXED, FREE), height=8, width=9, pad=2)
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


# --- Frames in, frames out --------------------------------------------------------------------------------------------


def test_refuses_frames_of_another_shape():
    model = build((FIXED,), channels=2, height=8, width=9)
    with pytest.raises(ValueError, match="this model reads frames of 2 channels; got 1"):
        model.initial_state((1, 1, 8, 9))
    with pytest.raises(ValueError, match="this model reads frames of 8 x 9; got 9 x 8"):
        model.initial_state((1, 2, 9, 8))


@pytest.mark.parametrize("pad", [0, 2])
def test_a_prediction_is_the_decoded_first_layer_without_its_border(pad):
    model = build((FIXED, FREE), channels=3, height=8, width=5, pad=pad)
    prediction, _ = watch(model, (2, 3, 8, 5))
    decoded = model.stack.layers[0].decode(prediction.layers[0])
    assert decoded.shape == (2, 8 + 2 * pad, 5 + 2 * pad, 3)
    for channel in range(3):
        inside = decoded[:, pad : pad + 8, pad : pad + 5, channel]
        assert torch.equal(prediction.raw[:, channel], inside)
    assert torch.equal(prediction.frame, prediction.raw.clamp(0, 1))
    assert not prediction.raw.requires_grad


def test_the_border_is_a_wall_that_the_layer_sees():
    model = build(pad=2, pad_value=0.75)
    state = watch(model, (1, 1, 6, 6))[1]
    seen = state[0].input
    assert seen.shape == (1, 10, 10, 1)
    wall = torch.ones(10, 10, dtype=torch.bool)
    wall[2:-2, 2:-2] = False
    assert (seen[0, :, :, 0][wall] == 0.75).all()
    assert (seen[0, 2:-2, 2:-2] < 0.7).any()


def test_losses_are_those_of_the_stack_on_the_framed_picture():
    model = build((FREE, FREE), pad=1)
    prediction, _ = watch(model, (2, 1, 6, 6))
    frame = torch.full((2, 1, 6, 6), 0.25)
    padded = torch.full((2, 8, 8, 1), 0.5)
    padded[:, 1:-1, 1:-1] = 0.25
    everything = torch.tensor([True, True])
    for loss, expected in zip(
        model.losses(prediction, frame), model.stack.losses(prediction.layers, padded, everything), strict=True
    ):
        assert loss == expected
    assert model.losses(prediction, frame, ~everything) == (0, 0)


def test_a_margin_leaves_the_wall_out_of_the_loss():
    plain, inner = build(pad=1), build((FREE.replace(margin=1),), pad=1)
    frame = torch.rand(2, 1, 6, 6)
    prediction, _ = watch(inner, (2, 1, 6, 6))
    expected = (prediction.raw - frame).square().mean()
    assert inner.losses(prediction, frame)[0].item() == pytest.approx(expected.item(), rel=1e-6)
    assert plain.losses(prediction, frame)[0].item() != pytest.approx(expected.item(), rel=1e-3)


# --- The folder -------------------------------------------------------------------------------------------------------


@contextmanager
def refused(message, kind=ValueError):
    """Expect an error, and at once."""
    start = time.perf_counter()
    with pytest.raises(kind, match=message):
        yield
    assert time.perf_counter() - start < 5


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


class Intruder:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def folder(tmp_path):
    build((FIXED, FREE), height=8, width=8).save(tmp_path / "deep" / "model")
    return tmp_path / "deep" / "model"


@pytest.mark.parametrize("boosted", [False, True])
def test_a_loaded_model_predicts_the_same(tmp_path, boosted):
    layers = (FREE.replace(boost=2.0, inhibition_decay=None) if boosted else FREE, FREE)
    model = build(layers, pad=1)
    for module in model.stack.layers:
        module.duty.uniform_()
    model.save(tmp_path)
    again = load(tmp_path, "reference")
    assert again.config == model.config
    assert not again.training
    assert {layer.engine for layer in again.stack.layers} == {"reference"}
    again = load(str(tmp_path))
    assert torch.equal(watch(model, (2, 1, 7, 6))[0].frame, watch(again, (2, 1, 7, 6))[0].frame)


def test_a_model_folder_holds_settings_and_weights_alone(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["height"] == 8


def test_the_folder_is_one_that_other_loaders_know(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        assert set(file.keys()) == model.state_dict().keys()
    again = VideoPredictor.from_pretrained(tmp_path)
    assert torch.equal(watch(model, (1, 1, 6, 6))[0].frame, watch(again, (1, 1, 6, 6))[0].frame)


@pytest.mark.parametrize(
    "rectifier",
    [CompactConfig(width=4, blocks=2), CompactConfig(width=4, sees_cells=False), PaperConfig(), SharpeningConfig()],
)
def test_a_loaded_model_rectifies_the_same(tmp_path, rectifier):
    model = build((FREE, FREE), pad=1, rectifier=rectifier)
    with torch.no_grad():
        for parameter in model.rectifier.parameters():
            parameter.normal_(0, 0.1)  # none is left as every new model has it
    model.save(tmp_path)
    again = load(tmp_path)
    assert again.config.rectifier == rectifier
    assert json.loads((tmp_path / "config.json").read_text())["rectifier"]["kind"] == rectifier.kind
    prediction = watch(model, (2, 1, 7, 6))[0]
    assert torch.equal(prediction.frame, watch(again, (2, 1, 7, 6))[0].frame)
    assert not torch.equal(prediction.frame, prediction.raw)


def test_weights_of_another_rectifier_are_refused(tmp_path):
    build(rectifier=CompactConfig(width=4, blocks=1)).save(tmp_path)
    edit(tmp_path, lambda config: config.update(rectifier={"kind": "compact", "width": 4, "blocks": 2}))
    with refused(r"model\.safetensors: weight rectifier\.blocks\.1\..* is missing"):
        load(tmp_path)
    edit(tmp_path, lambda config: config.update(rectifier=None))
    with refused(r"model\.safetensors: weight rectifier\.blocks\.0\..* is unknown"):
        load(tmp_path)


def test_saving_again_replaces_the_model(folder):
    other = build((FREE,))
    other.save(folder)
    assert load(folder).config == other.config


def test_refuses_what_is_no_model_folder(tmp_path, folder):
    with refused("no model folder .*nowhere; shipped by name: ", FileNotFoundError):
        load(tmp_path / "nowhere")
    with refused(r"is no model folder: it has no config\.json", FileNotFoundError):
        load(tmp_path)
    (folder / "model.safetensors").unlink()
    with refused(r"no file .*model\.safetensors", FileNotFoundError):
        load(folder)
    (folder / "model.safetensors").mkdir()
    with refused(r"no file .*model\.safetensors", FileNotFoundError):
        load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"config\.json: .*JSON"),
        ("{", r"config\.json: .*JSON"),
        ("settings: 1", r"config\.json: .*JSON"),
        ("[" * 100_000, r"config\.json: .*JSON"),
        ("[1, 2]", r"config\.json must hold a JSON object; got list"),
        ("null", r"config\.json must hold a JSON object; got NoneType"),
        (
            '{"layers": [{"groups": 4, "active_groups": 5}]}',
            r"config\.json: layers\.0: active_groups must be in .*; got 5",
        ),
        ('{"layers": [{"groups": 4, "active_groups": 2}], "depth": 1}', r"config\.json: depth: unknown setting"),
        ("{}", r"config\.json: layers must be given"),
    ],
)
def test_refuses_bad_settings_in_a_folder(folder, text, message):
    (folder / "config.json").write_text(text)
    with refused(message):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(pad_value=float("nan")), "pad_value must be a finite number; got nan"),
        (lambda c: c.update(pad=float("inf")), "pad must be a valid integer; got inf"),
        (lambda c: c["layers"][0].update(dropout=float("nan")), r"layers\.0\.dropout must be a finite number; got nan"),
        (lambda c: c["layers"][1].update(cell=1), r"layers\.1\.cell: unknown setting"),
        (lambda c: c["layers"][1].update(activation="exec"), r"layers\.1\.activation must be .*; got 'exec'"),
        (
            lambda c: c.update(rectifier={"kind": "magic"}),
            "rectifier: kind must be one of compact, unet, local, paper, s.*; got 'magic'",
        ),
        (lambda c: c.update(rectifier={"width": 4}), "rectifier: kind must be one of .*; got none"),
        (lambda c: c.update(rectifier={"kind": "compact", "depth": 4}), r"rectifier\.depth: unknown setting"),
        (
            lambda c: c.update(rectifier={"kind": "sharpening", "gain": float("inf")}),
            r"rectifier\.gain must be a finite number; got inf",
        ),
    ],
)
def test_refuses_a_changed_setting(folder, change, message):
    edit(folder, change)
    with refused(rf"config\.json: {message}"):
        load(folder)


@pytest.mark.parametrize("size", [10**6 + 1, 10**9, 10**18, 10**30, 10**200])
@pytest.mark.parametrize(
    "change",
    [
        lambda c, size: c.update(channels=size),
        lambda c, size: c.update(height=size),
        lambda c, size: c["layers"][0].update(groups=size),
        lambda c, size: c["layers"][1].update(cells_per_group=size),
        lambda c, size: c["layers"][0].update(kernel_size=size),
        lambda c, size: c["layers"][1].update(decoder_kernel_size=size),
        lambda c, size: c["layers"][1].update(recurrent_kernel_size=size // 2 * 2 + 1),
        lambda c, size: c.update(height=size, width=size, layers=[{**c["layers"][0], "decoder": "fully_connected"}]),
        lambda c, size: c.update(rectifier={"kind": "compact", "width": size}),
        lambda c, size: c.update(rectifier={"kind": "compact", "width": 1, "blocks": size}),
    ],
)
def test_refuses_sizes_that_the_weights_do_not_have_without_allocating(folder, change, size):
    edit(folder, lambda config: change(config, size))
    with refused(r"config\.json: sizes must fit the weights in model\.safetensors; .*"):
        load(folder)


def test_refuses_more_layers_than_the_weights_have(folder):
    edit(folder, lambda config: config.update(layers=config["layers"][1:] * 2_000))
    with refused(
        r"config\.json: sizes must fit the weights in model\.safetensors; got settings that ask for many more"
    ):
        load(folder)


def test_loading_a_large_model_is_not_refused(tmp_path):
    """The allowance is in proportion to the file."""
    boosted = FREE.replace(groups=600, boost=1.0, inhibition_decay=None)
    model = build((FREE.replace(groups=600), boosted), rectifier=CompactConfig(width=1, blocks=40))
    model.save(tmp_path)
    assert load(tmp_path).state_dict().keys() == model.state_dict().keys()


def test_refuses_truncated_and_foreign_weights(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not mapped to the file
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or no safetensors file"):
        load(folder)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="is a safetensors file that torchrsm did not write"):
        load(folder)
    save_file(tensors, path, {"torchrsm": '{"format": "other"}'})
    with pytest.raises(ValueError, match="must have the format torchrsm-model-1; got other"):
        load(folder)


@pytest.mark.parametrize("length", [0, 7, 100, 1000, -1])
def test_refuses_truncated_weights(folder, length):
    path = folder / "model.safetensors"
    os.truncate(path, length % path.stat().st_size)
    with refused(r"model\.safetensors is truncated or no safetensors file"):
        load(folder)


def test_a_pickle_in_the_place_of_the_weights_is_not_run(folder, tmp_path):
    path, ran = folder / "model.safetensors", tmp_path / "ran"
    pickle.loads(pickle.dumps(Intruder(ran)))
    assert ran.exists()  # it would
    ran.unlink()
    for write in (lambda: path.write_bytes(pickle.dumps(Intruder(ran))), lambda: torch.save(Intruder(ran), path)):
        write()
        with refused(r"model\.safetensors is truncated or no safetensors file"):
            load(folder)
        assert not ran.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, n: w.pop(n), "{} is missing"),
        (lambda w, n: w.update({n: w[n][1:]}), r"{} must be \(6, .*\) torch.float32; got \(5, .*\) torch.float32"),
        (lambda w, n: w.update({n: w[n].double()}), "{} must be .* torch.float32; got .* torch.float64"),
        (lambda w, n: w[n][0].fill_(float("nan")), "{} is not finite"),
        (lambda w, n: w[n][-1, -1:].fill_(float("-inf")), "{} is not finite"),
    ],
)
def test_refuses_weights_that_do_not_fit_the_settings(folder, change, message):
    name, path = "stack.layers.1.decoder", folder / "model.safetensors"
    tensors, header = load_tensors(path)
    change(tensors, name)
    save_tensors(path, tensors, header)
    with refused(rf"model\.safetensors: weight {message.format(name)}"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("stack.layers.0.bias"), r"here: weight stack\.layers\.0\.bias is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "here: weight extra is unknown"),
        (
            lambda w: w.update({"stack.layers.0.bias": torch.zeros(7)}),
            r"bias must be \(6,\) torch\.float32; got \(7,\) torch\.float32",
        ),
        (
            lambda w: w.update({"stack.layers.0.bias": torch.zeros(6, dtype=torch.float64)}),
            r"bias must be \(6,\) torch\.float32; got \(6,\) torch\.float64",
        ),
        (lambda w: w["stack.layers.0.bias"].fill_(float("nan")), r"weight stack\.layers\.0\.bias is not finite"),
        (
            lambda w: w["stack.layers.0.decoder"][0].fill_(float("inf")),
            r"weight stack\.layers\.0\.decoder is not finite",
        ),
    ],
)
def test_load_weights_refuses(change, message):
    model = build()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(weights)
    with pytest.raises(ValueError, match=message):
        load_weights(model, weights, "here")
    expected = build().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())  # nothing was taken


OF_FRAMES = [("input_frames", 2), ("input_decay", 0.5), ("input_threshold", 0.1), ("changes", "last")]


@pytest.mark.parametrize(("name", "value"), [*OF_FRAMES, ("loss", "cross_entropy")])
def test_only_the_first_layer_reads_frames(name, value):
    layer = LayerConfig(groups=4, active_groups=2, output_bias="channel", activation="sigmoid")
    with pytest.raises(ValueError, match=f"{name} is for the first layer, which reads frames; layer 2 has {value}"):
        ModelConfig(layers=(layer, layer.replace(**{name: value})))
