"""The standard streams: any text can be shown on any terminal, and a reader may leave before the end."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

READABLE = "torchrsm-readable"
"""Name of the error handler that `prepared` gives to the standard streams."""

_STAND_INS = str.maketrans(
    {"±": "+-", "²": "^2", "×": "x", "–": "-", "…": "...", "─": "-", "━": "-", "│": "|", **dict.fromkeys("╭╮╰╯", "+")}
)


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    r"""Let the standard streams take any text, whatever their encoding; they are as before in the end.

    A character that the encoding has not is replaced by one or two that look alike, such as ``+-`` for ``±``, or else
    by its escape, such as ``\xff`` for a byte of a file name that is no UTF-8. A stream that was closed takes all and
    shows nothing. A warning is one line; that a package uses what another will drop is not said.
    """
    codecs.register_error(READABLE, _replaced)
    with contextlib.ExitStack() as end:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:
                setattr(sys, name, end.enter_context(open(os.devnull, "w")))
                end.callback(setattr, sys, name, None)
            elif isinstance(stream, io.TextIOWrapper):
                end.callback(_reconfigure, stream, stream.errors)
                stream.reconfigure(errors=READABLE)
        end.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.showwarning = _say
        yield


def discard_output() -> None:
    """Send the rest of the standard output nowhere, as no one can take it; Python would complain of it at its end."""
    with contextlib.suppress(OSError, AttributeError):
        sys.stdout.flush()
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _say(message: Warning | str, *_: Any, **__: Any) -> None:
    """Say a warning in one line, without the place in the program that it is from."""
    print(f"torchrsm: {' '.join(str(message).split())}", file=sys.stderr)


def _reconfigure(stream: io.TextIOWrapper, errors: str | None) -> None:
    with contextlib.suppress(OSError):  # its reader has left
        stream.reconfigure(errors=errors)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_STAND_INS)
    return "".join(_escaped(character) for character in text), error.end


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is no UTF-8, as Python keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("ascii", "backslashreplace").decode()
