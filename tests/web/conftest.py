import pytest
from live_server import Running, watching


@pytest.fixture(scope="session")
def server():
    """Start a server for all tests of a process."""
    running = Running()
    yield running
    running.stop()


@pytest.fixture
def viewer(server):
    """Open a session."""
    with watching(server) as one:
        yield one
