import pytest

from torchrsm.rsm import kernels


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Results repeat bit by bit for the same number of threads only."""
    kernels.set_threads(1)


@pytest.fixture(params=["fused", "reference"])
def engine(request):
    """Run a test with each engine."""
    return request.param
