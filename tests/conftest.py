import contextlib

import device_under_test
import pytest
import torch
from foreign_device import foreign_device

from torchrsm.rsm import kernels


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


def pytest_collection_modifyitems(items):
    if device_under_test.device_name() != "cpu":
        skip = pytest.mark.skip(reason="tests what only the CPU has")
        for item in items:
            if item.get_closest_marker("cpu_only"):
                item.add_marker(skip)


def pytest_generate_tests(metafunc):
    """Run a test that asks for an ``engine`` with each one that serves the device."""
    if "engine" in metafunc.fixturenames:
        device = device_under_test.device()
        metafunc.parametrize("engine", [name for name, e in kernels.ENGINES.items() if e.serves(device, torch.float32)])


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Results repeat bit by bit for the same number of threads only."""
    kernels.set_threads(1)


@pytest.fixture(autouse=True)
def _stand_in():
    """With ``--device foreign`` there is a CUDA device that is none."""
    with foreign_device() if device_under_test.is_foreign() else contextlib.nullcontext():
        yield


@pytest.fixture
def device():
    """Where the test computes."""
    return device_under_test.device()
