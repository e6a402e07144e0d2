"""Nothing in a layer's step asks the host for a value, so that the whole of it can be captured as a CUDA graph."""

import pytest
import torch
from no_waiting import NoWaiting, WaitedError
from torch._subclasses.fake_tensor import FakeTensorMode

from torchrsm.precision import products_in
from torchrsm.rsm import kernels
from torchrsm.rsm.functional import Cells, Grid
from torchrsm.rsm.kernels.cuda import CudaEngine
from torchrsm.rsm.layer import LayerConfig, RSMLayer
from torchrsm.rsm.stack import RSMStack

BELOW = LayerConfig(groups=6, cells_per_group=2, active_groups=2, pool=2, activation="sigmoid")
ABOVE = LayerConfig(groups=8, active_groups=2, kernel_size=3)
STACKS = {
    "published": (BELOW, ABOVE),
    "neighbourhood, traces, gamma": (
        BELOW.replace(
            recurrent_kernel_size=3, recurrent_decay=0.5, inhibition_decay=0.9, input_decay=0.7, input_frames=2
        ),
        ABOVE.replace(normalisation="location", dropout=0.0),
    ),
    "boost, margin": (BELOW.replace(inhibition_decay=None, boost=1.0, margin=2, input_threshold=0.1), ABOVE),
    "connected": (BELOW.replace(inhibition_decay=None), ABOVE.replace(decoder="fully_connected")),
}


@pytest.fixture(params=["kernel", "sorting"])
def cuda(request, monkeypatch):
    """The engine for CUDA, on the CPU."""
    entry = kernels.EngineEntry(CudaEngine(triton=request.param == "kernel"))
    monkeypatch.setitem(kernels.ENGINES, "cuda", entry)
    return "cuda"


def learn(stack, states, frame, learned):
    predictions = stack.predict(states)
    for layer, prediction, loss in zip(
        stack.layers, predictions, stack.losses(predictions, frame, learned), strict=True
    ):
        layer.decode(prediction)
        loss.backward()
        layer.update_duty(layer.wins(prediction.cells))
    return stack.observe(frame, predictions, states)


def start(layers, engine):
    torch.manual_seed(0)
    stack = RSMStack(layers, 1, frame_grid=Grid(12, 12), engine=engine)
    return stack, stack.initial_state(2, Grid(12, 12)), torch.rand(2, 12, 12, 1), torch.tensor([True, False])


@pytest.mark.no_cover
@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_waits_for_nothing(layers, precision, cuda):
    stack, states, frame, learned = start(layers, cuda)
    for _ in range(4):  # the layer above hears something at the third step, and is heard at the fourth
        with products_in(precision), NoWaiting():
            states = learn(stack, states, frame, learned)
    assert all(weight.grad is not None for weight in stack.parameters())
    assert all(weight.grad.abs().sum() > 0 for weight in stack.layers[0].parameters())


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
def test_a_step_needs_no_values(layers, cuda):
    """With tensors that have shapes alone, no shape can depend on a value."""
    with FakeTensorMode():
        stack, states, frame, _ = start(layers, cuda)
        states = learn(stack, states, frame, torch.ones(2, dtype=torch.bool))
    assert [state.cells.index.shape[-1] for state in states] == [layer.active_groups for layer in layers]


def test_the_fused_engine_waits():
    """The mode sees what it should: this engine reads each value."""
    stack, states, frame, learned = start(STACKS["published"], "fused")
    with NoWaiting(), pytest.raises(WaitedError):
        learn(stack, states, frame, learned)


def reads_in_backward(x):
    y = x * 2
    y.register_hook(lambda gradient: gradient.sum().item())
    y.sum().backward()


WAITS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: bool(x.sum() > 0),
    "if": lambda x: 1 if x.any() else 0,
    "index": lambda x: [0, 1][x.long().sum() * 0],
    "in": lambda x: 1.0 in x,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "print": lambda x: print(x),
    "format": lambda x: f"{x.sum():.2f}",
    "mask": lambda x: x[x > 0],
    "assignment by a mask": lambda x: x.index_put_((x > 0,), x[0, 0]),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x.long().flatten().bincount(),
    "equal": lambda x: torch.equal(x, x),
    "repeat": lambda x: x.repeat_interleave(torch.tensor([1, 2]), 0),
    "another device": lambda x: x.to("meta"),
    "backward": lambda x: reads_in_backward(x.requires_grad_()),
}


@pytest.mark.parametrize("name", WAITS)
def test_the_mode_refuses(name):
    x = torch.ones(2, 2)
    with pytest.raises(WaitedError), NoWaiting():
        WAITS[name](x)


def test_the_mode_lets_pass_what_does_not_wait():
    x = torch.ones(2, 3, requires_grad=True)
    with NoWaiting():
        assert len(x) == 2
        assert x.shape[1] == x.numel() // 2
        y = torch.where(x > 0, x, 0.0)[:, [0, 2]][:, 1:].masked_fill(x[:, :1] > 2, 5.0)
        y = y + torch.arange(3) * torch.full((), 2.0)
        y.clone().copy_(y).sum().backward()
    assert x.grad.sum() == 6.0


def test_the_mode_ends_with_its_block():
    with NoWaiting():
        pass
    assert torch.ones(1).item() == 1
    with pytest.raises(WaitedError), NoWaiting():
        torch.ones(1).item()
    assert torch.ones(1).item() == 1


def test_wins_are_counted_as_by_bincount():
    layer = RSMLayer(LayerConfig(groups=9, active_groups=3, inhibition_decay=None, boost=1.0), 1, input_grid=Grid(4, 4))
    random = torch.Generator().manual_seed(0)
    index = torch.rand(5, 2, 2, 9, generator=random).argsort(-1)[..., :3].to(torch.int32)
    index[index == 4] = 5  # a cell that never wins
    expected = layer.duty.clone()
    for _ in range(3):
        layer.update_duty(layer.wins(Cells(index, index.float())))
        frequency = torch.bincount(index.flatten(), minlength=9) / 20
        expected.lerp_(frequency, 1 - layer.config.boost_decay)
    assert torch.equal(layer.duty, expected)
    assert layer.duty[4] == 0
    assert layer.duty.sum() > 0
