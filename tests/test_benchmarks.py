import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from torchrsm import bouncing_ball_frames, load, preset
from torchrsm.rsm import kernels

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


@pytest.mark.no_cover
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


# --- The check of a GPU -----------------------------------------------------------------------------------------------


@pytest.mark.no_cover
def test_the_check_of_a_gpu_runs_to_its_end_on_the_cpu(tmp_path: Path, monkeypatch, capsys) -> None:
    module = benchmark("gpu_check")
    monkeypatch.setattr(sys, "path", [*sys.path])
    threads, published = kernels.threads(), ROOT / "benchmarks" / "results" / "gpu.json"
    before = published.read_bytes() if published.exists() else None
    code = module.main(["--device", "cpu", "--minutes", "10", "--out", str(tmp_path), "--published"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert kernels.threads() == threads
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found)[1:] == [*(name for name, _, _ in module.PARTS), "published_in_full"]
    checks = {name: check for part in list(found.values())[1:] for name, check in part.get("checks", {}).items()}
    assert len(checks) >= 14
    assert all(check["holds"] for check in checks.values())
    assert checks["Triton's winners are those of the reference"]["rows"] >= 1000
    assert all(row["frames_per_second"] > 0 for row in found["speed"]["frames_per_second"])
    assert len(found["kernels"]["balls-wide, both"]["longest"]) == module.ROWS
    first, *_, last = found["learning"]["curve"]
    assert first["frames"] < last["frames"]
    assert last["error"] < 93  # a black frame
    model = load(str(tmp_path / "balls-wide"))
    assert module.errors(model, bouncing_ball_frames("validation", 4)[:, :12])[0] == pytest.approx(last["error"])
    pieces = ["model.safetensors.00", "model.safetensors.01"]
    assert found["published_in_full"]["weights"] == ["config.json", *pieces]
    paper = tmp_path / "paper" / "model"
    (paper / "model.safetensors").write_bytes(b"".join((paper / piece).read_bytes() for piece in pieces))
    assert load(str(paper)).config == preset("paper").model
    assert (published.read_bytes() if published.exists() else None) == before  # figures of a CPU are no result
    module.main(["--device", "cpu", "--minutes", "1", "--out", str(tmp_path), "--only", "machine"])
    again = json.loads((tmp_path / "gpu.json").read_text())
    assert again == found


def test_a_part_that_fails_does_not_stop_the_check(tmp_path: Path, capsys) -> None:
    module = benchmark("gpu_check")
    file = tmp_path / "there" / "gpu.json"
    check = module.Check("cpu", 60.0, tmp_path, [file], "float32")
    seen = []

    def fails(check) -> None:
        check.found["so far"] = 1
        raise ZeroDivisionError("division of nothing")

    def finds(check) -> None:
        seen.append(json.loads(file.read_text()))  # what there is before this part has ended
        check.note("all is well", True)
        check.note("all is well with this", False, figure=0.25)

    def has_no_time(check) -> None:
        check.deadline = 0.0
        check.require_time()

    assert not check.run([("first", 1.0, fails), ("second", 1.0, finds), ("third", 1.0, has_no_time)])
    assert seen == [{"first": {"so far": 1, "error": "ZeroDivisionError: division of nothing"}}]
    found = json.loads(file.read_text())
    assert found["second"]["failed"] == ["all is well with this"]
    assert "left_out" in found["third"]
    out = capsys.readouterr().out
    assert "first FAILED: ZeroDivisionError: division of nothing" in out
    assert "FAILED all is well with this: figure 0.25" in out
    assert check.run([("fourth", 1.0, lambda check: check.note("all is well", True))])


def test_all_that_is_timed_on_a_gpu_has_its_phase(tmp_path: Path) -> None:
    module = benchmark("gpu_check")
    check = module.Check("cpu", 60.0, tmp_path, [], "float32")
    check.small = False
    cases = module.speed_cases(check)
    assert cases[0][0] == "paper"
    assert {case[0] for case in cases} == {"paper", "balls-wide", "simvp", "predrnn", "convlstm-wide"}
    for _, run, phase, *_ in cases[:11]:
        assert phase in module.phases(module.make_learner(run, check, 4, captured=False))


def test_the_time_of_the_check_is_shared_out(tmp_path: Path) -> None:
    module = benchmark("gpu_check")
    check = module.Check("cpu", 100.0, tmp_path, [], "float32")
    check.small = False
    left = []
    parts = [(name, share, lambda check: left.append(check.seconds_left)) for name, share in (("a", 1.0), ("b", 3.0))]
    check.run(parts)
    first, second = left
    assert 15 < first <= 25
    assert 75 < second <= 100  # what a part leaves goes to the next ones


def test_the_check_says_what_to_bring() -> None:
    module = benchmark("gpu_check")
    with pytest.raises(
        SystemExit, match="^missing: no_such_thing, nor_this; .*pip download .* no_such_thing nor_this'"
    ):
        module.bring_in(["numpy", "no_such_thing", "nor_this"], [])
    with pytest.raises(SystemExit, match="^--wheels must be a folder with wheels in it; got nowhere$"):
        module.unpack_wheels(Path("nowhere"), Path("nowhere"))


def test_a_wheel_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "half-1-py3-none-any.whl").write_bytes(b"PK")
    with pytest.raises(SystemExit, match="^--wheels must hold whole wheels; half-1-py3-none-any.whl: "):
        benchmark("gpu_check").unpack_wheels(tmp_path, tmp_path / "to")


