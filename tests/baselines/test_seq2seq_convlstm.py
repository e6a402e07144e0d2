import pytest
import torch
from playing import play
from pydantic import ValidationError

from torchrsm.baselines.seq2seq_convlstm import (
    Seq2SeqConvLSTM,
    Seq2SeqConvLSTMConfig,
    Seq2SeqConvLSTMMultiDecoder,
    Seq2SeqConvLSTMMultiDecoderConfig,
)
from torchrsm.baselines.sequence_model import Window
from torchrsm.predictor import rollout

BATCH, TIME = 3, 7
SHAPE = (BATCH, 2, 6, 4)
SIZES = {"hidden_channels": (3, 2), "kernel_sizes": (5, 3), "horizon": 3, "decode_every": 2}
MODELS = {
    "one": (Seq2SeqConvLSTMConfig, Seq2SeqConvLSTM),
    "two": (Seq2SeqConvLSTMMultiDecoderConfig, Seq2SeqConvLSTMMultiDecoder),
}
DECODERS = pytest.mark.parametrize("decoders", ["one", "two"])


def model(decoders, shape=SHAPE, **settings):
    torch.manual_seed(0)
    config, network = MODELS[decoders]
    frames = {"channels": shape[1], "height": shape[2], "width": shape[3], "curriculum_updates": None}
    return network(config(**{**frames, **SIZES, **settings}))


def window(time=TIME, starts=(), shape=SHAPE):
    """Random frames; every stream starts with the first, and where ``starts`` says, ``(time, stream)``."""
    torch.manual_seed(1)
    frames, marks = torch.rand(time, *shape), torch.zeros(time, shape[0], dtype=torch.bool)
    marks[0] = True
    for place in starts:
        marks[place] = True
    return Window(frames, marks)


# --- The networks -----------------------------------------------------------------------------------------------------


def layers(stack):
    """Input channels, channels and kernel of each layer."""
    return [(layer.from_below.in_channels, layer.channels, layer.from_below.kernel_size[0]) for layer in stack.layers]


def test_the_networks_have_the_published_layers():
    published = [(1, 10, 7), (10, 10, 5), (10, 10, 3), (10, 1, 3)]
    one, two = Seq2SeqConvLSTM(), Seq2SeqConvLSTMMultiDecoder()
    assert [layers(stack) for stack in (one.encoder, one.decoder, two.encoder)] == [published] * 3
    reverse = [(1, 1, 3), (1, 10, 3), (10, 10, 5), (10, 10, 7), (10, 1, 1)]
    assert [layers(stack) for stack in (two.decoder, two.reconstructor)] == [reverse] * 2


@torch.no_grad()
def test_a_decoder_with_the_weights_of_the_encoder_reads_the_last_frame_once_more():
    predictor, (frames, starts, _) = model("one"), window()
    predictor.decoder.load_state_dict(predictor.encoder.state_dict())
    _, state = play(predictor, frames, starts)
    twice = torch.cat((frames, frames[-1:]))
    tops, _ = predictor.encoder(
        (2 * twice - 1).flatten(0, 1), predictor.encoder.empty(BATCH, 6, 4), torch.zeros(TIME + 1, BATCH).bool()
    )
    torch.testing.assert_close(predictor.predict(state).frame, (tops[-BATCH:] + 1) / 2)


@torch.no_grad()
@DECODERS
def test_a_decoder_goes_on_with_its_own_output(decoders):
    """Several steps at once are as many single ones, each from the memory and the frame that the last one left."""
    predictor, (frames, starts, _) = model(decoders), window()
    _, state = play(predictor, frames, starts)
    memory = predictor._handed_over(state.layers)
    value, told = 2 * frames[-1] - 1, []
    for _ in range(3):
        value, steps = predictor.decoder(value, memory, torch.zeros(1, BATCH).bool())
        memory = steps[0]
        told.append((value + 1) / 2)
    torch.testing.assert_close(predictor._decode(predictor.decoder, state.layers, frames[-1], 3), torch.stack(told))


@torch.no_grad()
def test_two_decoders_know_of_the_last_layer_alone():
    predictor, (frames, starts, _) = model("two"), window()
    _, state = play(predictor, frames, starts)
    before = predictor.predict(state).frame
    state.layers[0].hidden.normal_()
    state.layers[0].cell.normal_()
    assert torch.equal(predictor.predict(state).frame, before)
    state.layers[-1].cell.normal_()
    assert not torch.equal(predictor.predict(state).frame, before)


