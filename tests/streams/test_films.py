import gc
import itertools
import os
import shutil
import struct
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from small_films import CARPHONE, SAMPLES, damaged, film, greys, pictures, textured, true_numbers

from torchrsm.streams import DamagedFilmWarning, VideoReader


@pytest.fixture(scope="module")
def lossless(tmp_path_factory):
    return film(tmp_path_factory.mktemp("films") / "square.mkv")


def read(path, **options):
    return np.stack(list(VideoReader(path, **options)))


# --- Films, whole -----------------------------------------------------------------------------------------------------


def test_colours_are_those_that_were_written(lossless):
    frames = read(lossless, channels=3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, pictures().transpose(0, 3, 1, 2))


def test_red_is_first(tmp_path):
    picture = np.zeros((2, 16, 16, 3), np.uint8)
    picture[..., 0], picture[..., 1] = 200, 100
    frames = read(film(tmp_path / "a.mkv", picture), channels=3)
    assert frames[0, :, 5, 5].tolist() == [200, 100, 0]


def test_grey_is_the_luma_of_bt601(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    frames = read(film(tmp_path / "a.mkv", picture))
    assert np.abs(frames[0, 0] - picture[0] @ [0.299, 0.587, 0.114]).max() <= 1


def test_what_the_header_tells_is_so():
    reader = VideoReader(CARPHONE, height=36)
    assert (reader.frame_shape, reader.stored_size) == ((1, 36, 44), (144, 176))
    assert reader.frames_per_second == pytest.approx(30000 / 1001)
    assert reader.seconds == pytest.approx(4.004)
    frames = list(reader)
    assert len(frames) == reader.frame_count == 120
    assert {frame.shape for frame in frames} == {(1, 36, 44)}
    assert [frame.tobytes() for frame in reader] == [frame.tobytes() for frame in frames]  # as often as one likes


@pytest.mark.parametrize(("name", "count"), [("bikes.mp4", 250), ("carphone_distorted.mp4", 120)])
def test_reads_all_frames_of_real_films(name, count):
    frames = read(SAMPLES / name, height=17)
    assert len(frames) == count
    assert frames.std() > 10


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.ts", "libx264", "yuv420p"),
        ("a.mov", "prores_ks", "yuv422p10le"),
        ("a.mpg", "mpeg2video", "yuv420p"),
        ("a.flv", "flv1" if "flv1" in av.codecs_available else "flv", "yuv420p"),
    ],
)
def test_reads_every_container_alike(tmp_path, name, codec, pixels):
    frames = read(film(tmp_path / name, codec=codec, pixels=pixels))
    assert len(frames) == 30
    difference = frames[:, 0].astype(float) - pictures()[..., 0]
    assert np.abs(difference).mean() < 6


@pytest.fixture(scope="module")
def corner(tmp_path_factory):
    """A film of 3 frames with a white mark near its upper left corner, and that picture."""
    picture = np.full((48, 64), 40, np.uint8)
    picture[4:12, 6:30] = 255
    frames = np.repeat(picture[None, ..., None], 3, -1)
    path = film(tmp_path_factory.mktemp("films") / "a.mp4", frames, codec="libx264", pixels="yuv420p")
    return path.read_bytes(), picture


# Where the display matrix (a, b, c, d) of ISO/IEC 14496-12 sends the stored columns (a, b) and rows (c, d).
TURNS = {
    (1, 0, 0, 1): lambda picture: picture,
    (0, 1, -1, 0): lambda picture: np.rot90(picture, -1),  # a phone held upright
    (-1, 0, 0, -1): lambda picture: np.rot90(picture, 2),
    (0, -1, 1, 0): lambda picture: np.rot90(picture, 1),
    (-1, 0, 0, 1): lambda picture: picture[:, ::-1],
    (1, 0, 0, -1): lambda picture: picture[::-1],
    (0, 1, 1, 0): lambda picture: picture.T,
    (0, -1, -1, 0): lambda picture: np.rot90(picture, 2).T,
}