def test_the_check_runs_where_packages_are_missing(tmp_path: Path) -> None:
    """On a path without what is spared, and with pydantic and its binary core as wheels."""
    site, wheels = tmp_path / "site", tmp_path / "wheels"
    site.mkdir()
    wheels.mkdir()
    brought = ("pydantic", "pydantic_core")
    installed = Path(torch.__file__).parents[1]
    for place in {installed, *(Path(importlib.util.find_spec(name).origin).parents[1] for name in brought)}:  # type: ignore[union-attr,arg-type]
        for entry in place.iterdir():
            if entry.name not in (*benchmark("gpu_check").SPARED, *brought, "torchrsm") and entry.suffix != ".pth":
                (site / entry.name).symlink_to(entry)
    for name in brought:
        folder = Path(importlib.util.find_spec(name).origin).parent  # type: ignore[union-attr,arg-type]
        with zipfile.ZipFile(wheels / f"{name}-1-any.whl", "w") as wheel:
            for file in folder.rglob("*"):
                if file.suffix != ".pyc" and file.is_file():
                    wheel.write(file, file.relative_to(folder.parent))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = str(ROOT / "benchmarks" / "gpu_check.py")
        command = [sys.executable, "-S", script, "--device", "cpu", "--out", str(tmp_path / "out"), *arguments]
        environment = {"PYTHONPATH": str(site), "TMPDIR": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    without = run()
    assert without.returncode == 1
    assert without.stderr.startswith("missing: pydantic; ")
    assert without.stderr.count("\n") == 1
    done = run("--wheels", str(wheels), "--only", "machine,law")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not installed and not called: PIL, av, " in done.stdout
    assert "2 wheels of " in done.stdout
    assert not list(tmp_path.glob("wheels-*"))


def test_large_files_are_cut(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "config.json").write_bytes(b"{}")
    names = benchmark("gpu_check").in_small_files(tmp_path, limit=1000)
    assert names == ["config.json", *(f"model.safetensors.{number:02}" for number in range(3))]
    assert b"".join((tmp_path / name).read_bytes() for name in names[1:]) == data


def test_the_published_run_is_extrapolated(tmp_path: Path) -> None:
    module = benchmark("gpu_check")
    check = module.Check("cpu", 60.0, tmp_path, [], "float32")
    row = {"system": "paper", "captured": True}
    rows = [{**row, "phase": "stack", "frames_per_second": value} for value in (160_000.0, 256_000.0)]
    rows += [{**row, "phase": "rectifier", "frames_per_second": 64_000.0}]
    rows += [{**row, "phase": "rectifier", "frames_per_second": 1e9, "captured": False}]
    check.results["speed"] = {"frames_per_second": rows}
    module.published(check)
    assert check.found["minutes_by_phase"] == {"stack": pytest.approx(200 / 60), "rectifier": pytest.approx(200 / 60)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes must be > 0; got 0"),
        (["--only", "speed,fast"], "--only must be of machine, parity, .*; got fast"),
    ],
)
def test_wrong_options_of_the_check(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit):
        benchmark("gpu_check").options_of(arguments)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_the_check_without_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(
        SystemExit, match="^--device must be one that is there; got cuda, and torch sees no CUDA device$"
    ):
        benchmark("gpu_check").main([])
