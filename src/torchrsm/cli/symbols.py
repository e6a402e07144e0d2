"""What ``evaluate`` and ``dream`` do with a model of symbols: score its guesses, let it write strings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torchrsm.runs.record import training_summary
from torchrsm.scoring.symbols import SymbolScores, evaluate_symbols, write_strings
from torchrsm.scoring.words import HEARD, WordScores, expected_by, score_words, write_words
from torchrsm.storage.tensors import write_atomically
from torchrsm.streams.settings import GrammarConfig, WordsConfig, symbol_stream
from torchrsm.streams.splits import TEST_SEED, Split, held_out_symbols
from torchrsm.streams.words import END
from torchrsm.systems import load

SYMBOLS = 500  # of each of the streams that are scored


def require_usual(command: Any, usual: Any, names: Iterable[str]) -> None:
    """Raise a ValueError unless the flags that are about frames are as in a command without any."""
    for name in names:
        if getattr(command, name) != getattr(usual, name):
            raise ValueError(f"{name} is about frames, and {command.model} is a model of symbols")


def _write_text(out: Path, lines: list[str]) -> None:
    """Write lines to a text file, and print the first.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(out, ("\n".join(lines) + "\n").encode())
    print("\n".join(lines[:10]))


def _require_text(out: Path) -> None:
    if out.suffix.lower() != ".txt":
        raise ValueError(f"out must end in .txt for a model of symbols; got {str(out)!r}")


def score_symbols(
    model: str, stream: GrammarConfig, split: Split, streams: int, json_file: Path | None, device: str
) -> None:
    """Score the guesses of a model on strings that it never learned from, and print the table.

    Args:
        model: its folder.
        stream: what it learned from.
        split: of the strings and of handwritten digits.
        streams: strings side by side, each of `SYMBOLS` symbols.
        json_file: where the scores are written, too; None for nowhere.
        device: where the model computes.
    """
    predictor: Any = load(model, device=device)
    scores = evaluate_symbols(predictor, held_out_symbols(stream, split, streams), SYMBOLS, model=model)
    _report(scores.model_copy(update={"training": training_summary(model)}), json_file)


def score_text(model: str, stream: WordsConfig, split: Split, json_file: Path | None, device: str) -> None:
    """Score how well a model expects the words of a text that it never learned from, and print the table.

    Args:
        model: its folder.
        stream: what it learned from.
        split: of the text. The mixture with a cache is chosen on the validation part in any case.
        json_file: where the scores are written, too; None for nowhere.
        device: where the model computes.
    """
    predictor: Any = load(model, device=device)
    coded = stream.coded()
    validation = expected_by(predictor, coded, "validation")
    scored = validation if split == "validation" else expected_by(predictor, coded, split)
    _report(score_words(model, validation, scored, len(coded.text.words), training_summary(model)), json_file)


def _report(scores: SymbolScores | WordScores, json_file: Path | None) -> None:
    """Print scores, and write them where that was asked for."""
    if json_file is not None:
        write_atomically(json_file, (scores.model_dump_json(indent=2) + "\n").encode())
    print(scores.table())
    if json_file is not None:
        print(f"scores: {json_file}")


def dream_text(model: str, stream: WordsConfig, out: Path, words: int, seed: int | None, device: str) -> None:
    """Let a model write a text, word by word, and print its beginning.

    Args:
        model: its folder.
        stream: what it learned from.
        out: the file, text; a sentence a line.
        words: how many it writes.
        seed: of the draws; None for that of the test.
        device: where the model computes.

    Raises:
        ValueError: the file is no text.
    """
    _require_text(out)
    coded = stream.coded()
    written = write_words(load(model, device=device), coded, words, TEST_SEED if seed is None else seed)
    lines = "".join("\n" if word == END else f"{word} " for word in written)
    _write_text(out, [line.strip() for line in lines.splitlines()])
    print(f"{words} words after {HEARD} of {stream.path}: {out}")


def dream_strings(
    model: str, stream: GrammarConfig, out: Path, strings: int, longest: int, seed: int | None, device: str
) -> None:
    """Let a model write strings, one a line, and print how many the grammar allows.

    Args:
        model: its folder.
        stream: what it learned from.
        out: the file, text.
        strings: how many.
        longest: most symbols of one.
        seed: of the draws and of what the model hears first; None for that of the test.
        device: where the model computes.

    Raises:
        ValueError: the file is no text.
    """
    _require_text(out)
    chance = TEST_SEED if seed is None else seed
    heard = symbol_stream(stream, strings, chance, "test", dephased=False)
    written = write_strings(load(model, device=device), heard, longest, chance)
    allowed = sum(one.grammatical for one in written)
    joint = "" if all(len(symbol) == 1 for symbol in heard.grammar.symbols) else " "
    lines = [joint.join(one.symbols) + ("" if one.grammatical else "  not allowed") for one in written]
    _write_text(out, lines)
    print(f"{allowed} of {len(written)} strings are allowed by {heard.grammar.name}: {out}")
