import numpy as np
import pytest
import torch
from device_under_test import here
from torch import nn

from torchrsm.learning.muon import Muon, orthogonalised
from torchrsm.rectifiers.contract import kernels_of


def by_singular_values(matrix, rounds=5):
    """The same by its definition: a polynomial of each singular value, applied five times."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(rounds):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 9), (2, 9, 4), (2, 1, 5)])
def test_singular_vectors_stay_and_singular_values_come_near_1(shape):
    torch.manual_seed(0)
    matrices = here(torch.randn(shape, dtype=torch.float64))
    got = orthogonalised(matrices).cpu().numpy()
    want = np.stack([by_singular_values(matrix) for matrix in matrices.cpu().numpy()])
    np.testing.assert_allclose(got, want, atol=1e-5)
    values = np.linalg.svd(got, compute_uv=False)
    assert values.max() < 1.25
    assert np.median(values) > 0.65


def test_a_step_of_no_gradient_is_none():
    assert torch.equal(orthogonalised(here(torch.zeros(2, 3, 4))), here(torch.zeros(2, 3, 4)))


@pytest.mark.parametrize("out", [3, 40])
def test_it_takes_the_steps_of_torch_s_own(out):
    """Which works on matrices, in half precision."""
    torch.manual_seed(0)
    kernel = here(torch.randn(out, 3, 3, 3))
    ours, theirs = nn.Parameter(kernel.clone()), nn.Parameter(kernel.flatten(1).clone())
    muon = Muon([(ours, False)], lr=0.1)
    reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.95, weight_decay=0.0)
    for _ in range(4):
        gradient = here(torch.randn(out, 3, 3, 3))
        ours.grad, theirs.grad = gradient, gradient.flatten(1)
        muon.step()
        reference.step()
    moved = (theirs.detach() - kernel.flatten(1)).norm()
    assert (ours.detach().flatten(1) - theirs.detach()).norm() < 0.05 * moved


def test_the_kernel_of_a_transposed_convolution_is_turned_first():
    torch.manual_seed(0)
    kernel, gradient = here(torch.randn(4, 6, 3, 3)), here(torch.randn(4, 6, 3, 3))
    plain, turned = nn.Parameter(kernel.clone()), nn.Parameter(kernel.transpose(0, 1).clone())
    plain.grad, turned.grad = gradient, gradient.transpose(0, 1)
    Muon([(plain, False), (turned, True)], lr=0.1).step()
    torch.testing.assert_close(turned.transpose(0, 1), plain)
    assert not torch.equal(plain, kernel)


def test_what_is_batched_is_the_same_as_one_by_one():
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 4, 3)]
    for layer in layers:
        layer.weight.grad = torch.randn_like(layer.weight)
    before = [layer.weight.detach().clone() for layer in layers]
    Muon([entry for layer in layers for entry in kernels_of(layer)], lr=0.1).step()
    together = [layer.weight.detach().clone() for layer in layers]
    for layer, weight, want in zip(layers, before, together, strict=True):
        with torch.no_grad():
            layer.weight.copy_(weight)
        Muon(kernels_of(layer), lr=0.1).step()
        torch.testing.assert_close(layer.weight.detach(), want)


def test_the_order_of_a_kernel_in_memory_does_not_matter():
    torch.manual_seed(0)
    kernel, gradient = here(torch.randn(5, 4, 3, 3)), here(torch.randn(5, 4, 3, 3))
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(kernel.clone(memory_format=layout))
        weight.grad = gradient.clone(memory_format=layout)
        Muon([(weight, False)], lr=0.1).step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends)


def test_a_weight_without_a_gradient_stays():
    layer = nn.Conv2d(2, 2, 3)
    before = layer.weight.detach().clone()
    Muon(kernels_of(layer), lr=0.1).step()
    assert torch.equal(layer.weight, before)


def test_the_momentum_goes_on_after_a_copy():
    """What a checkpoint keeps is all."""
    torch.manual_seed(0)
    start, gradients = here(torch.randn(3, 3, 3, 3)), here(torch.randn(4, 3, 3, 3, 3))
    ends = []
    for stop in (None, 2):
        weight = nn.Parameter(start.clone())
        muon = Muon([(weight, False)], lr=0.1)
        for i, gradient in enumerate(gradients):
            if i == stop:
                kept, muon = muon.state_dict(), Muon([(weight, False)], lr=0.1)
                muon.load_state_dict(kept)
            weight.grad = gradient
            muon.step()
        ends.append(weight.detach())
    assert torch.equal(*ends)


def test_kernels_are_those_of_convolutions_larger_than_a_point():
    parts = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Conv2d(2, 2, 1), nn.ConvTranspose2d(2, 1, 3))
    found = kernels_of(parts)
    assert [weight is part.weight for (weight, _), part in zip(found, (parts[0], parts[3]), strict=True)] == [
        True,
        True,
    ]
    assert [turned for _, turned in found] == [False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr must be > 0; got 0"),
        ({"lr": 0.1, "momentum": 1.0}, "momentum must be in 0..1, 1 excluded; got 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Muon([(nn.Parameter(torch.ones(1, 1, 3, 3)), False)], **settings)


def test_what_is_no_kernel_is_refused():
    with pytest.raises(ValueError, match=r"kernels must have 4 dimensions; got the shape \[2, 3\]"):
        Muon([(nn.Parameter(torch.ones(2, 3)), False)], lr=0.1)
