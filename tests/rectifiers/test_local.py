"""The row of local stages: what each makes, and who learns from what."""

import pytest
import torch
from device_under_test import here
from torch.nn import functional as F

from torchrsm.learning.ranks import Ranks
from torchrsm.learning.rectifying import RectifierLearning, RectifyingConfig
from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.rectifiers import InputSizes
from torchrsm.rectifiers.contract import mean_squared_error
from torchrsm.rectifiers.local import LocalConfig, LocalStages
from torchrsm.rsm.functional import Cells, to_dense
from torchrsm.rsm.layer import LayerConfig

LAYER_CELLS = (9, 7)

SHAPES = [(2, 1, 12, 12), (3, 1, 7, 10), (2, 3, 9, 5), (1, 2, 1, 1)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def row(channels=1, pad=2, **settings):
    config = LocalConfig(**{"stages": 3, "width": 6, **settings})
    return LocalStages(config, InputSizes(channels, LAYER_CELLS, channels, pad, 0.5))


def stirred(rectifier):
    """A rectifier none of whose weights is 0."""
    with torch.no_grad():
        for parameter in rectifier.parameters():
            parameter.normal_(0, 0.2)
    return rectifier


def cells_for(shape, pad):
    """Two winners of each location of a layer at half the resolution of the padded frame, every third missing."""
    b, _, h, w = shape
    grid = (b, -(-(h + 2 * pad) // 2), -(-(w + 2 * pad) // 2))
    found = []
    for count in LAYER_CELLS:
        index = torch.rand(*grid, count).argsort(-1)[..., :2].int()
        missing = torch.rand(*grid, 2) < 1 / 3
        found.append(Cells(index.masked_fill(missing, -1), torch.randn(*grid, 2).masked_fill(missing, 0)))
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pad", [0, 2])
def test_every_stage_returns_the_prediction_before_it_has_learned(shape, pad):
    raw = torch.rand(shape)
    raw.flatten()[0] = 0
    raw.flatten()[-1] = 1
    made = row(shape[1], pad).stages(raw, cells_for(shape, pad))
    assert len(made) == 3
    for frame in made:
        assert frame.shape == shape
        torch.testing.assert_close(frame, raw.clamp(1e-3, 1 - 1e-3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("hidden_layers", [1, 3])
@pytest.mark.parametrize("sees_cells", [True, False])
def test_the_row_is_its_definition(shape, pad, hidden_layers, sees_cells):
    """Written again with dense cells and a plain loop over the folded pixels, in double precision."""
    rectifier = stirred(row(shape[1], pad, hidden_layers=hidden_layers, sees_cells=sees_cells))
    raw, cells = torch.rand(shape), cells_for(shape, pad)
    weights = {name: value.detach().double() for name, value in rectifier.named_parameters()}
    b, c, h, w = shape
    height, width = -(-(h + 2 * pad) // 2), -(-(w + 2 * pad) // 2)
    places = [(channel, down, right) for channel in range(c) for down in (0, 1) for right in (0, 1)]

    def convolve(x, name):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def active(x, name):
        return F.gelu(F.group_norm(x, 1, weights[f"{name}.weight"], weights[f"{name}.bias"]))

    frame, below = raw.double(), None
    for number, made in enumerate(rectifier.stages(raw, cells)):
        stage = f"row.{number}"
        padded = torch.full((b, c, 2 * height, 2 * width), 0.5, dtype=torch.float64)
        padded[:, :, pad : pad + h, pad : pad + w] = frame
        x = convolve(torch.stack([2 * padded[:, n, i::2, j::2] - 1 for n, i, j in places], 1), f"{stage}.read")
        for level, layer in enumerate(cells if sees_cells else ()):
            dense = to_dense(layer, LAYER_CELLS[level]).double() @ weights[f"{stage}.cells.{level}"]
            x = x + dense.permute(0, 3, 1, 2)
        if below is not None:
            x = x + convolve(below, f"{stage}.below")
        below = active(x, f"{stage}.norms.0")
        for layer in range(hidden_layers - 1):
            below = active(convolve(below, f"{stage}.hidden.{layer}"), f"{stage}.norms.{layer + 1}")
        folded, change = convolve(below, f"{stage}.tail"), torch.empty_like(padded)
        for channel, (n, i, j) in enumerate(places):
            change[:, n, i::2, j::2] = folded[:, channel]
        inside = change[:, :, pad : pad + h, pad : pad + w]
        before, frame = frame, torch.sigmoid(torch.logit(frame.clamp(1e-3, 1 - 1e-3)) + inside)
        torch.testing.assert_close(made.double(), frame, rtol=1e-4, atol=1e-5)
        assert (frame - before).abs().max() > 1e-3
    assert torch.equal(rectifier(raw, cells), made)


def test_a_stage_s_loss_reaches_its_own_weights_alone():
    rectifier = stirred(row())
    raw, frame = torch.rand(2, 1, 12, 12), torch.rand(2, 1, 12, 12)
    made = rectifier.stages(raw, cells_for(raw.shape, 2))
    losses = rectifier.losses(made, frame, torch.tensor([True, True]), mean_squared_error)
    groups = rectifier.weight_groups()
    assert len(losses) == len(groups) == len(rectifier.stage_names) == 3
    for number, own in enumerate(groups):
        for other, loss in enumerate(losses):
            found = torch.autograd.grad(loss, own.weights, retain_graph=True, allow_unused=True)
            assert all((gradient is not None) is (number == other) for gradient in found)
    every = [id(weight) for group in groups for weight in group.weights]
    assert sorted(every) == sorted(map(id, rectifier.parameters()))


def learning_of(**settings):
    """How a row learns on a stack, and what the stack predicts."""
    layers = (LayerConfig(groups=8, active_groups=2, output_bias="channel"),) * 2
    config = ModelConfig(layers=layers, pad=1, rectifier=LocalConfig(stages=3, width=8))
    model = here(VideoPredictor(config).eval())
    with torch.no_grad():
        model.stack.layers[0].decoder.normal_()
        model.stack.layers[0].bias.normal_()
    learning = RectifierLearning(model, RectifyingConfig(adversarial_weight=0.0, **settings), (4, 1, 8, 8), Ranks())
    state = model.initial_state((4, 1, 8, 8))
    for _ in range(3):
        prediction = model.predict_raw(state)
        state = model.observe(here(torch.rand(4, 1, 8, 8)), prediction, state)
    return learning, prediction._replace(raw=prediction.raw.clamp(0, 1))


def teach(learning, prediction, frame, last=None):
    none = here(torch.zeros(4, dtype=torch.int64))
    last = torch.zeros_like(frame) if last is None else last
    result = learning.find_gradients(prediction, frame, none == 0, last, none)
    learning.step()
    return result


def test_another_loss_of_a_stage_moves_no_other_stage():
    """One stage's loss is made a hundred times as large: only its own weights end elsewhere."""
    ends = []
    for factor in (1.0, 100.0):
        torch.manual_seed(0)
        learning, prediction = learning_of(matrix_learning_rate=1e-3, gradient_norm=0.1)
        rectifier, frame = learning.rectifier, here(torch.rand(4, 1, 8, 8))
        losses_of = rectifier.losses

        def weighed(made, frame, learn, score, losses_of=losses_of, factor=factor):
            below, middle, above = losses_of(made, frame, learn, score)
            return below, middle * factor, above

        rectifier.losses = weighed
        teach(learning, prediction, frame)
        ends.append([[w.detach().clone() for w in group.weights] for group in rectifier.weight_groups()])
    for number, (one, other) in enumerate(zip(*ends, strict=True)):
        same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert same == (number != 1)


def test_every_stage_learns_and_the_last_is_the_best():
    learning, prediction = learning_of(learning_rate=3e-3)
    frame = (prediction.raw > 0.5).float()
    losses = [teach(learning, prediction, frame).losses.tolist() for _ in range(80)]
    assert losses[-1][0] < 0.5 * losses[0][0]
    assert losses[-1][2] < losses[-1][0]
    assert learning.loss_names == tuple(f"squared error of stage {number}" for number in (1, 2, 3))


def test_a_width_that_does_not_fit_the_symmetry_is_refused():
    layers = (LayerConfig(groups=8, active_groups=2, output_bias="channel"),)
    with pytest.raises(ValueError, match=r"'square' needs a width of 8 or a multiple of it; got 12"):
        ModelConfig(layers=layers, pad=1, symmetry="square", rectifier=LocalConfig(width=12))
