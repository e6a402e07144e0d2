import pytest
import torch

from torchrsm.learning.randomness import Randomness

CPU = torch.device("cpu")


def drawn(count=3):
    return torch.rand(count).tolist()


def test_a_run_draws_what_its_seed_says_wherever_others_are():
    expected = torch.manual_seed(5) and drawn(6)
    torch.manual_seed(9)
    drawn()
    randomness = Randomness(5, CPU)
    drawn()
    with randomness.in_use():
        first = drawn()
    drawn()
    with randomness.in_use():
        second = drawn()
    assert first + second == expected


def draw_and_fail():
    drawn()
    raise RuntimeError("power cut")


def test_others_draw_as_if_there_were_no_run():
    torch.manual_seed(9)
    expected = drawn(6)
    torch.manual_seed(9)
    randomness, got = Randomness(5, CPU), drawn()
    with pytest.raises(RuntimeError, match="power cut"), randomness.in_use():
        draw_and_fail()
    assert got + drawn() == expected


def test_what_is_set_aside_disturbs_neither():
    torch.manual_seed(9)
    outside = drawn(6)
    inside = torch.manual_seed(5) and drawn(6)
    torch.manual_seed(9)
    randomness, own, others = Randomness(5, CPU), [], drawn()
    with randomness.in_use():
        own += drawn()
        with randomness.set_aside():
            others += drawn()
        with pytest.raises(RuntimeError, match="power cut"), randomness.set_aside():
            draw_and_fail()
        own += drawn()
    assert own == inside
    assert others == outside


@pytest.mark.parametrize("active", [False, True])
def test_a_state_that_was_saved_goes_on(active):
    randomness = Randomness(5, CPU)
    with randomness.in_use():
        drawn()
        saved = {name: state.clone() for name, state in randomness.state_dict().items()}
        expected = drawn()
    if not active:
        saved = {name: state.clone() for name, state in randomness.state_dict().items()}
        with randomness.in_use():
            expected = drawn()
    other = Randomness(0, CPU)
    other.load_state_dict(saved)
    with other.in_use():
        assert drawn() == expected


def test_states_of_other_devices_are_left_out():
    randomness = Randomness(5, CPU)
    randomness.load_state_dict({"cuda": torch.zeros(16, dtype=torch.uint8)})
    assert list(randomness.state_dict()) == ["cpu"]
