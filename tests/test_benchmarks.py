import importlib.util
import json
from pathlib import Path

import pytest

from torchrsm import preset

ROOT = Path(__file__).parent.parent


def benchmark(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_say_what_the_result_files_say() -> None:
    module = benchmark("results_table")
    pages = module.pages()
    science = ROOT / "docs" / "science"
    assert set(pages) == {ROOT / "README.md", science / "results.md", science / "scaling.md"}
    for page in pages:
        assert module.updated(page) == page.read_text()


def test_the_table_of_the_readme_is_short_and_best_first() -> None:
    module = benchmark("results_table")
    *_, head, _, first, _, _, _, _, _, last = module.headline().splitlines()
    assert head == "| system | squared error | sees | learns by | alive |"
    rows = [line for line in module.headline().splitlines() if line.startswith("| `")]
    errors = [float(row.split("|")[2].split("±")[0]) for row in rows]
    assert (first, last) == (rows[0], rows[-1])
    assert len(rows) <= 7
    assert errors == sorted(errors)


def test_what_a_system_sees_and_how_it_learns_follows_its_settings() -> None:
    module = benchmark("results_table")
    sees, learns = module.described("balls")
    assert sees == (
        "stack: the last 4 frames, and a memory; rectifier: the last 4 frames, the stack's prediction, its winners"
    )
    assert learns.endswith("rectifier: backpropagation through its own layers")
    assert module.described("paper-rectifier")[0].endswith("; rectifier: the stack's prediction")
    assert module.described("paper-fast") == ("each frame once, and a memory", "each layer from its own error")
    assert module.described("simvp")[0] == "the last 4 frames"
    assert module.described("predrnn")[1] == "backpropagation through 8 frames"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_scores_are_of_the_fixed_test_sequences(path: Path) -> None:
    result = json.loads(path.read_text())
    if "frames_sha256" in result:
        assert result["frames_sha256"] in (ROOT / "docs" / "science" / "protocol.md").read_text()
        assert result["sequences"] == 200


def test_the_engine_benchmark_counts_and_times(monkeypatch, capsys, tmp_path) -> None:
    module = benchmark("engine_speed")
    monkeypatch.setattr(module, "peak", lambda threads: 1e9)
    arguments = ["--preset", "tiny", "--rounds", "1", "--fused-steps", "1", "--reference-steps", "1"]
    monkeypatch.setattr("sys.argv", ["engine_speed", *arguments, "--batch", "2", "--json", str(tmp_path / "x.json")])
    module.main()
    result = json.loads((tmp_path / "x.json").read_text())
    # At most every input of every window, every winner's row and every decoder row; frames are 12 x 12 and a border.
    below = 64 * (25 * 12 + 2 * 36 + 2 * 36 + 2 * 25)
    above = 4 * (9 * 8 * 10 + 2 * 20)
    assert 0.2 * below < result["forward_multiply_adds_per_frame"] <= below + above
    assert result["fused_frames_per_second"] > 0
    assert "median ratio" in capsys.readouterr().out


def test_the_costs_are_predicted_beside_what_is_measured(monkeypatch, capsys, tmp_path) -> None:
    module, pages = benchmark("scaling"), benchmark("results_table")
    monkeypatch.setattr(module, "ON_GPUS", (("paper", "stack", 30, 3, 8, 4), ("balls-wide", "rectifier", 30, 1, 1, 4)))
    arguments = ["--stacks", "tiny", "--pixels", "12", "20", "--batch", "4", "--steps", "5"]
    monkeypatch.setattr("sys.argv", ["scaling", *arguments, "--json", str(tmp_path / "scaling.json")])
    module.main()
    result = json.loads((tmp_path / "scaling.json").read_text())
    assert [(row["pixels"], row["ranks"]) for row in result["speeds"]] == [(12, 1), (20, 1), (12, 2), (20, 2)]
    for row in result["speeds"]:
        assert ("all-reduce" in row["milliseconds"]) == (row["ranks"] == 2)
        predicted = 4 / (sum(row["milliseconds"].values()) / 1000)
        assert row["predicted_frames_per_second"] == pytest.approx(predicted)
        assert row["ratio"] == pytest.approx(row["measured_frames_per_second"] / predicted)
    small, large = result["counts"]
    assert small["sparse"]["forward"] < small["dense"]["forward"] < large["dense"]["forward"]
    assert {row["rectifier"] for row in result["rectifiers"]} == {"compact", "unet", "paper"}
    several, alone = result["gpus"]
    assert several["milliseconds"]["all-reduce"] > alone["milliseconds"]["all-reduce"] == 0
    assert capsys.readouterr().out == module.tables(result) + "\n"
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    assert pages.costs() == module.tables(result)


def test_the_streams_of_the_costs_are_shared_out(monkeypatch) -> None:
    module = benchmark("scaling")
    monkeypatch.setattr("sys.argv", ["scaling", "--batch", "3"])
    with pytest.raises(SystemExit, match=r"^batch must be even, two processes share it; got 3$"):
        module.main()


def test_the_card_says_what_the_shipped_model_sees() -> None:
    paragraph = benchmark("ship_model").sight(preset("balls"))
    assert "The rectifier (`unet`) reads the last 4 frames, the stack's prediction and the winners" in " ".join(
        paragraph.split()
    )
    assert f"\n\n{paragraph}\n\n" in (ROOT / "models" / "balls" / "card.md").read_text()


SMALL = """import math

LIMIT: int = 3


def kept(values: list[int], least: float = 0.5) -> bool:
    \"\"\"Say 1 or 2 things.\"\"\"
    if not values or values[0] < least:
        raise ValueError(f"values must be > {least + 1}")
    return max(values) == LIMIT
"""


def test_a_mutation_run_changes_one_place_at_a_time(tmp_path: Path) -> None:
    module = benchmark("mutation")
    file = tmp_path / "src" / "torchrsm" / "small.py"
    file.parent.mkdir(parents=True)
    file.write_text(SMALL)
    found = module.mutants(tmp_path, "small.py")
    assert {(mutant.operator, mutant.number, mutant.becomes) for mutant in found} == {
        ("constant", 3, "LIMIT: int = 4"),
        ("default", 6, "def kept(values: list[int], least: float = 0.25) -> bool:"),
        ("boolean", 8, "if ((not values) and (values[0] < least)):"),
        ("sign", 8, "if (values) or values[0] < least:"),
        ("index", 8, "if not values or values[1] < least:"),
        ("comparison", 8, "if not values or (values[0] <= least):"),
        ("comparison", 8, "if not values or (values[0] >= least):"),
        ("statement", 9, "pass"),
        ("return", 10, "return not (max(values) == LIMIT)"),
        ("comparison", 10, "return (max(values) != LIMIT)"),
        ("extremum", 10, "return min(values) == LIMIT"),
    }
    for mutant in found:
        before, after = SMALL.splitlines(), mutant.applied(SMALL).splitlines()
        assert [number for number, pair in enumerate(zip(before, after, strict=True), 1) if len(set(pair)) > 1] == [
            mutant.number
        ]
    drawn = module.drawn(tmp_path, "small.py", 7, 0)
    assert len({mutant.operator for mutant in drawn}) == 7
    assert drawn == module.drawn(tmp_path, "small.py", 7, 0) != module.drawn(tmp_path, "small.py", 7, 1)


def test_a_mutation_run_keeps_what_it_found_in_other_modules(tmp_path: Path) -> None:
    module = benchmark("mutation")
    file, first, last = tmp_path / "mutation.json", {"module": "state.py"}, {"module": "model.py"}
    file.write_text(json.dumps({"seed": 0, "each": 3, "mutants": [{**first, "verdict": "survived"}, last]}))
    again = [{**first, "verdict": "killed"}]
    assert module.joined(file, {"seed": 0, "each": 3}, again) == [*again, last]
    assert module.joined(file, {"seed": 1, "each": 3}, again) == again
    assert module.joined(tmp_path / "new.json", {"seed": 0, "each": 3}, again) == again


def test_a_mutation_run_knows_its_files() -> None:
    module = benchmark("mutation")
    for name, tests in module.TESTS.items():
        assert (ROOT / "src" / "torchrsm" / name).is_file()
        assert all((ROOT / "tests" / test).is_file() for test in tests), name
