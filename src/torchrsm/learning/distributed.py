"""Joins the processes that ``torchrun`` starts, or others in its way, by `torch.distributed`.

Between CPUs they talk by gloo, between CUDA devices by nccl. Two things tell that one is gone: the system closes the
connections of a process that ends, however it ends, and in the middle of an update nobody is waited for longer than
`STEP_SECONDS`. Where one may have to work for long, such as rank 0 while it writes, the others are patient.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from torchrsm.learning.ranks import LostRankError, Ranks
from torchrsm.rsm import kernels

JOIN_SECONDS = 300.0
"""Longest time between the first process that joins and the last."""

STEP_SECONDS = 20.0
"""Longest time that a process waits for another one in the middle of an update."""

_PATIENCE = timedelta(days=1)
_REPORT_SECONDS = 3.0  # in which those that live say so to each other
_LEAVE_SECONDS = 10.0  # for which rank 0 stays so that others can read why it left

_T = TypeVar("_T")
_Item = TypeVar("_Item")


@contextmanager
def joined(command: str) -> Iterator[Ranks]:
    """Join the processes of one launch until the end of the block; alone where nobody has launched several.

    The environment tells the launch as ``torchrun`` sets it: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT and, where the
    machine has several of the processes, LOCAL_RANK and LOCAL_WORLD_SIZE. The cores are shared out among those.

    Args:
        command: what this process is to do, in one line; the same for all.

    Raises:
        ValueError: the environment is not that of a launch, or the processes have different commands.
        ConnectionError: not all have come within `JOIN_SECONDS`.
        LostRankError: one is gone.
    """
    rank, count = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if count == 1:
        yield Ranks()
        return
    if not 0 <= rank < count:
        raise ValueError(f"RANK must be in 0..{count - 1}, below WORLD_SIZE; got {rank}")
    local_rank, local_count = _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", count)
    store = _meet(rank, count)
    reason: str | None = None
    try:
        _check_commands(store, rank, count, command)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        step = timedelta(seconds=STEP_SECONDS)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=step)
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
        ranks = JoinedRanks(rank, count, local_rank, store, patient)
        with kernels.threads_in_use(max(1, kernels.threads() // max(1, local_count))):
            yield ranks
        ranks.wait()
    except LostRankError:
        raise
    except BaseException as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise
    finally:
        if reason is not None:
            _within(_REPORT_SECONDS, lambda: store.set(f"failed/{rank}", reason))
        if dist.is_initialized():
            with suppress(Exception):  # of connections that are gone
                dist.destroy_process_group()
        _within(_LEAVE_SECONDS if rank == 0 else _REPORT_SECONDS, lambda: _leave(store, rank, count))


@dataclass(frozen=True, eq=False)
class JoinedRanks(Ranks):
    """One of several processes.

    Attributes:
        store: where they leave notes for each other.
        patient: the group of all, in which one waits for another for as long as it takes.
    """

    store: Any = None
    patient: Any = None
    _flat: dict[Any, tuple[Tensor, list[Tensor]]] = field(default_factory=dict, repr=False)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in place, and with the same bits on all of them.

        All go in one message, in the type of the largest tensor: figures beside gradients in single precision are
        summed in single precision, too. Counts below 2^24 remain exact.
        """
        if not tensors:
            return
        largest = max(tensors, key=Tensor.numel)
        key = (largest.dtype, largest.device, tuple(tensor.shape for tensor in tensors))
        if key not in self._flat:
            sizes = [tensor.numel() for tensor in tensors]
            flat = largest.new_empty(sum(sizes))
            parts = zip(flat.split(sizes), tensors, strict=True)
            self._flat[key] = flat, [part.view(tensor.shape) for part, tensor in parts]
        flat, parts_of_flat = self._flat[key]
        with torch.no_grad():
            torch._foreach_copy_(parts_of_flat, list(tensors))
            self._together(lambda: dist.all_reduce(flat))
            torch._foreach_copy_(list(tensors), parts_of_flat)

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Return the sum over all processes of each of a few numbers, in double precision."""
        values = torch.tensor(numbers, dtype=torch.float64)
        self._together(lambda: dist.all_reduce(values))
        return values.tolist()

    def everyone(self, value: _T) -> list[_T]:
        """Return the value of each process, in their order."""
        values: list[Any] = [None] * self.count
        self._together(lambda: dist.all_gather_object(values, value, group=self.patient))
        return values

    def from_first(self, make: Callable[[], _T]) -> _T:
        """Return what ``make`` returns on rank 0, the only one to call it; what it raises there all of them raise."""
        outcome: list[Any] = list(_outcome(make)) if self.rank == 0 else [None, None]
        sent = [outcome[0], _sendable(outcome[1])]
        self._together(lambda: dist.broadcast_object_list(sent, src=0, group=self.patient))
        value, error = outcome if self.rank == 0 else sent
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def map(self, function: Callable[[_Item], _T], items: Sequence[_Item]) -> list[_T]:
        """Return ``function`` of each item, in their order; rank r works on the items r, r + count, and so on."""
        own = [_outcome(lambda item=item: function(item)) for item in items[self.rank :: self.count]]  # type: ignore[misc]
        parts = self.everyone([(value, _sendable(error)) for value, error in own])
        results: list[tuple[Any, Exception | None]] = [
            parts[number % self.count][number // self.count] for number in range(len(items))
        ]
        for _, error in results:
            if error is not None:
                raise error
        return [value for value, _ in results]

    def wait(self) -> None:
        """Wait until all processes have come here, for as long as it takes."""
        self._together(lambda: dist.barrier(group=self.patient))

    def _together(self, operation: Callable[[], Any]) -> None:
        """Do what all processes do at once, and find out who is gone where it fails."""
        try:
            operation()
        except RuntimeError as error:
            raise self._lost() from error

    def _lost(self) -> LostRankError:
        """Say which process is gone: those that are left tell each other that they are."""
        found = _within(2 * _REPORT_SECONDS, self._ask)
        if found is None:  # the store is rank 0's
            return LostRankError("rank 0 has died or does not answer", self.rank == 1)
        waiting, reasons = found
        said = "; ".join(reasons[rank] for rank in sorted(reasons))
        return LostRankError(
            said or f"the ranks waited for each other for {STEP_SECONDS:g} s", min(waiting) == self.rank
        )

    def _ask(self) -> tuple[set[int], dict[int, str]]:
        """Return the processes that wait, as this one does, and why each of the others does not."""
        waiting = {self.rank}
        reasons: dict[int, str] = {}
        self.store.set(f"waits/{self.rank}", "")
        deadline = time.monotonic() + _REPORT_SECONDS
        while len(waiting) + len(reasons) < self.count and time.monotonic() < deadline:
            for rank in set(range(self.count)) - waiting - reasons.keys():
                if self.store.check([f"failed/{rank}"]):
                    reasons[rank] = f"rank {rank} failed: {self.store.get(f'failed/{rank}').decode()}"
                elif self.store.check([f"waits/{rank}"]):
                    waiting.add(rank)
            time.sleep(0.05)
        for rank in set(range(self.count)) - waiting - reasons.keys():
            reasons[rank] = f"rank {rank} has died or does not answer"
            self.store.set(f"left/{rank}", "")  # nobody needs to stay for it
        return waiting, reasons


def _number(name: str, default: int) -> int:
    """Return a number of the environment."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"{name} must be a number, as torchrun sets it; got {text!r}")
    return int(text)


