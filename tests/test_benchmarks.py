import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch

from torchrsm import PRESETS, Evaluator, Trainer, VideoPredictor, bouncing_ball_frames, load, preset, shipped_models
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rectifiers.local import LocalConfig
from torchrsm.rectifiers.paper import PaperConfig
from torchrsm.rsm import kernels
from torchrsm.runs.checkpoint import CHECKPOINT_FILE, load_checkpoint
from torchrsm.runs.settings import RunConfig, load_run_config
from torchrsm.streams.settings import BouncingBallsConfig, TwoWayBallsConfig, VariedBallsConfig, outside
from torchrsm.streams.splits import frames_sha256

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
    sees, learns = module.described("balls-window")
    assert sees == (
        "stack: the last 4 frames, and a memory; rectifier: the last 4 frames, the stack's prediction, its winners"
    )
    assert learns.endswith("rectifier: backpropagation through its own layers")
    assert module.described("paper-rectifier")[0].endswith("; rectifier: the stack's prediction")
    assert module.described("paper-fast") == ("each frame once, and a memory", "each layer from its own error")
    assert module.described("simvp")[0] == "the last 4 frames"
    assert module.described("predrnn")[1] == "backpropagation through 8 frames"
    assert module.described("unet") == module.described("simvp")
    parts = benchmark("ablation")
    rows = {row.name: row.run for row in parts.rows_of(preset("balls-wide"))}
    without = {
        "each frame once, and a memory": rows["system"],
        "each frame once, and a memory, but no feedback": rows["no-feedback"],
        "each frame once, and of the past what the layer above feeds back": rows["no-memory"],
        "each frame once, and neither memory nor feedback": parts.without_recurrence(rows["no-feedback"]),
        "each frame once, and no memory": rows["one-layer-no-memory"],
    }
    for said, run in without.items():
        assert module.run_described(run)[0] == f"stack: {said}; rectifier: the stack's prediction, its winners"


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


def test_a_run_is_killed_as_often_in_each_phase(monkeypatch, capsys) -> None:
    module = benchmark("kills")
    monkeypatch.setattr(module.law, "KILLS", dict(module.law.KILLS))
    law = create_autospec(module.law.test_random_kills_change_nothing)
    law.side_effect = lambda folder, learns: print(folder.exists(), module.law.KILLS[learns])
    monkeypatch.setattr(module.law, "test_random_kills_change_nothing", law)
    monkeypatch.setattr("sys.argv", ["kills", "--kills", "3"])
    module.main()
    assert [call.args[1] for call in law.call_args_list] == ["stack", "stack and rectifier"]
    first, said, *_ = capsys.readouterr().out.splitlines()
    assert first == "True 3"
    assert said == "stack: 3 kills, every resumed run bit-identical to the undisturbed one"


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


@pytest.mark.parametrize("name", shipped_models())
def test_the_card_says_what_a_shipped_model_sees(name: str) -> None:
    paragraph = benchmark("ship_model").sight(load_run_config(ROOT / "models" / name))
    assert f"\n\n{paragraph}\n\n" in (ROOT / "models" / name / "card.md").read_text()


def test_a_card_names_what_stack_and_rectifier_see() -> None:
    sight = benchmark("ship_model").sight
    window, alone = (" ".join(sight(preset(name)).split()) for name in ("balls-window", "balls"))
    assert "The rectifier (`unet`) reads the last 4 frames, the stack's prediction and the winners" in window
    assert "The rectifier (`unet`) reads the stack's prediction and the winners of its layers." in alone
    assert "Cells and channels are tied to their turned and mirrored copies" in alone
    assert "tied" not in window
    published = preset("balls").replace(**{"model.rectifier": PaperConfig()})
    assert "Cells are tied to their turned and mirrored copies" in " ".join(sight(published).split())


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


