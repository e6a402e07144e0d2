import pytest
import torch
from device_under_test import here
from pydantic import ValidationError

from torchrsm.rsm.functional import Cells, Grid, to_dense
from torchrsm.rsm.layer import LayerConfig, RSMLayer

MINIMAL = {"groups": 4, "active_groups": 2}


def build(channels=1, engine="auto", **settings):
    torch.manual_seed(0)
    config = LayerConfig(
        **{"groups": 6, "cells_per_group": 2, "active_groups": 2, "output_bias": "channel", **settings}
    )
    return here(RSMLayer(config, channels, input_grid=Grid(8, 8), engine=engine).eval())


def watch(layer, steps=3, batch=2):
    """A state after some random inputs."""
    x = here(torch.rand(steps, batch, 8, 8, layer.channels, generator=torch.Generator().manual_seed(0)))
    state = layer.initial_state(batch, torch.zeros_like(x[0]))
    for frame in x:
        state = layer.observe(frame, layer.predict(state), state)
    return state


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"active_groups": 5}, r"active_groups must be in 1\.\.groups = 1\.\.4; got 5"),
        ({"recurrent_kernel_size": 2}, "recurrent_kernel_size must be odd; got 2"),
        ({"kernel_size": 1}, "\n.* kernel_size must be >= stride = 2, .*; got 1"),
        ({"decoder_kernel_size": 2, "stride": 3}, "decoder_kernel_size must be >= stride = 3, .*; got 2"),
        ({"boost": 1.5}, "boost must be 0 where inhibition_decay is not None; got boost = 1.5"),
        ({"groups": 0}, "groups\n.*greater than 0.*input_value=0"),
        ({"active_groups": 0}, "active_groups\n.*greater than 0"),
        ({"stride": 0}, "stride\n.*greater than 0"),
        ({"dropout": 1.0}, "dropout\n.*less than 1"),
        ({"recurrent_decay": 1.0}, "recurrent_decay\n.*less than 1"),
        ({"recurrent_decay": float("nan")}, "recurrent_decay\n.*finite"),
        ({"inhibition_decay": -0.1}, "inhibition_decay\n.*greater than or equal to 0"),
        ({"input_frames": 0}, "input_frames\n.*greater than 0"),
        ({"input_decay": 0.0}, "input_decay\n.*greater than 0"),
        ({"normalisation": "batch"}, "normalisation\n.*'sample', 'location' or 'none'"),
        ({"activation": "relu"}, "activation\n.*'sigmoid', 'identity' or 'softmax'"),
        ({"loss": "cross_entropy"}, "loss cross_entropy needs the activation sigmoid or softmax; got 'identity'"),
        (
            {"activation": "softmax"},
            "activation softmax needs loss cross_entropy and changes zero; got squared and zero",
        ),
        ({"decoder": "linear"}, "decoder\n.*convolutional.*fully_connected.*input_value='linear'"),
        ({"output_bias": "none"}, "output_bias\n.*element.*channel.*input_value='none'"),
        ({"margin": -1}, "margin\n.*greater than or equal to 0"),
        ({"colour": 1}, "colour\n.*not permitted"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        LayerConfig(**{**MINIMAL, **settings})


def test_settings_cannot_change():
    config = LayerConfig(**MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        config.groups = 5


@pytest.mark.parametrize(
    "settings",
    [
        {"active_groups": 4},
        {"boost": 1.0, "inhibition_decay": None},
        {"kernel_size": 2},
        {"decoder_kernel_size": 1, "stride": 1},
    ],
)
def test_accepts_settings_at_the_edge(settings):
    LayerConfig(**{**MINIMAL, **settings})


@pytest.mark.parametrize(
    ("settings", "depends"),
    [
        ({}, True),
        ({"output_bias": "channel"}, False),
        ({"output_bias": "channel", "decoder": "fully_connected"}, True),
    ],
)
def test_a_layer_whose_weights_depend_on_the_size_needs_it(settings, depends):
    config = LayerConfig(**MINIMAL, **settings)
    assert config.depends_on_size == depends
    if not depends:
        RSMLayer(config, 1)
        return
    with pytest.raises(ValueError, match=r"input_grid must be given for .*; got None"):
        RSMLayer(config, 1)


def test_refuses_another_size():
    layer = build(output_bias="element")
    with pytest.raises(ValueError, match="this layer's weights fit inputs of 8 x 8; got 8 x 9"):
        layer.initial_state(2, here(torch.zeros(2, 8, 9, 1)))


def test_refuses_an_unknown_engine():
    with pytest.raises(ValueError, match="engine must be one of auto, cuda, fused, reference; got 'fast'"):
        build(engine="fast")


# --- Weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        ({}, {"feedforward": (75, 6), "recurrent": (12, 12), "decoder": (6, 75), "output_bias": (1, 1, 3)}),
        ({"recurrent_kernel_size": 3}, {"recurrent": (108, 12)}),
        ({"input_decay": 0.5}, {"feedforward": (150, 6), "decoder": (6, 75)}),
        ({"input_frames": 4}, {"feedforward": (300, 6), "decoder": (6, 75)}),
        ({"input_frames": 2, "input_decay": 0.5}, {"feedforward": (225, 6)}),
        ({"kernel_size": 3, "decoder_kernel_size": 4}, {"feedforward": (27, 6), "decoder": (6, 48)}),
        ({"decoder": "fully_connected"}, {"decoder": (4 * 4 * 6, 8 * 8 * 3)}),
        ({"output_bias": "element"}, {"output_bias": (8, 8, 3)}),
    ],
)
def test_shapes_of_the_weights(settings, shapes):
    layer = build(channels=3, **settings)
    parameters = dict(layer.named_parameters())
    assert parameters.keys() == {"feedforward", "recurrent", "bias", "decoder", "output_bias"}
    for name, shape in shapes.items():
        assert parameters[name].shape == shape


