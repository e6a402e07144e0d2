import pytest
import torch
from pydantic import ValidationError

from torchrsm.baselines.sequence_model import Window
from torchrsm.baselines.simvp import SimVP, SimVPConfig
from torchrsm.predictor import restart, rollout
from torchrsm.streams import BouncingBalls

BATCH, TIME, CONTEXT = 3, 9, 4
SHAPE = (BATCH, 2, 8, 12)
SMALL = {
    "channels": 2,
    "height": 8,
    "width": 12,
    "context": CONTEXT,
    "spatial_channels": 8,
    "temporal_channels": 16,
    "temporal_blocks": 2,
}
INCEPTION = {"translator": "inception", "kernel_sizes": (3, 5), "groups": 2}
VARIANTS = [
    {},
    INCEPTION,
    {"residual": False},
    {"horizon": 3},
    {**INCEPTION, "horizon": 3, "temporal_blocks": 4, "spatial_blocks": 3},
]


def model(**settings):
    torch.manual_seed(0)
    return SimVP(SimVPConfig(**{**SMALL, **settings})).eval()


def window(time=TIME, starts=()):
    """Random frames; every stream starts with the first, and where ``starts`` says, ``(time, stream)``."""
    torch.manual_seed(1)
    frames, marks = torch.rand(time, *SHAPE), torch.zeros(time, BATCH, dtype=torch.bool)
    marks[0] = True
    for place in starts:
        marks[place] = True
    return Window(frames, marks)


@torch.no_grad()
def play(predictor, seen):
    """The predictions of a window, made one by one, with all that lies ahead, and the state after them."""
    fresh = state = predictor.initial_state(SHAPE)
    ahead = []
    for frame, starts in zip(*seen[:2], strict=True):
        state = restart(state, fresh, starts)
        ahead.append(predictor.ahead(state))
        state = predictor.observe(frame, predictor.predict(state), state)
    return torch.stack(ahead), state


def assert_same_state(first, second):
    assert torch.equal(first.history, second.history)
    assert torch.equal(first.seen, second.seen)


# --- The predictor ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", VARIANTS)
@torch.no_grad()
def test_shapes_and_range(settings):
    predictor = model(**settings)
    fresh = predictor.initial_state(SHAPE)
    ahead, state = play(predictor, window())
    assert ahead.shape == (TIME, BATCH, predictor.config.horizon, *SHAPE[1:])
    assert torch.equal(predictor.predict(state).frame, predictor.ahead(state)[:, 0])
    assert ahead.min() >= 0
    assert ahead.max() <= 1
    assert [(part.shape, part.dtype) for part in state] == [(part.shape, part.dtype) for part in fresh]


@torch.no_grad()
def test_works_on_whole_frames_and_dreams():
    predictor = SimVP().eval()
    state = predictor.initial_state((2, 1, 30, 30))
    dream, state = rollout(predictor, state, 12)
    assert dream.shape == (2, 12, 1, 30, 30)
    assert dream.isfinite().all()
    assert state.seen.tolist() == [10, 10]


@torch.no_grad()
def test_what_is_older_than_the_context_is_forgotten():
    seen = window()
    other = seen.frames.clone()
    other[:-CONTEXT] = torch.rand(TIME - CONTEXT, *SHAPE)
    oldest = seen.frames.clone()
    oldest[-CONTEXT] = torch.rand(SHAPE)
    predictor = model()
    first, second, third = (
        predictor.predict(play(predictor, Window(frames, seen.starts))[1]).frame
        for frames in (seen.frames, other, oldest)
    )
    assert torch.equal(first, second)
    assert (first - third).abs().max() > 1e-4


@torch.no_grad()
def test_no_frame_is_not_a_black_frame():
    predictor = model()
    fresh = predictor.initial_state(SHAPE)
    black = predictor.observe(torch.zeros(SHAPE), predictor.predict(fresh), fresh)
    assert torch.equal(fresh.history, black.history)
    assert (predictor.predict(fresh).frame - predictor.predict(black).frame).abs().max() > 1e-4


