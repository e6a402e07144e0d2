import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from torchrsm.learning.muon import Muon
from torchrsm.learning.optimisers import adam, set_rate, with_muon, with_rates_on_device


def weight():
    return nn.Parameter(torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)))


MAKE = {
    "adam": lambda w: adam([w], 0.1),
    "muon": lambda w: with_rates_on_device(Muon([(w, False)], 0.1)),
    "sgd": lambda w: torch.optim.SGD([w], 0.1, momentum=0.9, fused=True),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_rate_that_is_a_tensor_is_followed_in_place(name):
    """The steps are those of a number, but for its rounding to single precision."""
    ends = []
    for kind in (float, torch.tensor):
        one = weight()
        optimiser = MAKE[name](one)
        (group,) = optimiser.param_groups
        group["lr"] = rate = kind(0.1)
        for new in (0.1, 0.05, 0.0):
            set_rate(optimiser, new)
            one.grad = one.detach().square() - 0.1
            optimiser.step()
        assert (group["lr"] is rate) is (kind is torch.tensor)
        assert group["lr"] == 0
        ends.append(one.detach())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
    assert (ends[0] - weight()).abs().max() > 0.01


def test_kernels_go_to_muon_and_the_rest_to_the_other_optimiser():
    bias, kernel, foreign = nn.Parameter(torch.zeros(4)), weight(), weight()
    kernels = [(kernel, True), (foreign, False)]

    def parts(*arguments):
        made = with_muon(*arguments, lambda others: adam(others, 0.1))
        return [
            (type(optimiser), rate, [id(w) for group in optimiser.param_groups for w in group["params"]])
            for optimiser, rate in made
        ]

    both = [(torch.optim.Adam, 0.1, [id(bias)]), (Muon, 0.5, [id(kernel)])]
    assert parts([bias, kernel], kernels, 0.1, 0.5) == both
    assert parts([bias, kernel], kernels, 0.1, None) == [(torch.optim.Adam, 0.1, [id(bias), id(kernel)])]
    assert parts([kernel], kernels, 0.1, 0.5) == both[1:]
    assert parts([bias], kernels, 0.1, 0.5) == both[:1]
    ((muon, _),) = with_muon([kernel], kernels, 0.1, 0.5, lambda others: adam(others, 0.1))
    assert [group["transposed"] for group in muon.param_groups] == [True]


def test_rates_are_tensors_on_cuda_devices_and_numbers_elsewhere():
    """A device of whose tensors only the form is there is enough to see it."""
    assert all(group["lr"] == 0.1 and type(group["lr"]) is float for group in MAKE["adam"](weight()).param_groups)
    with FakeTensorMode():
        one = nn.Parameter(torch.zeros(4, 3, 3, 3, device="cuda:0"))
        for name in ("adam", "muon"):
            for group in MAKE[name](one).param_groups:
                assert group["lr"].device == one.device
                assert group["lr"].dtype == torch.float32
