import multiprocessing
import os
import subprocess
import sys

import pytest

from torchrsm.runs.lock import LOCK_FILE, locked

HOLD = """
import sys, time
from pathlib import Path
from torchrsm.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_is_held_once_and_left_as_it_was(tmp_path):
    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text() == str(os.getpid())
        with (
            pytest.raises(BlockingIOError, match=f"being written by process {os.getpid()}, this one"),
            locked(tmp_path),
        ):
            pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


def test_another_process_is_named_and_leaves_nothing_in_the_way_when_it_is_killed(tmp_path):
    process = hold(tmp_path)
    with (
        pytest.raises(BlockingIOError, match=f"is being written by process {process.pid}; wait for it"),
        locked(tmp_path),
    ):
        pass
    process.kill()
    process.communicate()
    assert (tmp_path / LOCK_FILE).exists()  # it had no time to remove it
    with locked(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text() == str(os.getpid())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_was_forked_does_not_keep_the_lock(tmp_path):
    fork = multiprocessing.get_context("fork")
    go_on = fork.Event()
    with locked(tmp_path):
        child = fork.Process(target=go_on.wait)
        child.start()
    with locked(tmp_path):
        go_on.set()
    child.join()


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"cannot write {tmp_path}/no/.lock"), locked(tmp_path / "no"):
        pass
