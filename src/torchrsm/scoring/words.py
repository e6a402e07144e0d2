"""Scores how well the words of a text are expected: perplexity, alone and mixed with a cache and with chance.

All that is chosen, the weights of the mixture and how fast the cache forgets, is chosen on the validation part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from torchrsm.predictor import Predictor, evaluation_mode
from torchrsm.scoring.symbols import log_probabilities
from torchrsm.streams.words import CodedText, TextSplit, WordStream

FloatArray = NDArray[np.float64]

READERS = 20
"""Places of a part that are read side by side, each to where the next one began."""

DECAYS = (0.99, 0.995, 0.998)
"""Of the cache, of which the best on validation is taken: how much a word counts after each further word."""

_REMEMBERED = 3000  # words of a cache; the oldest then count next to nothing

_EM_STEPS = 50

HEARD = 50
"""Words of a text that a model hears before it writes on."""


class Expected(NamedTuple):
    """How likely words were thought to be before they came, in rows that were read side by side.

    Attributes:
        words: their numbers, ``[rows, n]``; the first of a row is not scored.
        likely: ``[rows, n - 1]``, of the others.
    """

    words: NDArray[np.int64]
    likely: FloatArray


class WordScores(BaseModel):
    """What `score_words` measured.

    Attributes:
        model: its name.
        words: how many were scored.
        perplexity: of the model alone.
        with_cache: of its best mixture with a cache of the words before and with chance.
        weights: of model, cache and chance in that mixture.
        decay: of the cache.
        training: how the model was trained, as its run tells; None where that is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    words: int
    perplexity: float
    with_cache: float
    weights: tuple[float, float, float]
    decay: float
    training: dict[str, str | int | float] | None = None

    def table(self) -> str:
        """Return the scores as a text table."""
        model, cache, chance = self.weights
        return "\n".join(
            [
                f"{self.model} on {self.words:,} words that it never learned from",
                f"{'perplexity':<34}{self.perplexity:>9.2f}",
                f"{'mixed with a cache and with chance':<34}{self.with_cache:>9.2f}"
                f"   ({model:.3f} model, {cache:.3f} cache that keeps {self.decay:g} a word, {chance:.3f} chance)",
            ]
        )


def expected_by(predictor: Predictor[Any, Any], coded: CodedText, split: TextSplit) -> Expected:
    """Let a predictor read a part of a text without learning, and note how likely it thought each word to be.

    Args:
        predictor: whose predictions have ``symbols``.
        coded: the text.
        split: which part.

    Raises:
        ValueError: the predictor tells no words.
    """
    readers, steps = rows_of(len(coded.text.part(split)))
    stream = WordStream(coded, readers, split=split)
    words, likely = [], []
    with torch.inference_mode(), evaluation_mode(predictor):
        state = predictor.initial_state((readers, *stream.frame_shape))
        for _ in range(steps):
            batch = next(stream)
            assert batch.symbols is not None
            prediction = predictor.predict(state)
            words.append(batch.symbols)
            likely.append(log_probabilities(prediction).gather(1, batch.symbols[:, None])[:, 0].double().exp())
            state = predictor.observe(batch.frames.to(prediction.frame.device), prediction, state)
    return Expected(torch.stack(words, 1).numpy(), torch.stack(likely[1:], 1).numpy())


def rows_of(words: int) -> tuple[int, int]:
    """Return how many rows of a part are read side by side, and how long they are."""
    readers = max(1, min(READERS, words // 20))
    return readers, words // readers


def cached(words: NDArray[np.int64], decay: float) -> FloatArray:
    """Return how often each word but the first came in its row before, the latest counting most, ``[rows, n - 1]``.

    Args:
        words: ``[rows, n]``.
        decay: how much a word counts after each further word, 0 to 1.
    """
    rows, length = words.shape
    found = np.empty((rows, length - 1))
    for place in range(1, length):
        first = max(0, place - _REMEMBERED)
        weights = decay ** np.arange(place - first - 1, -1, -1.0)
        found[:, place - 1] = ((words[:, first:place] == words[:, place, None]) * weights).sum(1) / weights.sum()
    return found


def perplexity(likely: FloatArray) -> float:
    """Return the exponential of the mean of the negative logarithm of probabilities."""
    return math.exp(-float(np.log(np.maximum(likely, 1e-300)).mean()))


def mixture_weights(parts: Sequence[FloatArray]) -> FloatArray:
    """Return the weights of a mixture of probabilities under which what came is most likely (by EM), ``[parts]``.

    Args:
        parts: of one shape; one of them above 0 everywhere.
    """
    stacked = np.stack([part.ravel() for part in parts])
    weights = np.full(len(parts), 1 / len(parts))
    for _ in range(_EM_STEPS):
        shares = weights[:, None] * stacked
        weights = (shares / shares.sum(0)).mean(1)
    return weights


def score_words(
    model: str, validation: Expected, test: Expected, vocabulary: int, training: dict[str, str | int | float] | None
) -> WordScores:
    """Score expectations of the test part; the mixture is chosen by those of the validation part.

    Args:
        model: its name.
        validation, test: from `expected_by`.
        vocabulary: how many words there are.
        training: how the model was trained.
    """

    def parts(expected: Expected, decay: float) -> list[FloatArray]:
        return [expected.likely, cached(expected.words, decay), np.full(expected.likely.shape, 1 / vocabulary)]

    tried = []
    for decay in DECAYS:
        chosen = parts(validation, decay)
        weights = mixture_weights(chosen)
        tried.append((perplexity(np.tensordot(weights, np.stack(chosen), 1)), decay, weights))
    _, decay, weights = min(tried, key=lambda one: one[0])
    mixed = np.tensordot(weights, np.stack(parts(test, decay)), 1)
    return WordScores(
        model=model,
        words=test.likely.size,
        perplexity=perplexity(test.likely),
        with_cache=perplexity(mixed),
        weights=(float(weights[0]), float(weights[1]), float(weights[2])),
        decay=decay,
        training=training,
    )


def write_words(predictor: Predictor[Any, Any], coded: CodedText, words: int, seed: int = 0) -> list[str]:
    """Let a predictor go on with the test part of a text: it hears `HEARD` words, then those that it draws itself.

    Args:
        predictor: whose predictions have ``symbols``.
        coded: the text.
        words: to write, 1 or more.
        seed: of the draws, 0 to 2^62.

    Raises:
        ValueError: ``words`` is below 1, or the predictor tells no words.
    """
    if words < 1:
        raise ValueError(f"words must be >= 1; got {words}")
    stream = WordStream(coded, 1, split="test")
    generator, written = torch.Generator().manual_seed(seed), []
    with torch.inference_mode(), evaluation_mode(predictor):
        state = predictor.initial_state((1, *stream.frame_shape))
        for place in range(HEARD + words):
            prediction = predictor.predict(state)
            if place < HEARD:
                frame = next(stream).frames
            else:
                symbol = torch.multinomial(log_probabilities(prediction).exp(), 1, generator=generator)[:, 0]
                frame = stream.show(symbol)
                written.append(coded.text.words[int(symbol)])
            state = predictor.observe(frame.to(prediction.frame.device), prediction, state)
    return written
