"""The command that says whether all is well."""

import re

import pytest

from torchrsm import __version__
from torchrsm.cli import doctor, main
from torchrsm.storage.shipped import shipped_models


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(doctor, "_SPEED_SECONDS", 0.05)
    monkeypatch.setattr(doctor, "_FRAMES", 8)


def test_all_is_well(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all is well"
    said = {line[:22].strip(): line[22:] for line in lines}
    assert said["torchrsm"] == __version__
    assert "torch 2." in said["packages"]
    assert "missing" not in said["packages"]
    assert re.search(r"\d+ at hand; \d+ threads are used", said["cores"])
    assert said["computes on"].startswith("cpu, engine ")
    assert "chooses the winners of the reference" in said["engine"]
    for name in shipped_models():
        assert re.match(r"error 0\.\d+ a frame", said[f"model {name}"])
    assert re.search(r"dreams \d+ frames/s", said["speed"])


def test_what_is_wrong_is_said_and_the_rest_is_tried(capsys, monkeypatch):
    def broken(name, device):
        raise OSError("the disk is gone")

    monkeypatch.setattr(doctor, "_model", broken)
    assert main(["doctor"]) == 1
    output, error = capsys.readouterr()
    assert output.count("FAILED: OSError: the disk is gone") == len(shipped_models())
    assert "chooses the winners of the reference" in output
    assert "all is well" not in output
    assert error == f"torchrsm: {len(shipped_models())} of the trials failed\n"


def test_an_engine_that_chooses_other_winners_is_found(monkeypatch):
    layer = doctor.RSMLayer.predict

    def wrong(self, state, feedback=None, chance=None):
        prediction = layer(self, state, feedback, chance)
        if self.engine == "auto":
            return prediction._replace(cells=prediction.cells._replace(index=prediction.cells.index.flip(-1)))
        return prediction

    monkeypatch.setattr(doctor.RSMLayer, "predict", wrong)
    with pytest.raises(ArithmeticError, match="the engine chooses other winners than the reference"):
        doctor._engine(doctor.choose_device("cpu"))


def test_an_error_that_does_not_fall_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "_UPDATES", 8)
    monkeypatch.setattr(doctor, "float", lambda value: 1.0, raising=False)
    with pytest.raises(ArithmeticError, match="the error must fall within 8 updates"):
        doctor._learning(doctor.choose_device("cpu"))


def test_a_device_that_is_not_there_is_one_line(capsys):
    assert main(["doctor", "--device", "cuda:99"]) == 2
    assert "device must be auto or one that is there" in capsys.readouterr().err
