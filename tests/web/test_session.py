import numpy as np
import pytest
import torch
from drawing import small_model

from torchrsm import (
    NonFiniteError,
    VideoConfig,
    VideoPredictor,
    fit,
    physics,
    preset,
)
from torchrsm.runs.settings import RUN_FILE, save_run_config
from torchrsm.scoring.metrics import frame_squared_error
from torchrsm.web import messages
from torchrsm.web.library import MAX_VIDEOS, Library
from torchrsm.web.session import LEARNING, Session
from torchrsm.web.worlds import RADIUS, BallsWorld, ClipWorld, DigitsWorld


@pytest.fixture(scope="module")
def library():
    return Library()


def configured(library, *models, source=None, seed=5):
    session = Session(library, seed=seed)
    session.apply(messages.Configure(source=source or messages.BallsSource(), models=models or ("balls",)))
    return session


def array(message, name):
    (entry,) = (a for e, a in zip(message.header.arrays, message.arrays, strict=True) if e.name == name)
    return entry


# --- Worlds -----------------------------------------------------------------------------------------------------------


def test_balls_fly_as_in_the_stream():
    world = BallsWorld(3, seed=9)
    frames = torch.stack([world.next().frame[0] for _ in range(60)])[None]
    tracks = physics.match_balls(physics.detect_balls(frames))
    assert np.nanmedian(physics.kinetic_energy(tracks)) == pytest.approx(2.25, rel=0.02)


@pytest.mark.parametrize(("x", "y"), [(5, 5), (0, 0), (10, 10), (0, 10)])
def test_a_ball_that_is_placed_stays_in_the_box_and_off_the_others(x, y):
    for seed in range(5):
        world = BallsWorld(6, seed)
        ball = world.place(None, x, y, 0.1, 0)
        others = np.delete(world.positions, ball, 0)
        assert np.linalg.norm(others - world.positions[ball], axis=1).min() >= 2 * RADIUS - 1e-9
        assert (world.positions >= RADIUS - 1e-9).all()
        assert (world.positions <= 10 - RADIUS + 1e-9).all()
        assert world.velocities[ball].tolist() == [0.1, 0]


def test_the_nearest_ball_is_taken_and_an_unknown_one_refused():
    world = BallsWorld(3, seed=1)
    wanted = world.positions[2] + 0.05
    assert world.place(None, *wanted, 0, 0) == 2
    with pytest.raises(ValueError, match=r"ball must be in 0\.\.2; got 3"):
        world.place(3, 5, 5, 0, 0)


def test_a_clip_begins_again():
    frames = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    world = ClipWorld(frames)
    seen = [world.next() for _ in range(7)]
    assert [round(float(one.frame) * 255) for one in seen] == [0, 1, 2, 0, 1, 2, 0]
    assert [one.start for one in seen] == [True, False, False, True, False, False, True]


def test_digits_begin_with_a_start():
    world = DigitsWorld(seed=2)
    assert world.frame_shape == (1, 32, 32)
    assert [world.next().start for _ in range(3)] == [True, False, False]


# --- Showing ----------------------------------------------------------------------------------------------------------


def test_a_frame_holds_what_it_says(library):
    session = configured(library, "balls", "copy-last")
    for _ in range(6):
        message = session.advance()
    header = message.header
    assert (header.type, header.step, header.mode) == ("frame", 6, "predict")
    names = [entry.name for entry in header.arrays]
    assert names[:3] == ["truth", "prediction:0", "prediction:1"]
    assert names[3:] == ["winners:0:0", "winners:0:1"]
    truth, predicted = array(message, "truth"), array(message, "prediction:0")
    error = ((truth / 255.0 - predicted / 255.0) ** 2).sum()
    assert header.errors[0] == pytest.approx(error, abs=0.2)
    assert header.errors[1] == pytest.approx(header.copy_error)
    assert header.errors[0] < header.copy_error
    data = message.encode()
    length = int.from_bytes(data[:4], "little")
    assert messages.Shown.model_validate_json(data[4 : 4 + length]) == header
    sizes = [int(np.prod(e.shape)) * (2 if e.dtype == "uint16" else 1) for e in header.arrays]
    assert len(data) == 4 + length + sum(sizes)


