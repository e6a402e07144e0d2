import numpy as np
import pytest
import torch

from torchrsm.streams import bouncing_ball_sequences, describe_frames, load_frames
from torchrsm.streams.layouts import LAYOUT_LETTERS, arrange, infer_layout, require_layout

# --- What a shape tells -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layout", "arranged"),
    [
        ((40, 48, 64), "thw", (1, 40, 1, 48, 64)),
        ((1, 48, 64), "thw", (1, 1, 1, 48, 64)),
        ((48, 48, 48), "thw", (1, 48, 1, 48, 48)),
        ((40, 48, 64, 3), "thwc", (1, 40, 3, 48, 64)),
        ((40, 48, 64, 1), "thwc", (1, 40, 1, 48, 64)),
        ((3, 48, 64, 3), "thwc", (1, 3, 3, 48, 64)),
        ((4, 100, 30, 30), "nthw", (4, 100, 1, 30, 30)),
        ((1000, 20, 64, 64), "nthw", (1000, 20, 1, 64, 64)),
        ((1, 1, 64, 64), "nthw", (1, 1, 1, 64, 64)),
        ((4, 100, 3, 30, 40), "ntchw", (4, 100, 3, 30, 40)),
        ((4, 100, 1, 30, 40), "ntchw", (4, 100, 1, 30, 40)),
        ((2, 5, 30, 40, 3), "nthwc", (2, 5, 3, 30, 40)),
        ((2, 5, 30, 40, 1), "nthwc", (2, 5, 1, 30, 40)),
        ((2, 5, 3, 40, 3), "ntchw", (2, 5, 3, 40, 3)),
    ],
)
def test_a_shape_of_one_meaning_is_read(shape, layout, arranged):
    assert infer_layout("frames", shape) == layout
    assert arrange(np.zeros(shape, np.uint8), layout).shape == arranged


@pytest.mark.parametrize(
    ("shape", "choices"),
    [
        ((48, 64, 3), ["thw", "hwc"]),  # frames, or one picture in colour
        ((48, 64, 4), ["thw", "hwc"]),
        ((48, 64, 1), ["thw", "hwc"]),
        ((3, 48, 64), ["thw", "chw"]),
        ((64, 64, 100), ["thw", "hwt"]),  # time last, as in MATLAB
        ((240, 320, 2), ["thw", "hwt"]),
        ((100, 3, 48, 64), ["nthw", "tchw"]),  # short clips, or one in colour
        ((100, 1, 48, 64), ["nthw", "tchw"]),
        ((1, 3, 48, 64), ["nthw", "tchw"]),
        ((240, 320, 3, 100), ["nthw", "hwct"]),
        ((64, 64, 100, 3), ["thwc", "hwtc"]),
        ((40, 48, 64, 2), ["nthw", "thwc"]),
        ((2, 5, 30, 40, 2), ["ntchw", "nthwc"]),
        ((2, 5, 16, 30, 40), ["ntchw", "nthwc"]),
    ],
)
def test_a_shape_of_several_meanings_is_refused_and_tells_them(shape, choices):
    with pytest.raises(ValueError, match=r"say which with layout \(--layout\)") as error:
        load_frames(np.zeros(shape, np.uint8))
    message = str(error.value)
    assert f"frames has the shape {list(shape)}, which may be {choices[0]} (" in message
    for layout in choices:  # what the message offers works
        assert f"{layout} (" in message
        frames = load_frames(np.zeros(shape, np.uint8), layout=layout)
        assert f"{layout} ({describe_frames(frames.shape)})" in message


@pytest.mark.parametrize("shape", [(), (5,), (4, 5), (2, 2, 2, 2, 4, 4)])
def test_too_few_and_too_many_axes_are_refused(shape):
    with pytest.raises(ValueError, match="must have 3 to 5 axes"):
        load_frames(np.zeros(shape))
    assert load_frames(np.zeros((4, 5)), layout="hw").shape == (1, 1, 1, 4, 5)


