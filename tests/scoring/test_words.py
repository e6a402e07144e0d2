"""Perplexity of words, a cache, and mixtures."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from torchrsm.baselines.ngram import count_sentences, expected_by_counts
from torchrsm.baselines.sequence_model import Predicted
from torchrsm.scoring.words import (
    Expected,
    cached,
    expected_by,
    mixture_weights,
    perplexity,
    score_words,
)
from torchrsm.streams.words import END, coded_text


@pytest.fixture
def coded(tmp_path):
    for name, count in (("train", 200), ("valid", 60), ("test", 60)):
        (tmp_path / f"{name}.txt").write_text("\n".join(["the cat sat", "a dog ran on"] * (count // 2)))
    return coded_text(tmp_path, numbers=4)


class Says(nn.Module):
    """Thinks that a word is as likely as it is told, and all others share the rest."""

    def __init__(self, words, word, likely):
        super().__init__()
        rest = (1 - likely) / (words - 1)
        self.logs = torch.full((words,), rest).index_fill(0, torch.tensor(word), likely).log()
        self.heard = []

    def initial_state(self, shape):
        return (torch.zeros(shape[0]),)

    def predict(self, state):
        batch = len(state[0])
        return Predicted(torch.zeros(batch, 4, 1, 1), symbols=self.logs.expand(batch, -1))

    def observe(self, frame, prediction, state):
        self.heard.append(frame)
        return state


def test_all_words_are_read_but_the_first_of_each_row(coded):
    words = len(coded.text.words)
    end = coded.text.words.index(END)
    model = Says(words, end, 0.5)
    expected = expected_by(model, coded, "test")
    rows, length = expected.words.shape
    assert rows * length <= len(coded.text.test) < rows * (length + 1)
    assert expected.likely.shape == (rows, length - 1)
    ends = expected.words[:, 1:] == end
    assert expected.likely[ends] == pytest.approx(0.5)
    assert expected.likely[~ends] == pytest.approx(0.5 / (words - 1))
    assert len(model.heard) == length


def test_counts_begin_each_sentence_anew(coded):
    counts, end = count_sentences(3, coded.text), coded.text.words.index(END)
    expected = expected_by_counts(counts, coded.text, "test")
    whole = expected_by(Says(len(coded.text.words), 0, 0.5), coded, "test")
    assert np.array_equal(expected.words, whole.words)
    first = expected.words[:, :-1] == end
    assert expected.likely[first].max() < 0.6  # one of two sentences
    inside = ~first & (np.roll(expected.words, 1, 1)[:, :-1] != end)
    assert np.median(expected.likely[inside]) > 0.9


def test_a_cache_counts_what_came_before():
    words = np.array([[3, 1, 3, 3], [0, 0, 1, 0]])
    assert cached(words, 1.0).tolist() == pytest.approx(np.array([[0, 1 / 2, 2 / 3], [1, 0, 2 / 3]]))
    halved = cached(words, 0.5)
    assert halved[0, 2] == pytest.approx((1 + 0.25) / 1.75)


def test_a_mixture_has_the_best_weights():
    draw = np.random.default_rng(0)
    came = draw.random(5000) < 0.3  # with probability 0.3 the first part knows, else the second
    parts = [np.where(came, 0.9, 0.01), np.where(came, 0.01, 0.9)]
    weights = mixture_weights(parts)
    assert weights.sum() == pytest.approx(1)
    best = min(np.linspace(0, 1, 101), key=lambda share: perplexity(share * parts[0] + (1 - share) * parts[1]))
    assert weights[0] == pytest.approx(best, abs=0.011)
    assert weights[0] == pytest.approx(came.mean(), abs=0.02)


def test_perplexity_is_the_inverse_of_a_constant_probability():
    assert perplexity(np.full((3, 4), 0.02)) == pytest.approx(50)
    assert math.isfinite(perplexity(np.zeros((1, 1))))


def test_scores_are_of_the_test_and_choices_of_the_validation():
    draw = np.random.default_rng(1)
    words = draw.integers(0, 5, (2, 200))
    poor = Expected(words, np.full((2, 199), 0.01))
    good = Expected(words, np.full((2, 199), 0.5))
    chosen_by_poor = score_words("m", poor, good, 10, None)
    assert chosen_by_poor.perplexity == pytest.approx(2)
    assert chosen_by_poor.weights[0] < 0.05  # validation says that the model knows nothing
    assert chosen_by_poor.with_cache > 3
    chosen_by_good = score_words("m", good, good, 10, None)
    assert chosen_by_good.weights[0] > 0.9
    assert sum(chosen_by_good.weights) == pytest.approx(1)
    assert chosen_by_good.words == 2 * 199
    assert "perplexity" in chosen_by_good.table()
