"""Sixty steps of the shipped recipe through `OnlineLearner.teach`, written down: U-Net, Muon, discriminator, dreams.

The stack learns first, then stack and rectifier, then the rectifier alone while streams dream. A refactoring must leave
the file as it is. A change that is meant: ``python tests/golden/test_recipe.py`` writes it anew, and the changelog says
what changed and why.
"""

import json
from pathlib import Path

import pytest
import torch

from torchrsm import preset
from torchrsm.learning.online import OnlineLearner
from torchrsm.rectifiers.unet import UNetConfig
from torchrsm.rsm import kernels
from torchrsm.streams import BouncingBalls

FILE = Path(__file__).parent / "recipe.json"
STEPS, STREAMS = 60, 6


def recipe() -> OnlineLearner:
    """Return the learner of the preset ``balls-window`` at small sizes, its weights written down as waves."""
    run = preset("balls-window")
    below, above = run.model.layers
    layers = (
        below.replace(groups=12, active_groups=3, kernel_size=5, input_frames=2),
        above.replace(groups=10, active_groups=2, kernel_size=3),
    )
    unet = UNetConfig(features=4, width=8, blocks=1)
    model = run.model.replace(layers=layers, rectifier=unet)
    dreams = {"share": 0.8, "stack_share": 0.5, "loop_share": 0.5, "loop_from": 0.3, "loop_steps": 5, "loop_error": 33}
    weights = {"motion_weight": 0.05, "adversarial_weight": 0.02, "discriminator_learning_rate": 0.01}
    rectifying = run.rectifying.replace(**dreams, **weights, gradient_norm=0.5)
    learner = OnlineLearner(model, run.learning, rectifying, True, (STREAMS, 1, 16, 16))
    with torch.no_grad():
        for module in learner.modules.values():
            for parameter in module.parameters():
                wave = torch.arange(parameter.numel(), dtype=torch.float64).mul(12.9898).sin().mul(43758.5453)
                scale = 0.3 if parameter.dim() > 1 else 0.05
                parameter.copy_((wave.frac() * scale).reshape(parameter.shape))
    return learner


def golden_run() -> list[dict]:
    """Return what each step was made of; the noise that the discriminator sees through comes from torch's generator."""
    learner, stream, record = recipe(), BouncingBalls(STREAMS, resolution=16, sequence_length=23, seed=3), []
    torch.manual_seed(5)
    kernels.set_threads(1)
    for step in range(STEPS):
        progress = step / STEPS
        phase = learner.phase(progress)
        learner.model.train(phase != "rectifier")
        taught = teach(learner, next(stream), progress)
        weights = {
            name: float(sum(p.detach().double().abs().sum() for p in part.parameters()))
            for name, part in {
                "stack": learner.model.stack,
                "rectifier": learner.model.rectifier,
                "discriminator": learner.modules["discriminator"],
            }.items()
        }
        record.append(
            {
                "phase": phase,
                "scored": int(taught.scored),
                "frame_squared_error": float(taught.frame_squared_error),
                "losses": [float(loss) for loss in taught.losses],
                "winners": [int(layer.cells.index.sum()) for layer in learner.state.layers],
                "alone": learner.state.alone.tolist(),
                "weights": weights,
            }
        )
    return record


def teach(learner, batch, progress):
    return learner.teach([batch], progress)


def test_golden_run() -> None:
    expected, got = json.loads(FILE.read_text()), golden_run()
    assert len(got) == len(expected) == STEPS
    for step, (new, old) in enumerate(zip(got, expected, strict=True)):
        for name in ("phase", "scored", "winners", "alone"):
            assert new[name] == old[name], (step, name)
        assert new["frame_squared_error"] == pytest.approx(old["frame_squared_error"], rel=1e-4), step
        assert new["losses"] == pytest.approx(old["losses"], rel=1e-3, abs=1e-6), step
        assert new["weights"] == pytest.approx(old["weights"], rel=1e-5), step


def test_the_golden_run_has_all_that_it_is_for() -> None:
    """Each phase, dreams that begin, go on and end, and each of the losses."""
    record = json.loads(FILE.read_text())
    assert [line["phase"] for line in record] == ["stack"] * 12 + ["both"] * 18 + ["rectifier"] * 30
    alone = [count for line in record for count in line["alone"]]
    assert {-2, -1, 0, 1, 5} <= set(alone)
    for number in (1, 2, 3, 4):
        assert any(line["losses"][-number] > 0 for line in record if line["phase"] != "stack")


if __name__ == "__main__":
    FILE.write_text(json.dumps(golden_run(), indent=1) + "\n")