def test_the_frequency_of_wins_is_saved_only_where_it_counts():
    assert "duty" not in build().state_dict()
    assert "duty" in build(boost=1.0, inhibition_decay=None).state_dict()


# --- State ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "trace", "inhibition"),
    [({}, False, False), ({"recurrent_decay": 0.5}, True, False), ({"inhibition_decay": 0.5}, False, True)],
)
def test_a_state_holds_dense_maps_only_where_it_must(settings, trace, inhibition):
    state = build(**settings).initial_state(3, here(torch.zeros(3, 8, 8, 1)))
    assert state.cells.index.shape == (3, 4, 4, 2)
    for tensor, there in ((state.trace, trace), (state.inhibition, inhibition)):
        assert (tensor is not None) == there
        assert tensor is None or (tensor.shape == (3, 4, 4, 12) and not tensor.any())


def test_the_input_trace_fades():
    layer = build(input_decay=0.5)
    state = layer.initial_state(1, here(torch.zeros(1, 8, 8, 1)))
    for value in (1.0, 0.0, 0.2, 0.0):
        state = layer.observe(here(torch.full((1, 8, 8, 1), value)), layer.predict(state), state)
    assert state.input[0, 3, 5].tolist() == pytest.approx([0.0, 0.125])


def test_the_last_inputs_stand_side_by_side():
    layer = build(input_frames=3, input_decay=0.5)
    state = layer.initial_state(1, here(torch.zeros(1, 8, 8, 1)))
    assert state.input.shape == (1, 8, 8, 4)
    for value, seen in (
        (1.0, [1, 0, 0, 1]),
        (0.2, [0.2, 1, 0, 0.5]),
        (0.0, [0, 0.2, 1, 0.25]),
        (0.5, [0.5, 0, 0.2, 0.5]),
    ):
        state = layer.observe(here(torch.full((1, 8, 8, 1), value)), layer.predict(state), state)
        assert state.input[0, 3, 5].tolist() == pytest.approx(seen)


