import math
import os
import resource
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image

from torchrsm import bouncing_ball_frames
from torchrsm.media import pictures, plots
from torchrsm.media.pictures import overlay, save_image, strip
from torchrsm.media.plots import plot_error_by_frame
from torchrsm.scoring.physics import summarise_physics

BACKGROUND = (22, 23, 28)


def test_overlay_colours():
    prediction = torch.tensor([[[0.0, 1.0, 0.0, 1.0, 0.5]]])
    truth = torch.tensor([[[0.0, 0.0, 1.0, 1.0, 0.5]]])
    picture = overlay(prediction, truth)
    assert picture.dtype == np.uint8
    assert picture.shape == (1, 5, 3)
    black, red, blue, magenta, half = picture[0].tolist()
    assert black == [0, 0, 0]
    assert red == [255, 0, 0]
    assert blue == [0, 102, 255]
    assert magenta == [255, 0, 255]
    assert half == [128, 0, 128]


def test_overlay_of_channels_is_that_of_their_mean_and_values_are_clipped():
    prediction = torch.zeros(2, 4, 3, 6, 5)
    prediction[:, :, 0] = 1
    picture = overlay(prediction, torch.full_like(prediction, -3.0))
    assert picture.shape == (2, 4, 6, 5, 3)
    assert (picture == [85, 0, 0]).all()
    assert (overlay(torch.full((1, 2, 2), 7.0), torch.zeros(1, 2, 2)) == [255, 0, 0]).all()


@pytest.mark.parametrize("draw", [overlay, lambda prediction, truth: strip(truth, prediction)])
def test_drawing_refuses_bad_frames(draw):
    frames = torch.zeros(4, 1, 6, 6)
    with pytest.raises(ValueError, match=r"the same shape .*; got \[4, 1, 6, 6\] and \[4, 1, 6, 5\]"):
        draw(frames, frames[..., :5])
    with pytest.raises(ValueError, match=r"the same shape .*; got \[6, 6\] and \[6, 6\]"):
        draw(frames[0, 0], frames[0, 0])
    bad = frames.clone()
    bad[1, 0, 2, 2] = math.nan
    with pytest.raises(ValueError, match="prediction must be finite; got 1 NaN or infinite of 144 values"):
        draw(bad, frames)
    with pytest.raises(ValueError, match="truth must be finite; got 1 NaN or infinite of 144 values"):
        draw(frames, bad)


def blocks(picture):
    """Return the top-left corners and sizes of what is drawn on the background, right of the labels, below the text."""
    pixels = np.asarray(picture)
    drawn = (pixels != BACKGROUND).any(axis=-1)
    column = drawn[:, -19]  # through the last frames
    row = drawn[-19, :]
    return runs(column), runs(row)


def runs(flags):
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def test_strip_has_three_rows_and_a_column_for_each_step():
    truth, prediction = torch.zeros(20, 1, 30, 30), torch.ones(20, 1, 30, 30)
    picture = strip(truth, prediction, steps=[2, 7, 20])
    rows, columns = blocks(picture)
    assert len(rows) == 3
    assert len(columns) == 3
    assert all(end - begin == 120 for begin, end in [*rows, *columns])  # 30 pixels, each 4 wide
    assert picture.size == (columns[-1][1] + 18, rows[-1][1] + 18)
    colours = [picture.getpixel((columns[1][0] + 60, begin + 60)) for begin, _ in rows]
    assert colours == [(0, 0, 0), (255, 255, 255), (255, 0, 0)]


def test_strip_shows_the_frames_of_its_steps_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(6, 3, 24, 30, generator=generator)
    prediction = torch.rand(6, 3, 24, 30, generator=generator)
    picture = strip(truth, prediction, steps=[53, 51], first_step=50)
    rows, columns = blocks(picture)
    pixels = np.asarray(picture)
    for (left, _), index in zip(columns, (3, 1), strict=True):
        drawn = [pixels[top : top + 96 : 4, left : left + 120 : 4] for top, _ in rows]
        assert (drawn[0] == np.rint(255 * truth[index].double().numpy().transpose(1, 2, 0))).all()
        assert (drawn[1] == np.rint(255 * prediction[index].double().numpy().transpose(1, 2, 0))).all()
        assert (drawn[2] == overlay(prediction[index], truth[index])).all()


