"""The formulas of benchmarks/scaling.py against counts of what the engines do."""

import importlib.util
from pathlib import Path

import pytest
import torch
from counted_kernels import CALLED, counted_kernels

from torchrsm import ModelConfig, VideoPredictor, preset
from torchrsm.precision import products_in
from torchrsm.rsm.functional import Cells
from torchrsm.rsm.kernels import cpu
from torchrsm.rsm.layer import LayerConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layer(**changes):
    plain = {"inhibition_decay": None, "dropout": 0.0, "normalisation": "none", "output_bias": "channel"}
    return LayerConfig(**(plain | changes))


STACKS = {
    "small": ModelConfig(
        layers=(
            layer(groups=6, active_groups=2, kernel_size=3, recurrent_kernel_size=3, pool=2, activation="sigmoid"),
            layer(groups=5, active_groups=2, kernel_size=3, decoder_kernel_size=2),
        ),
        channels=2,
        pad=1,
    ),
    "packed": ModelConfig(
        layers=(
            layer(groups=64, active_groups=2, kernel_size=3, stride=3),
            layer(groups=64, active_groups=3, kernel_size=3),
        ),
        pad=1,
        pad_value=0.25,
    ),
    "many channels": ModelConfig(
        layers=(
            layer(groups=18, active_groups=3, kernel_size=5, margin=2, input_frames=2),
            layer(groups=7, active_groups=2, kernel_size=3, stride=1, recurrent_kernel_size=3),
            layer(groups=4, cells_per_group=2, active_groups=1, kernel_size=2, decoder="fully_connected"),
        ),
        height=9,
        width=12,
        pad=2,
        fresh_feedback=True,
    ),
}
"""Of three layers the topmost has one cell that is on, of several in a group."""

BATCH = 2


def sizes(name):
    model = STACKS[name]
    return model, (BATCH, model.channels, model.height or 6, model.width or 6)


def everywhere_on(predictor, shape, share=1.0):
    """Return a state and a frame in which no pixel and no winner is 0; of the channels of a frame, a share."""
    torch.manual_seed(0)
    states = predictor.initial_state(shape)
    frame = torch.rand(shape) * 0.5 + 0.5
    frame[:, int(share * shape[1]) :] = 0
    made = []
    for level, state in enumerate(states):
        config = predictor.config.layers[level]
        index = torch.randperm(config.cells, dtype=torch.int32)[: config.active_groups]
        cells = Cells(index.expand(state.cells.index.shape), torch.rand(state.cells.value.shape) + 0.5)
        if level == 0:
            p = predictor.config.pad
            one = torch.nn.functional.pad(frame, (p, p, p, p), value=0.5).permute(0, 2, 3, 1)
            made.append(state._replace(input=one.repeat(1, 1, 1, config.input_frames).contiguous(), cells=cells))
        else:
            made.append(state._replace(input=made[-1].cells, cells=cells))
    return tuple(made), frame


def learn(predictor, states, frame):
    """Predict, compare and find all gradients."""
    prediction = predictor.predict_raw(states)
    for loss in predictor.losses(prediction, frame):
        loss.backward()
    return prediction


def active(model, predictor, states, prediction, on):
    """Count what is on with loops over places, from the state and the winners of the prediction."""
    found = []
    for level, (state, made) in enumerate(zip(states, prediction.layers, strict=True)):
        heard = 0.0
        if level + 1 < len(states):
            above = prediction.layers[level + 1].cells if model.fresh_feedback else states[level + 1].cells
            heard = float((above.value != 0).sum(3).float().mean())
        if level == 0:
            p = model.pad
            inner = state.input[:, p:-p, p:-p]
            inputs = float((inner != 0).sum(3).float().mean())
        else:
            pool, index = model.layers[level - 1].pool, states[level - 1].cells.index
            rows, columns = index.shape[1:3]
            named = [
                len(set(index[b, y : y + pool, x : x + pool].flatten().tolist()))
                for b in range(BATCH)
                for y in range(0, rows, pool)
                for x in range(0, columns, pool)
            ]
            inputs = sum(named) / len(named)
        memory = float((state.cells.value != 0).sum(3).float().mean())
        found.append(on(inputs, memory, heard, float((made.z != 0).sum(3).float().mean())))
    return found


@pytest.mark.parametrize("name", STACKS)
def test_weights_are_those_of_the_model(scaling, name):
    model, shape = sizes(name)
    predictor = VideoPredictor(model)
    for made, found in zip(predictor.stack.layers, scaling.layers_of(model, *shape[2:]), strict=True):
        expected = {name: weight.numel() for name, weight in made.named_parameters()}
        assert {name: count for name, count in found.weights.items() if count} == expected