def test_faint_inputs_are_not_read():
    layer = build(input_decay=0.5, input_threshold=0.2)
    state = layer.initial_state(1, here(torch.zeros(1, 8, 8, 1)))
    for value, seen in ((0.1, [0, 0]), (0.6, [0.6, 0.6]), (0.1, [0, 0.3]), (0.0, [0, 0])):
        state = layer.observe(here(torch.full((1, 8, 8, 1), value)), layer.predict(state), state)
        assert state.input[0, 3, 5].tolist() == pytest.approx(seen)
    prediction, faint = layer.predict(state), here(torch.full((1, 8, 8, 1), 0.1))
    expected = (layer.decode(prediction) - faint).square().mean()
    assert layer.loss(prediction, faint, here(torch.tensor([True]))).item() == pytest.approx(expected.item(), rel=1e-5)


def test_inhibition_recovers():
    layer = build(inhibition_decay=0.5)
    layer.bias.data.normal_()  # no winner has the value 0
    state = watch(layer, steps=1)
    first = to_dense(state.cells, 12) != 0
    assert torch.equal(state.inhibition, first.float())
    state = layer.observe(state.input, layer.predict(state), state)
    second = to_dense(state.cells, 12) != 0
    assert torch.equal(state.inhibition, torch.where(second, 1.0, first * 0.5))


def test_predictions_are_values_of_the_state():
    """Nothing is kept on the layer: the same state gives the same prediction, whatever came between."""
    layer = build()
    state = watch(layer)
    first = layer.predict(state)
    watch(layer, batch=3)
    again = layer.predict(state)
    assert torch.equal(first.cells.index, again.cells.index)
    assert torch.equal(first.z, again.z)


def test_z_alone_carries_the_graph():
    prediction = build().predict(watch(build()))
    assert prediction.z.requires_grad
    assert not prediction.cells.value.requires_grad
    assert not prediction.cells.index.requires_grad
    assert prediction.input_grid == (8, 8)


def test_reads_cells_of_a_layer_below():
    layer = here(
        RSMLayer(LayerConfig(groups=4, active_groups=2, output_bias="channel", kernel_size=3), 10, input_pool=2)
    )
    below = Cells(here(torch.randint(10, (2, 7, 5, 3), dtype=torch.int32)), here(torch.rand(2, 7, 5, 3)))
    prediction = layer.predict(layer.initial_state(2, below))
    assert prediction.input_grid == (4, 3)
    assert prediction.cells.index.shape == (2, 2, 2, 2)
    assert layer.decode(prediction).shape == (2, 4, 3, 10)


# --- Frequency of wins ------------------------------------------------------------------------------------------------


def test_a_connected_decoder_takes_a_stride_beyond_the_kernel():
    """It reaches every element from everywhere, whatever the encoder skips."""
    settings = {"groups": 4, "active_groups": 2, "kernel_size": 2, "stride": 3}
    assert LayerConfig(**settings, decoder="fully_connected").stride == 3
    with pytest.raises(ValidationError, match="kernel_size must be >= stride = 3"):
        LayerConfig(**settings)


def test_update_duty_is_a_running_frequency():
    layer = build(boost=1.0, inhibition_decay=None, boost_decay=0.75)
    index = here(torch.tensor([[[[0, 5]], [[0, 7]]]], dtype=torch.int32))  # two locations, two winners each
    cells = Cells(index, here(torch.ones(index.shape)))
    expected = here(torch.zeros(12))
    frequency = here(torch.zeros(12)).index_put((here(torch.tensor([0, 5, 7])),), here(torch.tensor([1.0, 0.5, 0.5])))
    for _ in range(3):
        layer.update_duty(layer.wins(cells))
        expected = 0.75 * expected + 0.25 * frequency
        torch.testing.assert_close(layer.duty, expected)
    for _ in range(60):
        layer.update_duty(layer.wins(cells))
    torch.testing.assert_close(layer.duty, frequency)


