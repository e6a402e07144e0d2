"""Compiles (or loads) the kernels once on import, so that processes forked from this one start at once."""

import tempfile

from device_under_test import device_name

from torchrsm import Trainer, preset
from torchrsm.learning.local import LearningConfig
from torchrsm.learning.rectifying import RectifyingConfig
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.runs.settings import RunConfig


def tiny_run(**training):
    run = preset("tiny")
    return run.replace(training=run.training.replace(**{"device": device_name(), "precision": "float32", **training}))


def rectified_run(rectifying=None, stack_from=None, **training):
    """`tiny_run` with a small rectifier that learns with all that there is, dreams included."""
    run = tiny_run(**training)
    given = rectifying or {}
    dreams = {"loop_share": 0.5, "loop_from": 0.1, "loop_error": 1000.0, "loop_steps": 4, "motion_weight": 0.01}
    if given.get("loop_share") == 0:
        dreams = {}
    rates = {"learning_rate": 2e-3, "matrix_learning_rate": 5e-3, "schedule": "cosine", "gradient_norm": 0.5}
    settings = given if given.get("share") == 0 else {**rates, **dreams, **given}
    return RunConfig(
        name=run.name,
        model=run.model.replace(rectifier=CompactConfig(width=8, blocks=1)),
        learning=run.learning if stack_from is None else LearningConfig(),
        rectifying=RectifyingConfig(**settings),
        stack_from=None if stack_from is None else str(stack_from),
        stream=run.stream,
        training=run.training,
    )


with tempfile.TemporaryDirectory() as folder:
    # One thread: a thread pool would not survive the fork.
    Trainer(rectified_run(steps=2, threads=1, device="cpu"), folder).run()
