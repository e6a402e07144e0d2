"""A process that is forked computes on threads of its own."""

import multiprocessing

import pytest
import torch

from torchrsm import load
from torchrsm.rsm import kernels


def predicted(frames, answers=None):
    model = load("balls")
    state = model.initial_state(frames.shape[1:])
    with torch.no_grad():
        for frame in frames:
            prediction = model.predict_raw(state)
            state = model.observe(frame, prediction, state)
        result = model.predict_raw(state).raw
    if answers is not None:
        answers.put(result.numpy())
    return result.numpy()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_computes_the_same_on_several_threads():
    frames = torch.rand(3, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    fork = multiprocessing.get_context("fork")
    with kernels.threads_in_use(3):
        expected = predicted(frames)  # on threads, which the child will not have
        answers = fork.Queue()
        child = fork.Process(target=predicted, args=(frames, answers), daemon=True)
        child.start()
        assert (answers.get(timeout=60) == expected).all()
        child.join()
    assert child.exitcode == 0