# --- The predictor ----------------------------------------------------------------------------------------------------


@torch.no_grad()
@DECODERS
def test_a_prediction_depends_on_the_frames_before_and_on_no_other(decoders):
    predictor, (frames, starts, _) = model(decoders), window()
    changed = frames.clone()
    changed[3] = torch.rand(SHAPE)
    before, _ = play(predictor, frames, starts)
    after, _ = play(predictor, changed, starts)
    assert torch.equal(before[:4], after[:4])
    assert all((before[time] != after[time]).any() for time in (4, 5))


@torch.no_grad()
@DECODERS
def test_dreams_are_frames_that_the_encoder_reads(decoders):
    predictor, (frames, starts, _) = model(decoders), window()
    _, state = play(predictor, frames, starts)
    dream, after = rollout(predictor, state, 5)
    assert dream.shape == (BATCH, 5, *SHAPE[1:])
    assert ((dream >= 0) & (dream <= 1)).all()
    first = predictor.predict(state)
    torch.testing.assert_close(dream[:, 0], first.frame)
    state = predictor.observe(first.frame, first, state)
    torch.testing.assert_close(dream[:, 1], predictor.predict(state).frame)
    assert torch.equal(after.frame, dream[:, -1])


@torch.no_grad()
def test_frames_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="frames of 2 x 6 x 4; got 1 x 6 x 4"):
        model("one").initial_state((1, 1, 6, 4))


# --- Learning ---------------------------------------------------------------------------------------------------------


@DECODERS
def test_the_scored_frames_are_those_that_are_played(decoders):
    predictor, whole = model(decoders), window(starts=[(2, 1), (3, 0)])
    predicted, after = play(predictor, *whole[:2])
    lesson = predictor.learn(whole, predictor.initial_state(SHAPE))
    expected = torch.zeros(TIME, BATCH, dtype=torch.bool)
    expected[[2, 4, 6]] = True
    expected[2, 1] = False
    assert torch.equal(lesson.scored, expected)
    torch.testing.assert_close(lesson.frames[expected], predicted[expected].detach())
    torch.testing.assert_close(lesson.state.frame, after.frame)
    for layer, reference in zip(lesson.state.layers, after.layers, strict=True):
        torch.testing.assert_close(layer.hidden, reference.hidden.detach())
        torch.testing.assert_close(layer.cell, reference.cell.detach())
        assert not layer.cell.requires_grad


def told(predictor, decoder, whole, last, stream, steps):
    """What a decoder says after frame ``last`` of one stream, which is played from its last start on."""
    first = max(time for time in range(last + 1) if whole.starts[time, stream])
    frames = whole.frames[first : last + 1, stream : stream + 1]
    _, state = play(predictor, frames, torch.zeros(len(frames), 1).bool())
    return predictor._decode(decoder, state.layers, frames[-1], steps)[:, 0]


@torch.no_grad()
@DECODERS
def test_the_loss_is_the_error_of_what_is_told_of_the_same_sequence(decoders):
    """Written again, stream by stream and decoder by decoder; decoders start after frames 1, 3 and 5."""
    predictor, whole = model(decoders), window(starts=[(2, 1), (3, 0), (6, 2)])
    forwards, backwards = [], []
    for last in (1, 3, 5):
        for stream in range(BATCH):
            starts = whole.starts[:, stream]
            frames = told(predictor, predictor.decoder, whole, last, stream, 3)
            for step in range(3):
                time = last + 1 + step
                if time < TIME and not starts[last + 1 : time + 1].any():
                    forwards.append((frames[step] - whole.frames[time, stream]).square().mean())
            if decoders == "two":
                frames = told(predictor, predictor.reconstructor, whole, last, stream, 3)
                for step in range(3):
                    time = last - step
                    if time >= 0 and not starts[time + 1 : last + 1].any():
                        backwards.append((frames[step] - whole.frames[time, stream]).square().mean())
    expected = torch.stack(forwards).mean() + (torch.stack(backwards).mean() if backwards else 0)
    assert len(forwards) < 27 - 6
    loss = predictor.learn(whole, predictor.initial_state(SHAPE)).losses[0]
    torch.testing.assert_close(loss, expected)