@torch.no_grad()
def test_what_a_history_holds_where_nothing_was_seen_does_not_matter():
    predictor = model()
    _, state = play(predictor, window(2))
    assert state.seen.tolist() == [2] * BATCH
    filled = state._replace(history=state.history.clone())
    filled.history[:, :-2] = 0.7
    assert torch.equal(predictor.predict(state).frame, predictor.predict(filled).frame)


@torch.no_grad()
def test_a_batch_in_another_order_is_the_result_in_that_order():
    predictor = model()
    seen = window()
    order = torch.tensor([2, 0, 1])
    ahead, _ = play(predictor, seen)
    permuted, _ = play(predictor, Window(seen.frames[:, order], seen.starts[:, order]))
    torch.testing.assert_close(permuted, ahead[:, order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [(2, 0), (0, -2), (4, 2)])
@torch.no_grad()
def test_a_shift_by_the_divisor_shifts_the_prediction(shift):
    """Away from the borders: a square in the middle of a large frame, what it changes does not reach them."""
    side = 56
    predictor = model(channels=1, height=side, width=side, temporal_blocks=1)
    torch.manual_seed(2)
    history = torch.zeros(1, CONTEXT, 1, side, side)
    history[..., 26:31, 26:30] = torch.rand(1, CONTEXT, 1, 5, 4)
    seen = torch.tensor([CONTEXT])
    state = predictor.initial_state((1, 1, side, side))._replace(history=history, seen=seen)
    shifted = state._replace(history=history.roll(shift, (-2, -1)))
    middle = (..., slice(18, 38), slice(18, 38))
    expected = predictor.predict(state).frame.roll(shift, (-2, -1))[middle]
    assert expected.std() > 1e-2
    torch.testing.assert_close(predictor.predict(shifted).frame[middle], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.05, 0.5, 0.9])
@torch.no_grad()
def test_residual_without_a_change_repeats_the_last_frame(value):
    predictor = model()
    predictor.decoder.readout.weight.zero_()
    predictor.decoder.readout.bias.zero_()
    frame = torch.full(SHAPE, value)
    fresh = predictor.initial_state(SHAPE)
    state = predictor.observe(frame, predictor.predict(fresh), fresh)
    torch.testing.assert_close(predictor.predict(state).frame, frame, rtol=0, atol=1e-6)


def test_the_published_network_has_the_published_weights():
    """Moving MNIST: the sizes follow from the settings by hand."""
    config = SimVPConfig(
        height=64,
        width=64,
        horizon=10,
        spatial_channels=64,
        spatial_blocks=4,
        translator="inception",
        temporal_channels=256,
        temporal_blocks=16,
        residual=False,
    )
    shapes = {name: tuple(value.shape) for name, value in SimVP(config).named_parameters()}
    assert config.strides == (1, 2, 1, 2)
    assert shapes["encoder.blocks.0.convolution.weight"] == (64, 1, 3, 3)
    assert shapes["encoder.blocks.3.convolution.weight"] == (64, 64, 3, 3)
    assert shapes["translator.down.0.mix.weight"] == (128, 640, 1, 1)
    assert shapes["translator.down.7.branches.3.0.weight"] == (256, 32, 11, 11)
    assert shapes["translator.up.0.mix.weight"] == (128, 256, 1, 1)
    assert shapes["translator.up.1.mix.weight"] == (128, 512, 1, 1)
    assert shapes["translator.up.7.branches.0.0.weight"] == (640, 32, 3, 3)
    assert shapes["decoder.blocks.3.convolution.weight"] == (64, 128, 3, 3)
    assert shapes["decoder.readout.weight"] == (1, 64, 1, 1)


# --- Learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("cut", [1, 3, 6])
@torch.no_grad()
def test_learning_predicts_as_step_by_step(settings, cut):
    predictor = model(**settings)
    seen = window(starts=[(3, 0), (4, 1), (8, 1)])
    ahead, after = play(predictor, seen)
    state, frames = predictor.initial_state(SHAPE), []
    for part in (slice(0, cut), slice(cut, TIME)):
        lesson = predictor.learn(Window(seen.frames[part], seen.starts[part]), state)
        assert torch.equal(lesson.scored, ~seen.starts[part])
        frames.append(lesson.frames)
        state = lesson.state
    torch.testing.assert_close(torch.cat(frames), ahead[:, :, 0], rtol=0, atol=1e-6)
    assert_same_state(state, after)


