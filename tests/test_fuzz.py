import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"
spec = importlib.util.spec_from_file_location("fuzz", FILE)
fuzz = importlib.util.module_from_spec(spec)
sys.modules["fuzz"] = fuzz
spec.loader.exec_module(fuzz)

CALLS = 3000


@pytest.mark.parametrize("what", fuzz.WHAT)
def test_broken_input_ends_in_a_result_or_a_clear_error(tmp_path, what):
    outcomes = fuzz.run(fuzz.WHAT[what](tmp_path), CALLS)
    assert outcomes.total() == CALLS
    assert outcomes["ValueError"] > CALLS / 10
    results = CALLS - outcomes["ValueError"] - outcomes["OSError"]
    assert results > CALLS / 10  # so that the inside is reached, too


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
