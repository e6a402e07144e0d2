import contextlib
import io
import re
import sys
import time

import pytest

from torchrsm.cli import progress
from torchrsm.cli.progress import describe, reporting
from torchrsm.runs.record import Record


def record(step, steps=400):
    return Record(
        "stack", step, step / steps, 3.14159, (0.5, 0.25), ("a", "b"), seconds=90.0, frames_per_second=12_345.6
    )


@pytest.fixture
def terminal(monkeypatch):
    """What stands for a terminal of 140 columns, to be made the standard output."""
    output = io.StringIO()
    output.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "140")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return output


def test_a_record_in_one_line():
    assert describe(record(1234)) == "stack step 1,234  error 3.142/frame  12,346 frames/s"


def test_without_a_terminal_a_line_now_and_then_and_the_last(capsys):
    with reporting("balls") as report:
        for step in (100, 200, 300, 400):
            report(record(step))
    assert capsys.readouterr().out.splitlines() == [
        "balls  25%    1.5 min  stack step 100  error 3.142/frame  12,346 frames/s",
        "balls 100%    1.5 min  stack step 400  error 3.142/frame  12,346 frames/s",
    ]


def test_a_line_comes_again_after_its_time(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    with reporting("balls") as report:
        report(record(100))
        report(record(101))
        time.sleep(0.06)
        report(record(200))
        report(record(201))
    assert [line.split()[6] for line in capsys.readouterr().out.splitlines()] == ["100", "200"]


def test_a_line_is_written_at_once(monkeypatch):
    lines = io.TextIOWrapper(io.BufferedWriter(raw := io.BytesIO()), write_through=False)
    monkeypatch.setattr(sys, "stdout", lines)
    with reporting("balls") as report:
        report(record(100))
        assert b"step 100" in raw.getvalue()


def test_on_a_terminal_a_bar(terminal):
    with contextlib.redirect_stdout(terminal), reporting("balls") as report:
        report(record(100))
        report(record(400))
    shown = terminal.getvalue()
    assert "balls" in shown
    assert "100 %" in shown
    assert "error 3.142/frame" in shown
    assert "step 400" in shown
    assert "━" in shown
    assert "\x1b[" in shown


def test_the_bar_ends_with_the_run_even_if_that_fails(terminal):
    def fail():
        with reporting("balls") as report:
            report(record(100))
            raise ValueError("stop")

    with contextlib.redirect_stdout(terminal):
        with pytest.raises(ValueError, match="stop"):
            fail()
        assert sys.stdout is terminal
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is shown again


def test_the_bar_moves_between_two_records(terminal, monkeypatch):
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.02)
    done = iter([number / 100 for number in range(1, 100)])
    with contextlib.redirect_stdout(terminal), reporting("balls", lambda: next(done)) as report:
        report(record(0))
        time.sleep(0.5)
    shares = {int(share) for share in re.findall(r"(\d+) %", terminal.getvalue())}
    assert len(shares) >= 3
    assert max(shares) >= 5
