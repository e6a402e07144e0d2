"""What a CUDA graph does, on any device: operators are written down once and done again, and no line of Python is."""

from contextlib import ExitStack

import torch
from no_waiting import NoWaiting
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NOT_DONE_AGAIN = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Tape:
    """A `torchrsm.learning.captured.Recorder`.

    As with a graph, the operators read and write the same memory at each replay, whatever numbers Python had at hand
    (a learning rate, a count) stay as they were, and recording has no effect. Asking for a value is an error.

    Attributes:
        recorded, replayed: how often something was.
    """

    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def warm_up(self, work):
        for _ in range(3):
            work()

    def record(self, work):
        self.recorded += 1
        writing = _Writing()
        with torch.random.fork_rng(), ExitStack() as modes:
            modes.enter_context(writing)
            modes.enter_context(NoWaiting())
            work()
        for memory, before in writing.before.values():
            memory.copy_(before)

        def replay():
            self.replayed += 1
            with torch.no_grad():
                for function, args, kwargs, result in writing.lines:
                    _write(result, function(*args, **kwargs))

        return replay


class _Writing(TorchDispatchMode):
    """Writes operators down while they are done, and keeps whatever they change as it was before."""

    def __init__(self):
        super().__init__()
        self.lines, self.before = [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        changes = any(part.alias_info is not None and part.alias_info.is_write for part in function._schema.arguments)
        read = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        if changes:
            for tensor in read:
                memory = tensor.untyped_storage()
                self.before.setdefault(memory.data_ptr(), (memory, memory.clone()))
        result = function(*args, **kwargs)
        memories = {tensor.untyped_storage().data_ptr() for tensor in read}
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        is_view = bool(made) and all(tensor.untyped_storage().data_ptr() in memories for tensor in made)
        if changes or not (is_view or function.overloadpacket.__name__ in NOT_DONE_AGAIN):
            # Without their graphs, which would keep more than a replay reads.
            args, kwargs, result = tree_map_only(Tensor, Tensor.detach, (args, kwargs, result))
            self.lines.append((function, args, kwargs, result))
        return result


def _write(kept, new):
    """Write what an operator returned to where it lay when it was recorded."""
    for mine, theirs in zip(tree_leaves(kept), tree_leaves(new), strict=True):
        if isinstance(mine, Tensor) and mine.data_ptr() != theirs.data_ptr():
            mine.copy_(theirs)
