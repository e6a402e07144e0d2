import contextlib
import os

import device_under_test
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported; its kernels then run on the CPU

from foreign_device import foreign_device  # not before the variable is set

from torchrsm.rsm import kernels
from torchrsm.rsm.kernels.cuda import CudaEngine


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        default="cpu",
        choices=device_under_test.CHOICES,
        help="where the tests of engines, learning, resumption and laws compute; foreign is a stand-in for a device",
    )


def pytest_configure(config):
    device_under_test.choose(config.getoption("--device"))
    config.addinivalue_line("markers", "cpu_only: tests what only the CPU has; skipped on any other device")
    # Also where pytest-cov, whose marker it is, is not installed.
    config.addinivalue_line("markers", "no_cover: many cases of lines that other tests reach, too slow to be watched")


def pytest_collection_modifyitems(items):
    if device_under_test.device_name() != "cpu":
        skip = pytest.mark.skip(reason="tests what only the CPU has")
        for item in items:
            if item.get_closest_marker("cpu_only"):
                item.add_marker(skip)


def pytest_generate_tests(metafunc):
    """Run a test that asks for an ``engine`` with each that serves the device; on the CPU with that for CUDA, too."""
    if "engine" in metafunc.fixturenames:
        device = device_under_test.device()
        names = [name for name, entry in kernels.ENGINES.items() if entry.serves(device, torch.float32)]
        metafunc.parametrize("engine", [*names, "cuda"] if device.type == "cpu" else names, indirect=True)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Results repeat bit by bit for the same number of threads only."""
    kernels.set_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """Files need not outlast a loss of power, which no test can show; other processes than this one still wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def engine(request, monkeypatch):
    """Run a test with each engine; that for CUDA on tensors of the CPU, without Triton, whose interpreter is slow."""
    if request.param == "cuda" and device_under_test.device_name() == "cpu":
        monkeypatch.setitem(kernels.ENGINES, "cuda", kernels.EngineEntry(CudaEngine(triton=False)))
    return request.param


@pytest.fixture(autouse=True)
def _stand_in():
    """With ``--device foreign`` there is a CUDA device that is none."""
    with foreign_device() if device_under_test.is_foreign() else contextlib.nullcontext():
        yield


@pytest.fixture
def device():
    """Where the test computes."""
    return device_under_test.device()