@pytest.mark.parametrize("matrix", TURNS)
def test_pictures_are_turned_and_mirrored_as_the_file_asks(tmp_path, corner, matrix):
    content, picture = bytearray(corner[0]), corner[1]
    a, b, c, d = (value << 16 for value in matrix)
    place = content.index(b"tkhd") + 4 + 40  # of the version 0 header
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(content)
    reader = VideoReader(tmp_path / "a.mp4")
    expected = TURNS[matrix](picture)
    assert reader.frame_shape == (1, *expected.shape)
    assert reader.stored_size == (48, 64)
    for frame in reader:
        assert np.abs(frame[0].astype(float) - expected).mean() < 2


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_a_turn_that_ffmpeg_writes_is_one_that_is_read(tmp_path, degrees):
    path = film(tmp_path / "a.mp4", codec="libx264", pixels="yuv420p", turn=degrees)
    expected = np.rot90(pictures()[7, ..., 0], round(degrees / 90))  # both count against the clock
    assert np.abs(list(VideoReader(path))[7][0].astype(float) - expected).mean() < 6


def test_an_animated_gif_is_a_film(tmp_path):
    images = [Image.fromarray(np.full((20, 30), 20 * i, np.uint8)) for i in range(5)]
    images[0].save(
        tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[100, 200, 100, 100, 300], loop=0
    )
    assert [int(f.mean()) for f in VideoReader(tmp_path / "a.gif")] == [0, 20, 40, 60, 80]
    assert [int(f.mean()) for f in VideoReader(tmp_path / "a.gif", frames_per_second=10)] == [
        *(0, 20, 20, 40, 60, 80, 80, 80)
    ]


def test_transparency_lies_on_black(tmp_path):
    image = np.full((8, 8, 4), 255, np.uint8)
    image[:, 4:, 3] = 0
    Image.fromarray(image).save(tmp_path / "a.gif", save_all=True, append_images=[Image.fromarray(image)], loop=0)
    frame = next(iter(VideoReader(tmp_path / "a.gif", channels=3)))
    assert frame[:, :, :4].min() == 255
    assert frame[:, :, 4:].max() == 0


# --- Crop and size ----------------------------------------------------------------------------------------------------


def test_a_crop_is_where_it_is_asked_for(lossless):
    expected = pictures()[..., 0]
    assert np.array_equal(read(lossless, crop=(10, 5, 20, 30))[:, 0], expected[:, 10:30, 5:35])
    assert np.array_equal(read(lossless, crop="square")[:, 0], expected[:, :, 8:56])
    brightest = [int(frame[0, 6 + 4].argmax()) for frame in VideoReader(lossless, crop=(10, 2, 20, 60))]
    assert brightest[2:] == list(range(28))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_smaller_frame_is_the_mean_over_its_pixels(lossless, factor):
    whole = pictures()[..., 0].astype(float)
    expected = whole.reshape(30, 48 // factor, factor, 64 // factor, factor).mean((2, 4))
    frames = read(lossless, height=48 // factor)
    assert frames.shape[2:] == expected.shape[1:]
    assert np.abs(frames[:, 0] - expected).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 0}, r"height must be an integer in 1..8192; got 0"),
        ({"width": 10.5}, r"width must be an integer in 1..8192; got 10.5"),
        ({"channels": 2}, r"channels must be 1 \(grey\) or 3 \(colour\); got 2"),
        ({"crop": "middle"}, "crop must be None, 'square' or .*; got 'middle'"),
        ({"crop": (0, 0, 0, 5)}, "crop: height must be an integer of at least 1; got 0"),
        ({"crop": (0, 40, 48, 25)}, r"square.mkv: crop must be inside of the picture, 48 x 64 .*\(0, 40, 48, 25\)"),
        ({"width": 8192, "crop": (0, 0, 48, 8)}, "at most 8192 pixels a side; got 49152 x 8192"),
        ({"frames_per_second": 0}, r"frames_per_second must be a number in 0.001..1000; got 0"),
        ({"frames_per_second": float("nan")}, "frames_per_second must be .*; got nan"),
        ({"start": -1}, "start must be a number of seconds, 0 or more; got -1"),
        ({"end": float("inf")}, "end must be a number of seconds, 0 or more; got inf"),
        ({"start": 2, "end": 2}, "end must be above start = 2; got 2"),
        ({"max_pixels": 0}, "max_pixels must be an integer of at least 1; got 0"),
    ],
)
def test_refuses_bad_settings(lossless, options, message):
    with pytest.raises(ValueError, match=message):
        VideoReader(lossless, **options)