def test_strip_writes_the_error_above_each_column():
    truth = torch.zeros(3, 1, 30, 30)
    prediction = truth.clone()
    prediction[1, 0, 3:5] = 0.4  # 60 pixels, 9.6 altogether
    first, second = (np.asarray(strip(truth, frames, steps=[2])) for frames in (prediction, truth))
    _, columns = blocks(Image.fromarray(first))
    left = columns[0][0]
    text = np.s_[38:58, left:]  # the line of the errors
    assert (first[text] != second[text]).any()
    assert (first[:38] == second[:38]).all()  # the line of the steps
    assert (first[:, :left] == second[:, :left]).all()  # the labels


def test_strip_chooses_ten_steps_from_the_second_to_the_last():
    ramp = torch.linspace(0, 1, 100).view(100, 1, 1, 1).expand(100, 1, 30, 30)
    picture = strip(ramp, ramp)
    rows, columns = blocks(picture)
    assert len(columns) == 10
    levels = [picture.getpixel((left + 5, rows[0][0] + 5))[0] for left, _ in columns]
    assert levels[0] == round(255 / 99)
    assert levels[-1] == 255
    assert levels == sorted(levels)
    assert len(blocks(strip(ramp[:4], ramp[:4]))[1]) == 3
    assert len(blocks(strip(ramp[:1], ramp[:1]))[1]) == 1


def test_strip_makes_room_for_its_title_and_for_small_and_large_frames():
    frames = torch.zeros(3, 1, 30, 30)
    plain, titled = strip(frames, frames), strip(frames, frames, title="bouncing balls")
    assert titled.size == (plain.size[0], plain.size[1] + 34)
    wide = strip(frames, frames, steps=[2], title="a title that is much wider than the only frame below it")
    assert wide.size[0] > strip(frames, frames, steps=[2]).size[0]
    large = torch.zeros(2, 1, 200, 300)
    rows, _ = blocks(strip(large, large, steps=[1]))
    assert rows[0][1] - rows[0][0] == 200
    narrow = torch.zeros(2, 1, 30, 4)
    assert strip(narrow, narrow, steps=[1, 2]).size[0] >= 110 + 2 * 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": [0, 2]}, r"steps must be one or more of 1\.\.4; got \[0, 2\]"),
        ({"steps": [5]}, r"steps must be one or more of 1\.\.4; got \[5\]"),
        ({"steps": []}, r"steps must be one or more of 1\.\.4; got \[\]"),
        ({"steps": [3], "first_step": 50}, r"steps must be one or more of 50\.\.53; got \[3\]"),
        ({"frame_pixels": 8}, r"frame_pixels must be >= 16; got 8"),
    ],
)
def test_strip_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        strip(torch.zeros(4, 1, 6, 6), torch.zeros(4, 1, 6, 6), **arguments)


@pytest.mark.parametrize("shape", [(2, 4, 1, 6, 6), (1, 6, 6), (0, 1, 6, 6)])
def test_strip_refuses_what_is_not_one_sequence(shape):
    with pytest.raises(ValueError, match=r"truth must have the shape \[time, channels, height, width\]; got \["):
        strip(torch.zeros(shape), torch.zeros(shape))


def picture_and_plot():
    image = Image.new("RGB", (8, 6), (10, 20, 30))
    return [
        lambda path: save_image(image, path),
        lambda path: plot_error_by_frame({"balls": [None, 2.0, 1.0]}, path),
        lambda path: plots.plot_by_step([plots.Panel("alive", {"dream": [1.0, 0.5]})], path),
        lambda path: plots.plot_error_by_minute({"balls": ([1.0, 2.0], [2.0, 1.0])}, path),
        lambda path: plots.plot_memory({"balls": {10: 500.0, 50: 510.0}}, path),
    ]