# --- Ablation ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ablation(monkeypatch, tmp_path):
    """The benchmark on a small system; a function that runs it and returns its results."""
    module = benchmark("ablation")
    layers = {"model.layers.0.groups": 24, "model.layers.0.active_groups": 4, "model.layers.1.groups": 12}
    small = preset("balls-wide").replace(
        name="small", **layers, **{"model.rectifier": CompactConfig(width=6, blocks=1)}
    )
    monkeypatch.setitem(PRESETS, "small", lambda: small)
    monkeypatch.setattr(module, "DREAM_STEPS", 3)
    monkeypatch.setattr("rectifiers.GAINS", (1.5,))
    out = tmp_path / "ablation"

    def run(*arguments, minutes="0.005"):
        options = ["--system", "small", "--minutes", minutes, "--sequences", "2", "--out", str(out)]
        module.main([*options, "--json", str(tmp_path / "ablation.json"), *arguments])
        return json.loads((tmp_path / "ablation.json").read_text())

    run.module, run.out = module, out
    return run


def test_the_ablation_trains_and_scores_each_row_once(ablation, monkeypatch, tmp_path, capsys) -> None:
    names = "stack,sharpening,system,frames-alone,memory-zeroed,shuffled-cells"
    result = ablation("--rows", names, "--seeds", "0")
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == names.split(",")
    assert (result["system"], result["minutes"], result["sequences"]) == ("small", 0.005, 2)
    trained = {path.name for path in (ablation.out / "runs").iterdir()}
    assert trained == {"stack-seed-0", "system-seed-0", "frames-alone-seed-0"}
    for row in rows.values():
        (seed,) = row["seeds"]
        assert seed["minutes"] >= 0
        assert seed["frames"] > 0
        assert 1 < seed["all_predictable"][0] < 900
    errors = {name: row["seeds"][0]["all_predictable"] for name, row in rows.items()}
    raw = {name: row["seeds"][0]["raw"] for name, row in rows.items()}
    assert raw["sharpening"] == pytest.approx(errors["stack"])
    assert raw["shuffled-cells"] == pytest.approx(raw["system"])
    assert errors["shuffled-cells"] != errors["system"]
    assert raw["memory-zeroed"] != raw["system"]
    assert raw["stack"] is raw["frames-alone"] is None
    assert rows["memory-zeroed"]["sees"] == "as `small`, but no memory"
    assert rows["sharpening"]["learns"] == "stack: each layer from its own error; rectifier: nothing"
    assert rows["frames-alone"]["sees"] == "the last 4 frames"

    before = {path: path.stat().st_mtime_ns for path in ablation.out.glob("*/**/*") if path.is_file()}
    capsys.readouterr()
    again = ablation("--rows", "stack", "--seeds", "0,1")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    said = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\S+ seed \d+: ", line)]
    assert [line.split(":")[0] for line in said] == ["stack seed 1"]
    assert [seed["seed"] for seed in again["rows"][0]["seeds"]] == [0, 1]
    assert again["rows"][1:] == result["rows"][1:]  # all that the folder holds

    pages = benchmark("results_table")
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    table = pages._ablation("ablation.json").splitlines()
    row = next(line for line in table if line.startswith("| recurrent weights set to 0 | "))
    times = errors["memory-zeroed"][0] / errors["system"][0]
    assert row.split(" | ")[1:3] == [f"{errors['memory-zeroed'][0]:.3f}", f"{times:.2f}"]
    stack = next(line for line in table if line.startswith("| the stack alone, raw | "))
    assert re.search(r"\| [\d.]+ \([\d.]+ to [\d.]+, 2\) \| ", stack)
    assert sum(line.startswith("| ") for line in table) == 6 + 2


def test_an_ablation_keeps_what_others_have_done_and_refuses_another_one(ablation, tmp_path) -> None:
    first = ablation("--rows", "stack", "--seeds", "0")
    shutil.rmtree(ablation.out)
    both = ablation("--rows", "system", "--seeds", "1")
    assert [row["name"] for row in both["rows"]] == ["stack", "system"]
    assert both["rows"][0] == first["rows"][0]
    with pytest.raises(SystemExit, match=r"ablation.json holds results with sequences = 2, these are with 3; name"):
        ablation("--rows", "system", "--seeds", "1", "--sequences", "3", "--out", str(tmp_path / "other"))


