"""Frames, states and predictions of all kinds for `observe` and `predict`: each call works or raises a ValueError."""

import functools

import numpy as np
import torch

import torchrsm
from torchrsm import load, make_baseline, preset
from torchrsm.baselines import BASELINES
from torchrsm.state import flatten, unflatten

SYSTEMS = ("tiny", "balls", *BASELINES)


@functools.cache
def system(name):
    """Return a small system of a kind, in evaluation mode, and the shape of frames that it reads."""
    torch.manual_seed(0)
    with torch.random.fork_rng():
        if name in ("tiny", "balls"):
            return torchrsm.VideoPredictor(preset(name).model).eval(), (2, 1, 12, 12)
        if name in torchrsm.shipped_models():
            return load(name), (2, 1, 30, 30)
        config = BASELINES[name][0](height=12, width=12)
        return make_baseline(config).eval(), (2, 1, 12, 12)


def _frame(random, shape):
    """Return a frame, good or bad in one of many ways."""
    frame = torch.from_numpy(random.random(shape).astype(np.float32))
    kind = random.integers(0, 14)
    if kind <= 4:
        return frame
    if kind == 5:
        sizes = [int(size) for size in random.integers(0, 40, random.integers(0, 6))]
        return torch.zeros(sizes)
    if kind == 6:
        place = tuple(int(random.integers(0, size)) for size in shape)
        frame[place] = random.choice([np.nan, np.inf, -np.inf, -1e-6, 1.001, 255.0])
        return frame
    if kind == 7:
        return frame.to(random.choice(np.array([torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool])))
    if kind == 8:
        return random.choice(np.array([None, "frame", 3, 0.5], dtype=object))
    if kind == 9:
        return frame.numpy()
    if kind == 10:
        return frame.transpose(2, 3) if random.random() < 0.5 else frame.flip(3)
    if kind == 11:
        return frame.expand(*shape[:1], 3, *shape[2:])
    if kind == 12:
        return frame.to("meta")
    return frame[: random.integers(0, shape[0] + 1)]


def _disturbed(random, tree):
    """Return a state with one of its tensors of another shape, type or content, or the state as it is."""
    if random.random() < 0.7:
        return tree
    tensors = flatten("x", tree)
    name = random.choice(sorted(tensors))
    tensor = tensors[name]
    kind = random.integers(0, 4)
    if kind == 0:
        tensors[name] = tensor.new_zeros([int(size) + int(random.integers(0, 2)) for size in tensor.shape])
    elif kind == 1:
        tensors[name] = tensor.double()
    elif kind == 2 and not tensor.dtype.is_floating_point:
        tensors[name] = tensor + int(random.choice([-5, 10_000, 2**30]))
    else:
        tensors[name] = tensor.flatten()
    return unflatten("x", tensors_like(tree, tensors), tensors)


def tensors_like(tree, tensors, name="x"):
    """Return a tree of the form of another with the tensors of a table, whatever their shape."""
    if tree is None:
        return None
    if isinstance(tree, torch.Tensor):
        return tensors[name]
    fields = getattr(tree, "_fields", None)
    names = fields or [str(i) for i in range(len(tree))]
    parts = [tensors_like(part, tensors, f"{name}.{field}") for field, part in zip(names, tree, strict=True)]
    return type(tree)(*parts) if fields else type(tree)(parts)


def observations(folder):
    """Return a call of `predict` and `observe` with a state and a frame that may be of any kind."""

    @torch.no_grad()
    def call(random):
        name = SYSTEMS[int(random.integers(len(SYSTEMS)))] if random.integers(16) == 0 else SYSTEMS[0]
        predictor, shape = system(name)
        state = predictor.initial_state(shape)
        prediction = predictor.predict(state)
        if name in ("tiny", "balls"):
            state = _disturbed(random, state)
            prediction = predictor.predict(state)
        predictor.observe(_frame(random, shape), prediction, state)
        return "observed"

    return call