def test_weights_of_the_presets(scaling):
    for name in ("paper", "balls-wide", "balls", "tiny"):
        model = preset(name).model
        side = model.height or 30
        expected = sum(weight.numel() for weight in VideoPredictor(model).stack.parameters())
        assert scaling.weights_of(scaling.layers_of(model, side, side)) == expected


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "share"), [*((name, 1.0) for name in STACKS), ("small", 0.5)])
def test_multiply_adds_and_calls_of_the_sparse_engine(scaling, name, share, precision):
    """Counted in the engine's own source; where as much is on at all places, the formulas are exact."""
    model, shape = sizes(name)
    predictor = VideoPredictor(model, "fused")
    states, frame = everywhere_on(predictor, shape, share)
    layers = scaling.layers_of(model, *shape[2:])
    packed = precision == "bfloat16"
    with counted_kernels() as counts, products_in(precision):
        with torch.no_grad():
            predictor.predict_raw(states)
        shown = counts["multiply-adds"]
        counts.clear()
        prediction = learn(predictor, states, frame)
    on = active(model, predictor, states, prediction, scaling.On)
    forward, backward = scaling.sparse_multiply_adds(layers, on)
    assert counts["multiply-adds"] / BATCH == pytest.approx(forward + backward, rel=1e-12)
    assert shown / BATCH == pytest.approx(forward - sum(map(compared, layers, on)), rel=1e-12)
    calls = [scaling.sparse_calls(made, BATCH, packed, level == 0) for level, made in enumerate(layers)]
    assert sum(counts[kernel] for kernel in CALLED) == sum(calls)


def compared(layer, on):
    """Return the multiply-adds of decoding once more and comparing what is not in the margin with the target."""
    s = layer.step
    many = s.decoder_kernel_size > 0 and s.channels >= 16
    inner = (s.input_height - 2 * s.margin) * (s.input_width - 2 * s.margin) * s.channels
    return layer.locations * layer.decoded * (s.active_groups if many else on.groups) + inner


def test_more_samples_than_lists_hold_are_listed_in_turns(scaling, monkeypatch):
    model, shape = sizes("small")
    predictor = VideoPredictor(model, "fused")
    for most in (30, 60, 10_000):
        for module, name in ((scaling, "MOST_ENTRIES"), (cpu, "_MOST_ENTRIES")):
            monkeypatch.setattr(module, name, most)
        with counted_kernels() as counts:
            learn(predictor, *everywhere_on(predictor, shape))
        layers = scaling.layers_of(model, *shape[2:])
        calls = [scaling.sparse_calls(made, BATCH, False, level == 0) for level, made in enumerate(layers)]
        assert sum(counts[kernel] for kernel in CALLED) == sum(calls)


def test_the_script_knows_the_limits_of_the_sparse_engine(scaling):
    ours = scaling.TILE_BYTES, scaling.MOST_ENTRIES, scaling.NARROWEST
    assert ours == (cpu._TILE_BYTES, cpu._MOST_ENTRIES, cpu._NARROWEST)


def test_what_is_on_is_counted_in_the_state_of_a_learner(scaling):
    run = scaling.stack_alone("tiny", 12)
    learner = run.make_learner((BATCH, 1, 12, 12), torch.device("cpu"), True)
    states, _ = everywhere_on(learner.model, (BATCH, 1, 12, 12))
    learner.state = learner.state._replace(layers=states)
    below, above = learner.model.config.layers
    found = scaling.counted_on(learner)
    # All values are above 0; the cells of a window are the same ones.
    assert found[0] == scaling.On(1, below.active_groups, above.active_groups, below.active_groups)
    assert found[1] == scaling.On(below.active_groups, above.active_groups, 0, above.active_groups)
    most = [scaling.everything_on(made) for made in scaling.layers_of(run.model, 12, 12)]
    assert most[1].input == 4 * below.active_groups
    assert all(a <= b for got, limit in zip(found, most, strict=True) for a, b in zip(got, limit, strict=True))


@pytest.mark.parametrize("name", STACKS)
def test_multiply_adds_of_the_dense_engine(scaling, name):
    """Counted by torch's own counter."""
    model, shape = sizes(name)
    layers = scaling.layers_of(model, *shape[2:])
    forward = sum(scaling.dense_forward(made, level == 0) for level, made in enumerate(layers))
    backward = sum(scaling.dense_backward(made) for made in layers)
    found = []
    with scaling._counting_engine() as counter:
        predictor = VideoPredictor(model, "counting")
        states, frame = everywhere_on(predictor, shape)
        with scaling._counting(counter, found):
            prediction = predictor.predict_raw(states)
            losses = predictor.losses(prediction, frame)
        with scaling._counting(counter, found):
            for loss in losses:
                loss.backward()
    assert found[0].multiply_adds == BATCH * forward
    assert found[1].multiply_adds == BATCH * backward


