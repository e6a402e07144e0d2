from pathlib import Path

import numpy as np
import pytest
from small_films import pictures

from torchrsm.streams.framing import Framing, PixelBudget


def test_size_follows_the_aspect_or_does_not():
    for options, shape in (
        ({}, (48, 64)),
        ({"height": 12}, (12, 16)),
        ({"width": 32}, (24, 32)),
        ({"height": 12, "width": 12}, (12, 12)),
        ({"width": 128}, (96, 128)),
        ({"crop": "square", "height": 7}, (7, 7)),
        ({"crop": (0, 0, 10, 40), "width": 20}, (5, 20)),
        ({"crop": (0, 0, 1, 64), "width": 2}, (1, 2)),
    ):
        framing = Framing(**options, channels=3)
        assert framing.shape(48, 64) == (3, *shape)
        assert framing.frame(pictures(1)[0]).shape == (3, *shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 0}, r"height must be an integer in 1\.\.8192; got 0"),
        ({"width": 8193}, r"width must be an integer in 1\.\.8192; got 8193"),
        ({"height": True}, "height must be an integer"),
        ({"height": "30"}, "height must be an integer"),
        ({"channels": 4}, r"channels must be 1 \(grey\) or 3 \(colour\); got 4"),
        ({"channels": True}, "channels must be 1"),
        ({"channels": [3]}, "channels must be 1"),
        ({"channels": 3.0}, "channels must be 1"),
        ({"crop": "middle"}, "crop must be None, 'square' or .*; got 'middle'"),
        ({"crop": (1, 2, 3)}, r"crop must be None, 'square' or .*; got \(1, 2, 3\)"),
        ({"crop": (-1, 0, 3, 3)}, "crop: top must be an integer of at least 0; got -1"),
        ({"crop": (0, 0, 3, 0)}, "crop: width must be an integer of at least 1; got 0"),
        ({"crop": 5}, "crop must be None"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Framing(**settings)


def test_refuses_a_crop_outside_and_frames_that_are_too_large():
    with pytest.raises(ValueError, match=r"crop must be inside of the picture, 8 x 9 .*\(0, 0, 9, 9\)"):
        Framing(crop=(0, 0, 9, 9)).shape(8, 9)
    with pytest.raises(ValueError, match="at most 8192 pixels a side; got 49152 x 8192"):
        Framing(width=8192, crop=(0, 0, 48, 8)).shape(48, 64)


def test_a_wide_picture_has_at_least_a_row():
    assert Framing(width=4).shape(1, 8192) == (1, 1, 4)
    assert Framing(width=4).frame(np.full((1, 8192), 9, np.uint8)).tolist() == [[[9, 9, 9, 9]]]


def test_grey_and_colour_become_each_other():
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.abs(Framing().frame(picture)[0] - picture @ [0.299, 0.587, 0.114]).max() <= 1
    assert np.array_equal(Framing(channels=3).frame(picture), picture.transpose(2, 0, 1))
    assert np.array_equal(Framing(channels=3).frame(picture[..., 0]), np.stack([picture[..., 0]] * 3))


def test_a_budget_counts_pixels():
    budget = PixelBudget(Path("a.png"), 100)
    budget.spend(5, 10)
    budget.spend(5, 5, pictures=2)
    with pytest.raises(ValueError, match=r"a\.png must have at most 100 pixels in all \(max_pixels\); got more"):
        budget.spend(1, 1)
    for height, width in ((0, 5), (5, 8193), (-1, -1)):
        with pytest.raises(ValueError, match=r"a\.png must have pictures of 1 to 8192 pixels a side"):
            PixelBudget(Path("a.png"), None).check_sides(height, width)
