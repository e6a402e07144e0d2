import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported; its kernels then run on the CPU

from torchrsm.rsm import kernels  # not before the variable is set
from torchrsm.rsm.kernels.cuda import CudaEngine


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Results repeat bit by bit for the same number of threads only."""
    kernels.set_threads(1)


@pytest.fixture(params=["fused", "reference", "cuda"])
def engine(request, monkeypatch):
    """Run a test with each engine; that for CUDA on tensors of the CPU, without Triton, whose interpreter is slow."""
    if request.param == "cuda":
        monkeypatch.setitem(kernels.ENGINES, "cuda", kernels.EngineEntry(CudaEngine(triton=torch.cuda.is_available())))
    return request.param
