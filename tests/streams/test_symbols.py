"""Streams of symbols: what is shown, in which order, and that a position brings it back."""

import json
from collections import Counter

import pytest
import torch

from torchrsm.streams import SymbolStream, check_stream, grammar_of, named_grammar
from torchrsm.streams.handwriting import handwritten_digits
from torchrsm.streams.settings import GrammarConfig, frame_shape, make_stream
from torchrsm.streams.splits import held_out_symbols


def played(stream, steps):
    batches = [next(stream) for _ in range(steps)]
    return torch.stack([batch.symbols for batch in batches]), torch.stack([batch.starts for batch in batches])


@pytest.mark.parametrize("restarts", [True, False])
@pytest.mark.parametrize(("grammar", "pictures"), [("reber", "one-hot"), ("digits-3", "fixed")])
def test_it_is_a_stream(grammar, pictures, restarts):
    check_stream(SymbolStream(named_grammar(grammar), 6, pictures=pictures, restarts=restarts, seed=4), 60)


def test_strings_are_those_of_the_grammar():
    grammar = named_grammar("reber")
    stream = SymbolStream(grammar, 40, seed=1)
    symbols, starts = played(stream, 120)
    seconds = Counter()
    for row, begins in zip(symbols.T.tolist(), starts.T.tolist(), strict=True):
        at = [time for time, start in enumerate(begins) if start][1:]  # before the first, a string that began earlier
        for first, last in zip(at, at[1:], strict=False):
            string = [grammar.symbols[symbol] for symbol in row[first:last]]
            assert grammar.follows(string) == "over"
            seconds[string[1]] += 1
    assert 0.35 < seconds["T"] / seconds.total() < 0.65


def test_symbols_are_shown_in_channels_of_their_own():
    stream = SymbolStream(named_grammar("reber"), 5)
    batch = next(stream)
    assert batch.frames.shape == (5, 7, 1, 1)
    assert torch.equal(batch.frames[:, :, 0, 0].argmax(1), batch.symbols)
    assert torch.equal(batch.frames.sum(1), torch.ones(5, 1, 1))


def test_digits_are_shown_by_examples_of_their_class():
    digits = handwritten_digits("test")
    stream = SymbolStream(named_grammar("digits-8x9"), 30, pictures="handwritten", restarts=False, split="test")
    names = stream.grammar.symbols
    seen = Counter()
    for _ in range(20):
        batch = next(stream)
        for frame, symbol in zip(batch.frames[:, 0].numpy(), batch.symbols.tolist(), strict=True):
            (example,) = (digits.images == frame).all((1, 2)).nonzero()[0]
            assert digits.classes[example] == int(names[symbol])
            seen[example] += 1
    assert len(seen) > 200


def test_a_fixed_digit_is_the_same_in_every_split():
    shown = [
        SymbolStream(named_grammar("digits-3"), 1, pictures="fixed", split=split).show(torch.arange(4))
        for split in ("train", "test")
    ]
    assert torch.equal(*shown)
    assert len({frame.numpy().tobytes() for frame in shown[0]}) == 4


def test_examples_can_be_moved():
    grammar = named_grammar("digits-3")
    still, moved = (
        SymbolStream(grammar, 40, pictures="handwritten", restarts=False, seed=2, shift=shift) for shift in (0, 2)
    )
    one, other = next(still), next(moved)
    assert torch.equal(one.symbols, other.symbols)
    found = set()
    for picture, at in zip(one.frames[:, 0], other.frames[:, 0], strict=True):
        padded = torch.nn.functional.pad(picture, (4,) * 4)
        ways = [
            (y, x)
            for y in range(-2, 3)
            for x in range(-2, 3)
            if torch.equal(padded[4 + y : 32 + y, 4 + x : 32 + x], at)
        ]
        assert ways
        found.update(ways)
    assert len(found) > 10
    config = GrammarConfig(grammar="digits-3", pictures="handwritten", shift=2)
    assert make_stream(config, 2, 0).state_dict()["shift"] == 2
    assert held_out_symbols(config).state_dict()["shift"] == 0


def test_splits_share_no_digit():
    images = [{image.tobytes() for image in handwritten_digits(split).images} for split in ("train", "test")]
    assert not images[0] & images[1]


def test_without_restarts_there_is_no_mark():
    stream = SymbolStream(named_grammar("digits-8x9"), 9, restarts=False)
    _, starts = played(stream, 30)
    assert starts[0].all()
    assert not starts[1:].any()


