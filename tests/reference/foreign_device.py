"""A stand-in for a device that this machine lacks: its tensors have values, and never meet those of the CPU.

Within `foreign_device` there is one CUDA device, ``cuda:0``. What is moved there or made there is an ordinary tensor
with a mark. Whatever torch refuses for tensors of two devices is refused here, too, and so is NumPy's look at a tensor
that is not on the CPU. So a test can run what needs a device, compare its values with those of the CPU, and find what
was left behind. Only what happens within one function of torch is not watched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from torchrsm.learning import randomness
from torchrsm.rsm import kernels
from torchrsm.rsm.kernels.cuda import CudaEngine

FOREIGN = torch.device("cuda:0")
CPU = torch.device("cpu")

_HOST_ONLY = (Tensor.numpy, Tensor.__array__)


class OnForeignDevice(Tensor):
    """A tensor with the mark."""


def _is_foreign(value: Any) -> bool:
    return isinstance(value, OnForeignDevice)


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if _is_foreign(value) else value


def _marked(value: Any) -> Any:
    return value.as_subclass(OnForeignDevice) if isinstance(value, Tensor) and not _is_foreign(value) else value


class _ForeignDevice(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return self._call(func, args, kwargs)

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        first = args[0] if args else None
        if func == Tensor.device.__get__:
            return FOREIGN if _is_foreign(first) else first.device
        if func == Tensor.is_cuda.__get__:
            return _is_foreign(first)
        if func == Tensor.is_cpu.__get__:
            return not _is_foreign(first)
        if func in _HOST_ONLY and _is_foreign(first):
            raise TypeError(f"can't convert {FOREIGN} device type tensor to numpy; use Tensor.cpu() first")
        if func is Tensor.__deepcopy__ and _is_foreign(first):
            return _deep_copy(first, *args[1:])
        if func in (Tensor.to, Tensor.cpu):
            return _moved(func, first, args[1:], kwargs)
        asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if asked is not None and asked.type == FOREIGN.type:
            kwargs["device"] = CPU
        given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        foreign = any(map(_is_foreign, given)) if asked is None else asked.type == FOREIGN.type
        if asked is None:
            _refuse_two_devices(func, args, given)
        result = func(*args, **kwargs)
        if not foreign or func in (Tensor.copy_, Tensor.__setitem__):
            return result
        return tree_map(_marked, result)


def _deep_copy(tensor: Any, memo: dict[int, Any]) -> Tensor:
    if id(tensor) not in memo:
        memo[id(tensor)] = copy = _marked(_plain(tensor).detach().clone()).requires_grad_(tensor.requires_grad)
        if getattr(tensor, "_is_param", False):
            copy._is_param = True
    result: Tensor = memo[id(tensor)]
    return result


def _refuse_two_devices(func: Any, args: Any, given: list[Tensor]) -> None:
    """Scalars may come from the CPU, a copy may cross, and a tensor may be indexed from the CPU."""
    if func in (Tensor.copy_, torch._has_compatible_shallow_copy_type):
        return
    met = given
    if func in (Tensor.__getitem__, Tensor.__setitem__):
        index = [value for value in tree_flatten(args[1])[0] if isinstance(value, Tensor)]
        if func is Tensor.__setitem__ and not index:
            return
        met = [args[0], *args[2:], *filter(_is_foreign, index)]
    there = [value for value in met if _is_foreign(value)]
    here = [value for value in met if isinstance(value, Tensor) and not _is_foreign(value) and value.dim() > 0]
    if there and here:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {FOREIGN} and cpu! "
            f"(in {getattr(func, '__name__', func)})"
        )


def _moved(func: Any, tensor: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """Do what ``to`` or ``cpu`` does; what crosses is copied."""
    was = _is_foreign(tensor)
    goes = was
    if func is Tensor.cpu:
        args, kwargs, goes = (), {}, False
    elif isinstance(kwargs.get("other", args[0] if args else None), Tensor):
        goes = _is_foreign(kwargs.get("other", args[0] if args else None))
    elif kwargs.get("device") is not None or (args and isinstance(args[0], torch.device | str)):
        wanted = kwargs.get("device") or args[0]
        goes = torch.device(wanted).type == FOREIGN.type
        args, kwargs = (
            (CPU, *args[1:]) if args and args[0] is wanted else args,
            {name: CPU if name == "device" else value for name, value in kwargs.items()},
        )
    result = tensor.to(*args, **kwargs) if args or kwargs else tensor
    if goes == was:
        return _marked(result) if goes else result
    result = _plain(result).clone() if result is tensor else _plain(result)
    return _marked(result) if goes else result


@contextlib.contextmanager
def foreign_device() -> Iterator[torch.device]:
    """Let this machine have one CUDA device until the end of the block, in this thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "synchronize", lambda device=None: None)
        patch.setattr(torch.cuda, "get_rng_state", lambda device=None: torch.zeros(16, dtype=torch.uint8))
        patch.setattr(torch.cuda, "set_rng_state", lambda state, device=None: None)
        engine = kernels.ENGINES["cuda"]._replace(engine=CudaEngine(triton=False), package=None)
        patch.setitem(kernels.ENGINES, "cuda", engine)  # Triton's interpreter is slow
        patch.setattr(randomness, "_WITH_GENERATOR", frozenset())  # it draws from the CPU's generator
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # so that weights get the mark
        try:
            with _ForeignDevice():
                yield FOREIGN
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
