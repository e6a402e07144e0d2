"""Compiles (or loads) the kernels once on import, so that processes forked from this one start at once."""

import tempfile

from torchrsm import Trainer, preset


def tiny_run(**training):
    run = preset("tiny")
    return run.model_copy(update={"training": run.training.model_copy(update=training)})


with tempfile.TemporaryDirectory() as folder:
    # One thread: a thread pool would not survive the fork.
    Trainer(tiny_run(steps=1, threads=1), folder).run()