# --- What a layout says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", ["thw", "hwt", "nthw", "tnhw", "thwc", "hwct", "ntchw", "tnchw", "whcnt", "hw", "wh"]
)
def test_every_layout_ends_in_the_same_frames(layout):
    sizes = dict(zip(LAYOUT_LETTERS, (2, 4, 3, 5, 6), strict=True))
    shape = [sizes[letter] if letter in layout else 1 for letter in LAYOUT_LETTERS]
    frames = np.random.default_rng(0).random(shape, dtype=np.float32)
    stored = np.einsum(f"{LAYOUT_LETTERS}->{layout}", frames)  # the absent axes have one entry, which a sum leaves
    assert np.array_equal(load_frames(stored, layout=layout).numpy(), frames)


@pytest.mark.parametrize("layout", ["", "nth", "nthww", "nthwx", "NTHW", "n t h w", 4, None, b"nthw"])
def test_refuses_what_is_no_layout(layout):
    with pytest.raises(ValueError, match="layout must have a letter for each axis of the array .*; got"):
        require_layout(layout)


def test_refuses_a_layout_for_another_number_of_axes():
    with pytest.raises(ValueError, match="layout 'nthw' names 4 axes; got an array of 3"):
        load_frames(np.zeros((5, 6, 7)), layout="nthw")


# --- Time first -------------------------------------------------------------------------------------------------------


def balls():
    return bouncing_ball_sequences(6, sequence_length=20).frames


@pytest.mark.parametrize("axes", ["four", "channels", "channels last"])
def test_time_first_is_seen_in_the_frames(axes):
    """A film changes little from frame to frame, so that its time can be told from its sequences."""
    frames = balls()
    frames = {
        "four": frames[:, :, 0],
        "channels": frames.expand(-1, -1, 3, -1, -1),
        "channels last": frames.permute(0, 1, 3, 4, 2),
    }[axes]
    assert load_frames(frames).shape[:2] == (6, 20)
    with pytest.raises(ValueError, match=r"which may be nt.* or tn.*: say which .* --layout tn"):
        load_frames(frames.transpose(0, 1))
    layout = {"four": "tnhw", "channels": "tnchw", "channels last": "tnhwc"}[axes]
    assert torch.equal(load_frames(frames.transpose(0, 1), layout=layout), load_frames(frames))
    assert load_frames(frames.transpose(0, 1), layout=layout.replace("tn", "nt")).shape[:2] == (20, 6)


def test_the_shape_of_moving_mnist_is_refused_even_if_the_frames_tell_nothing():
    array = np.broadcast_to(np.uint8(7), (20, 10_000, 4, 4))
    with pytest.raises(ValueError, match=r"shape \[20, 10000, 4, 4\].*nthw \(20 clips of 10000 .* --layout tnhw"):
        load_frames(array)
    assert load_frames(array[:, :100], layout="tnhw").shape == (100, 20, 1, 4, 4)


@pytest.mark.parametrize("kind", ["noise", "one picture for ever", "the same clip again", "stills"])
def test_frames_that_tell_nothing_have_sequences_first(kind):
    random = np.random.default_rng(0)
    array = {
        "noise": random.random((12, 30, 8, 8)),
        "one picture for ever": np.broadcast_to(random.random((8, 8)), (12, 30, 8, 8)),
        "the same clip again": np.broadcast_to(random.random((30, 8, 8)), (12, 30, 8, 8)),
        "stills": np.broadcast_to(random.random((12, 1, 8, 8)), (12, 30, 8, 8)),
    }[kind]
    assert load_frames(array).shape[:2] == (12, 30)


# --- In words ---------------------------------------------------------------------------------------------------------


def test_frames_are_described_in_words():
    assert describe_frames((4, 100, 1, 30, 30)) == "4 clips of 100 frames, 1 x 30 x 30 (channels x height x width)"
    assert describe_frames((1, 1, 3, 48, 64)) == "1 clip of 1 frame, 3 x 48 x 64 (channels x height x width)"