def test_winners_are_the_model_s(library):
    session = configured(library)
    model = library.model("balls")
    state = model.initial_state((1, 1, 30, 30))
    world = BallsWorld(3, seed=5)
    for _ in range(4):
        message = session.advance()
        prediction = model.predict(state)
        state = model.observe(world.next().frame, prediction, state)
    winners = array(message, "winners:0:0")
    cells = prediction.layers[0].cells
    assert np.array_equal(np.sort(winners, axis=-1), np.sort(cells.index[0].numpy(), axis=-1))
    strongest = cells.index[0].gather(-1, cells.value[0].abs().argmax(-1, keepdim=True))[..., 0]
    assert np.array_equal(winners[..., 0], strongest.numpy())
    assert session.state().panes[0].layers[0].winners == winners.shape[-1]


def test_a_dream_hears_itself_alone(library):
    session = configured(library)
    for _ in range(20):
        session.advance()
    session.apply(messages.Dream())
    assert session.state().dream_from == 21
    model, state = library.model("balls"), session._watchers[0].state
    dream, _ = model.rollout(state, 5)
    for step in range(5):
        message = session.advance()
        expected = (dream[0, step] * 255).round().to(torch.uint8).numpy()
        assert np.abs(array(message, "prediction:0").astype(int) - expected).max() <= 1
        assert message.header.mode == "dream"
    session.apply(messages.Wake())
    assert session.state().dream_from is None
    errors = [session.advance().header.errors[0] for _ in range(6)]
    assert errors[-1] < 5 < 100  # it sees again


def test_a_ball_placed_in_a_dream_is_dreamt_on(library):
    session = configured(library, source=messages.BallsSource(balls=1))
    for _ in range(15):
        session.advance()
    session.apply(messages.Dream())
    session.apply(messages.Place(x=2, y=8, vx=0.3, vy=-0.2))
    frames = [array(session.advance(), "prediction:0") for _ in range(8)]
    lower_left = [frame[0, 15:, :15].sum() for frame in frames]
    assert lower_left[0] < lower_left[4]


def test_the_energy_of_the_truth_is_that_of_the_world(library):
    session = configured(library)
    energies = [session.advance().header.energies for _ in range(30)]
    assert energies[0] == (None, None)
    assert np.median([e[0] for e in energies if e[0] is not None]) == pytest.approx(2.25, rel=0.05)
    assert sum(e[1] is not None for e in energies) > 20


def test_a_clip_is_a_film_of_what_was_shown(library, tmp_path, monkeypatch):
    from torchrsm.streams import VideoReader

    monkeypatch.setattr("torchrsm.web.session.CLIP_FRAMES", 40)
    session = configured(library, "balls", "copy-last")
    for _ in range(45):
        session.advance()
    message = session.clip()
    assert message.header.type == "clip"
    (tmp_path / "clip.mp4").write_bytes(array(message, "film").tobytes())
    assert sum(1 for _ in VideoReader(tmp_path / "clip.mp4")) == 40


# --- Several futures --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    """A library with a model that can draw."""
    folder = tmp_path_factory.mktemp("models") / "drawing"
    small_model().save(folder)
    return Library([folder])


def dreamt(session, steps=4):
    return [(array(m, "truth"), array(m, "prediction:0")) for m in (session.advance() for _ in range(steps))]


def test_another_future_begins_at_the_same_past(drawing):
    session = configured(drawing, "drawing", "copy-last")
    for _ in range(5):
        session.advance()
    assert session.state().draws
    session.apply(messages.Dream())
    first = dreamt(session)
    assert (session.state().future, session.state().dream_from) == (1, 6)
    session.apply(messages.Redraw())
    assert (session.state().future, session.state().dream_from) == (2, 10)
    second = dreamt(session)
    for (truth, one), (same_truth, other) in zip(first, second, strict=True):
        assert np.array_equal(truth, same_truth)
        assert not np.array_equal(one, other)
    session.apply(messages.Wake())
    assert (session.state().future, session.state().dream_from) == (None, None)
    awake = [array(session.advance(), "prediction:0") for _ in range(2)]
    assert session.state().step == 15
    assert len(awake) == 2


