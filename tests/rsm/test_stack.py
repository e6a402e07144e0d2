import pytest
import torch

from torchrsm.rsm.functional import Grid, max_pool, to_dense
from torchrsm.rsm.layer import LayerConfig
from torchrsm.rsm.stack import RSMStack


def layer(**settings):
    return LayerConfig(**{"groups": 6, "active_groups": 2, "kernel_size": 3, **settings})


LAYERS = (layer(cells_per_group=2, pool=2), layer(groups=5, pool=3, stride=1), layer(groups=7, stride=1))


@pytest.fixture
def stack():
    torch.manual_seed(0)
    return RSMStack(LAYERS, 2, frame_grid=Grid(13, 9)).eval()


def frames(steps, batch=2):
    return torch.rand(steps, batch, 13, 9, 2, generator=torch.Generator().manual_seed(0))


def watch(stack, video):
    states = stack.initial_state(video.shape[1], Grid(13, 9))
    for frame in video:
        predictions = stack.predict(states)
        states = stack.observe(frame, predictions, states)
    return predictions, states


def test_each_layer_fits_the_one_below(stack):
    predictions, states = watch(stack, frames(3))
    # 13 x 9, stride 2: 7 x 5; pooled by 2: 4 x 3; stride 1, pooled by 3: 2 x 1.
    assert [p.input_grid for p in predictions] == [(13, 9), (4, 3), (2, 1)]
    assert [tuple(s.cells.index.shape[1:3]) for s in states] == [(7, 5), (4, 3), (2, 1)]
    assert [module.channels for module in stack.layers] == [2, 12, 5]
    assert [m.decode(p).shape[-1] for m, p in zip(stack.layers, predictions, strict=True)] == [2, 12, 5]


def test_every_layer_but_the_top_hears_the_one_above(stack):
    shapes = [None if module.feedback is None else tuple(module.feedback.shape) for module in stack.layers]
    assert shapes == [(5, 12), (7, 5), None]
    _, states = watch(stack, frames(6))  # the first frame takes a step for each layer to climb
    alone = [module.predict(state) for module, state in zip(stack.layers, states, strict=True)]
    together = stack.predict(states)
    heard = [not torch.equal(a.z, t.z) for a, t in zip(alone, together, strict=True)]
    assert heard == [True, True, False]


def test_fresh_feedback_is_what_the_layer_above_has_just_chosen(stack):
    _, states = watch(stack, frames(6))
    stack.fresh_feedback = True
    fresh = stack.predict(states)
    for module, state, prediction, above in zip(stack.layers, states, fresh, (*fresh[1:], None), strict=True):
        expected = module.predict(state, above and above.cells)
        assert torch.equal(prediction.cells.index, expected.cells.index)
        assert torch.equal(prediction.z, expected.z)
    stack.fresh_feedback = False
    assert not torch.equal(stack.predict(states)[0].z, fresh[0].z)


def test_each_layer_reads_what_the_layer_below_said(stack):
    predictions, states = watch(stack, frames(3))
    assert torch.equal(states[0].input, frames(3)[-1])
    for upper, below in zip(states[1:], predictions, strict=False):
        assert upper.input is below.cells


def test_each_layer_is_judged_by_what_it_reads_next(stack):
    predictions, _ = watch(stack, frames(3))
    frame, learn = frames(4)[-1], torch.tensor([True, True])
    targets = [
        frame,
        max_pool(to_dense(predictions[0].cells, 12), 2),
        max_pool(to_dense(predictions[1].cells, 5), 3),
    ]
    for module, p, target, loss in zip(
        stack.layers, predictions, targets, stack.losses(predictions, frame, learn), strict=True
    ):
        expected = (module.decode(p) - target).square().mean()
        torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-5, atol=0)


def test_a_stack_of_one_layer_is_the_layer():
    torch.manual_seed(0)
    stack = RSMStack(LAYERS[:1], 2, frame_grid=Grid(13, 9)).eval()
    _, states = watch(stack, frames(3))
    assert len(states) == 1
    assert torch.equal(stack.predict(states)[0].z, stack.layers[0].predict(states[0]).z)


def test_layers_that_depend_on_the_size_need_it():
    with pytest.raises(ValueError, match="input_grid must be given"):
        RSMStack(LAYERS, 1)


@pytest.mark.parametrize("name", ["fused", "reference"])
def test_all_layers_use_the_same_engine(name):
    assert {m.engine for m in RSMStack(LAYERS, 1, frame_grid=Grid(8, 8), engine=name).layers} == {name}


@pytest.mark.parametrize("count", [2, 4])
def test_states_of_another_number_of_layers_are_refused(count):
    alike = RSMStack((layer(stride=1),) * 3, 6, frame_grid=Grid(5, 4))
    states = alike.initial_state(2, Grid(5, 4))
    with pytest.raises(ValueError, match="argument 2 is (shorter|longer) than argument 1"):
        alike.predict((states * 2)[:count])


def test_without_feedback_no_layer_hears_the_one_above():
    torch.manual_seed(0)
    deaf = RSMStack(LAYERS, 2, frame_grid=Grid(13, 9), feedback=False).eval()
    assert all(module.feedback is None for module in deaf.layers)
    alone = RSMStack(LAYERS[:1], 2, frame_grid=Grid(13, 9)).eval()
    alone.layers[0].load_state_dict(deaf.layers[0].state_dict())
    (lowest, *above), (single,) = watch(deaf, frames(4))[0], watch(alone, frames(4))[0]
    assert torch.equal(lowest.z, single.z)
    assert all(prediction.z.any() for prediction in above)  # which work on, unheard