# --- Time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.avi"])  # count thousandths, fine ticks, frames
def test_another_rate_drops_and_repeats(tmp_path, name):
    path = film(
        tmp_path / name,
        codec="ffv1" if name == "a.avi" else "libx264rgb",
        pixels="bgr0" if name == "a.avi" else "rgb24",
    )
    for rate, expected in (
        (30, list(range(30))),
        (10, list(range(0, 30, 3))),
        (60, [number // 2 for number in range(60)]),
        (7.5, list(range(0, 30, 4))),
    ):
        reader = VideoReader(path, frames_per_second=rate)
        frames = greys(reader)
        assert frames == expected
        assert reader.frame_count == len(expected)
        assert reader.frames_per_second == rate


def test_a_frame_is_shown_until_the_next_one(tmp_path):
    path = film(tmp_path / "a.mkv", pictures(5), times=[0, 100, 500, 600, 1000])
    assert greys(VideoReader(path)) == [0, 1, 2, 3, 4]
    assert greys(VideoReader(path, frames_per_second=10))[:11] == [0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 4]
    assert greys(VideoReader(path, frames_per_second=2))[:3] == [0, 2, 4]


def test_a_clock_that_jumps_goes_on(tmp_path):
    path = film(tmp_path / "a.mkv", pictures(4), times=[0, 33, 10_000_000, 10_000_033])
    shown = greys(VideoReader(path, frames_per_second=30))
    assert sorted(set(shown)) == [0, 1, 2, 3]
    assert len(shown) < 30


def test_start_and_end_cut_between_frames(lossless):
    assert greys(VideoReader(lossless, start=0.5)) == list(range(15, 30))
    assert greys(VideoReader(lossless, end=0.5)) == list(range(15))
    assert greys(VideoReader(lossless, start=0.2, end=0.4, frames_per_second=15)) == [6, 8, 10]
    assert VideoReader(lossless, start=0.2, end=0.4).frame_count == 6
    with pytest.raises(ValueError, match="square.mkv has no frame from second 5 to the end"):
        list(VideoReader(lossless, start=5))


def test_a_late_start_is_found_from_a_key_frame(tmp_path):
    frames = np.repeat(pictures(50), 8, axis=0)  # 400 frames, 20 seconds
    path = film(tmp_path / "a.mp4", frames, rate=20)
    whole = greys(VideoReader(path))
    late = VideoReader(path, start=15)
    assert greys(late) == whole[300:]
    assert greys(VideoReader(path, start=15, end=16, frames_per_second=10)) == whole[300:320:2]
    few_pixels = 130 * 48 * 64  # a hundred frames and those from the key frame on, but not all
    assert len(list(VideoReader(path, start=15, max_pixels=400 * 48 * 64))) == 100
    with pytest.raises(ValueError, match="max_pixels"):
        VideoReader(path, max_pixels=few_pixels)


# --- Numbers, times and missing frames --------------------------------------------------------------------------------


def intra(path, count=100):
    """A film in which each frame stands alone, so that a damaged one spoils no other."""
    codec = "png" if path.suffix == ".mov" else "libx264rgb"
    return film(path, textured(count), codec=codec, pixels="rgb24", coding={"g": "1"})


def test_numbers_and_times_of_a_whole_film(lossless):
    numbered = list(VideoReader(lossless).numbered())
    assert [one.number for one in numbered] == list(range(30)) == greys([one.frame for one in numbered])
    assert np.allclose([one.seconds for one in numbered], np.arange(30) / 30, atol=0.001)
    assert not any(one.after_gap for one in numbered)
    reader = VideoReader(lossless, frames_per_second=10, start=0.2)
    assert [(one.number, round(one.seconds, 3)) for one in reader.numbered()] == [
        (k, round(0.2 + k / 10, 3)) for k in range(8)
    ]
    assert [one.number for one in VideoReader(lossless, start=0.2).numbered()] == list(range(6, 30))
    assert reader.damage == ()


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.mov"])
def test_frames_after_damage_keep_their_numbers_and_times(tmp_path, name):
    reader = VideoReader(damaged(intra(tmp_path / name)))
    with pytest.warns(
        DamagedFilmWarning, match=r"\d+ frames are damaged or missing: frames 40 to \d+ \(second 1.33 to"
    ):
        numbered = list(reader.numbered())
    (gap,) = reader.damage
    after = gap.first + gap.frames
    assert after == 52 if name == "a.mov" else 52 <= after < 60  # the others have to find a place to go on from
    expected = [*range(40), *range(after, 100)]
    assert [one.number for one in numbered] == expected == true_numbers([one.frame for one in numbered])
    assert np.allclose([one.seconds for one in numbered], np.array(expected) / 30, atol=0.001)
    assert [one.number for one in numbered if one.after_gap] == [after]


def test_a_gap_is_left_out_at_another_rate_too(tmp_path):
    reader = VideoReader(damaged(intra(tmp_path / "a.mov")), frames_per_second=15)
    with pytest.warns(DamagedFilmWarning):
        numbered = list(reader.numbered())
    assert [one.number for one in numbered] == [*range(20), *range(26, 50)]
    assert true_numbers([one.frame for one in numbered]) == [2 * one.number for one in numbered]
    assert [one.number for one in numbered if one.after_gap] == [26]


def test_what_is_cut_out_of_a_transport_stream_is_missed(tmp_path):
    path = film(tmp_path / "a.ts", textured(100), codec="mpeg2video", pixels="yuv420p")
    content = path.read_bytes()
    packets = len(content) // 188
    path.write_bytes(content[: packets * 45 // 100 * 188] + content[packets * 55 // 100 * 188 :])
    reader = VideoReader(path)
    with pytest.warns(DamagedFilmWarning, match="damaged or missing"):
        numbered = list(reader.numbered())
    (gap,) = reader.damage
    assert len(numbered) + gap.frames == 100
    assert numbered[-1].number == 99
    assert np.allclose([one.seconds * 30 for one in numbered], [one.number for one in numbered])
    assert [one.number for one in numbered if one.after_gap] == [gap.first + gap.frames]


@pytest.mark.parametrize(("first", "last"), [(0, 4), (90, 99), (0, 0), (99, 99)])
def test_missing_ends_are_counted(tmp_path, first, last):
    reader = VideoReader(damaged(intra(tmp_path / "a.mov"), first, last))
    with pytest.warns(DamagedFilmWarning):
        numbered = list(reader.numbered())
    expected = [number for number in range(100) if not first <= number <= last]
    assert [one.number for one in numbered] == expected == true_numbers([one.frame for one in numbered])
    assert [(gap.first, gap.frames) for gap in reader.damage] == [(first, last - first + 1)]


def test_a_film_that_was_cut_short_says_how_much_is_missing(tmp_path):
    path = film(tmp_path / "a.mkv", textured(60), codec="libx264", pixels="yuv420p")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    reader = VideoReader(path)
    with pytest.warns(DamagedFilmWarning):
        shown = len(list(reader))
    (gap,) = reader.damage
    assert 0 < shown == gap.first
    assert shown + gap.frames == 60


def test_more_damage_than_is_tried_ends_the_film(tmp_path):
    reader = VideoReader(damaged(intra(tmp_path / "a.mov", 120), 10, 115))
    with pytest.warns(DamagedFilmWarning, match="110 frames"):
        assert len(list(reader)) == 10


def test_damage_is_said_once_and_only_of_what_was_read(tmp_path):
    path = damaged(damaged(intra(tmp_path / "a.mov")), 60, 60)
    for first, last in ((70, 71), (80, 80)):
        damaged(path, first, last)
    reader = VideoReader(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(reader)
        frames = iter(reader)
        assert true_numbers(itertools.islice(frames, 40)) == list(range(40))
        frames.close()
    (warning,) = caught
    assert str(warning.message) == (
        f"{path}: 16 frames are damaged or missing: frames 40 to 51 (second 1.33 to 1.73), frame 60 (second 2.00 to "
        "2.03), frames 70 to 71 (second 2.33 to 2.40) and 1 more place; the others are used"
    )


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.webm"])
def test_a_variable_rate_is_no_damage(tmp_path, name):
    times = np.cumsum([0, *np.random.default_rng(1).integers(20, 300, 29)]).tolist()
    codec = {"a.webm": "libvpx-vp9"}.get(name, "libx264")
    path = film(tmp_path / name, times=times, codec=codec, pixels="yuv420p")
    numbered = list(VideoReader(path).numbered())
    assert [one.number for one in numbered] == list(range(30))
    assert np.allclose([1000 * one.seconds for one in numbered], times, atol=2)


def test_a_still_after_regular_frames_is_no_damage_where_the_file_says_how_long_it_lasts(tmp_path):
    times = [33 * number for number in range(10)] + [2000, 2033]
    path = film(tmp_path / "a.mp4", pictures(12), times=times, codec="libx264", pixels="yuv420p")
    numbered = list(VideoReader(path).numbered())
    assert [one.number for one in numbered] == list(range(12))
    assert numbered[10].seconds == pytest.approx(2)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.h264", "libx264", "yuv420p"), ("a.avi", "libx264", "yuv420p"), ("a.mjpeg", "mjpeg", "yuvj420p")],
)
def test_a_film_without_time_stamps_goes_on_at_its_rate(tmp_path, name, codec, pixels):
    reader = VideoReader(film(tmp_path / name, codec=codec, pixels=pixels, rate=25))
    numbered = list(reader.numbered())
    assert [one.number for one in numbered] == list(range(30))
    assert np.abs(np.array(greys([one.frame for one in numbered])) - np.arange(30)).max() <= 1
    assert np.allclose([one.seconds for one in numbered], np.arange(30) / 25)


def test_time_counts_from_the_first_frame_whatever_its_stamp(tmp_path):
    for first in (-500, 0, 7000):
        path = film(tmp_path / "a.mkv", pictures(5), times=[first + 100 * k for k in range(5)])
        assert np.allclose([one.seconds for one in VideoReader(path).numbered()], [0, 0.1, 0.2, 0.3, 0.4])


def test_an_edit_list_leaves_out_what_a_player_does_not_show(tmp_path):
    path = film(tmp_path / "a.mp4", codec="libx264", pixels="yuv420p")
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 12
    begins = struct.unpack(">i", content[place + 4 : place + 8])[0]
    content[place : place + 8] = struct.pack(">Ii", 500, begins + 10 * 512)  # half a second from frame 10 on
    path.write_bytes(content)
    reader = VideoReader(path)
    numbered = list(reader.numbered())
    assert np.abs(np.array(greys([one.frame for one in numbered])) - np.arange(10, 25)).max() <= 1
    assert [one.number for one in numbered] == list(range(15))
    assert reader.frame_count == 15


# --- Hostile, broken and foreign files --------------------------------------------------------------------------------


def test_the_budget_is_held_against_the_header_and_while_decoding(tmp_path):
    size = 144 * 176
    assert len(list(VideoReader(CARPHONE, max_pixels=120 * size))) == 120
    with pytest.raises(ValueError, match=r"carphone_pristine.mp4 must have at most .* \(max_pixels\); .* 120 pictures"):
        VideoReader(CARPHONE, max_pixels=120 * size - 1)
    with pytest.raises(ValueError, match="max_pixels"):
        VideoReader(CARPHONE, frames_per_second=60, max_pixels=200 * size)
    path = film(tmp_path / "a.h264", codec="libx264", pixels="yuv420p")  # a stream without a header of its length
    assert VideoReader(path).frame_count is None
    reader = iter(VideoReader(path, max_pixels=20 * 48 * 64))
    assert sum(1 for _ in itertools.islice(reader, 20)) == 20
    with pytest.raises(ValueError, match=r"a.h264 must have at most 61440 pixels in all \(max_pixels\)"):
        next(reader)


def broken_files(folder):
    """Yield paths of files that are no films, each with a part of the message."""
    rest = "must be a complete video file"
    (folder / "empty.mp4").write_bytes(b"")
    yield folder / "empty.mp4", rest + ".*got an empty file"
    for seed in range(5):
        (folder / f"{seed}.mp4").write_bytes(np.random.default_rng(seed).bytes(4096))
        yield folder / f"{seed}.mp4", rest
    (folder / "zeros.mp4").write_bytes(bytes(100_000))
    yield folder / "zeros.mp4", rest
    (folder / "text.avi").write_text("no film at all\n" * 100)
    yield folder / "text.avi", rest + ".*begins with b'no film"
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    (folder / "picture.png").rename(folder / "picture.mp4")
    yield folder / "picture.mp4", rest + r".*begins with b'\\x89PNG"
    with av.open(str(folder / "sound.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    yield folder / "sound.m4a", "must have a video in it; got audio only"
    content = CARPHONE.read_bytes()
    (folder / "codec.mp4").write_bytes(content.replace(b"avc1", b"zzzz"))
    yield folder / "codec.mp4", "must be of a codec that FFmpeg can decode"
    (folder / "damaged.mp4").write_bytes(content[:64] + bytes(500_000) + content[500_064:])
    yield folder / "damaged.mp4", "."
    Image.new("L", (8, 8)).save(folder / "a.gif", save_all=True, append_images=[Image.new("L", (8, 8), 9)])
    for side in (8193, 12000, 65535):
        image = bytearray((folder / "a.gif").read_bytes())
        image[6:10] = struct.pack("<HH", side, side)
        (folder / f"{side}.gif").write_bytes(image)
        yield folder / f"{side}.gif", "must have pictures of 1 to 8192 pixels a side"


def test_refuses_what_is_no_film_in_one_line(tmp_path, capfd):
    for path, message in broken_files(tmp_path):
        with pytest.raises(ValueError, match=message) as error:
            list(VideoReader(path))
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_says_what_is_there_instead_of_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.mp4 must be an existing file; got nothing"):
        VideoReader(tmp_path / "missing.mp4")
    with pytest.raises(IsADirectoryError, match="must be a file; got a folder"):
        VideoReader(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match="must be a file; got a device or a pipe"):
        VideoReader(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match="zero byte"):
        VideoReader("a\0b.mp4")


@pytest.mark.filterwarnings("ignore::torchrsm.streams.DamagedFilmWarning")
@pytest.mark.parametrize("layout", ["mp4 with its index in front", "mkv", "ts"])
def test_frames_before_the_cut_of_a_truncated_film_are_used(tmp_path, layout):
    if layout == "mkv":
        path = film(tmp_path / "a.mkv", codec="libx264", pixels="yuv420p")
    elif layout == "ts":
        path = film(tmp_path / "a.ts", codec="libx264", pixels="yuv420p")
    else:
        path = film(tmp_path / "a.mp4", codec="libx264", pixels="yuv420p", options={"movflags": "faststart"})
    content = path.read_bytes()
    counts = []
    for size in np.linspace(0, len(content), 40).astype(int):
        path.write_bytes(content[:size])
        try:
            counts.append(len(list(VideoReader(path))))
        except ValueError:  # and nothing else
            counts.append(0)
    assert counts[0] == 0
    assert counts[-1] == 30
    assert len(set(counts)) > 3  # the longer the more
    assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(counts))  # a guess may take more bytes


def test_a_film_with_its_index_behind_is_refused_when_cut(tmp_path):
    content = CARPHONE.read_bytes()
    for size in np.linspace(1, len(content) - 5000, 12).astype(int):
        (tmp_path / "a.mp4").write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"a\.mp4 must be a complete video file"):
            VideoReader(tmp_path / "a.mp4")


@pytest.mark.filterwarnings("ignore::torchrsm.streams.DamagedFilmWarning")
def test_damage_in_the_middle_ends_in_frames_or_a_value_error(tmp_path):
    content = CARPHONE.read_bytes()
    random = np.random.default_rng(0)
    counts = []
    for _ in range(6):
        damaged = bytearray(content)
        for place in random.integers(100, len(content) - 8000, 200):
            damaged[place] = random.integers(256)
        (tmp_path / "a.mp4").write_bytes(damaged)
        try:
            counts.append(len(list(VideoReader(tmp_path / "a.mp4", height=8))))
        except ValueError:  # and nothing else
            counts.append(0)
    assert max(counts) > 1
    assert min(counts) < 120


PLAYLISTS = {
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n",
    "a.ffconcat": "ffconcat version 1.0\nfile {}\n",
    "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 "
    "H264/90000\n",
    "a.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT10S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>',
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("suffix", [None, ".mp4"])
def test_a_playlist_reads_no_other_file(tmp_path, monkeypatch, name, suffix):
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "secret.mp4", codec="libx264", pixels="yuv420p")
    path = Path(name).with_suffix(suffix or Path(name).suffix)
    path.write_text(PLAYLISTS[name].format("secret.mp4"))
    if name == "a.ffconcat" and suffix is None:  # the attack works on FFmpeg as it comes
        with av.open(str(path)) as container:
            assert len(list(container.decode(video=0))) == 30
    with pytest.raises(ValueError, match="must be a complete video file"):
        list(VideoReader(path))


@pytest.mark.parametrize("address", ["http://127.0.0.1/a.mp4", "FILE:///etc/hostname", "rtsp://x", "s3+x://y"])
def test_no_address_is_opened(address):
    with pytest.raises(ValueError, match="on this computer is needed; got the address"):
        VideoReader(address)


@pytest.mark.parametrize("name", ["concat:a.mp4|b.mp4", "pipe:0", "http:a.mp4", "-", "file:a.mp4", "data:x"])
def test_a_name_is_a_name_and_no_protocol(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for plain in ("a.mp4", "b.mp4"):
        film(tmp_path / plain, codec="libx264", pixels="yuv420p")
    with pytest.raises(FileNotFoundError):
        VideoReader(name)
    (tmp_path / "a.mp4").rename(tmp_path / name)
    assert len(list(VideoReader(name))) == 30


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", b"film", b"-x.mp4", b"two\nlines.mkv", "ä ö.mp4".encode()])
def test_any_name_is_read_and_can_be_printed(tmp_path, monkeypatch, name):
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    shutil.copy(film(tmp_path / "plain.mkv"), path)
    monkeypatch.chdir(tmp_path)
    for given in (path, str(path), os.fsdecode(name)):
        assert greys(VideoReader(given)) == list(range(30))
    path.write_bytes(b"no film")
    with pytest.raises(ValueError, match="must be a complete video file") as error:
        VideoReader(path)
    message = str(error.value)
    assert message.encode("utf-8").isascii() or "ä" in message
    assert "\n" not in message


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted where Linux tells them")
def test_files_are_closed_even_when_nobody_reads_on(tmp_path):
    gc.collect()
    before = open_files()
    reader = VideoReader(CARPHONE, height=8)
    assert open_files() == before
    frames = iter(reader)
    next(frames)
    assert open_files() == before + 1
    del frames
    gc.collect()
    assert open_files() == before
    list(reader)
    for path, _ in broken_files(tmp_path):
        with pytest.raises(ValueError, match=r"."):
            list(VideoReader(path))
    gc.collect()
    assert open_files() == before


def test_frames_are_the_callers_to_change(lossless):
    frames = VideoReader(lossless, frames_per_second=60)
    first, second, *_ = frames
    assert np.array_equal(first, second)
    first[:] = 99
    assert second.max() != 99