@pytest.mark.parametrize("horizon", [1, 3, 20])
@torch.no_grad()
def test_loss_is_the_mean_over_what_is_known_of_the_window(horizon):
    predictor = model(horizon=horizon)
    seen = window(starts=[(3, 0), (4, 1), (8, 1)])
    ahead, _ = play(predictor, seen)
    errors = [
        (ahead[time, stream, distance] - seen.frames[time + distance, stream]).square().mean()
        for time in range(TIME)
        for stream in range(BATCH)
        for distance in range(min(horizon, TIME - time))
        if not seen.starts[time : time + distance + 1, stream].any()
    ]
    loss = predictor.learn(seen, predictor.initial_state(SHAPE)).losses[0]
    torch.testing.assert_close(loss, torch.stack(errors).mean(), rtol=1e-5, atol=0)


@torch.no_grad()
def test_later_frames_do_not_change_earlier_predictions():
    predictor = model()
    seen = window()
    other = seen.frames.clone()
    other[5:] = torch.rand(TIME - 5, *SHAPE)
    first, second = (
        predictor.learn(Window(frames, seen.starts), predictor.initial_state(SHAPE)).frames
        for frames in (seen.frames, other)
    )
    assert torch.equal(first[:6], second[:6])
    assert (first[6:] - second[6:]).flatten(2).abs().amax(-1).min() > 1e-4


@torch.no_grad()
def test_a_start_in_a_window_cuts_the_past():
    predictor = model()
    seen = window(starts=[(4, 1)])
    whole = predictor.learn(seen, predictor.initial_state(SHAPE))
    alone = predictor.learn(Window(seen.frames[4:], seen.starts[4:]), predictor.initial_state(SHAPE))
    torch.testing.assert_close(whole.frames[4:, 1], alone.frames[:, 1], rtol=0, atol=1e-6)
    assert (whole.frames[5, 0] - alone.frames[1, 0]).abs().max() > 1e-4


@pytest.mark.parametrize("settings", VARIANTS)
def test_gradient_reaches_every_weight_and_no_state(settings):
    predictor = model(**settings).train()
    lesson = predictor.learn(window(), predictor.initial_state(SHAPE))
    lesson.losses[0].backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert not any(part.requires_grad for part in (*lesson.state, lesson.frames))


@pytest.mark.parametrize("translator", ["plain", "inception"])
def test_learns_the_motion_of_a_ball(translator):
    sizes = {"channels": 1, "height": 12, "width": 12, **(INCEPTION if translator == "inception" else {})}
    predictor = model(**sizes).train()
    stream = BouncingBalls(4, balls=1, resolution=12, sequence_length=20, seed=5)
    batches = [next(stream) for _ in range(12)]
    seen = Window(torch.stack([b.frames for b in batches]), torch.stack([b.starts for b in batches]))
    optimiser = torch.optim.Adam(predictor.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = predictor.learn(seen, predictor.initial_state((4, 1, 12, 12))).losses[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    still = (seen.frames[1:] - seen.frames[:-1]).square().mean()
    assert losses[-1] < 0.3 * losses[0]
    assert losses[-1] < 0.3 * still


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 0}, "context"),
        ({"horizon": 0}, "horizon"),
        ({"spatial_channels": 5}, "multiple of 2"),
        ({"spatial_blocks": 4}, "divisible by 4, for 4 spatial_blocks; got 30 and 30"),
        ({"translator": "transformer"}, "translator"),
        ({"translator": "inception", "kernel_sizes": (3, 4)}, "kernel_sizes must be odd"),
        ({"translator": "inception", "temporal_blocks": 3}, "temporal_blocks must be even"),
        ({"translator": "inception", "temporal_channels": 20}, "divisible by 2 groups; got 20 and 4"),
        ({"translator": "inception", "spatial_channels": 6}, "divisible by groups; got 6, 4"),
        ({"memory": 1}, "memory"),
    ],
)
def test_refuses_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        SimVPConfig(**settings)


def test_refuses_frames_of_another_shape():
    with pytest.raises(ValueError, match="reads frames of 1 x 30 x 30; got 1 x 28 x 28"):
        SimVP().initial_state((2, 1, 28, 28))
