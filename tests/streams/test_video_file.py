import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from small_films import CARPHONE, SAMPLES, film, greys, pictures, textured, true_numbers

from torchrsm.streams import VideoFile, VideoReader, check_stream, load_clips, numbered_frames, open_clips
from torchrsm.streams.film_store import ClipOnDisk


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder of three films, of 10, 20 and 30 frames."""
    folder = tmp_path_factory.mktemp("films")
    for name, count in (("c2.mkv", 20), ("c10.mkv", 30), ("c1.MKV", 10)):
        film(folder / name.lower(), pictures(count)).rename(folder / name)
    (folder / "notes.txt").write_text("no film")
    return folder


# --- What a path is ---------------------------------------------------------------------------------------------------


def test_a_film_is_a_clip(films):
    (clip,) = load_clips(films / "c2.mkv", channels=3)
    assert clip.dtype == np.uint8
    assert np.array_equal(clip, pictures(20).transpose(0, 3, 1, 2))
    (same,) = load_clips(str(films / "c2.mkv"), channels=3)
    assert np.array_equal(clip, same)


def test_a_folder_of_films_is_a_clip_each(films):
    assert [len(clip) for clip in load_clips(films)] == [10, 20, 30]
    assert [len(clip) for clip in load_clips([films / "c10.mkv", films / "c2.mkv"])] == [30, 20]


def test_a_folder_of_pictures_is_one_clip(tmp_path):
    for number in range(12):
        Image.fromarray(np.full((4, 6), 10 * number, np.uint8)).save(tmp_path / f"{number}.png")
    (clip,) = load_clips(tmp_path)
    assert clip.shape == (12, 1, 4, 6)
    assert greys(clip // 5 * 2) == list(range(12))
    with pytest.raises(ValueError, match="frames_per_second must be None for a folder of pictures"):
        load_clips(tmp_path, frames_per_second=10)
    film(tmp_path / "a.mkv")
    with pytest.raises(ValueError, match="a folder of pictures or of films; got both: 0.png, a.mkv"):
        load_clips(tmp_path)


def test_gifs_alone_are_films_and_do_not_go_with_pictures(tmp_path):
    images = [Image.new("L", (4, 4), 20 * number) for number in range(3)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    assert [len(clip) for clip in load_clips(tmp_path)] == [3]
    images[1].save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"must have single pictures in it; got the animation a\.gif of 3"):
        load_clips(tmp_path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_are_a_clip_for_each_sequence(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    material = np.random.default_rng(0).integers(0, 256, (2, 5, 3, 8, 6), dtype=np.uint8)
    np.save(path, material) if suffix == ".npy" else np.savez_compressed(path, frames=material)
    assert np.array_equal(np.stack(load_clips(path, channels=3)), material)
    small = np.stack(load_clips(path, height=4, channels=3))
    expected = material.reshape(2, 5, 3, 4, 2, 3, 2).mean((4, 6))
    assert np.abs(small - expected).max() <= 1
    assert np.stack(load_clips(path)).shape == (2, 5, 1, 8, 6)
    with pytest.raises(ValueError, match="frames_per_second must be None for an array"):
        load_clips(path, frames_per_second=10)
    with pytest.raises(ValueError, match="max_bytes"):
        load_clips(path, max_bytes=100)


def test_an_array_that_unpacks_to_too_much_is_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", frames=np.zeros((1, 200, 200, 500), np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 100_000
    with pytest.raises(ValueError, match="must decode to at most 1000000 bytes of frames .*; got about 20000000"):
        load_clips(tmp_path / "a.npz", max_bytes=1_000_000)


def test_floating_point_arrays_are_rounded_to_bytes(tmp_path):
    np.save(tmp_path / "a.npy", np.linspace(0, 1, 2 * 7 * 4 * 5, dtype=np.float32).reshape(2, 7, 4, 5))
    expected = np.round(np.linspace(0, 255, 280)).reshape(2, 7, 1, 4, 5)
    assert np.abs(np.stack(load_clips(tmp_path / "a.npy")) - expected).max() <= 1


def test_a_layout_is_passed_on_and_refused_where_it_means_nothing(tmp_path, films):
    material = np.random.default_rng(0).integers(0, 256, (9, 2, 4, 5), dtype=np.uint8)
    np.save(tmp_path / "a.npy", material)
    clips = load_clips(tmp_path / "a.npy", layout="tnhw")
    assert np.array_equal(np.stack(clips)[:, :, 0], material.transpose(1, 0, 2, 3))
    for path in (films, films / "c2.mkv"):
        with pytest.raises(ValueError, match="layout must be None for a (folder of films|film); got 'thw' for"):
            load_clips(path, layout="thw")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: folder, ValueError, "a folder with films or pictures in it; got one with neither"),
        (lambda folder: folder / "missing.mp4", FileNotFoundError, "got nothing at that path"),
        (lambda folder: folder / "missing.npz", ValueError, "got nothing at that path"),
        (lambda folder: [], ValueError, "path must be a path or several; got none"),
        (lambda folder: "https://x.org/a.mp4", ValueError, "got the address 'https://x.org/a.mp4'"),
        (lambda folder: "https://x.org/a.npz", ValueError, "got the address"),
    ],
)
def test_refuses_what_is_no_material(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        load_clips(make(tmp_path))


# --- Clips that are opened and not read -------------------------------------------------------------------------------


def test_opening_decodes_nothing_but_the_first_frame(tmp_path):
    path = film(tmp_path / "a.mkv", textured(60), coding={"g": "1"})
    path.write_bytes(path.read_bytes()[:-2000] + bytes(2000))  # which only reading on would find
    ((name, reader),) = open_clips(path, height=24, channels=3)
    assert (name, reader.frame_shape, reader.frame_count) == (str(path), (3, 24, 32), 60)
    first = list(itertools.islice(numbered_frames(reader), 5))
    assert [(one.number, round(one.seconds * 30), one.after_gap) for one in first] == [(k, k, False) for k in range(5)]
    assert true_numbers([one.frame for one in first]) == list(range(5))


def test_every_kind_of_clip_is_opened_with_a_name(tmp_path, films):
    names = [name for name, _ in open_clips(films)]
    assert names == [str(films / name) for name in ("c1.MKV", "c2.mkv", "c10.mkv")]
    np.save(tmp_path / "a.npy", np.zeros((2, 7, 1, 4, 6), np.uint8))
    (first, reader), (second, _) = open_clips(tmp_path / "a.npy")
    assert (first, second) == (f"{tmp_path}/a.npy, sequence 0", f"{tmp_path}/a.npy, sequence 1")
    assert [(one.number, one.seconds, one.after_gap) for one in numbered_frames(reader)] == [
        (k, None, False) for k in range(7)
    ]
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("L", (6, 4), number).save(tmp_path / "pictures" / f"{number}.png")
    ((name, reader),) = open_clips(tmp_path / "pictures")
    assert (name, reader.frame_count, len(list(reader))) == (str(tmp_path / "pictures"), 3, 3)


def test_animations_are_films(tmp_path):
    images = [Image.new("L", (6, 4), 20 * number) for number in range(4)]
    for name in ("a.gif", "b.png", "c.webp", "d.tiff", "e"):
        kind = name.partition(".")[2].upper() or "GIF"
        images[0].save(tmp_path / name, kind, save_all=True, append_images=images[1:], lossless=True)
    clips = load_clips(tmp_path)
    assert [clip.shape for clip in clips] == [(4, 1, 4, 6)] * 5
    assert {tuple(clip[:, 0, 0, 0].tolist()) for clip in clips} == {(0, 20, 40, 60)}
    images[0].save(tmp_path / "f.gif")
    with pytest.raises(ValueError, match="must have single pictures in it; got the animation a.gif of 4"):
        load_clips(tmp_path)
    with pytest.raises(ValueError, match=r"f\.gif must be an animation or a film; got a single picture"):
        load_clips(tmp_path / "f.gif")


# --- Parts and limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.33, 0.5, 0.8])
def test_parts_go_together_without_gap_or_overlap(films, share):
    for whole, first, second in zip(
        load_clips(films), load_clips(films, part=(0, share)), load_clips(films, part=(share, 1)), strict=True
    ):
        assert np.array_equal(np.concatenate([first, second]), whole)
        assert len(first) == round(share * len(whole))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((0.5, 0.5), "part must end after it begins"),
        ((0, 1.5), r"part must be shares in 0\.\.1"),
        ((0.2,), r"part must be \(from, to\)"),
        ((0, 0.01), r"part 0\.\.0\.01 must leave a frame of each clip; got a clip of 10 frames: .*c1.MKV"),
    ],
)
def test_refuses_bad_parts(films, part, message):
    with pytest.raises(ValueError, match=message):
        load_clips(films, part=part)


def test_too_much_is_refused_before_it_is_decoded(films, monkeypatch):
    assert sum(clip.nbytes for clip in load_clips(films)) == 60 * 48 * 64
    load_clips(films, max_bytes=60 * 48 * 64)
    monkeypatch.setattr(VideoReader, "__iter__", lambda self: pytest.fail("decoded"))
    settings = "height or width, channels = 1 or a lower frames_per_second"
    with pytest.raises(ValueError, match=f"c1.MKV and 2 more .*max_bytes.*about 184320; use .*{settings}"):
        load_clips(films, max_bytes=60 * 48 * 64 - 1)


def test_too_much_is_refused_while_decoding_where_the_header_does_not_tell(tmp_path):
    path = film(tmp_path / "a.h264", codec="libx264", pixels="yuv420p")
    assert len(load_clips(path)[0]) == 30
    with pytest.raises(ValueError, match="max_bytes.*got more"):
        load_clips(path, max_bytes=29 * 48 * 64)


def test_films_of_unequal_shape_are_refused(tmp_path):
    film(tmp_path / "a.mkv")
    film(tmp_path / "b.mkv", pictures(30, 32, 64))
    with pytest.raises(
        ValueError, match=r"\[1, 48, 64\] of .*a.mkv and \[1, 32, 64\] of .*b.mkv; set height and width"
    ):
        load_clips(tmp_path)
    assert len(load_clips(tmp_path, height=8, width=8)) == 2


# --- The stream -------------------------------------------------------------------------------------------------------


def test_keeps_the_contract(films):
    check_stream(VideoFile(films, 4, height=12), 100)
    check_stream(VideoFile(CARPHONE, 3, height=16, crop="square", frames_per_second=10, mirror=True, channels=3), 100)


def test_a_long_film_is_kept_on_disk_and_plays_the_same(films):
    settings = {"batch_size": 4, "height": 12, "mirror": True, "seed": 3}
    short, long = VideoFile(films, **settings), VideoFile(films, **settings, max_bytes=20 * 12 * 16)
    assert {type(clip) for clip in long.frames} == {ClipOnDisk}
    assert short.state_dict() == long.state_dict()
    for _ in range(70):
        for one, other in zip(next(short)[:3], next(long)[:3], strict=True):
            assert torch.equal(one, other)
    position = long.state_dict()
    expected = [next(long).frames for _ in range(5)]
    again = VideoFile(films, **settings, max_bytes=1)
    again.load_state_dict(position)
    assert all(torch.equal(next(again).frames, frames) for frames in expected)
    check_stream(VideoFile(films, 4, height=12, max_bytes=1), 100)


def test_learns_and_tests_on_other_frames():
    learn = VideoFile(CARPHONE, height=18, part=(0, 0.8))
    test = VideoFile(CARPHONE, height=18, part=(0.8, 1))
    assert [len(clip) for clip in (*learn.frames, *test.frames)] == [96, 24]
    with pytest.raises(ValueError, match="saved position: frames_sha256"):
        learn.load_state_dict(test.state_dict())


def test_plays_the_frames_of_the_film():
    stream = VideoFile(SAMPLES / "bikes.mp4", height=17, frames_per_second=5)
    (clip,) = stream.frames
    assert len(clip) == 50
    for expected in clip:
        assert np.array_equal((next(stream).frames[0] * 255).round().byte().numpy(), expected)
    assert next(stream).starts.item()