def test_an_interrupted_ablation_goes_on_where_it_was(ablation, monkeypatch) -> None:
    @contextlib.contextmanager
    def interrupting(name):
        yield lambda record: os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["trained"], "reporting", interrupting)
        with pytest.raises(KeyboardInterrupt, match="the checkpoint is saved"):
            ablation("--rows", "system", "--seeds", "0", minutes="0.02")
    folder = ablation.out / "runs" / "system-seed-0"
    stopped = load_checkpoint(folder / CHECKPOINT_FILE)[1]
    assert 0 < stopped["seconds"] < 0.02 * 60
    assert not list((ablation.out / "scores").iterdir())
    ablation("--rows", "system", "--seeds", "0", minutes="0.02")
    ended = load_checkpoint(folder / CHECKPOINT_FILE)[1]
    assert ended["step"] > stopped["step"]
    assert ended["seconds"] == pytest.approx(0.02 * 60, abs=1)


# --- Rectifiers -------------------------------------------------------------------------------------------------------


FOUR_STEPS = {"training.minutes": None, "training.steps": 4, "training.threads": 1}


def with_few_cells(name: str) -> RunConfig:
    run = preset(name)
    assert isinstance(run, RunConfig)
    return run.replace(
        **{"model.layers.0.groups": 32, "model.layers.1.groups": 16, "model.layers.0.recurrent_kernel_size": 3}
    )


def test_rectifiers_are_compared_on_one_stack(monkeypatch, tmp_path: Path) -> None:
    small = with_few_cells("balls").replace(**FOUR_STEPS)
    stack = tmp_path / "stack"
    Trainer(small, stack).run()
    module = benchmark("rectifiers")
    monkeypatch.setattr(module, "LONG_DREAM_STEPS", 4)
    monkeypatch.setattr(module, "DREAM_STEPS", 3)
    monkeypatch.setattr(module, "SAMPLES", 2)
    for kind, settings in (("unet", {"features": 16, "width": 16, "blocks": 1}), ("local", {"stages": 2, "width": 16})):
        monkeypatch.setitem(module.KINDS, kind, module.KINDS[kind] | settings)
    learned = ["unet-gan-0.02", "local-squared-error-motion", "local-energy-score"]
    options = ["--stack", str(stack), "--minutes", "0.004", "--sequences", "2", "--samples", "1", "--dreams", "1"]
    options += ["--rows", ",".join(["none", *learned]), "--seeds", "0", "--out", str(tmp_path / "out")]
    module.main([*options, "--json", str(tmp_path / "rectifiers.json")])
    rows = {row["name"]: row["seeds"][0] for row in json.loads((tmp_path / "rectifiers.json").read_text())["rows"]}
    assert list(rows) == ["none", *learned]
    assert {path.name for path in (tmp_path / "out" / "runs").iterdir()} == {f"{name}-seed-0" for name in learned}
    for name, row in rows.items():
        draws = name.endswith("energy-score")
        assert (row["calibration"] is not None) == (row["mean_error"] is not None) == draws
        assert 0 < row["energy_score"] < 30
        assert row["dream"]["steps"] == 3
        assert row["long_dream"]["steps"] == 4
    runs = {name: load_run_config(tmp_path / "out" / "runs" / f"{name}-seed-0") for name in learned}
    assert [run.rectifying.loop_share > 0 for run in runs.values()] == [False, True, False]
    assert runs["unet-gan-0.02"].rectifying.adversarial_weight == 0.02
    stacks = [load(tmp_path / "out" / "runs" / f"{name}-seed-0").stack.state_dict() for name in learned]
    for other in stacks:
        assert all(torch.equal(weight, other[name]) for name, weight in load(stack).stack.state_dict().items())


