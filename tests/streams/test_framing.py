from small_films import pictures

from torchrsm.streams.framing import Framing


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