@pytest.mark.parametrize("write", picture_and_plot())
def test_pictures_are_written_whole_and_leave_nothing_beside(write, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    write(path)
    write(str(path))
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", picture_and_plot())
def test_a_missing_folder_is_named_and_not_made(write, tmp_path):
    path = tmp_path / "missing" / "picture.png"
    with pytest.raises(FileNotFoundError, match=r"cannot write .*missing/picture.png: No such file or directory"):
        write(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", picture_and_plot())
def test_a_folder_that_cannot_be_written_to_is_named(write, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match=r"cannot write .*file/picture.png: Not a directory"):
        write(tmp_path / "file" / "picture.png")


@pytest.mark.parametrize("write", picture_and_plot())
def test_a_failure_at_the_end_leaves_nothing_behind(write, tmp_path):
    path = tmp_path / "picture.png"
    path.mkdir()  # cannot be replaced by a file
    with pytest.raises(IsADirectoryError, match="cannot write"):
        write(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_picture(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*picture.png: File too large"):
            save_image(Image.new("L", (9, 9)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", picture_and_plot())
def test_only_png_is_written(write, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.png; got '.*picture\.jpg'"):
        write(tmp_path / "picture.jpg")


def test_plot_draws_each_model_and_survives_gaps(tmp_path):
    path = tmp_path / "plot.png"
    reference = {"copy-last": [None, 12.0, 11.0, 12.0]}
    plot_error_by_frame(reference, path)
    alone = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    assert (np.ptp(alone, axis=-1) == 0).all()  # the reference is grey
    plot_error_by_frame({**reference, "balls": [None, 10.0, 0.0, 1.0, 2.0]}, path)
    both = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    assert (np.ptp(both, axis=-1) > 100).any()  # the model is coloured


def test_plot_refuses_what_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="scores must hold at least one model; got none"):
        plot_error_by_frame({}, tmp_path / "plot.png")
    with pytest.raises(ValueError, match=r"scores of 'x' must hold at least one error > 0; got \[None, 0.0\]"):
        plot_error_by_frame({"x": [None, 0.0]}, tmp_path / "plot.png")


def test_the_two_rows_show_prediction_and_dream():
    truth, dreamt = torch.zeros(6, 1, 8, 8), torch.zeros(9, 1, 8, 8)
    truth[:, :, :4], dreamt[:, :, 4:] = 1, 1
    picture = np.asarray(pictures.two_row_picture(truth, truth, dreamt, 3, steps=(2, 5, 8), frame_pixels=64))
    colours = {tuple(int(x) for x in colour) for colour in picture.reshape(-1, 3)}
    assert {(255, 0, 255), (255, 0, 0), (0, 102, 255), (255, 255, 255)} <= colours
    one = np.asarray(pictures.two_row_picture(truth, truth, dreamt, 3, steps=(2,), frame_pixels=64))
    assert picture.shape[1] - one.shape[1] == 2 * (64 + 6)
    # Step 8 is beyond the truth: nothing above, the dream as it is below.
    last = picture[:, -18 - 64 : -18]
    assert not (last[: last.shape[0] // 2 - 20] == 255).all(-1).any()
    assert (last == 255).all(-1).any()


def test_each_column_of_the_two_rows_is_its_frame():
    generator = torch.Generator().manual_seed(0)
    truth, predicted = torch.rand(2, 5, 1, 12, 12, generator=generator)
    dreamt = torch.rand(7, 1, 12, 12, generator=generator)
    steps = [6, 2, 5]
    pixels = np.asarray(pictures.two_row_picture(truth, predicted, dreamt, 3, steps=steps, frame_pixels=72))
    above, below = -18 - 72 - 6 - 72, -18 - 72
    for index, step in enumerate(reversed(steps)):
        left = pixels.shape[1] - 18 - 72 - index * 78
        drawn = [pixels[top : top + 72 : 6, left : left + 72 : 6] for top in (above + len(pixels), below + len(pixels))]
        if step <= 5:
            assert (drawn[0] == overlay(predicted[step - 1], truth[step - 1])).all()
            assert (drawn[1] == overlay(dreamt[step - 1], truth[step - 1])).all()
        else:
            assert (drawn[0] == BACKGROUND).all()
            assert (drawn[1] == np.rint(255 * dreamt[step - 1, 0].double().numpy())[..., None]).all()


@pytest.mark.parametrize(
    ("prime", "steps", "expected"),
    # Two of the priming, then ten further and further apart, as many as there are.
    [(50, 100, 2 + 10), (1, 3, 1 + 3), (2, 1, 2 + 1), (4, 6, 2 + 6)],
)
def test_the_two_rows_choose_their_columns(prime, steps, expected):
    ramp = torch.linspace(0.1, 1, prime + steps).view(-1, 1, 1, 1).expand(-1, 1, 12, 12)
    picture = pictures.two_row_picture(ramp[:1], ramp[:1], ramp, prime, frame_pixels=72)
    _, columns = blocks(picture)
    assert len(columns) == expected
    levels = [max(picture.getpixel((left + 5, picture.height - 18 - 5))) for left, _ in columns]
    assert levels == sorted(set(levels))
    assert levels[-1] == 255


def test_the_two_rows_take_a_title():
    frames = torch.zeros(4, 3, 8, 8)
    plain = pictures.two_row_picture(frames, frames, frames, 2)
    titled = pictures.two_row_picture(frames, frames, frames, 2, title="a dream")
    assert titled.size == (plain.size[0], plain.size[1] + 34)


@pytest.mark.parametrize(
    ("known", "steps", "settings", "message"),
    [
        (3, 5, {"prime": 5}, r"prime must be in 1\.\.4; got 5"),
        (3, 5, {"prime": 0}, r"prime must be in 1\.\.4; got 0"),
        (3, 5, {"prime": 2, "steps": ()}, r"steps must be one or more of 1\.\.5; got \[\]"),
        (3, 5, {"prime": 2, "steps": (0,)}, r"steps must be one or more of 1\.\.5; got \[0\]"),
        (0, 5, {"prime": 2}, r"got \[0, 1, 8, 8\] and \[5, 1, 8, 8\]"),
        (6, 5, {"prime": 2}, r"got \[6, 1, 8, 8\] and \[5, 1, 8, 8\]"),
        (3, 5, {"prime": 2, "steps": (6,)}, r"steps must be one or more of 1\.\.5; got \[6\]"),
        (3, 5, {"prime": 2, "frame_pixels": 8}, r"frame_pixels must be >= 16; got 8"),
    ],
)
def test_two_rows_must_go_together(known, steps, settings, message):
    truth, dreamt = torch.zeros(known, 1, 8, 8), torch.zeros(steps, 1, 8, 8)
    with pytest.raises(ValueError, match=message):
        pictures.two_row_picture(truth, truth, dreamt, **settings)


def test_two_rows_must_be_of_one_world():
    frames = torch.zeros(3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"got \[3, 1, 8, 8\] and \[3, 1, 8, 7\]"):
        pictures.two_row_picture(frames, frames, frames[..., :7], 1)
    with pytest.raises(ValueError, match=r"the same shape .*; got \[2, 1, 8, 8\] and \[3, 1, 8, 8\]"):
        pictures.two_row_picture(frames, frames[:2], frames, 1)


def test_panels_of_a_dream_are_drawn(tmp_path):
    panels = [
        plots.Panel("energy", {"dream": [1.0, None, 2.0], "other": [1, 2]}, world=2.25, limits=(0, 4)),
        plots.Panel("alive", {"dream": [1.0, 0.5]}),
    ]
    plots.plot_by_step(panels, tmp_path / "panels.png")
    with Image.open(tmp_path / "panels.png") as picture:
        assert picture.size[0] > picture.size[1]
    with pytest.raises(ValueError, match="panels must hold at least one; got none"):
        plots.plot_by_step([], tmp_path / "none.png")


def coloured(path):
    """Return how many pixels of a picture are of a curve's colour, not grey."""
    with Image.open(path) as picture:
        return int((np.ptp(np.asarray(picture.convert("RGB"), dtype=int), axis=-1) > 100).sum())


def test_a_value_between_two_gaps_is_seen(tmp_path):
    for name, line in (("gaps", [None] * 7), ("one", [None, None, None, 0.5, None, None, None])):
        plots.plot_by_step([plots.Panel("energy", {"dream": line}, limits=(0, 1))], tmp_path / f"{name}.png")
    assert coloured(tmp_path / "gaps.png") == 0
    assert coloured(tmp_path / "one.png") > 0


def test_one_panel_more_than_a_row_holds_begins_another(tmp_path):
    panel, sizes = plots.Panel("alive", {"dream": [1.0, 0.5]}), []
    for number in (1, 3, 4):
        plots.plot_by_step([panel] * number, tmp_path / "panels.png")
        with Image.open(tmp_path / "panels.png") as picture:
            sizes.append(picture.size)
    (width, height), three, four = sizes
    assert three == (3 * width, height)
    assert four == (3 * width, 2 * height)


def test_the_physics_of_the_world_is_where_the_panels_say(tmp_path):
    physics = summarise_physics(bouncing_ball_frames("validation", 4)[:, :40])
    panels = {panel.title.split(",")[0].split(" (")[0]: panel for panel in plots.physics_panels(physics)}
    assert list(panels) == [
        "kinetic energy",
        "share with the right number of balls",
        "mass",
        "share alive",
        "bounces in a step",
        "pixels between 0.1 and 0.9",
    ]
    energy = panels["kinetic energy"]
    assert energy.world == pytest.approx(1.5**2)
    assert np.nanmedian([np.nan if e is None else e for e in energy.lines["dream"]]) == pytest.approx(2.25, rel=0.05)
    for title in ("share with the right number of balls", "mass"):
        assert panels[title].world == 1
        assert panels[title].lines["dream"] == pytest.approx([1.0] * 40, abs=0.05)
    assert all(len(panel.lines["dream"]) in (39, 40) for panel in panels.values())


@pytest.mark.parametrize("frames", [torch.zeros(2, 20, 1, 30, 30), torch.ones(1, 20, 1, 30, 30), "noise"])
def test_no_curve_of_a_broken_dream_leaves_its_panel(tmp_path, frames):
    if isinstance(frames, str):
        frames = torch.rand(2, 20, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    panels = plots.physics_panels(summarise_physics(frames))
    for panel in panels:
        low, high = panel.limits
        assert all(low <= value < high for line in panel.lines.values() for value in line if value is not None)
    plots.plot_by_step(panels, tmp_path / "panels.png")


def test_the_error_by_minute_is_drawn(tmp_path):
    target = tmp_path / "curve.png"
    plots.plot_error_by_minute({"a": ([1, 2, 3], [9.0, 2.0, 0.5])}, target, marks={"published": 0.41})
    with Image.open(target) as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 10
    plots.plot_error_by_minute({"a": ([3.0], [1.0])}, tmp_path / "one.png")
    in_legend = coloured(tmp_path / "one.png")
    plots.plot_error_by_minute({"a": ([3.0, 3.0], [1.0, 1.0])}, tmp_path / "two.png")  # a line without length
    assert in_legend > coloured(tmp_path / "two.png") > 0
    for curves, message in (
        ({}, "curves must hold at least one; got none"),
        (
            {"a": ([1, 2], [1.0])},
            r"as many minutes as errors, which are > 0; got 2 and \[1\.0\]",
        ),
        ({"a": ([1], [0.0])}, r"got 1 and \[0\.0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            plots.plot_error_by_minute(curves, target)


def test_many_curves_are_told_apart(tmp_path):
    """Colours come again after ten; then the line is another one."""
    curves = {f"system {n}": ([1.0, 2.0], [2.0 + n, 1.0 + n]) for n in range(12)}
    plots.plot_error_by_minute(curves, tmp_path / "twelve.png")
    few = dict(list(curves.items())[:2])
    plots.plot_error_by_minute(few, tmp_path / "two.png")
    assert coloured(tmp_path / "twelve.png") > 2 * coloured(tmp_path / "two.png")


def test_memory_is_plotted_against_length(tmp_path):
    target = tmp_path / "memory.png"
    plots.plot_memory({"flat": {10: 500.0, 50: 500.0, 200: 500.0}}, target)
    alone = coloured(target)
    plots.plot_memory({"flat": {10: 500.0, 200: 500.0}, "grows": {10: 500.0, 200: 4000.0}}, target)
    assert coloured(target) > 1.5 * alone > 0
    for nothing in ({}, {"flat": {}}):
        with pytest.raises(ValueError, match="peaks must hold at least one; got none"):
            plots.plot_memory(nothing, target)


@pytest.mark.parametrize("home", ["/dev/null", "writable"])
def test_matplotlib_keeps_its_files_where_they_can_be_written(tmp_path, monkeypatch, home):
    for name in ("writable", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("MPLCONFIGDIR", "")
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / home))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    plots.plot_memory({"balls": {1: 1.0}}, tmp_path / "plot.png")
    private = [str(folder / "matplotlib") for folder in (tmp_path / "temporary").iterdir()]
    assert private == ([os.environ["MPLCONFIGDIR"]] if home == "/dev/null" else [])


def test_the_error_by_frames_seen_is_drawn_with_the_changes_of_world(tmp_path):
    curves = {"balls": ([100, 200, 300], [9.0, 2.0, 0.5])}
    plots.plot_error_by_frames_seen(curves, tmp_path / "with.png", changes=[100, 200])
    plots.plot_error_by_frames_seen(curves, tmp_path / "without.png")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
    with pytest.raises(
        ValueError, match=r"^curve 'balls' must have as many frames as errors, which are > 0; got 1 and"
    ):
        plots.plot_error_by_frames_seen({"balls": ([1], [0.0])}, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"^curves must hold at least one; got none$"):
        plots.plot_error_by_frames_seen({}, tmp_path / "x.png")
