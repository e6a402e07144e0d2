"""How exactly matrix products are computed: one setting of the process, which a run owns and puts back."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Literal, get_args

import torch

Products = Literal["float32", "tf32", "bfloat16"]
"""What the factors of a product are rounded to: 23, 10 or 7 binary places. Sums are float32 in all three."""

Precision = Literal["auto", Products]
"""`Products`, or ``auto``: tf32 on CUDA; bfloat16 on a CPU that computes in it; float32 elsewhere."""

_setting: Precision = "float32"

# Where torch keeps what it does with float32 products. The CPU's is here because torch sets it together with CUDA's.
_PLACES = (
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn,
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
)


def products(device: torch.device) -> Products:
    """Return what products on this device are rounded to; float32 outside of any block of `products_in`."""
    if _setting == "auto":
        return _FASTEST.get(device.type, _float32)()
    return _setting


def _float32() -> Products:
    return "float32"


@functools.cache
def _of_this_cpu() -> Products:
    """Return bfloat16 where the processor has instructions for it: without them it is many times slower."""
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


_FASTEST: dict[str, Callable[[], Products]] = {"cuda": lambda: "tf32", "cpu": _of_this_cpu}


def layers_of(device: torch.device) -> AbstractContextManager[object]:
    """Let torch compute the convolutions and products of a network on this device in bfloat16, if that is set.

    Only what is computed in the block is: values, gradients and weights are stored as they were. Backward passes
    follow the forward pass.
    """
    if products(device) != "bfloat16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def precision() -> Precision:
    """Return the setting of the block of `products_in` that the process is in; ``float32`` outside of any."""
    return _setting


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise a ValueError for a name that is not a `Precision`, or products that the device does not compute."""
    _check_name(precision)
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"precision must be auto, float32 or bfloat16 on {device.type}; got 'tf32'")
    if precision == "bfloat16" and device.type == "cpu" and _of_this_cpu() != "bfloat16":
        raise ValueError("precision must be auto or float32 on this CPU, which has no bfloat16; got 'bfloat16'")
    if precision == "bfloat16" and device.type == "mps":
        raise ValueError("precision must be auto or float32 on mps; got 'bfloat16'")
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"precision must be auto, float32 or tf32 on {name}, which has no bfloat16; got 'bfloat16'")


def _check_name(precision: str) -> None:
    names = ("auto", *get_args(Products))
    if precision not in names:
        raise ValueError(f"precision must be one of {', '.join(names)}; got {precision!r}")


@contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """Compute products in this precision, and as before once the block has ended, however it ends.

    The setting holds for the whole process, torch's own float32 products on CUDA included: with ``float32`` these do
    not round at all. With ``bfloat16`` they may be tf32, which holds each bfloat16 exactly. `products` tells code that
    rounds factors itself what to do.

    Raises:
        ValueError: an unknown name.
    """
    _check_name(precision)
    global _setting
    before = _setting
    with _tf32_allowed(precision != "float32"):
        _setting = precision
        try:
            yield
        finally:
            _setting = before


@contextmanager
def _tf32_allowed(allowed: bool) -> Iterator[None]:
    """Let CUDA compute float32 products as tf32, or not, in torch's older and newer names for it."""
    _hear_of_the_newer_names()
    matmul, convolution = None, None
    # Torch refuses to answer by the older names where somebody has set the newer ones.
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        convolution = torch.backends.cudnn.allow_tf32
    before = [place.fp32_precision for place in _PLACES]
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if convolution is not None:
            torch.backends.cudnn.allow_tf32 = convolution
        for place, value in zip(_PLACES, before, strict=True):
            place.fp32_precision = value


@contextmanager
def fixed_sums() -> Iterator[None]:
    """Compute in the precision that is set, on CUDA by convolutions that repeat bit by bit.

    The precision is set again, because torch's own default is tf32 for convolutions. Which algorithm cuDNN takes is not
    left to a race, and none of them adds in an order of its own.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with products_in(_setting):
            yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


@functools.cache
def _hear_of_the_newer_names() -> None:
    """Let torch 2.9 say once, to nobody, that the names are to change; later versions do not say it.

    The older names are used because torch answers by both then; after the newer ones the older are an error.
    """
    with warnings.catch_warnings(), suppress(RuntimeError):
        warnings.simplefilter("ignore")
        _ = torch.backends.cuda.matmul.allow_tf32
