"""Scores of symbols: what counts, beside what is possible."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from torchrsm.scoring.symbols import UNSCORED, evaluate_symbols, log_probabilities, write_strings
from torchrsm.streams import SymbolStream, named_grammar
from torchrsm.systems import load


class Told(NamedTuple):
    frame: Tensor
    symbols: Tensor | None


class Knows(nn.Module):
    """Follows the grammar and says how likely each symbol is; its memory may be shorter than that.

    A state is the row of symbols seen since the last start, as numbers, -1 for none.
    """

    def __init__(self, grammar, window=None, names=True):
        super().__init__()
        self.grammar, self.window, self.names = grammar, window, names

    def initial_state(self, shape):
        return (torch.full((shape[0], 200), -1),)

    def _likely(self, row):
        grammar = self.grammar
        seen = [grammar.symbols[symbol] for symbol in row.tolist() if symbol >= 0]
        likely = torch.full((len(grammar.symbols),), 1e-6)
        after = grammar.follows(seen) if self.window is None else None
        for step in grammar.states.get(after, ()):
            likely[grammar.symbols.index(step.symbol)] += step.probability
        return likely / likely.sum()

    def predict(self, state):
        likely = torch.stack([self._likely(row) for row in state[0]])
        frame = likely[:, :, None, None]
        return Told(frame, likely.log() if self.names else None)

    def observe(self, frame, prediction, state):
        symbol = frame[:, :, 0, 0].argmax(1, keepdim=True)
        return (torch.cat((state[0][:, 1:], symbol), 1),)


@pytest.mark.parametrize("names", [True, False])
def test_who_knows_the_grammar_reaches_the_ceiling(names):
    grammar = named_grammar("reber")
    scores = evaluate_symbols(Knows(grammar, names=names), SymbolStream(grammar, 40, seed=2), 200, model="knows")
    accuracy = scores.accuracy
    assert accuracy.last == accuracy.ceiling_last == 1
    assert accuracy.ceiling == pytest.approx(grammar.ceiling(first=False).all)
    assert accuracy.all == pytest.approx(accuracy.ceiling, abs=0.02)
    for place in accuracy.by_position:
        if place.symbols > 300:
            assert place.accuracy == pytest.approx(place.ceiling, abs=0.08), place
    assert accuracy.by_position[0].symbols == 0
    assert accuracy.by_position[0].accuracy is None
    assert sum(place.symbols for place in accuracy.by_position) == scores.symbols
    assert scores.perplexity == pytest.approx(1.56, abs=0.1)
    assert "knows on " in scores.table()
    assert "marked symbols" in scores.table()


def test_who_knows_nothing_guesses():
    grammar = named_grammar("reber")
    scores = evaluate_symbols(Knows(grammar, window=0), SymbolStream(grammar, 40, seed=2), 100)
    assert scores.perplexity == pytest.approx(7, rel=1e-3)
    assert scores.accuracy.all < 0.35


def test_without_marks_the_first_symbols_are_left_out():
    grammar = named_grammar("digits-8x9")
    stream = SymbolStream(grammar, 12, restarts=False)
    scores = evaluate_symbols(Knows(grammar, window=0), stream, UNSCORED + 18)
    assert scores.symbols == 12 * 18
    assert [place.symbols for place in scores.accuracy.by_position[:10]] == [24] * 9 + [0]
    assert scores.accuracy.ceiling == pytest.approx(8 / 9)
    with pytest.raises(ValueError, match=f"steps must be > {UNSCORED}; got {UNSCORED}"):
        evaluate_symbols(Knows(grammar, window=0), stream, UNSCORED)


def test_a_frame_tells_symbols_where_each_has_a_channel():
    told = log_probabilities(Told(torch.tensor([[[[0.2]], [[0.2]], [[0.0]]]]), None))
    assert told[0, :2].exp().tolist() == pytest.approx([0.5, 0.5])
    assert math.isfinite(told[0, 2])
    with pytest.raises(ValueError, match="the model must have a head, or frames with a channel for each symbol"):
        log_probabilities(Told(torch.zeros(1, 1, 28, 28), None))


def test_who_knows_the_grammar_writes_what_it_allows():
    grammar = named_grammar("reber")
    written = write_strings(Knows(grammar), SymbolStream(grammar, 30, dephased=False), seed=5)
    assert all(one.grammatical and one.given == 1 and one.symbols[0] == "B" for one in written)
    assert all(grammar.follows(one.symbols) == "over" for one in written)
    assert len({one.symbols for one in written}) > 5
    again = write_strings(Knows(grammar), SymbolStream(grammar, 30, dephased=False), seed=5)
    other = write_strings(Knows(grammar), SymbolStream(grammar, 30, dephased=False), seed=6)
    assert again == written != other


def test_who_knows_nothing_writes_what_it_does_not_allow():
    grammar = named_grammar("reber")
    written = write_strings(Knows(grammar, window=0), SymbolStream(grammar, 30, dephased=False))
    assert sum(one.grammatical for one in written) < 3
    for one in written:
        assert grammar.follows(one.symbols[:-1]) is not None  # it ends at the first symbol that is not allowed


def test_a_string_is_cut_off_at_its_longest():
    grammar = named_grammar("reber")
    written = write_strings(Knows(grammar), SymbolStream(grammar, 10, dephased=False), longest=4)
    assert {len(one.symbols) for one in written} == {4}
    assert all(one.grammatical for one in written)


def test_without_marks_whole_strings_are_heard_first():
    grammar = named_grammar("digits-3")
    stream = SymbolStream(grammar, 3, restarts=False, dephased=False)

    class Repeats(Knows):
        def _likely(self, row):
            seen = int((row >= 0).sum())
            symbol = grammar.symbols.index("012301230321"[seen % 12])
            return torch.nn.functional.one_hot(torch.tensor(symbol), 4).float()

    written = write_strings(Repeats(grammar), stream)
    assert ["".join(one.symbols) for one in written] == ["012301230321"] * 3
    assert all(one.given == 0 and one.grammatical for one in written)


def test_what_is_out_of_range_is_refused():
    grammar = named_grammar("reber")
    with pytest.raises(ValueError, match="longest must be >= 2; got 1"):
        write_strings(Knows(grammar), SymbolStream(grammar, 2, dephased=False), longest=1)
    with pytest.raises(ValueError, match="stream must not be de-phased"):
        write_strings(Knows(grammar), SymbolStream(grammar, 20))


def test_the_frame_before_can_be_scored():
    grammar = named_grammar("reber")
    scores = evaluate_symbols(load("copy-last"), SymbolStream(grammar, 20), 100)
    assert 0 < scores.accuracy.all < 0.3