def _meet(rank: int, count: int) -> Any:
    """Return the store of the launch once all processes have come to it."""
    joining = timedelta(seconds=JOIN_SECONDS)
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, _, _ = next(iter(rendezvous("env://", rank, count, timeout=joining)))
    except RuntimeError as error:
        raise ConnectionError(f"rank {rank} of {count} cannot reach rank 0 at {place}: {error}") from error
    try:
        store.set(f"here/{rank}", "")
        store.wait([f"here/{other}" for other in range(count)], joining)
    except RuntimeError as error:
        raise ConnectionError(f"all {count} ranks must come to {place} within {JOIN_SECONDS:g} s") from error
    store.set_timeout(timedelta(seconds=STEP_SECONDS))
    return store


def _check_commands(store: Any, rank: int, count: int, command: str) -> None:
    store.set(f"command/{rank}", command)
    first, *others = (store.get(f"command/{other}").decode() for other in range(count))
    for number, other in enumerate(others, start=1):
        if other != first:
            raise ValueError(f"all ranks must run the same command; rank 0 has {first!r}, rank {number} has {other!r}")


def _leave(store: Any, rank: int, count: int) -> None:
    """Say that this process needs the store no longer; rank 0, which may hold it, stays until nobody does."""
    store.set(f"left/{rank}", "")
    deadline = time.monotonic() + _LEAVE_SECONDS
    while rank == 0 and time.monotonic() < deadline:
        if store.check([f"left/{other}" for other in range(count)]):
            return
        time.sleep(0.02)


def _within(seconds: float, function: Callable[[], _T]) -> _T | None:
    """Return what a function returns; None where a connection fails, or it takes longer than some seconds.

    A store whose process stands still would be waited for without end.
    """
    found: list[_T] = []

    def work() -> None:
        with suppress(RuntimeError):
            found.append(function())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def _outcome(make: Callable[[], _T]) -> tuple[_T | None, Exception | None]:
    """Return what a function returns, or else what it raises."""
    try:
        return make(), None
    except LostRankError:
        raise
    except Exception as error:
        return None, error


def _sendable(error: Exception | None) -> Exception | None:
    """Return an error that another process can raise: the same, or one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ValueError(str(error))
    return error
