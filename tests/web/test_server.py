import http.client
import json
import random
import socket
import string
import time
from urllib.parse import quote

import numpy as np
import pytest
from live_server import Running, watching
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from torchrsm.media.films import encode_mp4


def ask(server, method, path, body=None, headers=None, timeout=10):
    """Return status, headers and body of a request whose path is sent as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    try:
        connection.putrequest(method, path, skip_host="Host" in (headers or {}))
        given = dict(headers or {})
        if body is not None and "Content-Length" not in given and "Transfer-Encoding" not in given:
            given["Content-Length"] = str(len(body))
        for name, value in given.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def film(frames=12, size=(48, 64)):
    rng = np.random.default_rng(0)
    return encode_mp4((rng.integers(0, 255, (*size, 3), dtype=np.uint8) for _ in range(frames)), 10)


def upload(server, content, name="clip.mp4", **headers):
    status, _, body = ask(server, "POST", "/videos", content, {"X-File-Name": quote(name), **headers})
    return status, json.loads(body)


# --- Pages ------------------------------------------------------------------------------------------------------------


def test_the_page_comes_with_its_manners(server):
    status, headers, body = ask(server, "GET", "/")
    assert status == 200
    assert b"<title>" in body
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert not any(name.lower().startswith("access-control") for name in headers)
    status, headers, _ = ask(server, "GET", "/static/main.js")
    assert status == 200
    assert "javascript" in headers["content-type"]


def test_health(server):
    status, _, body = ask(server, "GET", "/health")
    assert (status, json.loads(body)["status"]) == (200, "ok")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/models", 404), ("POST", "/", 405), ("GET", "/videos", 405)]
)
def test_what_is_not_there_is_said_so(server, method, path, status):
    got, _, body = ask(server, method, path, b"" if method == "POST" else None)
    assert got == status
    assert json.loads(body)["error"]


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.evil.org", "", "localhost:1"])
def test_a_foreign_host_is_refused(server, host):
    status, _, body = ask(server, "GET", "/", headers={"Host": host})
    assert status == 403
    assert b"host" in body


@pytest.mark.parametrize(
    "origin", ["https://example.org", "null", "http://localhost:1", "file://", "http://[", "x" * 999]
)
def test_a_foreign_origin_is_refused(server, origin):
    assert ask(server, "POST", "/videos", film(), {"Origin": origin})[0] == 403
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://{server.address}/session", origin=origin)
    assert ask(server, "GET", "/", headers={"Origin": f"http://{server.address}"})[0] == 200


def test_a_name_for_this_machine_is_served(server):
    assert ask(server, "GET", "/", headers={"Host": f"localhost:{server.port}"})[0] == 200


# --- Sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_from_hello_to_dream(viewer):
    assert viewer.hello["type"] == "hello"
    assert {"balls", "copy-last"} <= {model["name"] for model in viewer.hello["models"]}
    assert viewer.ask("play")["error"].startswith("configure must be the first request")
    assert viewer.ask("configure", models=["balls"])["error"] is None
    assert viewer.ask("speed", frames_per_second=60)["error"] is None
    assert viewer.ask("play")["error"] is None
    viewer.until(lambda m: m["type"] == "frame" and m["step"] >= 10)
    assert viewer.ask("dream")["error"] is None
    frame = viewer.until(lambda m: m["type"] == "frame" and m["mode"] == "dream")
    assert viewer.states[-1]["dream_from"] == frame["step"]
    assert viewer.ask("pause")["error"] is None
    assert viewer.ask("clip")["error"] is None
    viewer.until(lambda m: m["type"] == "clip")
    steps = [m["step"] for m in viewer.frames if m["type"] == "frame"]
    assert steps == list(range(1, len(steps) + 1))


def test_a_step_shows_one_frame(viewer):
    viewer.ask("configure", models=["copy-last"])
    for step in (1, 2, 3):
        viewer.ask("step")
        assert viewer.until(lambda m: m["type"] == "frame")["step"] == step
    with pytest.raises(TimeoutError):
        viewer.until(lambda m: m["type"] == "frame") if viewer.socket.recv(timeout=0.3) else None


def test_the_rate_is_kept(viewer):
    viewer.ask("configure", models=["copy-last"])
    viewer.ask("speed", frames_per_second=10)
    viewer.ask("play")
    viewer.until(lambda m: m["type"] == "frame")
    start = time.monotonic()
    for _ in range(10):
        viewer.until(lambda m: m["type"] == "frame")
    assert 0.9 <= time.monotonic() - start < 3


def test_training_lowers_the_error_and_reports(viewer):
    viewer.ask("configure", models=["balls"])
    assert viewer.ask("train", minutes=0.1)["error"] is None
    assert viewer.states == [] or viewer.states[-1]["panes"][0]["model"] in ("balls", "learning")
    first = viewer.until(lambda m: m["type"] == "frame" and m["progress"])
    ended = viewer.until(lambda m: m["type"] == "session" and m["training"] and not m["training"]["running"])
    assert ended["training"]["progress"] == 1
    assert ended["panes"][0]["model"] == "learning"
    assert first["progress"] < 1


def test_only_so_many_trainings_wait(server):
    import contextlib

    with contextlib.ExitStack() as stack:
        viewers = [stack.enter_context(watching(server)) for _ in range(6)]
        for one in viewers:
            one.ask("configure", models=["copy-last"])
        replies = [one.ask("train", minutes=10)["error"] for one in viewers]
        assert replies[:5] == [None] * 5
        assert "at most 5 trainings" in replies[5]
        queued = []
        for one in viewers[:5]:
            state = one.until(lambda m: m["type"] == "session" and m["training"])
            queued.append(state["training"]["queued"])
        assert queued == [0, 1, 2, 3, 4]
        viewers[0].ask("stop")
        viewers[1].until(lambda m: m["type"] == "session" and m["training"]["queued"] == 0)
        assert viewers[5].ask("train", minutes=10)["error"] is None


def test_a_session_ends_with_its_socket(server):
    def viewers():
        return json.loads(ask(server, "GET", "/health")[2])["viewers"]

    before = viewers()
    with watching(server) as one:
        one.ask("configure", models=["balls"])
        one.ask("train", minutes=10)
        assert viewers() == before + 1
    deadline = time.monotonic() + 5
    while viewers() != before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_too_many_requests_end_a_session(server):
    with watching(server) as one:
        assert closing_code(one, ['{"type": "play"}'] * 2000) == 1008


def closing_code(viewer, requests=()):
    """Send requests and read until the server closes the socket; return its code."""
    try:
        for request in requests:
            viewer.socket.send(request)
        while True:
            viewer.next()
    except ConnectionClosed as end:
        return end.rcvd and end.rcvd.code


# --- Uploads ----------------------------------------------------------------------------------------------------------


def test_an_uploaded_video_is_watched(server, viewer):
    status, video = upload(server, film(), "größe.mp4")
    assert status == 201
    assert {k: video[k] for k in ("name", "frames", "channels", "height", "width")} == {
        "name": "größe.mp4",
        "frames": 12,
        "channels": 3,
        "height": 48,
        "width": 64,
    }
    source = {"kind": "video", "video": video["id"]}
    assert viewer.ask("configure", models=["balls", "copy-last"], source=source)["error"] is None
    viewer.ask("step")
    frame = viewer.until(lambda m: m["type"] == "frame")
    assert frame["arrays"][0]["shape"] == [1, 48, 64]


def test_a_film_in_grey_is_kept_in_grey(server):
    picture = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 1), dtype=np.uint8).repeat(3, 3)
    status, video = upload(server, encode_mp4(picture, 10))
    assert (status, video["channels"]) == (201, 1)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "one byte"),
        (b"hello", 422, "must be a complete video file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), 422, "must be a complete video file"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", 422, "must be a complete video file"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", 422, "must be a complete video file"),
    ],
)
def test_what_is_no_video_is_refused(server, content, status, message):
    got, body = upload(server, content, "x.mp4")
    assert got == status
    assert message in body["error"]
    assert "/tmp" not in body["error"]


def test_an_upload_beyond_the_limit_is_refused_early(server):
    status, _, body = ask(server, "POST", "/videos", b"", {"Content-Length": str(33 * 2**20)})
    assert status == 413
    assert b"32 MiB" in body
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("POST", "/videos", (bytes(2**20) for _ in range(40)), encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # it hung up while more was sent
    finally:
        connection.close()
    assert ask(server, "GET", "/health")[0] == 200


def test_the_limit_of_uploads_is_a_setting():
    server = Running(flags=("--upload-mebibytes", "0.5"))
    try:
        status, _, body = ask(server, "POST", "/videos", b"", {"Content-Length": str(2**20)})
        assert (status, b"at most 0.5 MiB; got 1.0 MiB" in body) == (413, True)
        assert upload(server, bytes(2**18), "x.mp4")[0] == 422  # is read, and is no video
        with watching(server) as viewer:
            assert viewer.hello["max_upload_bytes"] == 2**19
    finally:
        server.stop()


# --- Fuzzing ----------------------------------------------------------------------------------------------------------

PREFIXES = ("/static/", "/", "/videos/", "/static//")
DOTS = ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "....//", "%252e%252e%252f", "..%c0%af", "..;/", "%00../"]
TARGETS = (
    (1, "server.py"),
    (3, "pyproject.toml"),
    (9, "etc/passwd"),
    (6, "%65tc/passwd"),
    (2, "models/balls/config.json"),
)
TRAVERSALS = [prefix + dots * depth + target for prefix in PREFIXES for dots in DOTS for depth, target in TARGETS]


def test_no_file_is_read_outside_of_the_static_folder(server):
    assert len(TRAVERSALS) == 200
    for path in TRAVERSALS:
        status, _, body = ask(server, "GET", path)
        assert status in (400, 404, 405), path
        assert b"root:" not in body
        assert b"import" not in body


def mutated(rng):
    """A request that is nearly right, or nothing of the kind."""
    kinds = [
        "configure",
        "play",
        "pause",
        "step",
        "dream",
        "redraw",
        "disturb",
        "wake",
        "speed",
        "place",
        "train",
        "stop",
    ]
    kinds.append("clip")
    fields = ["id", "x", "y", "vx", "minutes", "models", "source", "frames_per_second", "ball", "__proto__", "type"]
    values = [
        None,
        -1,
        1e308,
        2**70,
        "",
        "a" * 500,
        [],
        {},
        [[]] * 50,
        True,
        "../../x",
        0.5,
        {"kind": "video", "video": "x"},
    ]
    style = rng.randrange(5)
    if style == 0:
        return "".join(rng.choices(string.printable, k=rng.randrange(300)))
    if style == 1:
        return rng.randbytes(rng.randrange(300))
    text = json.dumps({"type": rng.choice(kinds), **{rng.choice(fields): rng.choice(values) for _ in range(3)}})
    if style == 2:
        return text
    cut = rng.randrange(len(text) + 1)
    return text[:cut] if style == 3 else text[:cut] + rng.choice(string.printable) + text[cut:]


def test_ten_thousand_malformed_messages_do_no_harm(server):
    rng = random.Random(7)
    for _ in range(60):
        with watching(server) as one:
            for _ in range(150):  # as many as a viewer may send at once
                one.socket.send(mutated(rng))
            assert one.ask("pause", timeout=5)["id"] == 1  # it still answers
    statuses = set()
    for _ in range(1000):
        statuses.add(raw(server, malformed_request(rng)))
    assert all(status is None or 200 <= status < 500 for status in statuses), statuses
    assert server.process.poll() is None
    assert not any("Traceback" in line for line in server.errors)
    assert ask(server, "GET", "/health")[0] == 200


def malformed_request(rng):
    method = rng.choice([b"GET", b"POST", b"PUT", b"\xff", b"OPTIONS", b"GET" * 50])
    path = rng.choice([b"/", b"/videos", b"/session", b"/static/main.js", rng.randbytes(20), b"/" + b"a" * 3000, b"*"])
    headers = [
        b"Host: 127.0.0.1:%d" % rng.choice([0, 1]),
        b"Content-Length: " + rng.choice([b"-1", b"x", b"5", b"9" * 30]),
    ]
    headers += [
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        rng.randbytes(30),
        b"Range: bytes=9-1",
        b"X-File-Name: %ff%00",
    ]
    chosen = b"\r\n".join(rng.sample(headers, rng.randrange(len(headers))))
    return method + b" " + path + b" HTTP/1.1\r\n" + chosen + b"\r\n\r\n" + rng.randbytes(rng.randrange(20))


def raw(server, content):
    """Send bytes and return the status, None where the server hung up; it must do either within 5 seconds."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        try:
            answer = connection.recv(64)
        except ConnectionResetError:
            return None
    return int(answer.split()[1]) if answer.startswith(b"HTTP/") else None


def test_hostile_films_are_refused_in_time(server):
    rng = random.Random(3)
    whole = film(8, (32, 32))
    for number in range(60):
        content = bytearray(whole[: rng.randrange(1, len(whole))] if number % 2 else whole)
        for _ in range(rng.randrange(1, 30)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        start = time.monotonic()
        status, body = upload(server, bytes(content))
        assert time.monotonic() - start < 5
        assert status in (201, 422), body
        assert "/" not in body.get("error", "").replace("and/or", "")
    assert server.process.poll() is None


# --- Starting ---------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said_so(server, capsys):
    from torchrsm.cli import main

    assert main(["serve", "--port", str(server.port)]) == 2
    assert f"cannot listen on 127.0.0.1:{server.port}" in capsys.readouterr().err


def test_a_server_ends_with_ctrl_c():
    running = Running()
    with watching(running) as one:
        one.ask("configure", models=["balls"])
        one.ask("play")
        running.stop()
        assert closing_code(one) in (1012, 1006, None)
    assert running.process.returncode in (0, 130)