def test_rectifiers_are_compared_where_a_ball_turns_left_or_right(monkeypatch, tmp_path: Path) -> None:
    small = with_few_cells("balls").replace(**FOUR_STEPS, stream=TwoWayBallsConfig(resolution=16, speed=2.0))
    stack = tmp_path / "stack"
    Trainer(small, stack).run()
    module = benchmark("rectifiers")
    monkeypatch.setattr(module, "LONG_DREAM_STEPS", 4)
    monkeypatch.setattr(module, "DREAM_STEPS", 3)
    monkeypatch.setattr(module, "SAMPLES", 2)
    unet = {"features": 16, "width": 16, "blocks": 1}
    monkeypatch.setitem(module.KINDS, "unet", module.KINDS["unet"] | unet)
    file = tmp_path / "rectifiers-two-way.json"
    options = ["--stack", str(stack), "--minutes", "0.004", "--sequences", "2", "--samples", "1", "--dreams", "1"]
    options += ["--rows", "unet-squared-error,unet-energy-score", "--seeds", "0", "--out", str(tmp_path / "out")]
    module.main([*options, "--json", str(file)])
    result = json.loads(file.read_text())
    assert result["world"] == "balls that turn at a mark"
    assert result["energy"] == pytest.approx((0.5 * 2 * 1.6) ** 2)
    for row in result["rows"]:
        (seed,) = row["seeds"]
        assert seed["two_ways"]["crossings"] > 0
        assert seed["raw_error"] > 0
        assert seed["first_energy_score"] > 0
    tables = benchmark("results_table")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    table = tables._rectifiers()
    assert "| left | neither |" in table
    assert {line.count("|") for line in table.splitlines() if line.startswith("|")} == {15}


def test_local_stages_and_the_end_to_end_rectifier_cost_so_much(monkeypatch, capsys, tmp_path: Path) -> None:
    module = benchmark("rectifier_cost")
    small = with_few_cells("balls").replace(
        **{"model.rectifier.features": 16, "model.rectifier.width": 16, "model.rectifier.blocks": 1},
    )
    monkeypatch.setattr(module, "preset", lambda name: small)
    file = tmp_path / "cost.json"
    module.main(["--turns", "2", "--updates", "1", "--batch-size", "2", "--json", str(file)])
    first, local, shallow = json.loads(file.read_text())["rows"]
    assert first["ratio"] == 1
    for row in (first, local, shallow):
        assert row["seconds_per_frame"] > 0
        assert 0 < row["bytes"]["weights"] < row["bytes"]["optimisers"] + row["bytes"]["for_gradient"]
    assert shallow["bytes"]["for_gradient"] < local["bytes"]["for_gradient"]
    stages, whole = LocalConfig().stages, local["bytes"]["for_gradient"]
    assert whole / stages <= local["bytes"]["for_gradient_of_a_stage"] < whole / 2
    for arguments, message in ((["--turns", "1"], "turns must be >= 2; got 1"), (["--preset", "simvp"], "must be RSM")):
        monkeypatch.setattr(module, "preset", preset)
        with pytest.raises(SystemExit):
            module.main(arguments)
        assert message in capsys.readouterr().err


def test_memory_for_gradients_is_counted_once() -> None:
    module = benchmark("rectifier_cost")
    weight, x = torch.ones(5, 5, requires_grad=True), torch.ones(3, 5)
    with module.saved_bytes() as saved:
        hidden = (x @ weight).exp()  # keeps x and its own result
        (hidden * hidden).sum()  # keeps that result again
    assert saved() == 4 * (3 * 5 + 3 * 5)


