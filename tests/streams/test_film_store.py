import os
import resource
import signal
from collections import deque

import numpy as np
import pytest

from torchrsm.streams.film_store import ClipOnDisk, FrameStore, temporary_folder

SHAPE = (3, 4, 5)


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (20, *SHAPE), dtype=np.uint8)


def stored(frames, memory_bytes):
    store = FrameStore(SHAPE, memory_bytes, ["a film"])
    for frame in frames:
        store.append(frame)
    assert len(store) == len(frames)
    return store.finish()


@pytest.mark.parametrize("memory_bytes", [1, 60, 599, 1199])
def test_what_does_not_fit_into_memory_is_read_back_from_disk(frames, memory_bytes):
    clip = stored(frames, memory_bytes)
    assert isinstance(clip, ClipOnDisk)
    assert (clip.shape, len(clip)) == ((20, *SHAPE), 20)
    for time in (0, 7, 19, -1, -20):
        assert np.array_equal(clip[time], frames[time])
    assert np.array_equal(np.asarray(clip), frames)


def test_what_fits_is_an_array(frames):
    clip = stored(frames, 1200)
    assert isinstance(clip, np.ndarray)
    assert np.array_equal(clip, frames)


def test_a_slice_is_a_clip(frames):
    clip = stored(frames, 1)
    for part in (slice(3, 9), slice(None, -4), slice(5, 100), slice(9, 3)):
        assert np.array_equal([clip[part][time] for time in range(len(clip[part]))], [*frames[part]])
        assert len(clip[part]) == len(frames[part])
    assert np.array_equal(clip[4:18][3:][1], frames[8])
    with pytest.raises(ValueError, match="steps of 1; got 2"):
        clip[::2]
    for time in (20, -21):
        with pytest.raises(IndexError, match=f"time must be in -20..19; got {time}"):
            clip[time]


def test_a_frame_is_the_readers_to_change(frames):
    clip = stored(frames, 1)
    clip[3][:] = 0
    assert np.array_equal(clip[3], frames[3])


def test_the_file_has_no_name_and_goes_with_the_clip(frames, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # which Python looks up once
    assert temporary_folder() == tmp_path
    before = len(os.listdir("/proc/self/fd"))
    clip = stored(frames, 1)
    part = clip[2:5]
    assert os.listdir(tmp_path) == []
    del clip
    assert np.array_equal(part[0], frames[2])
    del part
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_is_one_clear_line(frames):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = FrameStore(SHAPE, 100, ["film.mp4", "other.mp4"])
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (333, limits[1]))
        with pytest.raises(OSError, match=r"frame 5 of film.mp4 and 1 more cannot be kept in .*; set TMPDIR") as error:
            deque(map(store.append, frames))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(error.value)


def test_what_cannot_fit_is_refused_before_it_is_decoded():
    store = FrameStore(SHAPE, 100, ["film.mp4"])
    store.expect(2000)
    with pytest.raises(OSError, match=r"the frames of film.mp4 need about 4611686018427387904 bytes in .*, which has"):
        store.expect(2**62)
    FrameStore(SHAPE, 2**62, ["film.mp4"]).expect(2**62)  # in memory, as its owner has asked