def test_the_frame_of_each_stage_is_shown(drawing):
    session = configured(drawing, "drawing", "balls")
    assert [pane.stages for pane in session.state().panes] == [2, 0]
    for _ in range(3):
        message = session.advance()
    names = [entry.name for entry in message.header.arrays]
    assert [name for name in names if name.startswith("stage")] == ["stage:0:0"]
    model, state = drawing.model("drawing"), None
    world = BallsWorld(3, seed=5)
    state = model.initial_state((1, 1, 30, 30))
    for _ in range(3):
        prediction = model.predict(state)
        state = model.observe(world.next().frame, prediction, state)
    first, last = model.stages(prediction)
    for name, frame in (("stage:0:0", first), ("prediction:0", last)):
        assert np.array_equal(array(message, name), (frame[0] * 255).round().to(torch.uint8).numpy())


def test_what_is_seen_awake_has_no_chance(drawing):
    shown = []
    for _ in range(2):
        session = configured(drawing, "drawing")
        shown.append([array(session.advance(), "prediction:0") for _ in range(6)])
    assert all(map(np.array_equal, *shown))


def test_the_same_future_is_drawn_again_for_a_seed(drawing):
    dreams = []
    for seed in (1, 1, 2):
        session = configured(drawing, "drawing", seed=5)
        session.seed = seed
        session.advance()
        session.apply(messages.Dream())
        dreams.append(dreamt(session)[-1][1])
    assert np.array_equal(dreams[0], dreams[1])
    assert not np.array_equal(dreams[0], dreams[2])


def test_another_future_needs_a_dream_and_a_model_that_draws(drawing):
    session = configured(drawing, "drawing")
    session.advance()
    with pytest.raises(ValueError, match="redraw needs a dream of a model that draws what may come; no model dreams"):
        session.apply(messages.Redraw())
    plain = configured(drawing, "balls")
    plain.advance()
    plain.apply(messages.Dream())
    assert not plain.state().draws
    assert plain.state().future is None
    with pytest.raises(ValueError, match="redraw needs .*; no model that dreams can"):
        plain.apply(messages.Redraw())


# --- What the models see ----------------------------------------------------------------------------------------------


def names_of(message):
    return [entry.name for entry in message.header.arrays]


def test_what_is_hidden_is_shown_as_hidden(library):
    session = configured(library, "balls")
    assert "shown" not in names_of(session.advance())
    session.apply(messages.Disturb(by="bar"))
    assert session.state().disturbed == "bar"
    message = session.advance()
    truth, shown, hidden = (array(message, name) for name in ("truth", "shown", "hidden"))
    assert hidden.shape == (1, 30, 30)
    columns = (hidden[0] == 255).all(0)
    assert columns.sum() == 10
    assert not (hidden[0] == 255).any(0)[~columns].any()
    assert np.array_equal(shown[:, :, ~columns], truth[:, :, ~columns])
    assert not shown[:, :, columns].any()
    session.apply(messages.Disturb(by="none"))
    assert "hidden" not in names_of(session.advance())


def test_noise_hides_nothing(library):
    session = configured(library, "balls")
    session.apply(messages.Disturb(by="noise"))
    first, second = session.advance(), session.advance()
    assert not array(first, "hidden").any()
    noise = array(first, "shown").astype(float) - array(first, "truth")
    assert 0.08 < noise.std() / 255 < 0.25
    assert not np.array_equal(array(first, "shown"), array(second, "shown"))


def test_flicker_hides_half_of_the_frames(library):
    session = configured(library, "copy-last")
    session.apply(messages.Disturb(by="flicker"))
    hidden = [bool(array(session.advance(), "hidden").all()) for _ in range(60)]
    assert 18 < sum(hidden) < 42


@pytest.mark.parametrize("model", ["balls", "copy-last"])
def test_who_sees_nothing_goes_on_with_its_own(library, model):
    """As in a dream, while the truth goes on."""
    shown = []
    for request in (messages.Disturb(by="blank"), messages.Dream()):
        session = configured(library, model)
        for _ in range(5):
            session.advance()
        session.apply(request)
        shown.append([array(session.advance(), "prediction:0") for _ in range(5)])
    assert all(map(np.array_equal, *shown))


def test_the_past_is_what_was_seen_and_imagined(library):
    model, world = library.model("balls"), BallsWorld(3, seed=5)
    session = configured(library, "balls")
    state = model.initial_state((1, 1, 30, 30))
    session.apply(messages.Disturb(by="bar"))
    seen = torch.ones(1, 1, 30, 30, dtype=torch.bool)
    seen[..., 10:20] = False
    for _ in range(4):
        message = session.advance()
        prediction = model.predict(state)
        state = model.observe(world.next().frame, prediction, state, seen)
    assert np.array_equal(array(message, "prediction:0"), (prediction.frame[0] * 255).round().to(torch.uint8).numpy())


