import os
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from torchrsm.streams import StreamBatch, Webcam


class Camera:
    """What av.open gives for a camera, with a frame each 1/30 second; ``None`` is a moment without one."""

    def __init__(self, pictures):
        self.pictures, self.closed, self.time = list(pictures), False, 0

    def decode(self, video):
        while self.pictures:
            picture = self.pictures.pop(0)
            if picture is None:
                raise av.error.BlockingIOError(11, "nothing yet")
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = self.time, Fraction(1, 30)
            self.time += 1
            yield frame

    def close(self):
        self.closed = True


def pictures(count):
    return [np.full((4, 6, 3), 5 * number, np.uint8) for number in range(count)]


@pytest.fixture
def plug(monkeypatch):
    """Return a function that puts a camera of some pictures where av.open finds it."""

    def plugged(shown):
        camera = Camera(shown)
        opened = []
        monkeypatch.setattr(os.path, "exists", lambda path: True)
        monkeypatch.setattr(av, "open", lambda *args, **kwargs: opened.append((args, kwargs)) or camera)
        return camera, opened

    return plugged


def shown(stream, count):
    return [round(float(next(stream).frames.mean()) * 51) for _ in range(count)]


def test_gives_the_frames_as_they_come(plug):
    _, opened = plug(pictures(8))
    stream = Webcam(2, height=2, channels=3)
    if sys.platform == "linux":
        assert opened == [(("/dev/video2", "r"), {"format": "v4l2"})]
    assert (stream.batch_size, stream.frame_shape) == (1, (3, 2, 3))
    batches = [next(stream) for _ in range(8)]
    assert all(isinstance(batch, StreamBatch) for batch in batches)
    assert [round(float(batch.frames.mean()) * 51) for batch in batches] == list(range(8))
    assert [bool(batch.starts) for batch in batches] == [True] + [False] * 7
    assert {int(batch.index) for batch in batches} == {0}


def test_a_lower_rate_drops_frames(plug):
    plug(pictures(31))
    assert shown(Webcam(frames_per_second=10), 10) == list(range(0, 30, 3))
    plug(pictures(31))
    assert shown(Webcam(frames_per_second=1000), 31) == list(range(31))


def test_waits_for_a_frame(plug):
    plug([None, None, *pictures(2)])
    assert shown(Webcam(), 2) == [0, 1]


def test_a_camera_that_stops_is_an_error(plug):
    plug(pictures(2))
    stream = Webcam(3)
    assert shown(stream, 2) == [0, 1]
    with pytest.raises(ValueError, match="camera 3 has stopped"):
        next(stream)
    camera, _ = plug([])
    with pytest.raises(ValueError, match="camera 0 has stopped"):
        Webcam()
    assert camera.closed


def test_lets_go_of_the_camera(plug):
    camera, _ = plug(pictures(2))
    with Webcam() as stream:
        next(stream)
        assert not camera.closed
    assert camera.closed


def test_a_position_names_the_camera_and_goes_on(plug):
    plug(pictures(5))
    stream = Webcam(1)
    next(stream)
    assert stream.state_dict() == {"stream": "Webcam", "device": 1}
    stream.load_state_dict(stream.state_dict())
    assert shown(stream, 1) == [1]
    with pytest.raises(ValueError, match="saved position"):
        stream.load_state_dict({"stream": "Webcam", "device": 2})


@pytest.mark.skipif(sys.platform != "linux", reason="other systems name their cameras otherwise")
def test_says_which_cameras_there_are():
    there = sorted(name for name in os.listdir("/dev") if name.startswith("video"))
    missing = next(number for number in range(64) if f"video{number}" not in there)
    with pytest.raises(ValueError, match=rf"there is no /dev/video{missing} \(there is {'.*' if there else 'none'}\)"):
        Webcam(missing)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": -1}, "device must be an integer in 0..63; got -1"),
        ({"height": 0}, "height must be"),
        ({"frames_per_second": 0}, "frames_per_second must be"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Webcam(**settings)
