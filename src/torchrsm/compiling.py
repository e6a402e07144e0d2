"""Compile functions with Numba, and keep the machine code on disk where there is a place for it.

The machine code goes where Numba puts it: to ``NUMBA_CACHE_DIR`` if that is set, beside the source, or in the user's
cache folder. Where none of these can be written (a read-only installation, no home), it goes to a private folder of the
user below that for temporary files; and where that is impossible too, functions are compiled anew in each process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import FunctionCache

from torchrsm.private_folder import private_folder

_config: Any = numba.config  # the place for the cache is a variable of it
_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[_F], _F]:
    """Return a decorator that compiles a function when it is first called, as ``numba.njit(cache=True)`` does.

    Unlike there, no place to keep machine code, a full disk or a damaged file is never an error.

    Args:
        options: those of ``numba.njit``; ``cache`` is not among them.
    """

    def decorate(function: _F) -> _F:
        dispatcher: Any = numba.njit(**options)(function)
        cache = _cache(function)
        if cache is not None:
            dispatcher._cache = cache  # what `njit(cache=True)` does with a cache of Numba's own
        return cast(_F, dispatcher)

    return decorate


class _Cache(FunctionCache):
    """Machine code on disk; what cannot be read is made again, what cannot be written is left out."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged file can raise almost any error in the parser
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


def cache_folder() -> Path | None:
    """Return the folder in which the machine code of this package is kept; None where none can be written."""
    cache = _cache(cache_folder)
    return None if cache is None else Path(cache.cache_path)


def _cache(function: Callable[..., Any]) -> _Cache | None:
    """Return the cache of a function in the first place that can be written, None if there is none."""
    for place in (_where_numba_looks, _in_temporary_folder):
        # RuntimeError: Numba's "no locator available".
        with contextlib.suppress(RuntimeError, OSError), place():
            return _Cache(function)
    return None


@contextlib.contextmanager
def _where_numba_looks() -> Iterator[None]:
    """Let Numba choose a place; for a user without a home it would make a folder named ``~`` in the working folder."""
    before = os.environ.get("HOME")
    if Path(os.path.expanduser("~")).is_absolute():  # where there is none, `Path.home` raises
        yield
        return
    os.environ["HOME"] = os.devnull  # no folder can be made below it
    try:
        yield
    finally:
        del os.environ["HOME"]
        if before is not None:
            os.environ["HOME"] = before


@contextlib.contextmanager
def _in_temporary_folder() -> Iterator[None]:
    """Let Numba choose the private folder of the user.

    Raises:
        OSError: there is no such folder.
    """
    folder = private_folder()
    before = _config.CACHE_DIR
    _config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        _config.CACHE_DIR = before
