"""A system can be moved to another type of floating point like any module; it then reads frames of that type."""

import pytest
import torch
from fuzz_observe import SYSTEMS, system

TOLERANCE = {torch.float64: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_predictions_in_another_type_are_the_same_but_for_rounding(name, dtype):
    predictor, shape = system(name)
    frames = torch.rand(shape[0], 4, *shape[1:], generator=torch.Generator().manual_seed(0))
    expected = predictor(frames)
    try:
        found = predictor.to(dtype)(frames.to(dtype))
    finally:
        predictor.float()
    assert found.dtype == dtype
    assert bool(((found >= 0) & (found <= 1)).all())
    assert float((found.float() - expected).abs().mean()) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["tiny", "convlstm"])
def test_frames_of_another_type_than_the_model_are_refused(name):
    predictor, shape = system(name)
    try:
        predictor.double()
        state = predictor.initial_state(shape)
        with pytest.raises(ValueError, match="frame must be torch.float64 in 0..1; got torch.float32"):
            predictor.observe(torch.zeros(shape), predictor.predict(state), state)
    finally:
        predictor.float()