def test_update_duty_does_nothing_without_boost():
    layer = build()
    layer.update_duty(layer.wins(watch(layer).cells))
    assert not layer.duty.any()


def test_boost_spreads_the_wins():
    """A strong boost makes all cells win about as often; without it a few win all."""
    used = []
    for boost in (0.0, 20.0):
        layer = build(boost=boost, inhibition_decay=None, **({"boost_decay": 0.9} if boost else {}))
        layer.bias.data.uniform_(0.5, 2)  # all drives above 0, some far
        state = watch(layer, steps=1)
        wins = here(torch.zeros(12))
        for _ in range(60):
            prediction = layer.predict(state)
            layer.update_duty(layer.wins(prediction.cells))
            wins += torch.bincount(prediction.cells.index.flatten(), minlength=12)
        used.append((wins > 0.02 * wins.sum()).sum().item())
    assert used[0] < used[1]
    assert used[1] >= 10


@pytest.mark.parametrize(
    "spoil",
    [
        lambda cells: cells._replace(index=cells.index.long()),
        lambda cells: cells._replace(index=cells.index[..., :1]),
        lambda cells: cells._replace(value=cells.value[:, 1:]),
        lambda cells: cells._replace(value=cells.value.double()),
    ],
)
def test_cells_of_another_type_or_shape_are_refused(engine, spoil):
    layer = build(engine=engine)
    state = watch(layer)
    with pytest.raises(ValueError, match=r"the last cells must be torch\.\w+ \[2, 4, 4, 2\] on \S+; got torch\.\w+ \["):
        layer.predict(state._replace(cells=spoil(state.cells)))


def test_a_margin_must_leave_something_to_predict():
    layer = RSMLayer(LayerConfig(groups=4, active_groups=2, output_bias="channel", margin=2), 1)
    with pytest.raises(ValueError, match="margin must leave something of an input of 4 x 9; got 2"):
        layer.initial_state(1, here(torch.zeros(1, 4, 9, 1)))


# --- A layer that does not hear its own past --------------------------------------------------------------------------


def test_a_layer_without_memory_is_one_whose_recurrent_weights_are_0(engine):
    settings = {"inhibition_decay": 0.5, "dropout": 0.0}
    deaf, twin = build(engine=engine, recurrent=False, **settings), build(engine=engine, **settings)
    twin.load_state_dict(deaf.state_dict(), strict=False)
    with torch.no_grad():
        twin.recurrent.zero_()
    assert "recurrent" not in dict(deaf.named_parameters())
    assert "recurrent" not in deaf.state_dict()
    state, same = watch(deaf), watch(twin)
    for a, b in zip(state, same, strict=True):
        assert (a is None and b is None) or all(map(torch.equal, a, b))
    prediction, expected = deaf.predict(state), twin.predict(same)
    assert torch.equal(prediction.cells.index, expected.cells.index)
    assert torch.equal(prediction.z, expected.z)


def test_a_layer_without_memory_learns_with_all_its_weights(engine):
    layer = build(engine=engine, recurrent=False)
    state = watch(layer)
    learn = here(torch.ones(2, dtype=torch.bool))
    layer.loss(layer.predict(state), here(torch.rand(2, 8, 8, 1)), learn).backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in layer.parameters())
    assert not layer.recurrent.any()


# --- Softmax ----------------------------------------------------------------------------------------------------------

SOFTMAX_ALONE = {"activation": "softmax", "loss": "cross_entropy"}
SOFTMAX = {**SOFTMAX_ALONE, "dropout": 0.0}


def test_softmax_is_over_the_channels(engine):
    layer = build(channels=4, engine=engine, **SOFTMAX)
    decoded = layer.decode(layer.predict(watch(layer)))
    torch.testing.assert_close(decoded.sum(-1), here(torch.ones(2, 8, 8)))
    assert (decoded > 0).all()
    plain = build(channels=4, engine=engine, dropout=0.0)
    torch.testing.assert_close(decoded, plain.decode(plain.predict(watch(plain))).softmax(-1))


