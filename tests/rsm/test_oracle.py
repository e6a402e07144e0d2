"""All engines against the NumPy oracle, over several steps, at random weights."""

from typing import NamedTuple

import numpy as np
import pytest
import rsm_oracle as oracle
import torch

from torchrsm.rsm.functional import Grid, to_dense
from torchrsm.rsm.layer import LayerConfig
from torchrsm.rsm.stack import RSMStack

STEPS = 6

PUBLISHED = (
    LayerConfig(groups=64, cells_per_group=8, active_groups=3, pool=2, activation="sigmoid"),
    LayerConfig(groups=128, cells_per_group=8, active_groups=5, kernel_size=3),
)


def layer(**settings):
    return LayerConfig(**{"groups": 6, "active_groups": 2, "kernel_size": 3, **settings})


class Case(NamedTuple):
    layers: tuple[LayerConfig, ...]
    grid: tuple[int, int]
    channels: int = 1
    fresh_feedback: bool = False


CASES = {
    "published": Case(PUBLISHED, (10, 10)),
    "odd size": Case((layer(cells_per_group=3, activation="sigmoid"),), (7, 5)),
    "stride 1": Case((layer(stride=1, kernel_size=4, cells_per_group=2),), (5, 6), 2),
    "stride 3": Case((layer(stride=3, kernel_size=5, output_bias="channel"),), (8, 7)),
    "stride beyond kernel": Case((layer(stride=3, kernel_size=2, decoder_kernel_size=5),), (8, 8)),
    "gamma": Case((layer(cells_per_group=3, inhibition_decay=0.75, normalisation="location"),), (6, 6)),
    "no inhibition": Case((layer(cells_per_group=2, inhibition_decay=None, normalisation="none"),), (6, 6)),
    "boosted": Case((layer(groups=12, inhibition_decay=None, boost=1.5),), (6, 4)),
    "eps": Case((layer(cells_per_group=3, recurrent_decay=0.8),), (6, 6)),
    "eps and gamma": Case((layer(recurrent_decay=0.5, inhibition_decay=0.5, normalisation="location"),), (5, 5)),
    "neighbourhood": Case((layer(recurrent_kernel_size=3, normalisation="location", cells_per_group=2),), (9, 7)),
    "input trace": Case((layer(input_decay=0.7, recurrent_kernel_size=3),), (7, 7), 2),
    "input frames": Case((layer(input_frames=3),), (7, 6), 2),
    "input frames and trace": Case((layer(input_frames=2, input_decay=0.7, input_threshold=0.3),), (6, 6)),
    "threshold": Case((layer(input_decay=0.7, input_threshold=0.5),), (7, 7)),
    "fresh feedback": Case((layer(pool=2, cells_per_group=2), layer(pool=2), layer(stride=1)), (9, 12), 1, True),
    "fully connected, stride beyond kernel": Case((layer(decoder="fully_connected", stride=3, kernel_size=2),), (8, 8)),
    "fully connected": Case((layer(decoder="fully_connected", activation="sigmoid", cells_per_group=2),), (5, 4)),
    "margin": Case((layer(margin=2, decoder_kernel_size=5),), (9, 8)),
    "changes": Case((layer(changes="last", input_frames=2, activation="sigmoid", margin=1),), (8, 7), 2),
    "cross-entropy": Case((layer(changes="last", loss="cross_entropy", activation="sigmoid", margin=2),), (8, 7)),
    "changes of cells": Case((layer(changes="last", output_bias="channel"), layer(pool=2)), (7, 6)),
    "three layers": Case(
        (
            layer(groups=8, pool=2, stride=1, margin=1, output_bias="channel"),
            layer(groups=10, cells_per_group=2, pool=3, stride=2, recurrent_kernel_size=3, normalisation="location"),
            layer(groups=5, active_groups=3, stride=1, decoder="fully_connected", inhibition_decay=0.5),
        ),
        (13, 9),
    ),
}


def build(case, engine, seed):
    """A stack with random weights, the same weights in float64, and frames; from NumPy, so the same everywhere."""
    random = np.random.default_rng(seed)
    stack = RSMStack(
        case.layers, case.channels, frame_grid=Grid(*case.grid), fresh_feedback=case.fresh_feedback, engine=engine
    ).eval()
    deviations = {"recurrent": 0.5, "feedback": 0.1, "decoder": 0.3, "bias": 0.1, "output_bias": 0.2}
    for module in stack.layers:
        for name, parameter in module.named_parameters():
            deviation = deviations.get(name, 0.3 * parameter.shape[0] ** -0.5)
            parameter.data = torch.from_numpy(random.normal(0, deviation, parameter.shape).astype(np.float32))
        module.duty = torch.from_numpy(random.random(module.duty.shape, np.float32))
    weights = [
        {name: value.detach().numpy().astype(np.float64) for name, value in (*m.named_parameters(), ("duty", m.duty))}
        for m in stack.layers
    ]
    frames = random.random((STEPS, 2, *case.grid, case.channels)).astype(np.float32)
    return stack, weights, frames


