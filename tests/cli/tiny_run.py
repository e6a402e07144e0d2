"""The command line's own way to a small run, in a second."""

from torchrsm.cli import main


def train(folder, *arguments, steps=12):
    return main(["train", "tiny", "--out", str(folder), "--steps", str(steps), "--threads", "1", *arguments])