def test_the_loss_of_softmax_is_the_categorical_cross_entropy(engine):
    layer = build(channels=4, engine=engine, margin=1, **SOFTMAX)
    prediction, target = layer.predict(watch(layer)), here(torch.rand(2, 8, 8, 4).softmax(-1))
    learn = here(torch.tensor([True, False]))
    expected = -(target * layer.decode(prediction).log()).sum(-1)[0, 1:-1, 1:-1].mean()
    loss = layer.loss(prediction, target, learn)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(weight.grad.abs().max() > 0 for weight in layer.parameters())


# --- A decay that is learned, and forgetting --------------------------------------------------------------------------

TRACE = {"recurrent_decay": 0.6, "dropout": 0.0}


def test_a_decay_that_is_learned_begins_as_one_that_is_not(engine):
    """Up to the last bits: the trace is made a step later."""
    learned, fixed = (build(engine=engine, learns_decay=learns, **TRACE) for learns in (True, False))
    with torch.no_grad():
        for name, weight in fixed.named_parameters():
            learned.get_parameter(name).copy_(weight)
    predictions = [layer.predict(watch(layer, steps=5)) for layer in (learned, fixed)]
    assert torch.equal(*(prediction.cells.index for prediction in predictions))
    torch.testing.assert_close(*(prediction.z for prediction in predictions))
    assert torch.sigmoid(learned.decay).tolist() == pytest.approx([0.6] * 12)


def test_the_decay_has_a_gradient_of_this_step_alone():
    layer = build(learns_decay=True, **TRACE)
    state = watch(layer, steps=4)
    assert not state.trace.requires_grad
    prediction = layer.predict(state)
    layer.loss(prediction, here(torch.zeros(2, 8, 8, 1)), here(torch.ones(2, dtype=torch.bool))).backward()
    fades = (0.6 * state.trace > to_dense(state.cells, 12)).flatten(0, 2).any(0)
    assert fades.any()
    moved = layer.decay.grad != 0
    assert moved.any()
    assert not (moved & ~fades).any()


def test_a_decay_needs_a_start():
    with pytest.raises(ValidationError, match="recurrent_decay must be > 0 where learns_decay is on"):
        LayerConfig(**MINIMAL, learns_decay=True)


@pytest.mark.parametrize("inhibition_decay", [None, 0.0, 0.5])
def test_a_stream_that_forgets_keeps_its_last_input(inhibition_decay):
    settings = {"recurrent_decay": 0.6, "inhibition_decay": inhibition_decay}
    layer = build(forgetting=0.5, **settings).train()
    plain = build(**settings)
    torch.manual_seed(3)
    x = here(torch.rand(40, 8, 8, 1))
    state = layer.initial_state(40, torch.zeros_like(x))
    prediction = layer.predict(state)
    after, kept = layer.observe(x, prediction, state), plain.observe(x, prediction, state)
    forgot = (after.cells.index < 0).flatten(1).all(1)
    assert 8 < forgot.sum() < 32
    assert torch.equal(after.input, kept.input)
    for now, before in ((after.cells.index, kept.cells.index), (after.cells.value, kept.cells.value)):
        assert torch.equal(now[~forgot], before[~forgot])
    for now, before in ((after.trace, kept.trace), (after.inhibition, kept.inhibition)):
        if now is not None:
            assert torch.equal(now[~forgot], before[~forgot])
            assert not now[forgot].any()
    assert torch.equal(layer.eval().observe(x, prediction, state).cells.index, kept.cells.index)


# --- Recall -----------------------------------------------------------------------------------------------------------

RECALLS = {"recall": 2, "dropout": 0.0, "activation": "sigmoid"}


def inputs(steps=5, batch=2, channels=1):
    return here(torch.rand(steps, batch, 8, 8, channels, generator=torch.Generator().manual_seed(0)))


