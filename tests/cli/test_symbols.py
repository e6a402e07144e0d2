"""Symbols on the command line: train, evaluate, dream, and what is refused."""

import contextlib
import io
import json

import pytest

from torchrsm.cli import main
from torchrsm.runs.settings import load_run_config

SMALL = ("--steps", "4", "--threads", "1", "--batch-size", "3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on the embedded Reber grammar; tests read it only."""
    folder = tmp_path_factory.mktemp("symbols") / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["train", "reber", "--out", str(folder), *SMALL, "--model.layers.0.groups", "30"]) == 0
    return folder


def test_scores_are_printed_and_written(run, tmp_path, capsys):
    scores = tmp_path / "scores.json"
    assert main(["evaluate", str(run), "--sequences", "5", "--json", str(scores)]) == 0
    printed = capsys.readouterr().out
    assert "best possible" in printed
    written = json.loads(scores.read_text())
    accuracy = written["accuracy"]
    assert set(accuracy) == {"all", "last", "ceiling", "ceiling_last", "by_position"}
    assert accuracy["ceiling_last"] == pytest.approx(1)
    assert accuracy["ceiling"] == pytest.approx(0.6818, abs=1e-4)
    assert 0 <= accuracy["all"] <= 1
    assert written["training"]["preset"] == "reber"
    assert f"{accuracy['all']:.2%}" in printed


def test_a_model_of_symbols_is_described(run, capsys):
    assert main(["info", str(run)]) == 0
    described = capsys.readouterr().out
    assert "7 channel(s), 1 x 1" in described
    assert "  head: 7 symbols, " in described


def test_splits_are_different_strings(run, tmp_path, capsys):
    found = []
    for split in ("test", "validation", "test"):
        assert main(["evaluate", str(run), "--sequences", "5", "--split", split]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[2] != found[1]


def test_a_model_writes_strings(run, tmp_path, capsys):
    out = tmp_path / "strings.txt"
    arguments = ["dream", str(run), "--sequences", "7", "--steps", "20", "--seed", "3", "--out", str(out)]
    assert main(arguments) == 0
    lines = out.read_text().splitlines()
    assert len(lines) == 7
    assert all(line.startswith("B") for line in lines)
    allowed = sum(not line.endswith("not allowed") for line in lines)
    assert f"{allowed} of 7 strings are allowed by the embedded Reber grammar" in capsys.readouterr().out
    assert main(arguments) == 0
    assert out.read_text().splitlines() == lines


@pytest.mark.parametrize("system", ["reber", "symbol-lstm", "window-network"])
def test_any_grammar_can_be_learned_by_any_system_that_names_symbols(tmp_path, system, capsys):
    file = tmp_path / "grammar.json"
    file.write_text(json.dumps({"states": {"a": [["x", 0.5, "b"], ["y", 0.5, "c"]], "b": [["z", 1, "c"]], "c": []}}))
    folder = tmp_path / "run"
    assert main(["train", "grammar", str(file), "--system", system, "--out", str(folder), *SMALL]) == 0
    run = load_run_config(folder)
    assert run.stream.grammar == str(file)
    assert main(["train", "grammar", str(file), "--system", system, "--resume", "--out", str(folder)]) == 0
    assert main(["evaluate", str(folder), "--sequences", "4"]) == 0
    assert "best possible" in capsys.readouterr().out


def test_digits_are_learned(tmp_path, capsys):
    folder = tmp_path / "run"
    few = ["--model.layers.0.groups", "30", "--model.layers.0.active-groups", "5"]
    assert main(["train", "digits-3", "--out", str(folder), *SMALL, *few]) == 0
    assert main(["evaluate", str(folder), "--sequences", "3"]) == 0
    assert main(["dream", str(folder), "--sequences", "2", "--out", str(tmp_path / "strings.txt")]) == 0
    assert "of 2 strings are allowed by digits-3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--rollout-steps", "5"], "rollout_steps is about frames"),
        (["--samples", "5"], "samples is about frames"),
        (["--disturbance.noise", "0.2"], "disturbance is about frames"),
        (["--world.balls", "2"], "world is about frames"),
    ],
)
def test_what_is_about_frames_is_refused(run, refused, flags, says):
    refused("evaluate", run, *flags, says=[says, "a model of symbols"])


