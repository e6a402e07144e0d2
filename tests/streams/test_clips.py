import numpy as np
import pytest
import torch

from torchrsm.streams import ClipStream, check_stream


def clips(*lengths, shape=(1, 3, 4)):
    """Clips of which each frame is of one grey, the number of the frame in all of them."""
    numbers = np.arange(sum(lengths), dtype=np.uint8)
    frames = np.broadcast_to(numbers[:, None, None, None], (len(numbers), *shape)).copy()
    return np.split(frames, np.cumsum(lengths)[:-1])


def numbers(batch):
    return (batch.frames[:, 0, 0, 0] * 255).round().int().tolist()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    ("lengths", "batch_size"), [((5, 7, 3), 4), ((2,), 1), ((20,), 3), ((2, 3), 9), ((1, 2, 1), 2)]
)
def test_keeps_the_contract(lengths, batch_size, mirror):
    check_stream(ClipStream(clips(*lengths, shape=(3, 4, 6)), batch_size, mirror=mirror, seed=5), 60)


def test_plays_each_clip_to_its_end_and_then_the_next_for_ever():
    stream = ClipStream(clips(4, 2, 3), 2)  # begin at frames 0 and 4
    assert (stream.batch_size, stream.frame_shape) == (2, (1, 3, 4))
    played = [next(stream) for _ in range(20)]
    for element, first in ((0, 0), (1, 4)):
        shown = [numbers(batch)[element] for batch in played]
        assert shown == [(first + step) % 9 for step in range(20)]
        starts = [bool(batch.starts[element]) for batch in played]
        assert starts == [step == 0 or shown[step] in (0, 4, 6) for step in range(20)]
        index = [int(batch.index[element]) for batch in played]
        assert [b - a for a, b in zip(index, index[1:], strict=False)] == [2 * start for start in starts[1:]]
        assert index[0] == element


def test_elements_begin_evenly_spread_over_the_material():
    first = next(ClipStream(clips(30, 10, 60), 10))
    assert numbers(first) == list(range(0, 100, 10))
    assert first.starts.all()


def test_index_is_unique_to_a_passage():
    stream = ClipStream(clips(3, 2), 4)
    seen = {}
    for batch in (next(stream) for _ in range(50)):
        for element, (index, start) in enumerate(zip(batch.index.tolist(), batch.starts.tolist(), strict=True)):
            assert start == (index not in seen)
            assert seen.setdefault(index, element) == element


def test_frames_are_scaled_bytes():
    material = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(2, 0)
    assert torch.equal(next(ClipStream([material])).frames[0, 0].flatten(), torch.arange(256) / 255)


def test_a_passage_is_mirrored_as_a_whole_or_not_at_all():
    material = np.zeros((4, 1, 1, 2), np.uint8)
    material[..., 0] = 255
    stream = ClipStream([material], 8, mirror=True, seed=1)
    passages = {}
    for batch in (next(stream) for _ in range(200)):
        for index, left in zip(batch.index.tolist(), batch.frames[:, 0, 0, 0].tolist(), strict=True):
            assert passages.setdefault(index, left) == left
    share = np.mean(list(passages.values()))
    assert 0.4 < share < 0.6
    assert np.array_equal(stream.frames[0], material)  # what is held is not turned
    other = ClipStream([material], 8, mirror=True, seed=2)
    shown = [next(other).frames[:, 0, 0, 0] for _ in range(200)]
    again = ClipStream([material], 8, mirror=True, seed=1)
    assert any(not torch.equal(a, next(again).frames[:, 0, 0, 0]) for a in shown)


def mixed(bits):
    """SplitMix64 (Steele, Lea, Flood 2014), in integers without end."""
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return bits ^ bits >> 31


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_mirroring_is_drawn_by_hashing_alone(seed):
    weyl = 0x9E3779B97F4A7C15
    stream = ClipStream([np.array([[255, 0]] * 2, np.uint8).reshape(2, 1, 1, 2)], 5, mirror=True, seed=seed)
    for _ in range(80):
        batch = next(stream)
        shown = batch.frames[:, 0, 0, 0].tolist()
        for element in range(5):
            passage = int(batch.index[element]) // 5
            key = mixed((mixed((seed + weyl) % 2**64) + element * weyl) % 2**64)
            assert (shown[element] == 0) == bool(mixed((key + passage * weyl) % 2**64) >> 63)


def test_a_changed_batch_does_not_change_the_clips():
    stream = ClipStream([np.full((2, 1, 2, 2), 9, np.uint8)])
    next(stream).frames.zero_()
    assert next(stream).frames.min() > 0


def test_takes_tensors_too():
    material = clips(3, 4)
    ours = ClipStream([torch.from_numpy(clip) for clip in material], 2)
    theirs = ClipStream(material, 2)
    assert ours.state_dict() == theirs.state_dict()
    assert torch.equal(next(ours).frames, next(theirs).frames)


def test_refuses_the_position_of_other_clips_or_settings():
    stream = ClipStream(clips(3, 4))
    for other, what in (
        (ClipStream(clips(4, 3)), "frames_sha256"),
        (ClipStream(clips(7)), "clips"),
        (ClipStream(clips(3, 4), 2), "batch_size"),
        (ClipStream(clips(3, 4), mirror=True), "mirror"),
        (ClipStream(clips(3, 4), seed=1), "seed"),
    ):
        with pytest.raises(ValueError, match=f"saved position: {what} must be"):
            stream.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("material", "settings", "message"),
    [
        ([], {}, "clips must hold one or more; got none"),
        (
            [np.zeros((2, 3, 4), np.uint8)],
            {},
            r"uint8 \[time, channels, height, width\], .* got uint8 \[2, 3, 4\]",
        ),
        ([np.zeros((2, 1, 3, 4))], {}, r"got float64 \[2, 1, 3, 4\] as clip 0"),
        ([np.zeros((0, 1, 3, 4), np.uint8)], {}, r"none of them 0; got uint8 \[0, 1, 3, 4\] as clip 0"),
        (
            clips(2) + clips(2, shape=(1, 3, 5)),
            {},
            r"\[time, 1, 3, 4\] as the first; got \[2, 1, 3, 5\] as clip 1",
        ),
        (clips(1), {}, "a frame that follows another, to learn from; got a single frame"),
        (clips(1, 1, 1), {}, "got 3 clips of a single frame each"),
        (clips(2), {"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
        (clips(2), {"mirror": 1}, "mirror must be True or False; got 1"),
        (clips(2), {"seed": -1}, "seed must be an integer in"),
    ],
)
def test_refuses_bad_material_and_settings(material, settings, message):
    with pytest.raises(ValueError, match=message):
        ClipStream(material, **settings)
