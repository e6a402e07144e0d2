"""Starts processes that work together, as ``torchrun`` would, but forked from one that has its imports behind it."""

import multiprocessing
import os
import pickle
import socket
import tempfile
from multiprocessing import forkserver
from pathlib import Path

from torchrsm.learning.distributed import joined

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["launch", "warm_kernels"])


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(rank, count, port):
    """Return what ``torchrun`` tells a process."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def begin(work, arguments, count=2):
    """Start ``work(rank, *arguments)`` in so many processes that know of each other, and return them."""
    _start_server()
    port = free_port()
    processes = [
        CONTEXT.Process(target=_child, args=(work, rank, environment(rank, count, port), arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def end(processes, seconds=60):
    """Wait for processes and return their exit codes; None for one that still ran and was killed."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def results(work, *arguments, count=2):
    """Return what ``work(ranks, *arguments)`` returns in each of the processes that have joined."""
    with tempfile.TemporaryDirectory() as folder:
        codes = end(begin(_joined, (work, folder, arguments), count))
        assert codes == [0] * count
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(count)]


def _start_server():
    """Start the process that others are forked from; in Python 3.11 it finds the modules beside this one only so."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _child(work, rank, variables, arguments):
    os.environ |= variables
    work(rank, *arguments)


def _joined(rank, work, folder, arguments):
    with joined("a test") as ranks:
        (Path(folder) / str(rank)).write_bytes(pickle.dumps(work(ranks, *arguments)))
