from torchrsm import PRESETS, load
from torchrsm.cli import main


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