def test_another_source_is_seen_in_the_same_way(library):
    session = configured(library, "balls")
    session.apply(messages.Disturb(by="blank"))
    session.apply(messages.Configure(models=("copy-last",)))
    assert session.state().disturbed == "blank"
    assert array(session.advance(), "hidden").all()


def test_a_copy_of_a_world_goes_on_by_itself():
    frames = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    for world in (BallsWorld(3, seed=1), DigitsWorld(seed=1), ClipWorld(frames)):
        for _ in range(3):
            world.next()
        copied = world.copy()
        ahead = [world.next().frame for _ in range(4)]
        assert all(torch.equal(frame, copied.next().frame) for frame in ahead)


# --- Requests ---------------------------------------------------------------------------------------------------------


def test_nothing_changes_where_a_request_cannot_be_done(library):
    session = Session(library, seed=0)
    with pytest.raises(ValueError, match="configure must be the first request; got play"):
        session.apply(messages.Play())
    with pytest.raises(ValueError, match="model must be one of balls, .*; got 'secret'"):
        session.apply(messages.Configure(models=("secret",)))
    with pytest.raises(ValueError, match="not here any more"):
        session.apply(messages.Configure(models=("balls",), source=messages.VideoSource(video="../../etc/passwd")))
    assert not session.configured
    session = configured(library)
    for request, message in (
        (messages.Dream(), "dream needs a frame"),
        (messages.Stop(), "stop needs a training"),
        (messages.Clip(), "a clip needs frames"),
        (messages.Place(ball=5, x=1, y=1), r"ball must be in 0\.\.2; got 5"),
    ):
        before = session.state()
        with pytest.raises(ValueError, match=message):
            session.apply(request)
        assert session.state() == before


def test_a_video_is_watched_and_cannot_be_played_with(library):
    frames = (np.random.default_rng(0).random((12, 1, 20, 33)) * 255).astype(np.uint8)
    video = library.add_video("clip.mp4", frames)
    session = configured(library, source=messages.VideoSource(video=video))
    message = session.advance()
    assert array(message, "truth").tolist() == frames[0].tolist()
    assert message.header.energies == ()
    assert message.header.errors == (None,)  # nothing was seen before
    with pytest.raises(ValueError, match="place is for bouncing balls; got a source of kind 'video'"):
        session.apply(messages.Place(x=1, y=1))


@pytest.mark.parametrize(("models", "channels"), [(("balls",), 1), (("copy-last",), 3), (("balls", "copy-last"), 1)])
def test_a_video_is_shown_in_colour_to_those_that_see_it(library, models, channels):
    frames = (np.random.default_rng(0).random((12, 3, 20, 33)) * 255).astype(np.uint8)
    session = configured(library, *models, source=messages.VideoSource(video=library.add_video("clip.mp4", frames)))
    truth = array(session.advance(), "truth")
    red, green, blue = frames[0].astype(float)
    shown = frames[0] if channels == 3 else np.rint(0.299 * red + 0.587 * green + 0.114 * blue)[None]
    assert truth.shape == (channels, 20, 33)
    assert np.abs(truth.astype(float) - shown).max() <= 1
    session.apply(messages.Train(minutes=0.5))
    assert array(session.advance(), "truth").shape == (channels, 20, 33)


def test_a_model_that_sees_colour_watches_in_colour(tmp_path):
    run = fit(preset("balls"), (3, 20, 34), VideoConfig(path="-"))
    VideoPredictor(run.model).save_pretrained(tmp_path / "colour")
    library = Library([tmp_path / "colour"])
    video = library.add_video("clip.mp4", np.zeros((4, 3, 20, 34), np.uint8))
    session = configured(library, "colour", "copy-last", source=messages.VideoSource(video=video))
    assert array(session.advance(), "truth").shape == (3, 20, 34)
    with pytest.raises(ValueError, match="channels"):
        configured(library, "colour", "balls", source=messages.VideoSource(video=video))


def test_only_so_many_videos_are_kept(library):
    ids = [library.add_video("v", np.zeros((2, 1, 8, 8), np.uint8)) for _ in range(MAX_VIDEOS + 1)]
    assert len(set(ids)) == len(ids)
    with pytest.raises(ValueError, match="upload it again"):
        library.video(ids[0])
    assert library.video(ids[-1]).shape == (2, 1, 8, 8)


