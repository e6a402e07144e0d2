"""Keeps a second process out of a folder that one is writing a run to."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

LOCK_FILE = ".lock"

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_TAKEN = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone.

    The system drops the lock of a process that ends in whatever way, so no former one is in the way. Where the file
    system knows no locks, there is none.

    Args:
        folder: must exist.

    Raises:
        BlockingIOError: another process, or another part of this one, holds the folder; the message names it.
        OSError: the folder cannot be written.
    """
    path = folder / LOCK_FILE
    file = _acquired(path)
    try:
        yield
    finally:
        # It goes while it is held: nobody can have taken it in the meantime. Windows keeps a file that is open.
        with contextlib.suppress(OSError):
            path.unlink()
        _unlock(file)
        os.close(file)


def _acquired(path: Path) -> int:
    """Open the file of a lock and take the lock, which is then that of this very file."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
        try:
            _lock(file)
        except OSError as error:
            if error.errno in _TAKEN:
                holder = os.read(file, 20).decode("ascii", "replace").strip() or "unknown"
                os.close(file)
                here = ", this one" if holder == str(os.getpid()) else ""
                raise BlockingIOError(
                    error.errno, f"{path.parent} is being written by process {holder}{here}; wait for it or stop it"
                ) from None
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise
        if _is_at(file, path):
            with contextlib.suppress(OSError):  # of a full disk: the lock holds without a number
                os.ftruncate(file, 0)
                os.write(file, str(os.getpid()).encode())
            return file
        os.close(file)  # the former holder removed it between the opening and the lock


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


try:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(file: int) -> None:
        # A child that was forked has the file, too, and would keep the lock.
        fcntl.flock(file, fcntl.LOCK_UN)

except ImportError:  # Windows
    import msvcrt

    _BYTE = 2**30  # beyond the number, which others are to read

    def _lock(file: int) -> None:
        os.lseek(file, _BYTE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        os.lseek(file, 0, os.SEEK_SET)

    def _unlock(file: int) -> None:
        os.lseek(file, _BYTE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
