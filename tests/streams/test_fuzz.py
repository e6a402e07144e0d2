import pytest
from fuzz_arrays import fuzz_arrays
from fuzz_pictures import fuzz_pictures


@pytest.mark.parametrize("seed", range(3))
def test_every_array_is_read_or_refused(tmp_path, seed):
    outcomes = fuzz_arrays(1000, seed, tmp_path)
    assert outcomes["read"] > 100
    assert outcomes["refused"] > 500


@pytest.mark.parametrize("seed", range(3))
def test_every_picture_is_read_or_refused(tmp_path, capfd, seed):
    outcomes = fuzz_pictures(500, seed, tmp_path)
    assert outcomes["read"] > 100
    assert outcomes["refused"] > 100
    assert capfd.readouterr().out == ""
