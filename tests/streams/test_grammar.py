"""Grammars: what they draw, what can be known of it, and which are refused."""

import json
import random
from collections import Counter

import pytest

from torchrsm.streams.grammar import Grammar, Step, embedded_reber, grammar_of, named_grammar, read_grammar


def test_strings_of_the_embedded_reber_grammar_are_what_it_allows():
    grammar, uniform = embedded_reber(), random.Random(0).random
    assert grammar.symbols == ("B", "T", "P", "S", "X", "V", "E")
    seconds = Counter()
    for _ in range(2000):
        symbols, left = grammar.string(uniform)
        assert symbols[0] == "B"
        assert symbols[-1] == "E"
        assert symbols[1] == symbols[-2]
        assert symbols[2] == "B"
        assert symbols[-3] == "E"
        assert left[-2] == f"{symbols[1]}7"
        assert len(symbols) >= 9
        assert grammar.follows(symbols) == "over"
        for length, state in enumerate(left):
            assert grammar.follows(symbols[:length]) == state
        seconds[symbols[1]] += 1
    assert 900 < seconds["T"] < 1100
    assert grammar.follows(["B", "X"]) is None


def test_what_can_be_known_of_the_embedded_reber_grammar():
    """The figures of docs/science/protocol.md, by enumeration."""
    grammar = embedded_reber()
    everything = grammar.ceiling()
    assert everything.all == pytest.approx(0.7083, abs=1e-4)
    assert everything.marked == pytest.approx(1.0)
    for window, marked in ((2, 0.5), (4, 0.5), (8, 0.78)):
        assert grammar.ceiling(window).marked == pytest.approx(marked, abs=0.005), window


def test_a_ceiling_is_what_the_best_guess_scores():
    """Of a million symbols, guessed by counts of what followed each window of two."""
    grammar, uniform = embedded_reber(), random.Random(1).random
    row = []
    while len(row) < 200_000:
        row += grammar.string(uniform)[0]
    counts = {}
    for a, b, c in zip(row, row[1:], row[2:], strict=False):
        counts.setdefault((a, b), Counter())[c] += 1
    right = sum(max(counter.values()) for counter in counts.values())
    assert right / (len(row) - 2) == pytest.approx(grammar.ceiling(2).all, abs=0.005)


def test_a_grammar_of_one_string_is_known_from_all_but_nothing():
    grammar = Grammar({"a": [Step("0", 1.0, "b")], "b": [Step("1", 1.0, "c")], "c": []}, marked=("b",))
    assert grammar.ceiling() == (1.0, 1.0)
    assert grammar.ceiling(1).all == pytest.approx(1.0)
    assert grammar.ceiling(0).all == pytest.approx(0.5)
    with pytest.raises(ValueError, match="window must be >= 0; got -1"):
        grammar.ceiling(-1)


ONE = [Step("x", 1.0, "end")]


@pytest.mark.parametrize(
    ("states", "marked", "message"),
    [
        ({}, (), "the grammar must have states; got none"),
        ({"a": [Step("x", 1.0, "b")]}, (), "state 'a' leads to 'b', which is no state"),
        ({"a": [Step("x", 0.5, "end")], "end": []}, (), r"probabilities must add up to 1; got 0\.5 from state 'a'"),
        ({"a": [Step("x", -1.0, "end"), Step("y", 2.0, "end")], "end": []}, (), "must be above 0; got -1.0 from state"),
        ({"a": [Step("x", 1.0, "a")]}, (), "the grammar never ends: no end can be reached from state 'a'"),
        ({"end": []}, (), "the first state, 'end', must have a next symbol; got none"),
        ({"a": [Step("x", 0.5, "a"), Step("x", 0.5, "end")], "end": []}, (), "must have one step for each symbol"),
        ({"a": ONE, "end": []}, ("b",), "marked must name states; got 'b'"),
    ],
)
def test_what_is_no_grammar_is_refused(states, marked, message):
    with pytest.raises(ValueError, match=message):
        Grammar(states, marked)


def test_a_grammar_is_read_from_a_file(tmp_path):
    file = tmp_path / "grammar.json"
    file.write_text(json.dumps({"states": {"a": [["x", 0.25, "a"], ["y", 0.75, "end"]], "end": []}, "marked": ["a"]}))
    grammar = read_grammar(file)
    assert grammar.symbols == ("x", "y")
    assert grammar.marked == ("a",)
    assert grammar.ceiling().all == pytest.approx(0.75)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"states": {"a": [["x", "much", "a"]]}}', '{"states": {"a": [["x"]]}}']
)
def test_a_file_that_is_no_grammar_is_refused(tmp_path, text):
    file = tmp_path / "grammar.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"grammar\.json must be JSON of the form"):
        read_grammar(file)
    file.write_text('{"states": {"a": [["x", 1, "b"]]}}')
    with pytest.raises(ValueError, match=r"grammar\.json: state 'a' leads to 'b', which is no state"):
        read_grammar(file)


def test_the_named_tasks_have_the_ceilings_of_the_protocol():
    rows, pairs = named_grammar("digits-3"), named_grammar("digits-8x9")
    assert rows.ceiling().all == pytest.approx(1)
    assert rows.ceiling(4).all == pytest.approx(0.917, abs=5e-4)
    assert pairs.ceiling().all == pytest.approx(8 / 9)
    assert pairs.ceilings_by_position(10) == pytest.approx([3 / 8, 5 / 8, *[1] * 7, None])


def test_the_first_symbol_can_be_left_out():
    grammar = embedded_reber()
    length = 12  # on average: two symbols before the inner string, eight in it, two behind it
    counted = (grammar.ceiling().all * length - 1) / (length - 1)  # the first, B, is always known
    assert grammar.ceiling(first=False).all == pytest.approx(counted)
    assert grammar.ceiling(first=False).marked == pytest.approx(1)
    assert grammar.ceiling(0, first=False).all < grammar.ceiling(8, first=False).all < grammar.ceiling(first=False).all


def test_ceilings_by_position_are_what_the_best_guess_scores():
    grammar, uniform = embedded_reber(), random.Random(5).random
    counts = {}
    for _ in range(20_000):
        symbols, left = grammar.string(uniform)
        for place, (symbol, state) in enumerate(zip(symbols, left, strict=True)):
            counts.setdefault((place, state), Counter())[symbol] += 1
    ceilings = grammar.ceilings_by_position(12)
    for place in range(12):
        here = [counter for (at, _), counter in counts.items() if at == place]
        best = sum(max(counter.values()) for counter in here) / sum(counter.total() for counter in here)
        assert best == pytest.approx(ceilings[place], abs=0.02), place
    with pytest.raises(ValueError, match="count must be >= 1; got 0"):
        grammar.ceilings_by_position(0)


def test_a_grammar_of_strings_shares_their_beginnings():
    grammar = grammar_of(["ab", "ac", "b", "ab"], "four")
    assert grammar.symbols == ("a", "b", "c")
    assert {step.symbol: step.probability for step in grammar.states["begin"]} == {"a": 0.75, "b": 0.25}
    assert grammar.states["a"] == (Step("b", pytest.approx(2 / 3), "ab"), Step("c", pytest.approx(1 / 3), "ac"))
    assert grammar.follows("ab") is not None
    assert grammar.follows("ba") is None
    assert grammar.digest() != grammar_of(["ab", "ac", "b"], "four").digest()
    for strings, message in (([], "must be of strings"), (["a", ""], "must be of strings"), (["a", "ab"], "beginning")):
        with pytest.raises(ValueError, match=message):
            grammar_of(strings, "bad")
