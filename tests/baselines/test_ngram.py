"""N-grams: probabilities that add up, that follow the counts, and that back off."""

import math
import random

import pytest
import torch

from torchrsm.baselines.ngram import START, KneserNey, NGramPredictor
from torchrsm.scoring.symbols import evaluate_symbols
from torchrsm.streams import SymbolStream, named_grammar


def counted(order, sequences, symbols=4):
    model = KneserNey(order, symbols)
    for sequence in sequences:
        model.count(sequence)
    return model


def random_sequences(count=50, length=20, symbols=4):
    draw = random.Random(0)
    return [[draw.choices(range(symbols), [5, 3, 2, 0.2])[0] for _ in range(length)] for _ in range(count)]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("history", [[], [0], [3, 3, 3, 3], [START, START, 1, 0]])
def test_probabilities_add_up_to_one(order, history):
    model = counted(order, random_sequences())
    assert sum(model.probabilities(history)) == pytest.approx(1, abs=1e-12)
    assert min(model.probabilities(history)) > 0


def test_one_symbol_is_by_its_share():
    sequences = random_sequences(400)
    model = counted(1, sequences)
    counts = [sum(sequence.count(symbol) for sequence in sequences) for symbol in range(4)]
    assert model.probabilities([2]) == pytest.approx([count / sum(counts) for count in counts], abs=0.01)


def test_a_bigram_is_as_in_the_article():
    """By hand: counts of pairs with discounts, and below them how many symbols each was seen behind."""
    model = counted(2, [[0, 1, 0, 1, 0, 2], [0, 1, 1]], symbols=3)
    # Pairs, with the start: S0 2, 01 3, 10 2, 02 1, 11 1; too few kinds of counts for estimates.
    once, twice, more = 0.5, 0.75, 0.9
    # Seen behind how many: 0 behind S and 1, 1 behind 0 and 1, 2 behind 0: counts 2, 2, 1 of 5.
    below = [(2 - twice) / 5, (2 - twice) / 5, (1 - once) / 5]
    kept_below = (2 * twice + once) / 5
    below = [share + kept_below / 3 for share in below]
    kept = (more + once) / 4
    expected = [0 + kept * below[0], (3 - more) / 4 + kept * below[1], (1 - once) / 4 + kept * below[2]]
    assert model.probabilities([0]) == pytest.approx(expected)


def test_discounts_are_estimated_where_there_is_enough():
    sequences = random_sequences(300, 30, 4)
    model = counted(4, sequences)
    model.probability(0, [])
    one, two, more = model._discounts[-1]
    assert 0 < one < two < more < 3
    assert one != 0.5


def test_an_unknown_context_backs_off():
    model = counted(3, [[0, 1, 2] * 10, [0, 1, 2] * 10], symbols=4)
    assert model.probabilities([3, 1]) == pytest.approx(model.probabilities([1])[:4], rel=1e-9)
    assert model.probabilities([0, 1])[2] > 0.9


def test_a_longer_memory_is_better_where_it_matters():
    draw = random.Random(1)
    rows = [[first := draw.randrange(2), 2, 3, first] for _ in range(500)]
    train, test = rows[:400], rows[400:]

    def surprise(order):
        model = counted(order, train)
        return -sum(math.log(model.probability(row[3], row[:3])) for row in test) / len(test)

    assert surprise(4) < 0.1 < 0.6 < surprise(3)


def test_a_predictor_of_symbols_reaches_what_its_window_allows():
    grammar = named_grammar("digits-3")
    model = KneserNey(5, 4)
    stream = SymbolStream(grammar, 1, restarts=False, dephased=False)
    model.count([int(next(stream).symbols) for _ in range(600)])
    held_out = SymbolStream(grammar, 12, restarts=False, seed=1)
    scores = evaluate_symbols(NGramPredictor(model), held_out, 100)
    assert scores.accuracy.all == pytest.approx(grammar.ceiling(4).all, abs=0.02)
    assert scores.perplexity < 1.3
    with pytest.raises(ValueError, match="n-grams read frames of 4 x 1 x 1; got 1 x 28 x 28"):
        NGramPredictor(model).initial_state((2, 1, 28, 28))


def test_it_hears_the_last_symbols_alone():
    predictor = NGramPredictor(counted(3, random_sequences()))
    state = predictor.initial_state((1, 4, 1, 1))
    assert state.symbols.tolist() == [[START, START]]
    for symbol in (3, 1, 2):
        frame = torch.eye(4)[symbol].view(1, 4, 1, 1)
        state = predictor.observe(frame, predictor.predict(state), state)
    assert state.symbols.tolist() == [[1, 2]]


@pytest.mark.parametrize("arguments", [(0, 3), (2, 0)])
def test_bad_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match="must be >= 1; got 0"):
        KneserNey(*arguments)
    with pytest.raises(ValueError, match=r"symbols must be in 0\.\.2; got 3"):
        KneserNey(2, 3).count([0, 3])