@torch.no_grad()
def test_the_other_decoder_counts_as_the_settings_say():
    losses = []
    for weight in (0.0, 1.0, 3.0):
        predictor = model("two", reconstruction_weight=weight)
        losses.append(predictor.learn(window(), predictor.initial_state(SHAPE)).losses[0].item())
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)
    assert losses[1] > losses[0]


@torch.no_grad()
@DECODERS
def test_a_stream_that_starts_in_mid_window_knows_nothing_from_before(decoders):
    predictor, (frames, starts, _) = model(decoders), window(starts=[(3, 1)])
    other = frames.clone()
    other[:3, 1] = torch.rand(3, *SHAPE[1:])
    state = predictor.initial_state(SHAPE)
    first, second = (predictor.learn(Window(f, starts), state).frames for f in (frames, other))
    assert torch.equal(first[3:], second[3:])
    assert not torch.equal(first[2, 1], second[2, 1])


@DECODERS
def test_the_gradient_reaches_every_weight(decoders):
    predictor = model(decoders)
    (weights,) = predictor.weight_groups()
    loss = predictor.learn(window(), predictor.initial_state(SHAPE)).losses[0]
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(loss, weights))


@DECODERS
def test_a_curriculum_asks_for_more_and_more(decoders):
    predictor, (frames, starts, _) = model(decoders, curriculum_updates=2), window()
    predictor.train()
    fresh = predictor.initial_state(SHAPE)
    horizons = []
    for _ in range(6):
        horizons.append(predictor.horizon)
        predictor.learn(Window(frames, starts), fresh)
    assert horizons == [1, 1, 2, 2, 3, 3]
    assert predictor.horizon == 3
    other = model(decoders, curriculum_updates=2)
    other.load_state_dict(predictor.state_dict())
    assert other.horizon == 3  # a checkpoint goes on where it was
    predictor.eval().learn(Window(frames, starts), fresh)
    assert int(predictor.updates) == 6


def test_a_window_without_a_frame_to_tell_is_refused():
    predictor = model("one", decode_every=4)
    with pytest.raises(ValueError, match="longer than decode_every 4; got 4"):
        predictor.learn(window(4), predictor.initial_state(SHAPE))
    assert predictor.learn(window(5), predictor.initial_state(SHAPE)).scored[4].all()


@DECODERS
def test_it_learns_what_moves(decoders):
    """A bar that moves by a column a frame; the loss falls to less than half of where it began."""
    shape = (2, 2, 8, 8)
    torch.manual_seed(0)
    predictor = model(decoders, shape, hidden_channels=(8, 2))
    bar = torch.zeros(shape)
    bar[..., :2] = 1
    frames = torch.stack([bar.roll(time, -1) for time in range(7)])
    starts = torch.zeros(7, 2, dtype=torch.bool)
    starts[0] = True
    optimiser = torch.optim.Adam(predictor.parameters(), 0.02)
    losses = []
    for _ in range(30):
        loss = predictor.learn(Window(frames, starts), predictor.initial_state(shape)).losses[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [config for config, _ in MODELS.values()])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "horizon\n.*greater than 0"),
        ({"decode_every": 0}, "decode_every\n.*greater than 0"),
        ({"curriculum_updates": 0}, "curriculum_updates\n.*greater than 0"),
        ({"hidden_channels": (10, 1)}, "one entry a layer; got 2 and 4"),
        ({"kernel_sizes": (7, 5, 4, 3)}, "kernel sizes must be odd"),
        ({"kind": "convlstm"}, "kind\n.*'seq2seq-convlstm"),
        ({"patch": 2}, "patch\n.*not permitted"),
    ],
)
def test_refuses_bad_settings(config, settings, message):
    with pytest.raises(ValidationError, match=message):
        config(**settings)


def test_one_decoder_must_end_in_a_frame():
    with pytest.raises(ValidationError, match="must be 1, the channels of a frame; got 3"):
        Seq2SeqConvLSTMConfig(hidden_channels=(10, 10, 10, 3))
    assert Seq2SeqConvLSTMMultiDecoderConfig(hidden_channels=(10, 10, 10, 3)).channels == 1
