import csv
import json

import pytest

from torchrsm import PRESETS, load
from torchrsm.baselines import WITHOUT_WEIGHTS
from torchrsm.cli import main
from torchrsm.storage.shipped import MODELS_FOLDER, shipped_models


def test_presets_are_listed_with_what_they_are(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert all(len(line.split()) > 4 for line in lines)


def test_info_describes_a_run_and_a_model(tmp_path, run, capsys):
    assert main(["info", str(run)]) == 0
    output = capsys.readouterr().out
    load(run).save(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    described = capsys.readouterr().out
    weights = sum(p.numel() for p in load(run).parameters())
    assert f"12 x 12, {weights:,} weights\n" in described
    assert "layer 2: 10 groups x 2 cells, 2 win, 3x3 stride 2" in described
    *model, training = output.replace(str(run), str(tmp_path)).splitlines()
    assert model == described.splitlines()
    assert training.split() == ["run:", "preset", "tiny,", "budget", "12", "steps,", "batch", "4,", "seed", "0"]


def test_info_says_nothing_of_a_run_with_broken_settings(tmp_path, run, refused):
    load(run).save(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    assert refused("info", tmp_path, says=[f"{tmp_path}/run.json: name must be given"]) == ""


@pytest.mark.parametrize("name", [*PRESETS, *WITHOUT_WEIGHTS, *shipped_models()])
def test_info_knows_every_name(capsys, name):
    assert main(["info", name]) == 0
    assert capsys.readouterr().out.splitlines()[0].removeprefix(str(MODELS_FOLDER) + "/").startswith(f"{name}: ")


def test_info_says_what_needs_no_weights_and_how_a_preset_is_trained(capsys):
    assert main(["info", "copy-last"]) == 0
    assert main(["info", "simvp"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "copy-last: copy-last, any size, no weights"
    assert second == "simvp: simvp, 1 channel(s), 30 x 30, 86,417 weights"
    assert third == "  run: preset simvp, budget 15 minutes, batch 8, seed 0"


def test_a_name_that_nobody_knows_lists_all(refused):
    refused("info", "bals", says=["shipped by name: balls", "baselines: copy-last", "presets: balls, balls-window"])


def test_evaluate_refuses_what_has_no_effect(refused):
    refused("evaluate", "copy-last", "--prime", 10, says=["prime needs rollout_steps >= 1; got 0 with prime 10"])
    refused("evaluate", "copy-last", "--layout", "nthw", says=["layout is that of frames from a file"])


def test_the_record_of_a_run_is_written_as_a_table(tmp_path, run, capsys, refused):
    table = tmp_path / "record.csv"
    assert main(["info", str(run), "--csv", str(table)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"record: {table}"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == len(records) > 1
    for row, record in zip(rows, records, strict=True):
        assert (row["phase"], int(row["step"])) == (record["phase"], record["step"])
        assert float(row["frame_squared_error"]) == record["frame_squared_error"]
        assert {name: float(row[name]) for name in record["losses"]} == record["losses"]
    assert [float(row["seconds"]) for row in rows] == sorted(float(row["seconds"]) for row in rows)
    refused("info", "balls", "--csv", tmp_path / "other.csv", says=["csv is for the folder of a run", "got 'balls'"])
    assert not (tmp_path / "other.csv").exists()
