import math

import numpy as np
import pytest
import torch

from torchrsm import preset
from torchrsm.baselines import ConvLSTMConfig
from torchrsm.learning.windows import SequenceLearningConfig
from torchrsm.runs.bench.online import SEARCH_SEED, OnlineErrors, World, learn_on_line, on_line, play
from torchrsm.runs.bench.online_results import (
    OnlineResults,
    Search,
    SearchRow,
    Settings,
    changes,
    draw_online,
    drift_table,
    online_table,
    spread,
    summarised,
)
from torchrsm.runs.presets import PRESETS
from torchrsm.runs.settings import BaselineRunConfig, RunConfig, TrainingConfig
from torchrsm.streams.splits import TEST_SEED, VALIDATION_SEED

USUAL = World(frames=120)


def small(window=4):
    """Return the settings of a run of a small ConvLSTM."""
    return BaselineRunConfig(
        name="small",
        model=ConvLSTMConfig(hidden_channels=(2,), kernel_sizes=(3,), patch=3, readout_kernel_size=3),
        learning=SequenceLearningConfig(window=window, schedule="cosine", warmup_share=0.1),
        training=TrainingConfig(minutes=1, batch_size=4),
    )


def rsm():
    """Return the settings of a run of a small stack and rectifier, with dreams and a schedule."""
    changes = {
        "model.layers.0.groups": 8,
        "model.layers.0.active_groups": 2,
        "model.layers.1.groups": 8,
        "model.layers.1.active_groups": 2,
        "model.layers.0.changes": "zero",  # so that there is much to learn
        "model.rectifier.width": 16,
        "model.rectifier.blocks": 1,
    }
    return preset("balls").replace(**changes)


@pytest.mark.parametrize("name", PRESETS)
def test_any_preset_can_learn_on_line_at_rates_that_never_change(name):
    run = on_line(preset(name))
    assert run.training.batch_size == 1
    assert run.learning.schedule == "constant"
    assert run.learning.learning_rates == preset(name).learning.learning_rates
    assert run.model == preset(name).model
    if isinstance(run, RunConfig) and run.rectifying is not None:
        assert run.rectifying.schedule == "constant"
        assert run.rectifying.learning_rate == preset(name).rectifying.learning_rate
        assert (run.rectifying.share, run.rectifying.stack_share, run.rectifying.loop_share) == (1, 1, 0)


def test_frames_are_those_of_one_stream_and_no_sequence_comes_twice():
    worlds = (World(frames=250), World(balls=5, radius=0.8, frames=100), World(frames=100))
    batches = list(play(worlds, 3))
    starts = [number for number, batch in enumerate(batches) if bool(batch.starts)]
    assert starts == [0, 100, 200, 250, 350]
    assert [int(batches[start].index) for start in starts] == [0, 1, 2, 3, 4]
    masses = [
        float(torch.stack([batch.frames.sum() for batch in batches[a:b]]).mean()) for a, b in ((0, 250), (250, 350))
    ]
    assert masses[1] / masses[0] == pytest.approx(5 * 0.8**2 / (3 * 1.2**2), rel=0.05)
    again = list(play(worlds, 3))
    assert all(torch.equal(one.frames, other.frames) for one, other in zip(batches, again, strict=True))
    assert not torch.equal(batches[0].frames, next(iter(play(worlds, 4))).frames)
    assert SEARCH_SEED not in (TEST_SEED, VALIDATION_SEED)


def test_errors_are_those_of_the_frame_before_in_each_frame():
    errors = learn_on_line(on_line(preset("copy-last")), (USUAL,), 1).errors
    frames = torch.stack([batch.frames for batch in play((USUAL,), 1)])[:, 0]
    expected = (frames[1:] - frames[:-1]).double().square().sum((1, 2, 3)).numpy()
    assert np.isnan(errors[[0, 100]]).all()
    scored = [number for number in range(1, 120) if number != 100]
    np.testing.assert_allclose(errors[scored], expected[[number - 1 for number in scored]], rtol=1e-6)


@pytest.mark.parametrize("make", [small, rsm], ids=["a baseline", "RSM"])
def test_each_error_is_measured_before_the_update_that_learns_from_the_frame(make):
    """What comes later changes no error, and the first window is predicted by a system that has learned nothing."""
    run = on_line(make())
    short, long = (learn_on_line(run, (World(frames=frames),), 1).errors for frames in (24, 60))
    np.testing.assert_array_equal(short, long[:24])
    torch.manual_seed(0)
    window = 1 if isinstance(run, RunConfig) else run.learning.window
    still = run.replace(**{"learning.learning_rates": (1e-12,)})
    if isinstance(run, RunConfig):
        still = still.replace(**{"rectifying.learning_rate": 1e-12, "rectifying.matrix_learning_rate": 1e-12})
    unlearned = learn_on_line(still, (World(frames=60),), 1).errors
    first = slice(1, max(window, 3) if isinstance(run, BaselineRunConfig) else 2)
    np.testing.assert_allclose(unlearned[first], long[first], rtol=1e-5)
    assert not np.allclose(unlearned[30:], long[30:], rtol=1e-3)


