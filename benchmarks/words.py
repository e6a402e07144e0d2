"""Perplexity of systems that learn the words of one text for the same time, and of Kneser-Ney n-grams of it.

    python benchmarks/words.py TEXT --minutes 15 --seeds 0,1,2 --out runs/words [--systems NAME,...]

TEXT is a folder in the form of the Penn Treebank, or a file, see `torchrsm.streams.words`; benchmarks/brown_text.py
makes one. n-grams count the whole training part once. Each model is scored alone and mixed with a cache and with
chance, weights and decay of which are chosen on the validation part.

The same call goes on where one was interrupted; benchmarks/seeded.py says what the folder holds. After each row all of
that goes to benchmarks/results/words.json, from which benchmarks/results_table.py makes the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from torchrsm import load, preset
from torchrsm.baselines.ngram import count_sentences, expected_by_counts
from torchrsm.rsm import kernels
from torchrsm.runs.fitting import fit
from torchrsm.runs.record import training_summary
from torchrsm.runs.settings import RunConfig, equal_time
from torchrsm.scoring.words import WordScores, expected_by, score_words
from torchrsm.streams.settings import WordsConfig, frame_shape
from torchrsm.streams.words import CodedText

sys.path.insert(0, str(Path(__file__).parent))
from seeded import SeededResults, names, numbers
from trained import trained

RESULTS = Path(__file__).parent / "results"

SYSTEMS = ("words-boosted", "words-rsm", "symbol-lstm")

N_GRAM = "kneser-ney-5"

ORDER = 5


def counted(coded: CodedText) -> WordScores:
    """Count the n-grams of the training part, sentence by sentence, and score them."""
    counts = count_sentences(ORDER, coded.text)
    parts = [expected_by_counts(counts, coded.text, split) for split in ("validation", "test")]
    return score_words(N_GRAM, *parts, len(coded.text.words), None)


def learned(name: str, seed: int, options: argparse.Namespace, stream: WordsConfig, folder: Path) -> WordScores:
    """Train a system on the text, and score it."""
    run = fit(preset(name), frame_shape(stream), stream)
    time = equal_time(options.minutes, options.threads, seed)
    trained(run.replace(training=run.training.replace(**time)), folder)
    model, coded = load(folder), stream.coded()
    parts = [expected_by(model, coded, split) for split in ("validation", "test")]
    return score_words(name, *parts, len(coded.text.words), training_summary(folder))


def seed_result(seed: int, written: str) -> dict[str, Any]:
    """Return what the file of results holds of a row of a seed."""
    return {"seed": seed} | json.loads(written)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--systems", type=names, default=list(SYSTEMS), help="names of presets, with commas between")
    parser.add_argument("--minutes", type=float, default=15.0, help="of training, for each system and seed")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="of training, with commas between")
    parser.add_argument("--threads", type=int, default=1, help="of training and scoring")
    parser.add_argument("--vocabulary", type=int, default=10_000)
    parser.add_argument("--numbers", type=int, default=100, help="of the code of a word")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=RESULTS / "words.json")
    options = parser.parse_args(arguments)
    stream = WordsConfig(path=str(options.text), vocabulary=options.vocabulary, numbers=options.numbers)
    try:
        coded = stream.coded()
    except (ValueError, OSError) as error:
        raise SystemExit(f"text: {error}") from None
    shared = ("minutes", "threads", "vocabulary", "numbers")
    words = {split: len(coded.text.part(split)) for split in ("train", "validation", "test")}
    settings = {name: getattr(options, name) for name in shared} | {"text": options.text.name, "words": words}
    results = SeededResults(options.out, options.json, settings)
    rows = [{"name": N_GRAM, "rsm": False}]
    rows += [{"name": name, "rsm": isinstance(preset(name), RunConfig)} for name in options.systems]
    for seed in options.seeds:
        for row in rows:
            name = row["name"]
            if results.has(name, seed) or (name == N_GRAM and seed != options.seeds[0]):
                continue
            with kernels.threads_in_use(options.threads, torch_threads=options.threads):
                if name == N_GRAM:
                    scores = counted(coded)
                else:
                    scores = learned(name, seed, options, stream, results.run_folder(name, seed))
            results.keep(name, seed, scores.model_dump_json())
            print(f"{name} seed {seed}: {scores.perplexity:.1f}, with a cache {scores.with_cache:.1f}", flush=True)
            results.write(rows, seed_result)


if __name__ == "__main__":
    main()
