"""What ``evaluate`` and ``dream`` do with a model of symbols: score its guesses, let it write strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchrsm.runs.record import training_summary
from torchrsm.scoring.symbols import evaluate_symbols, write_strings
from torchrsm.storage.tensors import write_atomically
from torchrsm.streams.settings import GrammarConfig, symbol_stream
from torchrsm.streams.splits import TEST_SEED, Split, held_out_symbols
from torchrsm.systems import load

SYMBOLS = 500  # of each of the streams that are scored


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
    scores = scores.model_copy(update={"training": training_summary(model)})
    if json_file is not None:
        write_atomically(json_file, (scores.model_dump_json(indent=2) + "\n").encode())
    print(scores.table())
    if json_file is not None:
        print(f"scores: {json_file}")


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
    if out.suffix.lower() != ".txt":
        raise ValueError(f"out must end in .txt for a model of symbols; got {str(out)!r}")
    chance = TEST_SEED if seed is None else seed
    heard = symbol_stream(stream, strings, chance, "test", dephased=False)
    written = write_strings(load(model, device=device), heard, longest, chance)
    allowed = sum(one.grammatical for one in written)
    joint = "" if all(len(symbol) == 1 for symbol in heard.grammar.symbols) else " "
    lines = [joint.join(one.symbols) + ("" if one.grammatical else "  not allowed") for one in written]
    write_atomically(out, ("\n".join(lines) + "\n").encode())
    print("\n".join(lines[:10]))
    print(f"{allowed} of {len(written)} strings are allowed by {heard.grammar.name}: {out}")
