import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"
spec = importlib.util.spec_from_file_location("fuzz", FILE)
fuzz = importlib.util.module_from_spec(spec)
sys.modules["fuzz"] = fuzz
spec.loader.exec_module(fuzz)

CALLS = {"films": 3000, "arrays": 4000, "pictures": 1500, "observe": 2000}  # `benchmarks/fuzz.py` makes more


@pytest.mark.no_cover
@pytest.mark.parametrize("what", fuzz.WHAT)
def test_broken_input_ends_in_a_result_or_a_clear_error(tmp_path, what, capfd):
    calls = CALLS[what]
    outcomes = fuzz.run(fuzz.WHAT[what](tmp_path), calls)
    assert outcomes.total() == calls
    assert outcomes["ValueError"] > calls / 10
    results = calls - outcomes["ValueError"] - outcomes["OSError"]
    assert results > calls / 10  # so that the inside is reached, too
    assert capfd.readouterr().out == ""


def test_an_untyped_error_is_found_and_can_be_made_again(tmp_path):
    def call(random):
        if random.random() < 0.01:
            raise ZeroDivisionError("as a fault would")
        return "read"

    with pytest.raises(RuntimeError, match=r"call \d+ of seed 0: ZeroDivisionError") as error:
        fuzz.run(call, 1000)
    number = int(str(error.value).split()[1])
    with pytest.raises(RuntimeError, match=f"call {number} of"):
        fuzz.run(call, 1, first=number)
    assert fuzz.run(call, number) == {"read": number}
