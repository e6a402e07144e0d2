import json

import pytest

from torchrsm.web import messages


def test_a_request_is_read():
    request = messages.parse_request('{"type": "place", "id": 7, "x": 2.5, "y": 3, "vx": -0.5}')
    assert request == messages.Place(id=7, x=2.5, y=3.0, vx=-0.5)
    request = messages.parse_request(
        b'{"type": "configure", "models": ["balls"], "source": {"kind": "video", "video": "a"}}'
    )
    assert isinstance(request, messages.Configure)
    assert request.source == messages.VideoSource(video="a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid JSON|invalid JSON"),
        ("{", "nvalid JSON"),
        ("[]", "valid dictionary|object"),
        ("null", "."),
        ('{"type": "exec"}', "type must be one of 'configure', 'play'.*; got 'exec'"),
        ('{"id": 1}', "type must be given"),
        ('{"type": "play", "speed": 3}', "play.speed: unknown setting"),
        ('{"type": "play", "id": -1}', "play.id must be greater than or equal to 0; got -1"),
        ('{"type": "speed", "frames_per_second": 61}', "less than or equal to 60; got 61"),
        ('{"type": "speed", "frames_per_second": 0}', "greater than 0; got 0"),
        ('{"type": "speed", "frames_per_second": NaN}', "nvalid JSON|finite"),
        ('{"type": "place", "x": 11, "y": 0}', "place.x must be less than or equal to 10; got 11"),
        ('{"type": "place", "y": 0}', "place.x must be given"),
        ('{"type": "train", "minutes": 11}', "train.minutes must be less than or equal to 10"),
        ('{"type": "configure", "models": []}', "models must have at least 1 item"),
        ('{"type": "configure", "models": ["a", "b", "c"]}', "models must have at most 2 items"),
        (
            '{"type": "configure", "models": ["balls"], "source": {"kind": "balls", "balls": 7}}',
            "less than or equal to 6",
        ),
        ('{"type": "configure", "models": ["balls"], "source": {"kind": "file"}}', "'file'"),
        (b"\xff\xfe", "nvalid JSON|utf"),
    ],
)
def test_anything_else_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        messages.parse_request(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_long_message_is_not_looked_at():
    text = json.dumps({"type": "play", "id": 1, "more": "x" * messages.MAX_REQUEST_BYTES})
    with pytest.raises(ValueError, match=r"a message must have at most 4096 bytes; got 41\d\d"):
        messages.parse_request(text)
    with pytest.raises(ValueError, match=r"at most 4096 bytes"):
        messages.parse_request("é" * 2100)  # two bytes each
    with pytest.raises(ValueError, match="."):
        messages.parse_request("[" * 4000)  # nested as deeply as fits
