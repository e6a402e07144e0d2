"""Films that come over a pipe or a network."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from live_films import Pipe, transport_stream

from torchrsm.streams import LiveFilm, is_live


def brightness(frames):
    return [round(float(shown.frame.mean())) for shown in frames]


def test_a_pipe_is_read_frame_by_frame():
    frames = list(LiveFilm("-", height=16, file=Pipe(transport_stream())))
    assert [shown.number for shown in frames] == list(range(12))
    assert np.allclose(brightness(frames), [15 * number + 10 for number in range(12)], atol=3)
    assert np.allclose([shown.seconds for shown in frames], [number / 25 for number in range(12)])
    assert {(shown.frame.shape, shown.frame.dtype, shown.after_gap) for shown in frames} == {
        ((1, 16, 16), np.dtype(np.uint8), False)
    }


def test_an_address_is_read_as_it_is_sent():
    content = transport_stream()

    class Film(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Film)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with LiveFilm(f"http://127.0.0.1:{server.server_port}/camera.ts", channels=3, height=8) as film:
            frames = list(film)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert len(frames) == 12
    assert frames[0].frame.shape == (3, 8, 8)


def test_frames_behind_damage_are_marked():
    content = bytearray(transport_stream(40))
    for place in range(len(content) // 2, len(content) // 2 + 188 * 12):
        content[place] = (content[place] * 7 + 13) % 256
    frames = list(LiveFilm("-", file=Pipe(bytes(content))))
    assert 5 < len(frames) <= 40
    assert [shown.number for shown in frames] == list(range(len(frames)))


@pytest.mark.parametrize(
    ("source", "live"),
    [
        ("-", True),
        ("rtsp://camera/1", True),
        ("HTTPS://a/b.m3u8", True),
        ("film.mp4", False),
        ("file:///etc", False),
        ("0", False),
    ],
)
def test_what_is_live(source, live):
    assert is_live(source) == live


@pytest.mark.parametrize("content", [b"", b"no film at all" * 100])
def test_what_is_no_film_is_refused(content):
    with pytest.raises(ValueError, match="the standard input must be a film; "):
        list(LiveFilm("-", file=Pipe(content)))


def test_nobody_who_answers_and_what_is_no_source_are_errors():
    with pytest.raises(ValueError, match="http://127.0.0.1:9/film must be a film; .*refused"):
        LiveFilm("http://127.0.0.1:9/film")
    with pytest.raises(ValueError, match=r"source must be - \(the standard input\) or an address .* got 'film.mp4'"):
        LiveFilm("film.mp4")
