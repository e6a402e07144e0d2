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
    assert set(pages) == {ROOT / "README.md", ROOT / "docs" / "science" / "results.md"}
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


def test_the_card_says_what_the_shipped_model_sees() -> None:
    paragraph = benchmark("ship_model").sight(preset("balls"))
    assert "The rectifier (`unet`) reads the last 4 frames, the stack's prediction and the winners" in " ".join(
        paragraph.split()
    )
    assert f"\n\n{paragraph}\n\n" in (ROOT / "models" / "balls" / "card.md").read_text()