def test_the_error_of_each_stage(tmp_path: Path) -> None:
    torch.manual_seed(0)
    few_stages = {"model.rectifier.stages": 3, "model.rectifier.width": 16}
    small = with_few_cells("balls-local").replace(**few_stages, **FOUR_STEPS)
    Trainer(small, tmp_path / "run").run()
    model = load(tmp_path / "run")
    module, frames = benchmark("stages"), bouncing_ball_frames("test", 3)
    raw, stages = module.errors_of_stages(model, frames, batch_size=2)
    scores = Evaluator(frames, similarity=False).evaluate(model)
    assert raw == pytest.approx(scores.raw_frame_squared_error.all_predictable.mean, rel=1e-5)
    assert stages[-1] == pytest.approx(scores.frame_squared_error.all_predictable.mean, rel=1e-5)
    assert len(set(stages)) == 3
    file, plot = tmp_path / "stages.json", tmp_path / "stages.png"
    options = [str(tmp_path / "run"), "--beside", "copy-last", "--sequences", "3"]
    module.main([*options, "--json", str(file), "--plot", str(plot)])
    written = json.loads(file.read_text())
    assert written["stages"] == pytest.approx(stages, rel=1e-5)
    assert written["beside"]["error"] == pytest.approx(11.8, abs=1)
    assert plot.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        module.main(["copy-last"])


def test_systems_learn_the_words_of_one_text(monkeypatch, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for name, count in (("train", 200), ("valid", 40), ("test", 40)):
        (text / f"{name}.txt").write_text("the cat sat on a mat\na dog ran\n" * (count // 2))
    module, file = benchmark("words"), tmp_path / "words.json"
    options = [str(text), "--minutes", "0.004", "--numbers", "4", "--json", str(file), "--out", str(tmp_path / "out")]
    module.main([*options, "--systems", "symbol-lstm", "--seeds", "0,1"])
    rows = {row["name"]: row["seeds"] for row in json.loads(file.read_text())["rows"]}
    assert [len(seeds) for seeds in rows.values()] == [1, 2]
    assert 1 < rows["kneser-ney-5"][0]["perplexity"] < 2
    assert rows["symbol-lstm"][0]["training"]["preset"] == "symbol-lstm"
    tables = benchmark("results_table")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    table = tables._words()
    assert "| kneser-ney-5 | 1." in table
    assert {line.count("|") for line in table.splitlines() if line.startswith("|")} == {5}
    with pytest.raises(SystemExit, match="text: text must be a folder or a file"):
        module.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "other")])