# --- Training ---------------------------------------------------------------------------------------------------------


def test_a_model_learns_from_nothing_and_the_library_s_does_not(library):
    shared = {name: weight.clone() for name, weight in library.model("balls").state_dict().items()}
    session = configured(library)
    session.apply(messages.Train(minutes=0.5))
    assert session.state().panes[0].model == LEARNING
    assert session.trains
    errors = []
    while session.trains:
        error = session.advance(share=2.0).header.errors[0]
        errors += [] if error is None else [error]
        if len(errors) > 20 and np.mean(errors[-5:]) < 0.3 * np.mean(errors[:3]):
            break
    else:
        pytest.fail(f"the error did not fall: {errors}")
    assert 0 < session.state().training.progress < 1
    assert all(torch.equal(weight, shared[name]) for name, weight in library.model("balls").state_dict().items())


def test_a_training_that_is_stopped_keeps_what_it_has_learned(library):
    session = configured(library)
    session.apply(messages.Train(minutes=10))
    for _ in range(3):
        session.advance(share=1.0)
    session.apply(messages.Stop())
    model = session._watchers[0].model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for _ in range(3):
        session.advance(share=1.0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not model.training


def test_a_training_that_fails_says_so_and_stops(library):
    session = configured(library)
    session.apply(messages.Train(minutes=10))
    session.advance(share=1.0)
    with torch.no_grad():
        session._training.learner.model.stack.layers[0].output_bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="loss/layer_1 is nan"):
        session._learn(0.0)  # one step
    assert not session.trains


def test_a_training_ends(library):
    session = configured(library)
    session.apply(messages.Train(minutes=0.1))
    while session.trains:
        progress = session.advance(share=4.0).header.progress
    assert progress is None
    assert session.state().training.progress == 1
    assert not session._watchers[0].model.training


def test_a_training_that_waits_learns_nothing(library):
    session = configured(library)
    session.apply(messages.Train(minutes=1))
    session.advance(share=0.0)
    assert session.state(queued=2).training == messages.TrainingState(minutes=1, progress=0, running=True, queued=2)


@pytest.mark.parametrize("kind", ["digits", "video"])
def test_other_sources_are_learned_from_too(library, kind):
    source = messages.DigitsSource()
    if kind == "video":
        frames = (np.random.default_rng(0).random((12, 1, 20, 33)) * 255).astype(np.uint8)
        source = messages.VideoSource(video=library.add_video("clip.mp4", frames))
    session = configured(library, source=source)
    session.apply(messages.Train(minutes=1))
    shown = [session.advance(share=1.0) for _ in range(3)]
    assert session.state().training.progress > 0
    assert shown[-1].header.errors[0] > 0
    truth = torch.from_numpy(array(shown[-1], "truth")).float() / 255
    assert float(frame_squared_error(truth[None], truth[None])) == 0


# --- Worlds that were not learned from --------------------------------------------------------------------------------


def test_a_pane_says_what_its_model_has_not_seen(library):
    for source, said in (
        (messages.BallsSource(), None),
        (messages.BallsSource(balls=5), "a world that the model has not seen: balls 5 (learned from 3)"),
        (messages.DigitsSource(), "a world that the model has not seen: moving digits (learned from bouncing balls)"),
    ):
        session = configured(library, "balls", "copy-last", source=source)
        first, second = session.state().panes
        assert first.unseen == said
        assert second.unseen is None  # which has learned nothing
    session.apply(messages.Train(minutes=0.5))
    assert session.state().panes[0].unseen is None


def test_a_video_is_known_by_its_name(tmp_path):
    run = fit(preset("balls"), (1, 20, 34), VideoConfig(path="films/clip.mp4"))
    VideoPredictor(run.model).save_pretrained(tmp_path / "of-clip")
    (tmp_path / "of-clip" / RUN_FILE).write_bytes(save_run_config(run))
    library = Library([tmp_path / "of-clip"])
    for name, said in (("clip.mp4", None), ("other.mp4", "video other.mp4 (learned from clip.mp4)")):
        video = library.add_video(name, np.zeros((4, 1, 20, 34), np.uint8))
        session = configured(library, "of-clip", source=messages.VideoSource(video=video))
        unseen = session.state().panes[0].unseen
        assert unseen == (said and f"a world that the model has not seen: {said}")
