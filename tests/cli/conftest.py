import contextlib
import io
import re

import numpy as np
import pytest
from tests.cli.tiny_run import train

from torchrsm.cli import main


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run; tests read it only."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        assert train(folder) == 0
    return folder


@pytest.fixture(scope="session")
def frames(tmp_path_factory):
    """The same frames, ``[3, 12, 12, 12]``, as .npz and as .npy."""
    array = np.random.default_rng(0).random((3, 12, 12, 12), dtype=np.float32)
    folder = tmp_path_factory.mktemp("frames")
    np.savez(folder / "frames.npz", frames=array)
    np.save(folder / "frames.npy", array)
    return array, folder / "frames.npz", folder / "frames.npy"


@pytest.fixture
def refused(capsys):
    """Run a command that must end with a code and one line on the standard error that has all the parts."""

    def check(*arguments, says, code=2):
        assert main([str(argument) for argument in arguments]) == code
        output, error = capsys.readouterr()
        assert error.startswith("torchrsm: ")
        assert error.endswith("\n")
        assert error.count("\n") == 1
        for part in says:
            assert str(part) in error
        assert not re.search(r"[╭│─]|-{3}|\[type=|Errno|Traceback", error)
        return output

    return check