def test_learning_makes_errors_smaller():
    measured = learn_on_line(on_line(rsm()), (World(frames=200),), 2)
    assert np.nanmean(measured.errors[-50:]) < 0.8 * np.nanmean(measured.errors[:20])
    assert measured.processor_seconds > 0


def test_frames_that_fill_no_window_are_not_scored():
    seen = []
    errors = learn_on_line(on_line(small(window=7)), (World(frames=1020),), 0, lambda *said: seen.append(said)).errors
    assert len(errors) == 1020
    assert np.isnan(errors[1015:]).all()
    assert np.isfinite(errors[1009:1015]).all()
    ((frames, error),) = seen
    assert frames == 1001
    assert error == pytest.approx(np.nanmean(errors[:1001]))


def test_a_system_that_leaves_frames_out_is_refused():
    with pytest.raises(
        ValueError, match=r"^a system must predict each frame while it learns; 'rtrbm' leaves some out$"
    ):
        learn_on_line(on_line(preset("rtrbm")), (USUAL,), 0)


def drifting():
    """Return settings and errors of a stream whose world changes twice."""
    worlds = (World(frames=40), World(balls=5, radius=0.8, frames=40), World(frames=40))
    errors = np.concatenate(
        [
            np.full(40, 4.0),
            np.full(20, 30.0),
            np.full(20, 2.0),
            np.full(10, 12.0),
            np.full(30, 4.0),
        ]
    )
    errors[[0, 40, 80]] = math.nan
    return Settings(worlds=worlds, stretch=10, first=5), errors


def test_a_change_of_world_costs_what_its_errors_say():
    settings, errors = drifting()
    away, back = changes(errors, settings)
    assert (away.frame, away.before, away.first, away.end) == (40, 4.0, 30.0, 2.0)
    assert away.recovered == 25  # a mean of 5 is above 4.4 while one of them is 30
    assert (back.frame, back.before, back.first, back.end) == (80, 4.0, 12.0, 4.0)  # the level of the first world
    assert back.recovered == 15
    errors[90:] = 4.5
    assert changes(errors, settings)[1].recovered is None


def test_a_run_is_summed_up_by_stretches():
    settings, errors = drifting()
    run = summarised("simvp", 1, 0.5, OnlineErrors(errors, 3.0, 2.0), settings)
    assert run.curve == (4.0,) * 4 + (30.0, 30.0, 2.0, 2.0) + (12.0, 4.0, 4.0, 4.0)
    assert run.end == 4.0
    assert run.mean == pytest.approx(np.nanmean(errors))
    assert run.frames_per_second == 60
    assert [change.frame for change in run.changes] == [40, 80]
    none = OnlineErrors(np.full(120, math.nan), 1.0, 1.0)
    with pytest.raises(ValueError, match=r"^a mean must be of 1 scored frame or more; got 120 frames, none of them"):
        summarised("simvp", 1, 1.0, none, settings)


def test_tables_are_best_first_and_name_the_range_over_the_seeds(tmp_path):
    settings, errors = drifting()
    runs = [
        summarised(name, seed, 1.0, OnlineErrors(errors * scale, 1.0, 1.0), settings)
        for name, seed, scale in (("simvp", 0, 2.0), ("balls", 0, 1.0), ("balls", 1, 1.5))
    ]
    drift = OnlineResults(settings=settings, runs=tuple(runs))
    head, _, first, second = drift_table(drift).splitlines()
    assert "first 5 of world 2: 5 balls of radius 0.8" in head
    assert "first 5 of world 3: 3 balls of radius 1.2 again" in head
    assert first.startswith("| `balls` | x1 | 5.00 (4.00 to 6.00) | 37.50 (30.00 to 45.00) | 7.50 (7.50 to 7.50) | 25")
    assert second.startswith("| `simvp` | x1 | 8.00 | 60.00 | 7.50 | 25 | 4.00 |")
    draw_online(drift, tmp_path / "drift.png")
    assert (tmp_path / "drift.png").read_bytes()[:4] == b"\x89PNG"
    one = Settings(worlds=(World(frames=120),), stretch=50, first=5)
    runs = [summarised("simvp", 0, 0.25, OnlineErrors(errors, 1.0, 1.0), one)]
    head, _, line = online_table(OnlineResults(settings=one, runs=tuple(runs))).splitlines()
    assert head == "| system | rates | all 120 frames | 1-50 | 51-100 | 101-120 | frames/s |"
    assert line.startswith("| `simvp` | x0.25 | ")
    assert line.endswith(" | 4.00 | 120 |")
    assert spread([1.0, None]) == "never in 1 of 2"
    assert spread([None]) == "never"


def test_the_best_factor_is_that_of_the_least_error():
    rows = [("balls", 1.0, 3.0), ("balls", 0.5, 2.0), ("balls", 2.0, None), ("simvp", 1.0, 1.0), ("lstm", 1.0, None)]
    found = Search(
        frames=9, seed=1, rows=tuple(SearchRow(system=name, factor=by, mean=mean) for name, by, mean in rows)
    )
    assert [found.best_factor(name) for name in ("balls", "simvp", "lstm", "pgn")] == [0.5, 1.0, None, None]
