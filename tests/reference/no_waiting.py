"""A mode in which whatever makes the host wait for an accelerator is an error; it works on tensors of the CPU too."""

from contextlib import ExitStack

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that read a value, or whose result has a shape that depends on values.
READING = {
    "_local_scalar_dense",
    "_unique",
    "_unique2",
    "allclose",
    "bincount",
    "equal",
    "histc",
    "is_nonzero",
    "item",
    "linalg_eig",
    "masked_select",
    "nonzero",
    "nonzero_numpy",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
    "unique_dim_consecutive",
}

# Ways out of torch, which on tensors of the CPU reach no operator.
LEAVING = {
    getattr(Tensor, name)
    for name in (
        *("item", "tolist", "numpy", "cpu", "__array__", "__bool__", "__float__", "__int__", "__index__"),
        *("__complex__", "__contains__", "__format__", "__repr__"),
    )
}


class WaitedError(AssertionError):
    """The host had to wait for a value."""


class NoWaiting:
    """A block in which asking for a value is a `WaitedError`: ``.item()``, ``float(x)``, ``if x:``, ``.numpy()``, ....

    So are operators whose result has as many elements as values say (``x[mask]``, `torch.nonzero`, `torch.bincount`),
    and copies between devices. Reading shapes is allowed. An operator of one's own counts as one call, whatever it does
    inside; Triton's interpreter reads values there which a GPU would not.
    """

    def __enter__(self):
        self._modes = ExitStack()
        self._modes.enter_context(_Leaving())
        self._modes.enter_context(_Operators())
        return self

    def __exit__(self, *error):
        return self._modes.__exit__(*error)


class _Leaving(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in LEAVING:
            raise WaitedError(f"Tensor.{function.__name__} takes a value to the host")
        return function(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if function.namespace == "aten":
            if name in READING:
                raise WaitedError(f"{function} makes the host wait")
            if name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
                index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
            ):
                raise WaitedError(f"{function} with a mask makes the host wait")
            before = {tensor.device for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
            result = function(*args, **kwargs)
            after = {tensor.device for tensor in tree_leaves(result) if isinstance(tensor, Tensor)}
            # Numbers that torch has wrapped as tensors of the CPU go to the device as arguments, without a copy.
            if before and name in ("_to_copy", "copy_", "copy") and len(before | after) > 1:
                raise WaitedError(f"{function} copies between devices")
            return result
        return function(*args, **kwargs)


__all__ = ["NoWaiting", "WaitedError"]
