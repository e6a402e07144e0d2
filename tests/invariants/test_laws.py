"""What holds for every model, whatever its settings: local credit, sparsity, causality, constant memory."""

import pytest
import torch
from device_under_test import here

from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.predictor import restart
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rectifiers.paper import PaperConfig
from torchrsm.rectifiers.sharpening import SharpeningConfig
from torchrsm.rsm.functional import Cells, Grid, to_dense
from torchrsm.rsm.layer import LayerConfig

SHAPE = (3, 1, 10, 8)  # of a batch of frames
STEPS = 5


def layer(**settings):
    return LayerConfig(**{"groups": 8, "cells_per_group": 2, "active_groups": 3, "kernel_size": 3, **settings})


# The published mechanisms, and all the others.
PUBLISHED = (
    layer(pool=2, activation="sigmoid"),
    layer(groups=10, active_groups=4),
)
VARIANTS = (
    layer(recurrent_decay=0.8, input_decay=0.7, inhibition_decay=0.5, recurrent_kernel_size=3, stride=1),
    layer(cells_per_group=1, inhibition_decay=None, boost=1.0, normalisation="location", pool=2),
    layer(inhibition_decay=None, normalisation="none", decoder="fully_connected"),
)
MODELS = {
    "published": {"layers": PUBLISHED},
    "fresh feedback": {"layers": PUBLISHED, "fresh_feedback": True},
    "variants": {"layers": VARIANTS},
}


@pytest.fixture(params=MODELS)
def model(request, engine):
    return build(**MODELS[request.param], engine=engine)


def build(layers, engine="auto", **settings):
    torch.manual_seed(0)
    config = ModelConfig(**{"layers": layers, "height": SHAPE[2], "width": SHAPE[3], "pad": 1, **settings})
    model = VideoPredictor(config, engine).eval()
    with torch.no_grad():
        for module in model.stack.layers:
            module.recurrent.mul_(5)  # so that the past is heard
            module.bias.normal_(0, 0.1)  # and no two cells are equal before anything was seen
            module.decoder.mul_(3)
    return here(model)


def video(steps=STEPS, shape=SHAPE, seed=0):
    return here(torch.rand(steps, *shape, generator=torch.Generator().manual_seed(seed)))


def watch(model, frames, state=None):
    """Predict and observe each frame; return all predictions and the state after the last."""
    state = model.initial_state(tuple(frames.shape[1:])) if state is None else state
    predictions = []
    for frame in frames:
        predictions.append(model.predict(state))
        state = model.observe(frame, predictions[-1], state)
    return predictions, state