def test_other_dreams_of_symbols_are_refused(run, tmp_path, refused):
    refused("dream", run, "--out", tmp_path / "dream.mp4", says=["out must end in .txt for a model of symbols"])
    refused("dream", run, "--out", tmp_path / "a.txt", "--prime", 3, says=["prime is about frames"])
    refused("dream", "copy-last", "--out", tmp_path / "a.txt", says=["out must not be a .txt for a model of frames"])


def test_bad_grammars_are_refused(tmp_path, refused):
    endless = tmp_path / "endless.json"
    endless.write_text(json.dumps({"states": {"a": [["x", 1, "b"]], "b": [["y", 1, "a"]]}}))
    for file, says in (
        (endless, "never ends"),
        (tmp_path / "nowhere.json", "grammar must be one of reber"),
        ("--steps", "train grammar needs a file first, or one of reber"),
    ):
        refused("train", "grammar", file, "--out", tmp_path / "run", says=[says])
    refused("train", "grammar", "reber", "--system", "balls", "--out", tmp_path / "run", says=["names symbols"])
    refused("train", "reber", "--model.head.symbols", 5, "--out", tmp_path / "run", says=["head.symbols must be 7"])
    refused("train", "balls", "--model.head.symbols", 5, "--out", tmp_path / "run", says=["head"])


def test_a_run_goes_on_with_its_own_grammar_alone(run, refused):
    refused("train", "grammar", "digits-3", "--system", "reber", "--resume", "--out", run, says=["was begun with the"])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A small text in the form of the Penn Treebank."""
    folder = tmp_path_factory.mktemp("text")
    for name, count in (("train", 300), ("valid", 60), ("test", 60)):
        lines = ["the cat sat on a mat", "a dog ran", "the <unk> slept"] * (count // 3)
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("system", ["words-boosted", "words-rsm", "symbol-lstm"])
def test_words_are_learned_scored_and_written(text, tmp_path, system, capsys):
    folder, scores, out = tmp_path / "run", tmp_path / "scores.json", tmp_path / "text.txt"
    small = ["--stream.numbers", "6", *SMALL]
    small += [] if system == "symbol-lstm" else ["--model.layers.0.groups", "90"]
    assert main(["train", "words", str(text), "--system", system, "--out", str(folder), *small]) == 0
    assert main(["evaluate", str(folder), "--json", str(scores)]) == 0
    assert "mixed with a cache and with chance" in capsys.readouterr().out
    written = json.loads(scores.read_text())
    assert 1 < written["with_cache"] < 1.1 * written["perplexity"] < 40
    assert main(["dream", str(folder), "--steps", "30", "--out", str(out)]) == 0
    known = {"the", "cat", "sat", "on", "a", "mat", "dog", "ran", "<unk>", "slept"}
    assert set(out.read_text().split()) <= known
    assert "30 words after 50 of" in capsys.readouterr().out
    assert main(["train", "words", str(text), "--system", system, "--resume", "--out", str(folder)]) == 0


def test_bad_texts_are_refused(text, tmp_path, refused):
    refused("train", "words", tmp_path / "nowhere", "--out", tmp_path / "run", says=["text must be a folder or a file"])
    refused("train", "words", "--out", tmp_path / "run", says=["train words needs a text first"])
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("train", "valid", "test"):
        (empty / f"{name}.txt").write_text("\n")
    refused("train", "words", empty, "--out", tmp_path / "run", says=["the train part of", "must have words"])
    refused("train", "words", text, "--system", "balls", "--out", tmp_path / "run", says=["names symbols"])