def test_elements_begin_at_different_places():
    stream = SymbolStream(named_grammar("digits-8x9"), 32, restarts=False)
    assert set(stream.places.position.tolist()) == set(range(9))
    together = SymbolStream(named_grammar("digits-8x9"), 32, restarts=False, dephased=False)
    assert together.places.position.tolist() == [0] * 32


def test_places_say_where_the_next_symbols_stand():
    stream = SymbolStream(named_grammar("reber"), 20, dephased=False)
    beginnings = [[] for _ in range(20)]
    for _ in range(60):
        position, marked = stream.places
        batch = next(stream)
        for element, symbol in enumerate(batch.symbols.tolist()):
            if batch.starts[element]:
                beginnings[element] = []
            assert position[element] == len(beginnings[element])
            assert marked[element] == (stream.grammar.follows(beginnings[element]) in ("T7", "P7"))
            beginnings[element].append(stream.grammar.symbols[symbol])


def test_no_batch_depends_on_how_many_are_played_side_by_side():
    """Element 0 plays the strings 0, b, 2 b and so on: the first one is the same for any b."""
    grammar = named_grammar("reber")
    (few, _), (many, starts) = (played(SymbolStream(grammar, size, dephased=False), 9) for size in (1, 50))
    assert torch.equal(few[:9, 0], many[:9, 0])
    assert len({tuple(row) for row in many.T.tolist()}) > 10
    assert starts[0].all()


def test_another_seed_is_another_row_of_strings():
    grammar = named_grammar("reber")
    one, other = (played(SymbolStream(grammar, 20, seed=seed), 20)[0] for seed in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": [0, 1]}, "numbers must be a list of 3 integers"),
        ({"positions": [0, 1, -1]}, "positions must be an integer"),
        ({"positions": [0, 1, 500]}, "a place must be within its string"),
        ({"begun": 1}, "begun must be True or False"),
        ({"grammar": "another"}, "grammar must be"),
        ({"more": 1}, "unknown entries"),
    ],
)
def test_a_foreign_position_is_refused(change, message):
    stream = SymbolStream(named_grammar("reber"), 3)
    position = json.loads(json.dumps(stream.state_dict())) | change
    with pytest.raises(ValueError, match=message):
        stream.load_state_dict(position)
    assert stream.state_dict() == SymbolStream(named_grammar("reber"), 3).state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pictures": "colour"}, "pictures must be one of one-hot, handwritten, fixed; got 'colour'"),
        ({"pictures": "fixed"}, "pictures must be one-hot where a symbol is no digit; got fixed and 'B'"),
        ({"batch_size": 3000}, "batch_size must be an integer in 1..2000; got 3000"),
        ({"split": "all"}, "split must be one of train, validation, test; got 'all'"),
        ({"seed": -1}, "seed must be"),
        ({"shift": 9}, "shift must be an integer in 0..8; got 9"),
    ],
)
def test_what_is_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SymbolStream(named_grammar("reber"), **settings)


def test_settings_name_the_stream():
    config = GrammarConfig(grammar="digits-3", pictures="handwritten", restarts=False)
    stream = make_stream(config, 4, seed=7)
    assert isinstance(stream, SymbolStream)
    assert frame_shape(config) == stream.frame_shape == (1, 28, 28)
    assert config.symbols() == ("0", "1", "2", "3")
    held_out = held_out_symbols(config, "test", 4)
    assert held_out.state_dict()["split"] == "test"
    assert held_out.state_dict()["seed"] != 7


def test_a_grammar_can_be_ones_own(tmp_path):
    file = tmp_path / "coin.json"
    file.write_text(json.dumps({"states": {"toss": [["heads", 0.5, "end"], ["tails", 0.5, "end"]], "end": []}}))
    stream = make_stream(GrammarConfig(grammar=str(file)), 200, seed=0)
    symbols, _ = played(stream, 20)
    assert GrammarConfig(grammar=str(file)).symbols() == ("heads", "tails")
    assert 0.45 < symbols.double().mean() < 0.55
    with pytest.raises(ValueError, match=r"grammar must be one of reber, digits-3, digits-8x9 or a JSON file"):
        GrammarConfig(grammar="nowhere").symbols()


def test_probabilities_are_those_of_the_grammar():
    grammar = grammar_of(["00", "01", "10", "11", "12"], "pairs")
    symbols, _ = played(SymbolStream(grammar, 1000, dephased=False), 2)
    firsts = torch.bincount(symbols[0], minlength=3) / 1000
    assert firsts[grammar.symbols.index("0")] == pytest.approx(0.4, abs=0.05)
    after_one = symbols[1][symbols[0] == grammar.symbols.index("1")]
    shares = torch.bincount(after_one, minlength=3) / len(after_one)
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.06)