@pytest.mark.parametrize("case", CASES)
def test_engine_agrees_with_the_oracle(case, engine):
    layers, grid, channels, fresh_feedback = case = CASES[case]
    stack, weights, frames = build(case, engine, seed=1)
    states = stack.initial_state(2, Grid(*grid))
    memories = [oracle.fresh_stack(layers, grid, channels) for _ in range(2)]
    for frame in frames:
        predictions = stack.predict(states)
        expected = [oracle.predict_stack(layers, weights, memory, fresh_feedback) for memory in memories]
        # Otherwise rounding may decide, and this test needs another seed.
        assert min(p.gap for sample in expected for p in sample) > 1e-5
        losses = stack.losses(predictions, torch.from_numpy(frame), torch.tensor([True, True]))
        expected_losses = np.zeros(len(layers))
        for n in range(2):
            read = oracle.inputs(layers, expected[n], frame[n])
            for level, (module, prediction) in enumerate(zip(stack.layers, predictions, strict=True)):
                wanted = expected[n][level]
                assert np.array_equal(prediction.cells.index[n], wanted.winners)
                cells = to_dense(prediction.cells, layers[level].cells)[n]
                np.testing.assert_allclose(cells, wanted.y, rtol=0, atol=1e-5)
                decoded = module.decode(prediction)[n].detach()
                np.testing.assert_allclose(decoded, wanted.x_hat, rtol=0, atol=1e-5)
                expected_losses[level] += oracle.loss(layers[level], wanted.x_hat, read[level]) / 2
            memories[n] = oracle.observe_stack(layers, memories[n], expected[n], frame[n])
        np.testing.assert_allclose([loss.item() for loss in losses], expected_losses, rtol=1e-5)
        states = stack.observe(torch.from_numpy(frame), predictions, states)


def test_the_published_cells_are_not_silent():
    """The comparison says something: all layers win, remember and are heard."""
    case = CASES["published"]
    stack, _, frames = build(case, "fused", seed=1)
    states = stack.initial_state(2, Grid(*case.grid))
    for frame in frames:
        predictions = stack.predict(states)
        states = stack.observe(torch.from_numpy(frame), predictions, states)
    deaf = stack.layers[0].predict(states[0])
    heard = stack.layers[0].predict(states[0], states[1].cells)
    assert all(0.05 < s.cells.value.abs().mean() < 0.95 for s in states)
    assert (deaf.cells.index != heard.cells.index).float().mean() > 0.1


GRADIENT_CASES = {
    "cells, sigmoid, feedback, pool": Case(
        (
            layer(groups=5, cells_per_group=2, activation="sigmoid", pool=2, stride=1, margin=1),
            layer(groups=4, cells_per_group=2, stride=2, normalisation="location"),
        ),
        (5, 6),
    ),
    "neighbourhood, traces, gamma, connected": Case(
        (
            layer(
                stride=2,
                recurrent_kernel_size=3,
                recurrent_decay=0.5,
                input_frames=2,
                input_decay=0.7,
                inhibition_decay=0.5,
                decoder="fully_connected",
            ),
        ),
        (5, 4),
        2,
    ),
}


@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_gradient_is_the_slope_of_the_oracles_loss(case, engine):
    """Central differences with the winners held; the first sample's loss alone, the other one is not learned from."""
    layers, grid, channels, _ = case = GRADIENT_CASES[case]
    stack, weights, frames = build(case, engine, seed=3)
    states = stack.initial_state(2, Grid(*grid))
    memories = oracle.fresh_stack(layers, grid, channels)
    for frame in frames[:3]:
        states = stack.observe(torch.from_numpy(frame), stack.predict(states), states)
        memories = oracle.observe_stack(layers, memories, oracle.predict_stack(layers, weights, memories), frame[0])
    predictions = stack.predict(states)
    for loss in stack.losses(predictions, torch.from_numpy(frames[3]), torch.tensor([True, False])):
        loss.backward()
    expected = oracle.predict_stack(layers, weights, memories)
    read = oracle.inputs(layers, expected, frames[3, 0])
    random = np.random.default_rng(0)
    above = [*(memory.y for memory in memories[1:]), None]
    for level, module in enumerate(stack.layers):

        def loss_at(name, index, value, level=level):
            changed = weights[level][name].copy()
            changed[index] += value
            arguments = (layers[level], {**weights[level], name: changed}, memories[level], above[level])
            return oracle.loss(layers[level], oracle.predict(*arguments, expected[level].winners).x_hat, read[level])

        for name, parameter in module.named_parameters():
            gradient = parameter.grad.numpy()
            # Most weights belong to no winner: take the steepest and some at random.
            steepest = np.argsort(np.abs(gradient), axis=None)[-3:]
            assert np.abs(gradient).max() > 1e-5, name
            for flat in (*steepest, *random.integers(gradient.size, size=3)):
                index = np.unravel_index(flat, gradient.shape)
                slope = (loss_at(name, index, 1e-5) - loss_at(name, index, -1e-5)) / 2e-5
                np.testing.assert_allclose(gradient[index], slope, rtol=1e-4, atol=1e-8, err_msg=name)