def test_the_inputs_before_the_last_are_kept():
    layer, x = build(channels=3, **RECALLS), inputs(channels=3)
    state = layer.initial_state(2, torch.zeros_like(x[0]))
    assert not state.past.any()
    for frame in x:
        state = layer.observe(frame, layer.predict(state), state)
    assert torch.equal(state.input, x[-1])
    assert torch.equal(state.past, torch.cat((x[-2], x[-3]), -1))


def test_recall_adds_the_error_of_what_the_winners_tell(engine):
    layer = build(engine=engine, margin=1, **RECALLS)
    plain = build(engine=engine, margin=1, dropout=0.0, activation="sigmoid")
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            weight.copy_(layer.get_parameter(name))
        layer.recall_bias.normal_()
    state = watch(layer, steps=4)
    prediction, target = layer.predict(state), inputs()[0]
    learn = here(torch.tensor([True, False]))
    told = layer.recalled(prediction)
    assert told.shape == (2, 8, 8, 2)
    inside = (slice(None), slice(1, -1), slice(1, -1))
    errors = (told - state.past).square()[inside][0]
    same = plain.loss(plain.predict(state._replace(past=None)), target, learn)
    expected = same + errors[..., 0].mean() + errors[..., 1].mean()
    loss = layer.loss(prediction, target, learn)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(weight.grad.abs().max() > 0 for weight in layer.parameters())


def test_recall_of_symbols_is_a_softmax():
    layer = build(channels=4, recall=1, **SOFTMAX)
    state = layer.initial_state(2, here(torch.zeros(2, 8, 8, 4)))
    symbols = here(torch.eye(4)[torch.randint(4, (3, 2, 8, 8), generator=torch.Generator().manual_seed(1))])
    for frame in symbols:
        state = layer.observe(frame, layer.predict(state), state)
    prediction, everything = layer.predict(state), here(torch.ones(2, dtype=torch.bool))
    told = layer.recalled(prediction)
    torch.testing.assert_close(told.sum(-1), here(torch.ones(2, 8, 8)))
    expected = -(symbols[-2] * told.log()).sum(-1).mean() - (symbols[0] * layer.decode(prediction).log()).sum(-1).mean()
    torch.testing.assert_close(layer.loss(prediction, symbols[0], everything), expected)


def test_a_layer_learns_to_recall():
    """What it saw two steps ago, which nothing in its input tells."""
    torch.manual_seed(0)
    settings = {"kernel_size": 1, "stride": 1, "groups": 100, "cells_per_group": 1, "active_groups": 15, "dropout": 0.0}
    config = LayerConfig(
        **settings, **SOFTMAX_ALONE, inhibition_decay=None, recall=1, recurrent_deviation=2.0, output_bias="channel"
    )
    layer = here(RSMLayer(config, 5, input_grid=Grid(1, 1)))
    optimiser = torch.optim.Adam(layer.parameters(), 0.01)
    symbols = here(torch.eye(5)[torch.randint(5, (500, 60), generator=torch.Generator().manual_seed(1))])[
        :, :, None, None
    ]
    learn, state, hits = here(torch.ones(60, dtype=torch.bool)), layer.initial_state(60, symbols[0] * 0), []
    for frame in symbols:
        prediction = layer.predict(state)
        hits.append((layer.recalled(prediction).argmax(-1) == state.past.argmax(-1)).float().mean().item())
        optimiser.zero_grad()
        layer.loss(prediction, frame, learn).backward()
        optimiser.step()
        state = layer.observe(frame, prediction, state)
    assert sum(hits[1:5]) / 4 < 0.5
    assert sum(hits[-20:]) / 20 > 0.8


def test_recall_needs_a_convolutional_decoder():
    with pytest.raises(ValidationError, match="recall must be 0 where the decoder is fully_connected; got 1"):
        LayerConfig(**MINIMAL, recall=1, decoder="fully_connected")