def test_the_brown_corpus_is_written_as_sentences(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    line = "\n\tThe/at Fulton/np-tl Jury/nn said/vbd ,/, in/in 1961/cd ,/, ``/`` no/at evidence/nn ''/'' ./.\n\n"
    for number in range(1, 21):
        (package / f"ca{number:02}").write_text(line)
    (package / "README").write_text("no file of the corpus")
    benchmark("brown_text").main([str(package), "--out", str(tmp_path / "brown")])
    assert (tmp_path / "brown" / "valid.txt").read_text() == "the fulton jury said in N no evidence\n"
    assert len((tmp_path / "brown" / "train.txt").read_text().splitlines()) == 18
    with pytest.raises(SystemExit, match="must hold files of the Brown corpus"):
        benchmark("brown_text").main([str(tmp_path / "brown"), "--out", str(tmp_path / "other")])


def test_rectifiers_need_a_stack(tmp_path: Path) -> None:
    module = benchmark("rectifiers")
    for stack, message in (("nowhere", "--stack: "), ("balls", "--rows must be of none, .*; got magic")):
        with pytest.raises(SystemExit, match=message):
            module.main(["--stack", stack, "--rows", "magic", "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("name", ["balls", "balls-wide", "balls-compact", "paper", "paper-1l"])
def test_the_rows_of_an_ablation_follow_the_system(name: str) -> None:
    base = preset(name)
    rows = {row.name: row for row in benchmark("ablation").rows_of(base)}
    several = len(base.model.layers) > 1
    assert ("no-feedback" in rows) == ("layers-1" in rows) == ("feedback-zeroed" in rows) == several
    assert ("shuffled-cells" in rows) == (name not in ("paper", "paper-1l"))
    assert rows["system"].run == base
    seen = {row.name: VideoPredictor(row.run.model).rectifier for row in rows.values() if row.name != "frames-alone"}
    assert seen["stack"] is None
    assert seen["prediction"].sees == seen["published-rectifier"].sees == ("prediction",)
    assert set(seen["last-frames"].sees) == {"prediction", "cells", "frames"}
    assert rows["last-frames"].run.model.layers[0].input_frames == rows["frames-alone"].run.model.context == 4
    for row in rows.values():
        if row.name != "frames-alone":
            recurrent = {layer.recurrent for layer in row.run.model.layers}
            assert recurrent == {not row.name.endswith("no-memory")}
            sizes = [(layer.groups, layer.active_groups, layer.kernel_size) for layer in row.run.model.layers]
            whole = [(layer.groups, layer.active_groups, layer.kernel_size) for layer in base.model.layers]
            assert sizes == (whole[:1] if row.name in ("layers-1", "one-layer-no-memory") else whole)
        if row.run.model is not base.model and hasattr(row.run, "rectifying") and row.run.rectifying is not None:
            assert row.run.rectifying.share == base.rectifying.share  # the stack has the same time in each
        assert all(row.described)
        assert row.run.stream == base.stream


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "simvp"], "--system must be RSM; got 'simvp'"),
        (["--system", "balls-1l", "--rows", "stack,no-feedback"], "--rows must be of stack, .*; got no-feedback"),
        (["--system", "paper-fast"], "--system: system must have a rectifier that learns; got 'paper-fast'"),
    ],
)
def test_wrong_options_of_the_ablation(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"^{message}$"):
        benchmark("ablation").main([*arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_wrong_numbers_of_the_ablation(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        benchmark("ablation").main(["--minutes", "0", "--out", str(tmp_path / "out")])
    assert "--minutes must be > 0; got 0" in capsys.readouterr().err


def test_a_folder_is_of_one_ablation(ablation) -> None:
    ablation("--rows", "stack", "--seeds", "0")
    with pytest.raises(SystemExit, match=r"was begun with minutes = 0\.005; it cannot go on with 5\.0$"):
        ablation("--rows", "stack", minutes="5")


def test_without_an_ablation_there_is_no_table_of_it(monkeypatch, tmp_path: Path) -> None:
    module = benchmark("results_table")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    assert module._ablation("ablation.json") == ""


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


def small_world(stream):
    """A small run of RSM for frames of any size."""
    layer = {"groups": 6, "active_groups": 2, "output_bias": "channel"}
    training = {"steps": 1, "batch_size": 2, "threads": 1}
    return RunConfig(name="small", model={"layers": [layer]}, learning={}, stream=stream, training=training)


def test_one_model_for_many_worlds_is_scored_beside_specialists(monkeypatch, tmp_path, capsys) -> None:
    module, pages = benchmark("worlds"), benchmark("results_table")
    presets = {
        "balls-any": small_world(VariedBallsConfig(radius=(1.0, 1.5), resolutions=(12, 30))),
        "balls": small_world(BouncingBallsConfig()),
    }
    monkeypatch.setattr(module, "preset", presets.__getitem__)
    worlds = {"published": BouncingBallsConfig(), "radius 0.8": BouncingBallsConfig(radius=0.8, resolution=12)}
    monkeypatch.setattr(module, "WORLDS", worlds)
    out = tmp_path / "worlds.json"
    arguments = ["worlds", "--steps", "4", "--sequences", "2", "--out", str(tmp_path / "runs"), "--json", str(out)]

    def run(*more: str):
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        module.main()
        return json.loads(out.read_text())

    assert len(run("--worlds", "published")["rows"]) == 3
    first = out.read_text()
    result = run()
    assert json.loads(first)["rows"] == result["rows"][:3]
    systems = [(row["world"], row["system"]) for row in result["rows"]]
    assert systems == [(world, name) for world in worlds for name in ("copy-last", "balls-any", "balls")]
    for row in result["rows"]:
        frames = bouncing_ball_frames("test", 2, worlds[row["world"]])
        assert row["frames_sha256_of_world"] == frames_sha256(frames)
        if row["system"] == "copy-last":
            error = (frames[:, 1:] - frames[:, :-1]).square().sum((2, 3, 4)).mean().item()
            assert row["frame_squared_error"]["mean"] == pytest.approx(error, rel=1e-4)
    said = {row["world"]: row["unseen"] for row in result["rows"] if row["system"] == "balls-any"}
    assert said["published"] is None
    assert "radius 0.8 (learned from 1 to 1.5)" in said["radius 0.8"]
    assert load_run_config(tmp_path / "runs" / "radius-0.8").stream == worlds["radius 0.8"]
    before = capsys.readouterr().out
    assert run() == result
    assert capsys.readouterr().out == ""
    assert "radius 0.8: balls" in before
    with pytest.raises(SystemExit):
        run("--seed", "1")
    assert "was begun with seed = 0; it cannot go on with 1" in capsys.readouterr().err

    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    table = pages._worlds_of_balls().splitlines()
    assert [line.split(" | ")[:2] for line in table[-2:]] == [
        ["| published", "3, 1.2, 30 x 30, x1"],
        ["| radius 0.8", "3, 0.8, 12 x 12, x1"],
    ]
    mixed, alone = (row["frame_squared_error"]["mean"] for row in result["rows"][1:3])
    assert table[-2].split(" | ")[5] == f"{mixed / alone:.2f}"
    assert "4 updates of training each on 1 core, seed 0" in table[0]
    out.unlink()
    assert pages._worlds_of_balls() == ""


def test_the_worlds_span_the_mixture() -> None:
    """None lies outside of it, and the ends of its ranges are among them."""
    module, mixture = benchmark("worlds"), preset("balls-any").stream
    spans = [world.span() for world in module.WORLDS.values()]
    assert not any(outside(mixture, world) for world in module.WORLDS.values())
    for name, (low, high) in mixture.span().items():
        assert {low, high} <= {span[name][0] for span in spans}
    assert {world.resolution for world in module.WORLDS.values()} <= set(mixture.resolutions)
    assert BouncingBallsConfig(radius=0.8) in module.WORLDS.values()


def test_systems_learn_on_line_and_a_second_call_does_nothing_twice(monkeypatch, capsys, tmp_path) -> None:
    module, pages = benchmark("online"), benchmark("results_table")
    arguments = ["--systems", "copy-last,convlstm-wide", "--seeds", "0", "--stretch", "20", "--out", str(tmp_path)]
    search = ["--search", "--search-frames", "20", "--factors", "0.5", "1"]
    monkeypatch.setattr("sys.argv", ["online", *arguments, "--frames", "40", *search])
    module.main()
    assert "| `copy-last` | x1 | " in capsys.readouterr().out
    rows = json.loads((tmp_path / "search.json").read_text())["rows"]
    assert [(row["system"], row["factor"]) for row in rows] == [("convlstm-wide", 0.5), ("convlstm-wide", 1.0)]
    best = min(rows, key=lambda row: row["mean"])["factor"]
    (run,) = json.loads((tmp_path / "constant" / "convlstm-wide-seed-0.json").read_text())["runs"]
    assert run["factor"] == best
    monkeypatch.setattr(module, "learn_on_line", None)
    module.main()
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["online", *arguments, "--frames", "60"])
        with pytest.raises(SystemExit, match="constant holds runs with other settings"):
            module.main()
    module = benchmark("online")
    monkeypatch.setattr("sys.argv", ["online", *arguments, "--drift", "--frames", "40", "--first", "10"])
    module.main()
    (away, back) = json.loads((tmp_path / "drift" / "copy-last-seed-0.json").read_text())["runs"][0]["changes"]
    assert (away["frame"], back["frame"]) == (40, 80)
    assert back["before"] == json.loads((tmp_path / "drift" / "copy-last-seed-0.json").read_text())["runs"][0]["end"]
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    for name, target in (("constant", "online"), ("drift", "online-drift"), ("search", "online-search")):
        (tmp_path / f"{name}.json").rename(tmp_path / f"{target}.json")
    said = pages._online()
    assert "5 balls of radius 0.8" in said
    assert f"`convlstm-wide` x0.5: {rows[0]['mean']:.2f}, x1: {rows[1]['mean']:.2f}." in said
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "nothing")
    assert pages._online() == ""