@pytest.mark.parametrize("name", ["paper", "balls-wide"])
def test_bytes_of_the_dense_engine(scaling, name):
    """Counted from the tensors that each operation reads and writes; the formula leaves small ones out."""
    run = scaling.stack_alone(name, 30)
    counted = scaling.counted_update(run, 0.0, 30, 2)
    layers = scaling.layers_of(run.model, 30, 30)
    expected = scaling.added(scaling.dense_bytes(made, 2, level == 0) for level, made in enumerate(layers))
    assert sum(expected) == pytest.approx(counted.bytes, rel=0.2)
    twice = scaling.counted_update(run, 0.0, 30, 4)
    assert twice.kernels == counted.kernels
    assert expected.activations == pytest.approx((twice.bytes - counted.bytes), rel=0.2)


def test_bytes_of_adam_and_of_an_all_reduce(scaling):
    weights = torch.nn.Parameter(torch.zeros(1000))
    optimiser = torch.optim.Adam([weights])
    weights.grad = torch.ones(1000)
    optimiser.step()
    kept = [weights, weights.grad, *(value for value in optimiser.state[weights].values() if value.numel() > 1)]
    assert scaling.adam_bytes(1000) == sum(2 * tensor.nbytes for tensor in kept) - weights.grad.nbytes
    layers = scaling.layers_of(STACKS["small"], 6, 6)
    message = 4 * (scaling.weights_of(layers) + 2 + 2)  # a loss for each layer, two figures
    assert scaling.all_reduce_bytes(layers, 1) == 0
    assert scaling.all_reduce_bytes(layers, 2) == message
    assert scaling.all_reduce_bytes(layers, 8) == 1.75 * message


@pytest.mark.parametrize("kind", ["compact", "unet", "paper"])
def test_multiply_adds_of_a_rectifier_grow_with_the_frame(scaling, kind):
    model = preset("balls-wide").model
    config = scaling.RECTIFIERS[kind]
    small, large = (scaling.counted_rectifier(config, model, pixels) for pixels in (28, 60))  # 32 and 64 with a border
    assert large.forward.multiply_adds == 4 * small.forward.multiply_adds
    assert large.backward.multiply_adds == 4 * small.backward.multiply_adds
    assert large.backward.kernels == small.backward.kernels
    if kind == "compact":  # 3 x 3 kernels at half the resolution: head, four blocks of two, tail
        width = config.width
        assert small.forward.multiply_adds == 16 * 16 * 9 * (4 * width + 8 * width**2 + 4 * width)


def test_constants_that_made_two_steps_are_found_again(scaling):
    layers = scaling.layers_of(STACKS["small"], 6, 6)
    on = [scaling.everything_on(made) for made in layers]
    machine, fit = scaling.Machine(1e10, 1e11, False), scaling.Fit(3e9, 2e-5)
    steps = [sum(scaling.predicted(layers, on, batch, 1, machine, fit, None).values()) for batch in (2, 16)]
    found = scaling.fitted(layers, on, machine, (2, 16), steps)
    assert found == pytest.approx(fit)
    nothing_fixed = scaling.fitted(layers, on, machine, (2, 16), (1e-3, 1.0))
    assert nothing_fixed.fixed_seconds == 0
    last = scaling.predicted(layers, on, 16, 1, machine, nothing_fixed, None)
    assert sum(last.values()) == pytest.approx(1.0)
    all_fixed = scaling.fitted(layers, on, machine, (2, 16), (1.0, 1.0))
    assert 0.8 < all_fixed.fixed_seconds < 1


def test_two_ranks_share_the_work_and_pay_for_the_message(scaling):
    layers = scaling.layers_of(STACKS["small"], 6, 6)
    on = [scaling.everything_on(made) for made in layers]
    machine, fit = scaling.Machine(1e10, 1e11, False), scaling.Fit(3e9, 2e-5)
    alone = scaling.predicted(layers, on, 8, 1, machine, fit, None)
    both = scaling.predicted(layers, on, 8, 2, machine, fit, scaling.Messages(1e-4, 1e-9))
    assert both["cache"] == alone["cache"] / 2
    assert both["launches"] == alone["launches"]
    assert both["all-reduce"] == pytest.approx(1e-4 + 1e-9 * scaling.all_reduce_bytes(layers, 2))
    assert scaling.binds(both) == "all-reduce"


def test_a_gpu_takes_the_assumed_share_of_its_peaks(scaling):
    card = scaling.Card(2e12, 1e12, 1e11, 0.5, 0.5, 0.5, 1e-6)
    found = scaling.predicted_on_gpus(3e12, 1e12, 100, 5e10, card)
    assert found == pytest.approx({"arithmetic": 3, "memory": 2, "launches": 1e-4, "all-reduce": 1})
