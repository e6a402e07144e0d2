import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional as F

from torchrsm.rectifiers import AnyRectifierConfig, InputSizes, make_rectifier
from torchrsm.rectifiers.compact import CompactConfig, CompactGenerator
from torchrsm.rectifiers.discriminator import Discriminator, adversarial_loss, discriminator_loss
from torchrsm.rectifiers.paper import PaperConfig, PaperGenerator
from torchrsm.rectifiers.sharpening import SharpeningConfig, SharpeningFilter
from torchrsm.rectifiers.unet import UNetConfig, UNetGenerator
from torchrsm.rsm.functional import Cells, Grid, empty_cells, to_dense

LAYER_CELLS = (9, 7)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_cells(batch, height, width, winners, count):
    """Distinct winners of each location, every third of them missing."""
    index = torch.rand(batch, height, width, count).argsort(-1)[..., :winners].int()
    value = torch.randn(batch, height, width, winners)
    missing = torch.rand(batch, height, width, winners) < 1 / 3
    return Cells(index.masked_fill(missing, -1), value.masked_fill(missing, 0))


def seen_by(shape, pad):
    """Cells of two layers for frames ``[b, c, h, w]``: at half the resolution of the padded frame, and at a fourth."""
    b, _, h, w = shape
    height, width = -(-(h + 2 * pad) // 2), -(-(w + 2 * pad) // 2)
    return [
        random_cells(b, height, width, 3, LAYER_CELLS[0]),
        random_cells(b, -(-height // 2), -(-width // 2), 2, LAYER_CELLS[1]),
    ]


def compact(channels=1, pad=2, **settings):
    config = CompactConfig(**{"width": 6, "blocks": 2, **settings})
    return CompactGenerator(config, InputSizes(channels, LAYER_CELLS, channels, pad, 0.5))


def stirred(generator):
    """A generator none of whose weights is 0."""
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(0, 0.2)
    return generator


SHAPES = [(2, 1, 12, 12), (3, 1, 7, 10), (2, 3, 9, 5), (1, 2, 1, 1)]


def test_frames_have_no_border_unless_it_is_given():
    assert InputSizes(1, LAYER_CELLS, 2) == InputSizes(1, LAYER_CELLS, 2, pad=0, pad_value=0.5)


# --- Compact ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pad", [0, 2])
def test_compact_returns_the_prediction_before_it_has_learned(shape, pad):
    raw = torch.rand(shape)
    raw.flatten()[0] = 0
    raw.flatten()[-1] = 1
    rectified = compact(shape[1], pad)(raw, seen_by(shape, pad))
    assert rectified.shape == shape
    torch.testing.assert_close(rectified, raw.clamp(1e-3, 1 - 1e-3), rtol=0, atol=1e-6)


def nearest(x, size):
    """Repeat the rows and columns of ``[b, n, h, w]`` to fill another size."""
    rows, columns = (
        np.floor(np.arange(new) * old / new).astype(int) for new, old in zip(size, x.shape[2:], strict=True)
    )
    return x[:, :, rows][:, :, :, columns]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("sees_cells", [True, False])
def test_compact_is_its_dense_definition(shape, pad, sees_cells):
    """Written again with dense cells and a plain loop over the folded pixels, in double precision."""
    generator = stirred(compact(shape[1], pad, sees_cells=sees_cells))
    raw, cells = torch.rand(shape), seen_by(shape, pad)
    weights = {name: value.detach().double() for name, value in generator.named_parameters()}

    def convolve(x, name):
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.conv2d(x, weight.reshape(len(weight), -1, 3, 3), bias, padding=1)

    b, c, h, w = shape
    height, width = -(-(h + 2 * pad) // 2), -(-(w + 2 * pad) // 2)
    padded = torch.full((b, c, 2 * height, 2 * width), 0.5, dtype=torch.float64)
    padded[:, :, pad : pad + h, pad : pad + w] = raw
    places = [(channel, row, column) for channel in range(c) for row in (0, 1) for column in (0, 1)]
    x = convolve(torch.stack([padded[:, n, i::2, j::2] for n, i, j in places], 1), "head")
    for level, layer in enumerate(cells if sees_cells else ()):
        dense = to_dense(layer, LAYER_CELLS[level]).double() @ weights[f"cells.{level}"]
        x = x + nearest(dense.permute(0, 3, 1, 2), (height, width))
    for block in ("blocks.0", "blocks.1"):
        x = x + convolve(F.silu(convolve(F.silu(x), f"{block}.1")), f"{block}.3")
    folded = convolve(x, "tail")
    change = torch.empty_like(padded)
    for number, (n, i, j) in enumerate(places):
        change[:, n, i::2, j::2] = folded[:, number]
    inside = change[:, :, pad : pad + h, pad : pad + w]
    expected = torch.sigmoid(torch.logit(raw.double().clamp(1e-3, 1 - 1e-3)) + inside)
    torch.testing.assert_close(generator(raw, cells).double(), expected, rtol=1e-4, atol=1e-5)
    assert (generator(raw, cells) - raw).abs().max() > 0.01


def test_a_cell_that_is_missing_changes_nothing():
    generator, raw = stirred(compact(pad=0)), torch.rand(2, 1, 8, 8)
    none = [empty_cells(2, Grid(size, size), 2) for size in (4, 2)]
    blind = stirred(compact(pad=0, sees_cells=False))
    blind.load_state_dict({n: v for n, v in generator.state_dict().items() if not n.startswith("cells")})
    torch.testing.assert_close(generator(raw, none), blind(raw, none), rtol=0, atol=1e-6)
    assert not torch.allclose(generator(raw, seen_by(raw.shape, 0)), blind(raw, none), atol=1e-3)


def test_compact_refuses_cells_of_another_number_of_layers():
    with pytest.raises(ValueError, match="zip"):
        compact(pad=0)(torch.rand(2, 1, 8, 8), seen_by((2, 1, 8, 8), 0)[:1])


# --- Paper ------------------------------------------------------------------------------------------------------------


def published(channels, pad):
    return PaperGenerator(PaperConfig(), InputSizes(channels, LAYER_CELLS, channels, pad))


def test_the_paper_generator_has_the_published_layers():
    generator = published(1, 2)
    layers = [*generator.encoder, *generator.decoder]
    filters = [(layer.in_channels, layer.out_channels) for layer in layers]
    assert filters == [(1, 64), (64, 128), (128, 256), (256, 128), (128, 64), (64, 1)]
    assert [layer.stride for layer in layers] == [(s, s) for s in (1, 2, 1, 2, 1, 1)]
    assert {layer.kernel_size for layer in layers} == {(5, 5)}
    # 25 a pair of filters, and a bias a filter
    by_hand = 25 * (64 + 64 * 128 + 128 * 256 + 256 * 128 + 128 * 64 + 64) + 64 + 128 + 256 + 128 + 64 + 1
    assert sum(parameter.numel() for parameter in generator.parameters()) == by_hand == 2_051_841


def test_the_paper_generator_sees_the_padded_frame_at_the_published_sizes():
    generator, sizes = published(1, 2), []
    for layer in (*generator.encoder, *generator.decoder):
        layer.register_forward_hook(lambda layer, given, made: sizes.append(tuple(made.shape[2:])))
    generator.encoder[0].register_forward_pre_hook(lambda layer, given: sizes.append(tuple(given[0].shape[2:])))
    raw = torch.rand(1, 1, 30, 30)
    rectified = generator(raw)
    assert sizes == [(34, 34), (34, 34), (17, 17), (17, 17), (34, 34), (34, 34), (34, 34)]
    assert rectified.shape == raw.shape
    assert 0 < rectified.min() < rectified.max() < 1


@pytest.mark.parametrize("shape", [(1, 1, 7, 10), (1, 2, 5, 5)])
@pytest.mark.parametrize("pad", [0, 1])
def test_the_paper_generator_takes_any_size(shape, pad):
    generator = published(shape[1], pad)
    assert generator(torch.rand(shape)).shape == shape


# --- Sharpening -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "level"), [(2.0, 0.5), (5.0, 0.3), (0.5, 0.8)])
def test_sharpening_is_its_formula(gain, level):
    raw = torch.linspace(0.001, 0.999, 999).view(1, 1, 27, 37)
    sharp = SharpeningFilter(SharpeningConfig(gain=gain, level=level))(raw).flatten().double().numpy()
    x = raw.flatten().double().numpy()
    odds = (x / (1 - x) * (1 - level) / level) ** gain * level / (1 - level)
    np.testing.assert_allclose(sharp, odds / (1 + odds), rtol=1e-4, atol=1e-6)
    assert (np.diff(sharp) >= 0).all()
    assert (np.diff(sharp[(sharp > 0.001) & (sharp < 0.999)]) > 0).all()  # beyond, float32 has no room
    nearest_to_level = np.abs(x - level).argmin()
    assert sharp[nearest_to_level] == pytest.approx(level, abs=2e-3)
    away = np.abs(x - level) > 0.05
    further = (sharp - x) * (x - level) > 0  # away from the level
    assert (further[away] == (gain > 1)).all()


def test_sharpening_keeps_black_and_white_finite_and_learns_nothing():
    sharpen = SharpeningFilter(SharpeningConfig(gain=3.0))
    ends = sharpen(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)).flatten()
    assert 0 < ends[0] < 1e-6
    assert 1 - 1e-6 < ends[1] <= 1
    assert list(sharpen.parameters()) == []


# --- Discriminator ----------------------------------------------------------------------------------------------------


def test_the_discriminator_has_the_published_layers():
    shapes = {name: tuple(value.shape) for name, value in Discriminator(900).named_parameters()}
    assert shapes == {
        "frame.weight": (128, 900),
        "frame.bias": (128,),
        "condition.weight": (128, 900),
        "condition.bias": (128,),
        "unit.weight": (1, 256),
        "unit.bias": (1,),
    }


def test_the_discriminator_is_its_formula():
    discriminator = Discriminator(12)
    frame, condition = torch.rand(5, 1, 3, 4), torch.rand(5, 1, 3, 4)
    w = {name: value.detach().double().numpy() for name, value in discriminator.named_parameters()}
    seen = frame.double().numpy().reshape(5, 12) @ w["frame.weight"].T + w["frame.bias"]
    given = condition.double().numpy().reshape(5, 12) @ w["condition.weight"].T + w["condition.bias"]
    both = np.concatenate([seen, given], 1)
    both = np.where(both > 0, both, 0.2 * both)
    expected = (both @ w["unit.weight"].T + w["unit.bias"])[:, 0]
    assert discriminator(frame, condition).shape == (5,)
    np.testing.assert_allclose(discriminator(frame, condition).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_adversarial_losses_are_their_formulas():
    real, generated = torch.tensor([-3.0, 0.5, 9.0, 2.0]), torch.tensor([1.0, -0.25, 9.0, -4.0])
    learn = torch.tensor([True, True, False, True])

    def cross_entropy(logits, label):
        says = 1 / (1 + np.exp(-logits[learn].double().numpy()))
        return -(label * np.log(says) + (1 - label) * np.log(1 - says)).mean()

    assert adversarial_loss(generated, learn).item() == pytest.approx(cross_entropy(generated, 1), rel=1e-6)
    expected = cross_entropy(real, 0.9) + cross_entropy(generated, 0)
    assert discriminator_loss(real, generated, learn).item() == pytest.approx(expected, rel=1e-6)
    expected = cross_entropy(real, 0.7) + cross_entropy(generated, 0)
    assert discriminator_loss(real, generated, learn, 0.7).item() == pytest.approx(expected, rel=1e-6)


def test_smoothed_labels_keep_the_discriminator_from_being_too_sure():
    logits, one = torch.linspace(-3, 6, 901), torch.tensor([True])
    losses = torch.stack([discriminator_loss(logit[None], torch.tensor([-9.0]), one) for logit in logits])
    assert logits[losses.argmin()].item() == pytest.approx(np.log(9), abs=0.02)  # it says 0.9, and no more


# --- U-Net ------------------------------------------------------------------------------------------------------------


def unet(channels=1, pad=2, **settings):
    config = UNetConfig(**{"features": 4, "width": 6, "blocks": 2, **settings})
    return UNetGenerator(config, InputSizes(channels, LAYER_CELLS, 2 * channels, pad, 0.5))


def stack_input(shape, pad):
    """A frame and its trace with the border around them, ``[b, 2 c, h + 2 pad, w + 2 pad]``."""
    b, c, h, w = shape
    return torch.rand(b, 2 * c, h + 2 * pad, w + 2 * pad)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("changes", ["raw", "last"])
def test_unet_returns_what_it_changes_before_it_has_learned(shape, pad, changes):
    _, c, h, w = shape
    raw, seen = torch.rand(shape), stack_input(shape, pad)
    rectified = unet(c, pad, changes=changes)(raw, seen_by(shape, pad), seen)
    expected = raw if changes == "raw" else seen[:, :c, pad : pad + h, pad : pad + w]
    assert rectified.shape == shape
    torch.testing.assert_close(rectified, expected.clamp(1e-3, 1 - 1e-3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sees_cells", [True, False])
def test_unet_is_its_definition(shape, sees_cells):
    """Written again with dense cells, in double precision."""
    pad = 1
    b, c, h, w = shape
    generator = stirred(unet(c, pad, sees_cells=sees_cells))
    raw, cells, seen = torch.rand(shape), seen_by(shape, pad), stack_input(shape, pad)
    weights = {name: value.detach().double() for name, value in generator.named_parameters()}

    def normed(x, name, stride=1, up=False):
        weight, bias = weights[f"{name}.convolution.weight"], weights[f"{name}.convolution.bias"]
        x = F.conv_transpose2d(x, weight, bias, 2, 1, 1) if up else F.conv2d(x, weight, bias, stride, padding=1)
        x = F.group_norm(x, 2, weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"])
        return torch.where(x > 0, x, 0.2 * x)

    height, width = 2 * -(-(h + 2 * pad) // 2), 2 * -(-(w + 2 * pad) // 2)
    both = torch.full((b, 3 * c, height, width), 0.5, dtype=torch.float64)
    both[:, :c, pad : pad + h, pad : pad + w] = raw
    both[:, c:, : h + 2 * pad, : w + 2 * pad] = seen
    first = normed(2 * both - 1, "read")
    x = normed(first, "down", 2)
    for level, layer in enumerate(cells if sees_cells else ()):
        dense = to_dense(layer, LAYER_CELLS[level]).double() @ weights[f"cells.{level}"]
        x = x + nearest(dense.permute(0, 3, 1, 2), x.shape[2:])
    for block in ("blocks.0", "blocks.1"):
        inner = F.group_norm(x, 1, weights[f"{block}.0.weight"], weights[f"{block}.0.bias"])
        for name in (f"{block}.1", f"{block}.3"):
            weight = weights[f"{name}.weight"]
            inner = F.conv2d(inner, weight.reshape(len(weight), -1, 3, 3), weights[f"{name}.bias"], padding=1)
            inner = F.gelu(inner) if name.endswith("1") else inner
        x = x + inner
    x = normed(torch.cat((normed(x, "up", up=True), first), 1), "draw")
    change = F.conv2d(x, weights["tail.weight"], weights["tail.bias"])[:, :, pad : pad + h, pad : pad + w]
    expected = torch.sigmoid(torch.logit(raw.double().clamp(1e-3, 1 - 1e-3)) + change)
    rectified = generator(raw, cells, seen)
    torch.testing.assert_close(rectified.double(), expected, rtol=1e-3, atol=1e-4)
    assert (rectified - raw).abs().max() > 0.01


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "kind", "weights"),
    [
        (CompactConfig(width=4, blocks=1), CompactGenerator, True),
        (UNetConfig(features=2, width=4, blocks=1, changes="last"), UNetGenerator, True),
        (PaperConfig(), PaperGenerator, True),
        (SharpeningConfig(), SharpeningFilter, False),
    ],
)
def test_settings_name_the_rectifier(config, kind, weights):
    rectifier = make_rectifier(config, InputSizes(1, LAYER_CELLS, 2, 2, 0.5))
    assert type(rectifier) is kind
    assert bool(list(rectifier.parameters())) is weights
    assert TypeAdapter(AnyRectifierConfig).validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (CompactConfig, {"width": 0}, "width\n.*greater than 0"),
        (CompactConfig, {"blocks": -1}, "blocks\n.*greater than 0"),
        (CompactConfig, {"kind": "paper"}, "kind\n.*'compact'"),
        (UNetConfig, {"features": 3}, "features\n.*multiple of 2"),
        (UNetConfig, {"width": 0}, "width\n.*greater than 0"),
        (UNetConfig, {"changes": "first"}, "changes\n.*'raw' or 'last'"),
        (PaperConfig, {"width": 4}, "width\n.*not permitted"),
        (SharpeningConfig, {"gain": 0.0}, "gain\n.*greater than 0"),
        (SharpeningConfig, {"gain": float("nan")}, "gain\n.*finite"),
        (SharpeningConfig, {"level": 0.0}, "level\n.*greater than 0"),
        (SharpeningConfig, {"level": 1.0}, "level\n.*less than 1"),
    ],
)
def test_refuses_bad_settings(make, settings, message):
    with pytest.raises(ValidationError, match=message):
        make(**settings)


@pytest.mark.parametrize("make", [compact, unet])
def test_kernels_lie_as_the_fast_convolutions_of_a_cpu_want_them(make):
    kernels = [weight for weight in make().parameters() if weight.dim() == 4]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
