"""Weights that are tied, so that a layer treats a turned or mirrored world as it treats the world itself.

Cells come in blocks of as many as there are turns. The cells of a block look for one thing in all its turned copies:
turning what a layer sees exchanges the cells of each block, and nothing else changes. The weights stay whole, so no
engine knows of this. What is tied is how they begin and how they learn: a weight and its turned copies are equal at the
start, and each gets the mean of their gradients. An optimiser needs to know one of them only. See Taco Cohen, Max
Welling, ICML 2016, arXiv 1602.07576.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchrsm.compiling import compiled

Symmetry = Literal["none", "mirror", "square"]
"""What a world is turned into: nothing else, its left-right mirror image, or the 8 turns and mirrors of a square."""

Turn = tuple[int, int, int, int]
"""A 2x2 matrix of whole numbers, row by row: it says where a place, its row and its column, comes to lie."""

_PIECE = 2**18  # numbers of a weight: a thread needs many times longer for them than to begin

Kind = Literal["fixed", "window", "cells"]
"""What an axis of a weight counts: things that no turn moves, the places of a square row by row, or cells."""

_SAME, _QUARTER, _MIRROR = (1, 0, 0, 1), (0, -1, 1, 0), (1, 0, 0, -1)


class Axis(NamedTuple):
    """An axis of a weight.

    Attributes:
        size: entries along it.
        kind: what it counts.
    """

    size: int
    kind: Kind


def turns(symmetry: Symmetry) -> tuple[Turn, ...]:
    """Return the turns of a symmetry; the first changes nothing."""
    if symmetry == "none":
        return (_SAME,)
    if symmetry == "mirror":
        return (_SAME, _MIRROR)
    quarters = [_SAME]
    while len(quarters) < 4:
        quarters.append(_after(_QUARTER, quarters[-1]))
    return (*quarters, *(_after(turn, _MIRROR) for turn in quarters))


class Ties(NamedTuple):
    """Which numbers of a weight are tied.

    Attributes:
        first: ``[classes, turns]`` int32, the places of tied numbers in the flat weight. Classes that lie in the same
            rows of the weight follow each other, so that these rows stay in a cache.
        blocks: how many times these classes are there; each time they lie ``turns`` places further on.
    """

    first: Tensor
    blocks: int

    @property
    def sets(self) -> int:
        """How many sets of tied numbers there are."""
        return len(self.first) * self.blocks


def places(ties: Ties) -> Tensor:
    """Return the places of tied numbers in the flat weight, ``[classes, blocks, turns]`` int64."""
    count = ties.first.shape[1]
    further = torch.arange(0, count * ties.blocks, count, device=ties.first.device)
    return ties.first[:, None] + further[:, None]


def in_file(ties: Ties) -> Ties:
    """Return ties in the order in which a file holds their numbers: that of the places of the first ones."""
    return ties._replace(first=ties.first[ties.first[:, 0].argsort()])


def find_ties(axes: Sequence[Axis], symmetry: Symmetry) -> Ties:
    """Return which numbers of a weight are tied.

    Args:
        axes: of the weight, the last the fastest.
        symmetry: it says which cells are a block. Where no axis counts cells, a number may stand in its class twice:
            a turn about the centre leaves some places where they are.
    """
    every = turns(symmetry)
    block = len(every)
    # Each class has one number that belongs to the first cell of a block; so not all have to be followed.
    followed = max((number for number, axis in enumerate(axes) if axis.kind == "cells"), default=None)
    repeats = followed == len(axes) - 1
    copies = []
    for turn in every:
        index = np.zeros(1, dtype=np.int64)
        for number, (size, kind) in enumerate(axes):
            along = np.arange(size)
            if kind == "window":
                along = _window(size, turn)
            elif kind == "cells":
                copy = np.array([every.index(_after(turn, other)) for other in every])
                along = along // block * block + copy[along % block]
            if number == followed:
                along = along[:1] if repeats else along[::block]
            index = (index[:, None] * size + along).flatten()
        copies.append(index)
    classes = np.stack(copies, 1).astype(np.int32)
    if followed is None:
        classes = classes[classes.min(1) == np.arange(len(classes))]
    classes = classes[np.argsort(classes.min(1) // axes[-1].size, kind="stable")]
    return Ties(torch.from_numpy(classes), axes[-1].size // block if repeats else 1)


class TiedWeights(nn.Module):
    """The weights of a module that are tied, from now on. It is a part of that module, and moves to a device with it.

    Weights that were drawn at random keep their deviation; that of their means is less.

    Args:
        module: whose weights they are.
        axes: of each weight, and the name of the parameter.
        symmetry: of the world; nothing is tied if it has none.
    """

    def __init__(self, module: nn.Module, axes: Iterable[tuple[str, Sequence[Axis]]], symmetry: Symmetry) -> None:
        super().__init__()
        self._blocks: dict[str, int] = {}
        self._of_channels_last: dict[tuple[str, torch.device], Ties] = {}
        count = len(turns(symmetry))
        for name, of in axes if count > 1 else ():
            first, self._blocks[name] = find_ties(of, symmetry)
            self.register_buffer(_buffer(name), first, persistent=False)
            with torch.no_grad():
                weight = module.get_parameter(name)
                drawn = weight.clone()
                self._tie(name, weight)
                if not torch.equal(weight, drawn):
                    weight.mul_(count**0.5)

    @property
    def ties_any(self) -> bool:
        """Whether any weights are tied."""
        return bool(self._blocks)

    def repeated(self) -> tuple[str, ...]:
        """Return the names of the weights that are tied."""
        return tuple(self._blocks)

    def once(self, name: str, weight: Tensor) -> Tensor | None:
        """Return one of each set of tied numbers, ``[numbers]``; None if some of them are not equal."""
        tied = weight.detach().reshape(-1)[places(in_file(self._ties(name)))]
        return tied[..., 0].flatten() if bool((tied == tied[..., :1]).all()) else None

    def whole(self, name: str, numbers: Tensor, like: Tensor) -> Tensor:
        """Return a weight, shaped like ``like``, whose numbers `once` returned; other ``numbers`` as they are."""
        ties = in_file(self._ties(name))
        if numbers.shape != (ties.sets,):
            return numbers
        weight = numbers.new_empty(like.shape)
        give(numbers, weight, ties)
        return weight

    def tie_weights(self, module: nn.Module) -> None:
        """Make tied weights equal again: a step of an optimiser may round turned copies in different ways."""
        for name in self._blocks:
            self._tie(name, module.get_parameter(name))

    def tie_gradients(self, module: nn.Module) -> None:
        """Give tied weights the mean of their gradients."""
        for name in self._blocks:
            gradient = module.get_parameter(name).grad
            if gradient is not None:
                self._tie(name, gradient)

    def numbers(self, name: str, weight: Tensor) -> Tensor:
        """Return a new tensor for one of each set of tied numbers of a weight, ``[sets]``; see `pieces`."""
        return torch.empty(self._ties(name).sets, dtype=weight.dtype, device=weight.device)

    def pieces(self, name: str) -> list[tuple[slice, Ties]]:
        """Return the ties of a weight in pieces for threads, and which of its `numbers` each piece is of.

        On another device than the CPU, which needs no threads, there is one piece.
        """
        ties = self._ties(name)
        on_cpu = ties.first.device.type == "cpu"
        classes = max(1, _PIECE // (ties.first.shape[1] * ties.blocks)) if on_cpu else len(ties.first)
        return [
            (slice(first * ties.blocks, (first + len(part)) * ties.blocks), ties._replace(first=part))
            for first, part in zip(range(0, len(ties.first), classes), ties.first.split(classes), strict=True)
        ]

    def _tie(self, name: str, weight: Tensor) -> None:
        if weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
            tie(weight.permute(0, 2, 3, 1).reshape(-1), self._ties_of_channels_last(name, weight))
        else:
            tie(weight, self._ties(name))

    def _ties_of_channels_last(self, name: str, weight: Tensor) -> Ties:
        """Return the ties of a kernel ``[out, in, h, w]`` by their places in memory, where channels are last."""
        key = name, weight.device
        if key not in self._of_channels_last:
            ties = self._ties(name)
            n, c, h, w = weight.shape
            places = torch.arange(weight.numel(), device=weight.device).view(n, h, w, c).permute(0, 3, 1, 2).flatten()
            first = places[ties.first.long()]
            self._of_channels_last[key] = Ties(first[first.amin(1).argsort()].int(), ties.blocks)
        return self._of_channels_last[key]

    def _ties(self, name: str) -> Ties:
        return Ties(self.get_buffer(_buffer(name)), self._blocks[name])


def _buffer(name: str) -> str:
    return name.replace(".", "_")


def tied_parts(module: nn.Module) -> list[tuple[nn.Module, TiedWeights]]:
    """Return the parts of a module some of whose weights are tied, and their attribute ``tied``."""
    found = [(part, getattr(part, "tied", None)) for part in module.modules()]
    return [(part, tied) for part, tied in found if isinstance(tied, TiedWeights) and tied.ties_any]


@torch.no_grad()
def tie(weight: Tensor, ties: Ties) -> None:
    """Replace each number of a weight, or of its gradient, by the mean of those that it is tied to, in place.

    Args:
        weight: with its axes in the order in which they were given to `find_ties`.
        ties: what that returned, on the same device.
    """
    means = weight.new_empty(ties.sets)
    take_means(weight, means, ties)
    give(means, weight, ties)


@torch.no_grad()
def take_firsts(weight: Tensor, numbers: Tensor, ties: Ties) -> None:
    """Write the first of each set of tied numbers of a weight to ``numbers``, ``[sets]``; see `take_means`."""
    here = take_firsts_on_cpu if weight.device.type == "cpu" else take_firsts_anywhere
    here(weight.detach().reshape(-1), numbers.detach(), ties)


@torch.no_grad()
def take_means(gradient: Tensor, means: Tensor, ties: Ties) -> None:
    """Write the mean of each set of tied numbers to ``means``, ``[sets]``.

    Args:
        gradient: of a weight, or the weight, with its axes in the order in which they were given to `find_ties`.
        means: is overwritten.
        ties: what `find_ties` returned, on the same device.
    """
    here = take_means_on_cpu if gradient.device.type == "cpu" else take_means_anywhere
    here(gradient.detach().reshape(-1), means, ties)


@torch.no_grad()
def give(numbers: Tensor, weight: Tensor, ties: Ties) -> None:
    """Write one number for each set, ``[sets]``, to all its places in a weight."""
    flat = weight.detach().reshape(-1)  # a copy if the weight is not contiguous
    here = give_on_cpu if flat.device.type == "cpu" else give_anywhere
    here(numbers.detach(), flat, ties)
    if not weight.is_contiguous():
        weight.copy_(flat.view(weight.shape))


def take_firsts_on_cpu(flat: Tensor, numbers: Tensor, ties: Ties) -> None:
    """Do what `take_firsts` does with a flat weight on the CPU."""
    _take_firsts(flat.numpy(), numbers.numpy(), ties.first.numpy(), ties.blocks)


def take_means_on_cpu(flat: Tensor, means: Tensor, ties: Ties) -> None:
    """Do what `take_means` does with a flat gradient on the CPU."""
    _take_means(flat.numpy(), means.numpy(), ties.first.numpy(), ties.blocks)


def give_on_cpu(numbers: Tensor, flat: Tensor, ties: Ties) -> None:
    """Do what `give` does with a flat weight on the CPU."""
    _give(numbers.numpy(), flat.numpy(), ties.first.numpy(), ties.blocks)


def take_firsts_anywhere(flat: Tensor, numbers: Tensor, ties: Ties) -> None:
    """Do what `take_firsts` does with a flat weight on any device."""
    numbers.copy_(flat[places(ties)[..., 0].flatten()])


def take_means_anywhere(flat: Tensor, means: Tensor, ties: Ties) -> None:
    """Do what `take_means` does with a flat gradient on any device."""
    means.copy_(flat[places(ties)].mean(2).flatten())


def give_anywhere(numbers: Tensor, flat: Tensor, ties: Ties) -> None:
    """Do what `give` does with a flat weight on any device."""
    index = places(ties)
    flat.index_copy_(0, index.flatten(), numbers.view(*index.shape[:2], 1).expand_as(index).flatten())


@compiled(nogil=True)
def _take_firsts(
    flat: NDArray[np.floating], numbers: NDArray[np.floating], first: NDArray[np.int32], blocks: int
) -> None:
    classes, count = first.shape
    for i in range(classes):
        for block in range(blocks):
            numbers[i * blocks + block] = flat[first[i, 0] + block * count]


@compiled(nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _take_means(flat: NDArray[np.floating], means: NDArray[np.floating], first: NDArray[np.int32], blocks: int) -> None:
    classes, count = first.shape
    for i in range(classes):
        for block in range(blocks):
            further = block * count
            total = flat[first[i, 0] + further]
            for j in range(1, count):
                total += flat[first[i, j] + further]
            means[i * blocks + block] = total / count


@compiled(nogil=True)
def _give(numbers: NDArray[np.floating], flat: NDArray[np.floating], first: NDArray[np.int32], blocks: int) -> None:
    classes, count = first.shape
    for i in range(classes):
        for block in range(blocks):
            for j in range(count):
                flat[first[i, j] + block * count] = numbers[i * blocks + block]


def _after(second: Turn, first: Turn) -> Turn:
    """Return the turn that does the first, then the second."""
    a, b, c, d = second
    e, f, g, h = first
    return (a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h)


def _window(places: int, turn: Turn) -> NDArray[np.int64]:
    """Return where a turn about the centre takes each place of a square window."""
    side = round(places**0.5)
    centre = side - 1  # in half places: the centre of an even window lies between two
    y, x = 2 * (np.arange(places) // side) - centre, 2 * (np.arange(places) % side) - centre
    row, column = (turn[0] * y + turn[1] * x + centre) // 2, (turn[2] * y + turn[3] * x + centre) // 2
    moved: NDArray[np.int64] = row * side + column
    return moved
