import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def benchmark(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_says_what_the_result_files_say() -> None:
    readme = (ROOT / "README.md").read_text()
    assert benchmark("results_table").updated(readme) == readme


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_scores_are_of_the_fixed_test_sequences(path: Path) -> None:
    result = json.loads(path.read_text())
    if "frames_sha256" in result:
        assert result["frames_sha256"] in (ROOT / "docs" / "protocol.md").read_text()
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
