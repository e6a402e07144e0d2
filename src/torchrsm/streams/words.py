"""The words of a text, one after another, each as a code of numbers that words of like use share.

A text is a folder in the form of the Penn Treebank as language models use it, ``train.txt``, ``valid.txt`` and
``test.txt`` with a sentence on each line and blanks between words, or any single file, whose last tenth is held out.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from torchrsm.streams.stream import StreamBatch, require_integer, saved_step

TextSplit = Literal["train", "validation", "test"]

END = "<eos>"
"""Stands behind each sentence."""

UNKNOWN = "<unk>"
"""Stands for every word that is not in the vocabulary."""

_FILES: dict[TextSplit, tuple[str, ...]] = {
    "train": ("train.txt", "ptb.train.txt"),
    "validation": ("valid.txt", "validation.txt", "ptb.valid.txt"),
    "test": ("test.txt", "ptb.test.txt"),
}

_HELD_OUT = 20  # of a single file one of so many sentences is for validation, the last ones, and as many for the test

_LEAST_SENTENCES = 40

_SEED = 20190528  # of the directions that codes start from

_ROUNDS = 3  # of subspace iteration

IntArray = NDArray[np.int64]


class Text(NamedTuple):
    """A text as numbers.

    Attributes:
        words: the vocabulary, the most frequent word first.
        train, validation, test: the words of each part, by their numbers, with `END` behind each sentence.
    """

    words: tuple[str, ...]
    train: IntArray
    validation: IntArray
    test: IntArray

    def part(self, split: TextSplit) -> IntArray:
        """Return the words of a part."""
        parts: dict[TextSplit, IntArray] = {"train": self.train, "validation": self.validation, "test": self.test}
        return parts[split]


def read_text(path: Path | str, vocabulary: int = 10_000) -> Text:
    """Read a text and number its words.

    Args:
        path: a folder in the form of the Penn Treebank, or a file.
        vocabulary: most words, 2 or more, those that are most frequent in the training part; any other is `UNKNOWN`.

    Raises:
        ValueError: ``vocabulary`` is too small, a part has no words, a single file has too few sentences, or a file is
            no UTF-8.
        FileNotFoundError: there is no such file, or one of the folder is missing.
    """
    if vocabulary < 2:
        raise ValueError(f"vocabulary must be >= 2; got {vocabulary}")
    place = Path(path)
    sentences = _of_folder(place) if place.is_dir() else _of_file(place)
    for split, part in sentences.items():
        if not any(part):
            raise ValueError(f"the {split} part of {place} must have words; got none")
    counts = Counter(word for sentence in sentences["train"] if sentence for word in (*sentence, END))
    counts.pop(UNKNOWN, None)
    # Ties go to the word that comes first in the alphabet, so the numbers do not depend on the order of the text.
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    words = (*ranked[: vocabulary - 1], UNKNOWN)
    numbers = {word: number for number, word in enumerate(words)}
    unknown = numbers[UNKNOWN]

    def numbered(part: list[list[str]]) -> IntArray:
        row = (numbers.get(word, unknown) for sentence in part if sentence for word in (*sentence, END))
        return np.fromiter(row, np.int64)

    return Text(words, *(numbered(sentences[split]) for split in ("train", "validation", "test")))


def _of_folder(folder: Path) -> dict[TextSplit, list[list[str]]]:
    found: dict[TextSplit, list[list[str]]] = {}
    for split, names in _FILES.items():
        files = [folder / name for name in names if (folder / name).is_file()]
        if not files:
            raise FileNotFoundError(f"{folder} must hold {names[0]}, one sentence a line; there is none")
        found[split] = _sentences(files[0])
    return found


def _of_file(file: Path) -> dict[TextSplit, list[list[str]]]:
    if not file.is_file():
        raise FileNotFoundError(f"text must be a folder or a file; there is no {file}")
    sentences = [sentence for sentence in _sentences(file) if sentence]
    if len(sentences) < _LEAST_SENTENCES:
        raise ValueError(f"{file} must have >= {_LEAST_SENTENCES} sentences, one a line; got {len(sentences)}")
    part = len(sentences) // _HELD_OUT
    return {
        "train": sentences[: -2 * part],
        "validation": sentences[-2 * part : -part],
        "test": sentences[-part:],
    }


def _sentences(file: Path) -> list[list[str]]:
    try:
        return [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be text in UTF-8: {error}") from None


def learned_codes(words: IntArray, vocabulary: int, numbers: int, window: int = 5) -> NDArray[np.float32]:
    """Return a code for each word, from the words that stand near it.

    How much more often two words stand within ``window`` of each other than by chance (positive pointwise mutual
    information) makes a row for each word. The rows are projected to the directions in which they differ most, by
    subspace iteration from fixed directions, so the same text gives the same codes on any machine. Then each number is
    replaced by its rank among the words, so that a code is in 0..1 and spread evenly.

    Args:
        words: of the training part, ``[n]``.
        vocabulary: how many words there are.
        numbers: of a code, 1 or more, at most ``vocabulary``.
        window: words on each side that count.

    Returns:
        ``[vocabulary, numbers]`` in 0..1.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 1 <= numbers <= vocabulary:
        raise ValueError(f"numbers must be in 1..{vocabulary}, the words there are; got {numbers}")
    if window < 1:
        raise ValueError(f"window must be >= 1; got {window}")
    pairs = [words[:-distance] * vocabulary + words[distance:] for distance in range(1, window + 1)]
    keys, counts = np.unique(np.concatenate(pairs), return_counts=True)
    near = sparse.coo_array((counts.astype(np.float64), (keys // vocabulary, keys % vocabulary)), (vocabulary,) * 2)
    near = (near + near.T).tocoo()
    often = np.asarray(near.sum(1)).ravel()
    information = np.log(near.data * often.sum() / (often[near.row] * often[near.col]))
    kept = information > 0
    rows = sparse.csr_array((information[kept], (near.row[kept], near.col[kept])), (vocabulary,) * 2)
    directions = np.random.Generator(np.random.Philox(_SEED)).standard_normal((vocabulary, numbers))
    for _ in range(_ROUNDS):
        directions, _ = np.linalg.qr(rows @ (rows.T @ directions))
    return _ranked(rows @ directions)


def _ranked(codes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Replace each number of codes ``[words, numbers]`` by its rank among the words, in 0..1."""
    order = np.argsort(np.argsort(codes, axis=0, kind="stable"), axis=0, kind="stable")
    return (order / max(len(codes) - 1, 1)).astype(np.float32)


def given_codes(file: Path | str, words: Iterable[str]) -> NDArray[np.float32]:
    """Read a code for each word from a text file: a word and its numbers on each line, blanks between.

    Numbers are replaced by their ranks, as `learned_codes` does. A word that the file does not have gets the middle.

    Raises:
        ValueError: the file is no UTF-8, a line has no numbers, or another count of them than the first, or the file
            has none of the words.
        FileNotFoundError: there is no such file.
    """
    place, found, count = Path(file), {}, 0
    wanted = list(words)
    known = set(wanted)
    try:
        with place.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                word, *values = line.split()
                count = count or len(values)
                if not values or len(values) != count:
                    raise ValueError(f"{place}: line {number} must be a word and {count or 'its'} numbers")
                if word in known:
                    found[word] = [float(value) for value in values]
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} must be text in UTF-8: {error}") from None
    if not found:
        raise ValueError(f"{place} must have codes of words of the text; got none")
    codes = np.full((len(wanted), count), 0.5, np.float32)
    have = np.array([word in found for word in wanted])
    codes[have] = _ranked(np.array([found[word] for word in wanted if word in found]))
    return codes


class CodedText(NamedTuple):
    """A text and the code of each of its words, ``[words, numbers]`` in 0..1."""

    text: Text
    codes: NDArray[np.float32]


def coded_text(
    path: Path | str, vocabulary: int = 10_000, numbers: int = 100, window: int = 5, codes: Path | str | None = None
) -> CodedText:
    """Read a text with codes for its words: those of a file, or learned ones. What was read last is kept.

    Args:
        path, vocabulary: see `read_text`.
        numbers, window: of learned codes, see `learned_codes`.
        codes: a file for `given_codes`; None to learn them.

    Raises:
        ValueError, FileNotFoundError: as these functions.
    """
    files = [Path(path), *sorted(Path(path).glob("*.txt")), *([] if codes is None else [Path(codes)])]
    changed = tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)
    return _coded_text(str(path), vocabulary, numbers, window, None if codes is None else str(codes), changed)


@functools.lru_cache(maxsize=2)
def _coded_text(
    path: str, vocabulary: int, numbers: int, window: int, codes: str | None, changed: tuple[int, ...]
) -> CodedText:
    text = read_text(path, vocabulary)
    if codes is not None:
        return CodedText(text, given_codes(codes, text.words))
    return CodedText(text, learned_codes(text.train, len(text.words), numbers, window))


class WordStream:
    """An endless stream of the words of a part of a text, ``[b, numbers, 1, 1]``.

    Element i begins i / batch of the way through the text. Behind its last word the first comes again.

    Args:
        coded: the text.
        batch_size: elements, 1 or more, at most as many as there are words.
        split: of the text.

    Raises:
        ValueError: there are fewer words than elements.
    """

    def __init__(self, coded: CodedText, batch_size: int = 64, *, split: TextSplit = "train") -> None:
        self._words = coded.text.part(split)
        self._batch_size = require_integer("batch_size", batch_size, 1, len(self._words))
        self._codes = torch.from_numpy(coded.codes)
        self._begins = np.arange(batch_size, dtype=np.int64) * len(self._words) // batch_size
        digest = hashlib.sha256(self._words.tobytes() + coded.codes.tobytes()).hexdigest()
        self._settings = {"stream": "WordStream", "text": digest, "batch_size": self._batch_size, "split": split}
        self._step = 0

    @property
    def batch_size(self) -> int:
        """Number of places of the text that are read side by side."""
        return self._batch_size

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """The numbers of a code, as channels of frames of one pixel."""
        return (self._codes.shape[1], 1, 1)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamBatch:
        symbols = torch.from_numpy(self._words[(self._begins + self._step) % len(self._words)])
        starts = torch.full((self._batch_size,), self._step == 0)
        self._step += 1
        return StreamBatch(self.show(symbols), starts, torch.arange(self._batch_size), symbols=symbols)

    def show(self, symbols: torch.Tensor) -> torch.Tensor:
        """Return the codes of words ``[b]`` int64 as frames."""
        return self._codes[symbols][:, :, None, None]

    def state_dict(self) -> dict[str, Any]:
        """Return the position before the next batch: the settings and the batches played."""
        return {**self._settings, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` returned.

        Raises:
            ValueError: the position is not one of a stream with the same settings.
        """
        self._step = saved_step(state, self._settings)