def tensors(value):
    """All tensors of a nested tuple, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value or () for tensor in tensors(part)]


def equal(a, b):
    """Whether nested tuples are equal bit by bit."""
    return len(tensors(a)) == len(tensors(b)) and all(map(torch.equal, tensors(a), tensors(b)))


def agree(a, b, engine):
    """Whether two results are equal, bit by bit where the engine works on each location by itself.

    The matrix products of the reference may round a row differently in another place.
    """
    if engine == "fused":
        return equal(a, b)
    return all(torch.allclose(x, y, rtol=0, atol=1e-6) for x, y in zip(tensors(a), tensors(b), strict=True))


def elements(value, n):
    """The elements ``n`` of a batch, in a nested tuple."""
    return [tensor[n] for tensor in tensors(value)]


def visible(prediction):
    """The parts of a prediction that have the batch first."""
    return prediction.raw, [(p.cells, p.z) for p in prediction.layers]


# --- Local credit -----------------------------------------------------------------------------------------------------


def test_no_gradient_crosses_layers(model):
    prediction = watch(model, video())[0][-1]
    for level, loss in enumerate(model.losses(prediction, video()[-1])):
        model.zero_grad()
        loss.backward()
        for other, module in enumerate(model.stack.layers):
            gradients = [parameter.grad for parameter in module.parameters()]
            if other == level:
                assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
            else:
                assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_no_gradient_crosses_steps(model):
    """A state is a value, so the graph of a loss ends at the step that it judges."""
    predictions, state = watch(model, video())
    assert not any(tensor.requires_grad for tensor in tensors(state))
    for prediction in predictions:
        assert not any(tensor.requires_grad for p in prediction.layers for tensor in p.cells)
        assert not prediction.frame.requires_grad
    early, late = (model.losses(prediction, video()[0]) for prediction in predictions[-2:])
    for loss in early:
        loss.backward()
    for loss in late:  # would fail if it shared a graph, which is freed by now
        loss.backward()


def test_a_frame_with_a_graph_leaves_none_behind(model):
    frames = video().requires_grad_()
    predictions, state = watch(model, frames)
    assert not any(tensor.requires_grad for tensor in tensors(state))
    for loss in model.losses(predictions[-1], frames[-1]):
        loss.backward()
    assert frames.grad is None


# --- Sparsity ---------------------------------------------------------------------------------------------------------


def test_exactly_k_distinct_groups_win_at_every_location(model):
    for prediction in watch(model, video())[0]:
        for settings, p in zip(model.config.layers, prediction.layers, strict=True):
            index = p.cells.index
            assert index.shape[-1] == settings.active_groups
            assert index.min() >= 0
            assert index.max() < settings.cells
            group = (index % settings.groups).sort(-1).values
            assert (group.diff(dim=-1) > 0).all()
            active = to_dense(p.cells, settings.cells) != 0
            assert (active.sum(-1) == settings.active_groups).all()


def wins_twice(inhibition_decay, engine):
    """Share of winners that win again at the next step, while the input stands still."""
    model = build((layer(inhibition_decay=inhibition_decay, dropout=0.0),), engine)
    predictions, _ = watch(model, video(1).expand(STEPS, -1, -1, -1, -1))
    won = [to_dense(p.layers[0].cells, 16) != 0 for p in predictions]
    return sum((a & b).sum() for a, b in zip(won[1:], won[2:], strict=False)) / sum(map(torch.sum, won[1:-1]))


def test_a_cell_rests_for_a_step_after_it_won(engine):
    assert wins_twice(0.0, engine) == 0
    assert wins_twice(0.9, engine) == 0
    assert wins_twice(None, engine) > 0.5


def test_cells_win_again_where_none_else_remains(engine):
    model = build((layer(groups=3, cells_per_group=1),), engine)
    for prediction in watch(model, video())[0]:
        assert (prediction.layers[0].cells.index.sort(-1).values == here(torch.arange(3))).all()


# --- Causality, batches, beginnings -----------------------------------------------------------------------------------


def watch_a_change(model):
    """Return all predictions of a video, and of the same with frame 3 changed."""
    frames = video()
    changed = frames.clone()
    changed[3] = 1 - changed[3]
    return watch(model, frames)[0], watch(model, changed)[0]


def test_a_prediction_knows_nothing_of_its_frame_or_of_later_ones(model):
    before, after = watch_a_change(model)
    for t in range(4):
        assert equal(visible(before[t]), visible(after[t]))
    assert not torch.equal(before[4].raw, after[4].raw)


def test_losses_leave_no_trace_in_what_follows(model):
    frames = video()
    state = model.initial_state(SHAPE)
    for frame, expected in zip(frames, watch(model, frames)[0], strict=True):
        prediction = model.predict(state)
        for loss in model.losses(prediction, 1 - frame):
            loss.backward()
        assert equal(visible(prediction), visible(expected))
        state = model.observe(frame, prediction, state)


def test_a_permuted_batch_is_a_permuted_result(model, engine):
    order = here(torch.tensor([2, 0, 1]))
    predictions, state = watch(model, video())
    permuted, permuted_state = watch(model, video()[:, order])
    for a, b in zip(predictions, permuted, strict=True):
        assert agree(elements(visible(a), order), visible(b), engine)
    assert agree(elements(state, order), permuted_state, engine)


def test_an_element_of_a_batch_is_alone(model):
    """No element hears another: changing one changes the others in no bit."""
    changed = video()
    changed[:, 1] = 1 - changed[:, 1]
    others = [0, 2]
    for a, b in zip(watch(model, video())[0], watch(model, changed)[0], strict=True):
        assert equal(elements(visible(a), others), elements(visible(b), others))


def test_a_start_flag_is_a_fresh_state(model):
    _, state = watch(model, video())
    fresh = model.initial_state(SHAPE)
    state = restart(state, fresh, here(torch.tensor([False, True, False])))
    fresh_predictions, fresh_end = watch(model, video(seed=1))
    old_predictions, old_end = watch(model, video(seed=1), watch(model, video())[1])
    predictions, end = watch(model, video(seed=1), state)
    for got, new, old in zip(predictions, fresh_predictions, old_predictions, strict=True):
        assert equal(elements(visible(got), 1), elements(visible(new), 1))
        assert equal(elements(visible(got), [0, 2]), elements(visible(old), [0, 2]))
    assert equal(elements(end, 1), elements(fresh_end, 1))
    assert equal(elements(end, [0, 2]), elements(old_end, [0, 2]))
    assert not torch.equal(fresh_predictions[0].raw, old_predictions[0].raw)  # the state matters


def test_a_start_is_not_learned(model):
    """The loss of a batch with a start is that of the other elements."""
    prediction = watch(model, video())[0][-1]
    frame = video()[-1]
    losses = model.losses(prediction, frame, here(torch.tensor([True, False, True])))
    frame[1] = 1 - frame[1]
    same = model.losses(prediction, frame, here(torch.tensor([True, False, True])))
    assert equal(losses[0], same[0])
    none = model.losses(prediction, frame, here(torch.zeros(3, dtype=torch.bool)))
    for loss in none:
        loss.backward()
        assert loss == 0
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


# --- Dropout ----------------------------------------------------------------------------------------------------------


def test_no_dropout_outside_of_training(model):
    first, again = watch(model, video()), watch(model, video())
    assert equal([visible(p) for p in first[0]], [visible(p) for p in again[0]])
    assert equal(first[1], again[1])


def test_dropout_in_training(model):
    state = watch(model, video())[1]
    quiet = model.predict(state)
    model.train()
    noisy = [model.predict(state) for _ in range(2)]
    assert not torch.equal(quiet.raw, noisy[0].raw)
    assert not torch.equal(noisy[0].raw, noisy[1].raw)
    for module in model.stack.layers:
        module.config = module.config.replace(dropout=0.0)
    assert equal(visible(model.predict(state)), visible(quiet))


# --- Size, place, memory ----------------------------------------------------------------------------------------------

CONVOLUTIONAL = (
    layer(output_bias="channel", normalisation="location", recurrent_kernel_size=3, pool=2, activation="sigmoid"),
    layer(output_bias="channel", normalisation="location", kernel_size=3, stride=1),
)


@pytest.mark.parametrize("size", [(10, 8), (7, 13), (1, 1), (3, 20)])
def test_one_bias_for_each_channel_fits_any_size(size, engine):
    model = build(CONVOLUTIONAL, engine, height=None, width=None)
    frames = video(3, (2, 1, *size))
    prediction = watch(model, frames)[0][-1]
    assert prediction.frame.shape == (2, 1, *size)
    for loss in model.losses(prediction, frames[0]):
        loss.backward()
        assert loss.isfinite()


@pytest.mark.parametrize("shift", [(2, 0), (0, 2), (4, 2)])
def test_a_shifted_input_is_a_shifted_prediction(shift, engine):
    """By whole strides, far from the edges, in a surround that is the same everywhere."""
    model = build((CONVOLUTIONAL[0].replace(pool=1),), engine, height=None, width=None, pad=0)
    frames = here(torch.full((4, 1, 1, 40, 40), 0.25))
    frames[..., 16:22, 16:22] = video(4, (1, 1, 6, 6))
    moved = frames.roll(shift, (-2, -1))
    inside = slice(12, 28)
    for plain, shifted in zip(watch(model, frames)[0], watch(model, moved)[0], strict=True):
        rows, columns = (slice(inside.start + s, inside.stop + s) for s in shift)
        assert agree(shifted.raw[..., rows, columns], plain.raw[..., inside, inside], engine)
    assert plain.raw[..., inside, inside].std() > 0.01


def test_the_memory_of_a_state_is_constant(model):
    def size(state):
        return [(tensor.dtype, tensor.shape, tensor.untyped_storage().nbytes()) for tensor in tensors(state)]

    _, early = watch(model, video(2))
    _, late = watch(model, video(30), early)
    assert size(late) == size(early)
    assert [tensor.shape for tensor in tensors(late)] == [t.shape for t in tensors(model.initial_state(SHAPE))]


def test_published_cells_are_remembered_as_winners_alone():
    state = build(PUBLISHED).initial_state(SHAPE)
    for settings, part in zip(PUBLISHED, state, strict=True):
        assert part.trace is None
        assert part.inhibition is None
        assert isinstance(part.cells, Cells)
        assert part.cells.index.shape[-1] == settings.active_groups


def test_free_running_is_observing_ones_own_prediction(model):
    """The prediction of the next frame depends on what was fed back, and stays a picture."""
    _, state = watch(model, video())
    for _ in range(20):
        prediction = model.predict(state)
        state = model.observe(prediction.frame, prediction, state)
        assert prediction.frame.isfinite().all()
    assert prediction.layers[0].input_grid == Grid(SHAPE[2] + 2, SHAPE[3] + 2)


# --- The rectifier ----------------------------------------------------------------------------------------------------

RECTIFIERS = {
    "compact": CompactConfig(width=6, blocks=1),
    "compact, prediction alone": CompactConfig(width=6, blocks=1, sees_cells=False),
    "paper": PaperConfig(),
    "sharpening": SharpeningConfig(gain=3.0),
}


@pytest.fixture(params=RECTIFIERS)
def rectified(request):
    model = build(PUBLISHED, fresh_feedback=True, rectifier=RECTIFIERS[request.param])
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.rectifier.parameters():
            weight.add_(torch.randn_like(weight) * 0.1 * (weight.dim() < 4 or not weight.any()))
    return model


def test_a_rectified_frame_is_fed_back_and_the_raw_one_is_kept(rectified):
    for prediction in watch(rectified, video())[0]:
        assert prediction.frame.shape == prediction.raw.shape
        assert (prediction.frame - prediction.raw).abs().max() > 0.01
        assert prediction.frame.min() >= 0
        assert prediction.frame.max() <= 1


def test_a_rectifier_changes_nothing_in_the_stack(rectified):
    """What the stack predicts and remembers of the frames that come is that of the same stack without one."""
    plain = build(PUBLISHED, fresh_feedback=True)
    plain.stack.load_state_dict(rectified.stack.state_dict())
    (expected, end), (got, same_end) = watch(plain, video()), watch(rectified, video())
    assert equal(end, same_end)
    for a, b in zip(expected, got, strict=True):
        assert equal(visible(a), visible(b))
        assert torch.equal(a.frame, b.raw)


def test_no_gradient_enters_the_stack_from_the_rectifier(rectified):
    _, state = watch(rectified, video())
    prediction = rectified.predict_raw(state)
    frame = rectified.rectify(prediction)
    if not list(rectified.rectifier.parameters()):
        assert not frame.requires_grad
        return
    (frame - video()[0]).square().mean().backward()
    assert all(parameter.grad is None for parameter in rectified.stack.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in rectified.rectifier.parameters())
    # Nor does the next step hear of it, where what is fed back carries the graph.
    prediction = rectified.predict_raw(state)
    frame = rectified.rectify(prediction)
    assert frame.requires_grad
    state = rectified.observe(frame, prediction, state)
    assert not any(tensor.requires_grad for tensor in tensors(state))
    assert not rectified.predict(state).frame.requires_grad


def test_a_stack_learns_the_same_with_a_rectifier(rectified):
    prediction = watch(rectified, video())[0][-1]
    for loss in rectified.losses(prediction, video()[0]):
        loss.backward()
    assert all(parameter.grad is None for parameter in rectified.rectifier.parameters())
    assert all(parameter.grad.any() for parameter in rectified.stack.parameters())


def test_a_rectified_prediction_knows_nothing_of_its_frame_or_of_later_ones(rectified):
    before, after = watch_a_change(rectified)
    for t in range(4):
        assert torch.equal(before[t].frame, after[t].frame)
    assert not torch.equal(before[4].frame, after[4].frame)


def test_rectified_elements_of_a_batch_are_alone_and_in_order(rectified):
    order = here(torch.tensor([2, 0, 1]))
    changed = video()
    changed[:, 1] = 1 - changed[:, 1]
    runs = [watch(rectified, frames)[0] for frames in (video(), video()[:, order], changed)]
    for plain, permuted, other in zip(*runs, strict=True):
        torch.testing.assert_close(permuted.frame, plain.frame[order], rtol=0, atol=1e-6)
        assert torch.equal(other.frame[[0, 2]], plain.frame[[0, 2]])


def test_a_rectifier_has_no_memory(rectified):
    """The same prediction gives the same frame, whatever was rectified in between."""
    prediction, state = watch(rectified, video())[0][-1], watch(rectified, video(seed=1))[1]
    rectified.predict(state)
    assert torch.equal(rectified.rectify(prediction), prediction.frame)


# --- Rollout ----------------------------------------------------------------------------------------------------------


def check_rollout(model):
    state = watch(model, video())[1]
    frames, end = model.rollout(state, 7)
    expected, loop = [], state
    for _ in range(7):
        prediction = model.predict(loop)
        expected.append(prediction.frame)
        loop = model.observe(prediction.frame, prediction, loop)
    assert torch.equal(frames, torch.stack(expected, 1))
    assert equal(end, loop)
    first, middle = model.rollout(state, 3)
    second, same_end = model.rollout(middle, 4)
    assert torch.equal(torch.cat((first, second), 1), frames)
    assert equal(same_end, end)
    assert not frames.requires_grad
    assert frames.std(dim=1).max() > 0  # it does not stand still


def test_a_rollout_is_the_loop_and_goes_on_where_it_ended(model):
    check_rollout(model)


def test_a_rectified_rollout_is_the_loop_and_goes_on_where_it_ended(rectified):
    check_rollout(rectified)


def test_the_last_frame_is_what_was_observed(model):
    frames = video()
    assert torch.equal(model.last_frame(watch(model, frames)[1]), frames[-1])
    assert not model.last_frame(model.initial_state(SHAPE)).any()


def test_the_last_frame_is_that_above_the_threshold():
    model = build((layer(input_decay=0.7, input_threshold=0.3),))
    frames = video()
    expected = torch.where(frames[-1] > 0.3, frames[-1], 0.0)
    assert torch.equal(model.last_frame(watch(model, frames)[1]), expected)
