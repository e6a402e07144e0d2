from pathlib import Path

import pytest

from torchrsm.streams.splits import TEST_SEED, VALIDATION_SEED, bouncing_ball_frames, frames_sha256, split_seed

PROTOCOL = Path(__file__).parents[2] / "docs" / "science" / "protocol.md"


@pytest.mark.parametrize(("split", "seed"), [("test", TEST_SEED), ("validation", VALIDATION_SEED)])
def test_the_fixed_sequences_are_the_published_ones(split, seed):
    frames = bouncing_ball_frames(split)
    assert frames.shape == (200, 100, 1, 30, 30)
    (row,) = (line for line in PROTOCOL.read_text().splitlines() if line.startswith(f"| {split} |"))
    assert f"= {seed} |" in row
    assert f"| `{frames_sha256(frames)}` |" in row
    assert split_seed(split, 1) == seed


@pytest.mark.parametrize(
    ("split", "sequences", "message"),
    [("test", 0, "sequences must be >= 1; got 0"), ("train", 1, "one of test, validation; got 'train'")],
)
def test_other_splits_and_no_sequences_are_refused(split, sequences, message):
    with pytest.raises(ValueError, match=message):
        bouncing_ball_frames(split, sequences)
