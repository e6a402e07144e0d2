"""Choose the command, run it, and turn how it ended into an exit code and at most one line of text.

Nothing heavy is imported before the command is known, so that ``--help`` and ``--version`` are quick.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence

from torchrsm import __version__
from torchrsm.cli.console import discard_output, prepared
from torchrsm.learning.ranks import LostRankError
from torchrsm.storage.shipped import shipped_models

_MODULES = {  # the file beside this one that has a function of the command's name
    "train": "train",
    "predict": "predict",
    "watch": "watch",
    "serve": "serve",
    "evaluate": "evaluate",
    "bench": "bench",
    "dream": "dream",
    "export": "export",
    "push": "hub",
    "pull": "hub",
    "presets": "describe",
    "info": "describe",
    "doctor": "doctor",
}
_TOGETHER = ("train", "evaluate", "dream", "bench")  # commands that several processes work on, which `torchrun` starts
_EXTRAS = {  # packages that are not always installed, and what installs them
    "fastapi": "web",
    "huggingface_hub": "hub",
    "mlxtend": "digits",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "tensorboard": "tensorboard",
    "uvicorn": "web",
    "websockets": "web",
}

USAGE = """\
usage: torchrsm COMMAND ...

  train PRESET --out DIR [--minutes M | --steps N] [--seed S] [--resume] [settings]
                         train a model on bouncing balls; DIR is then a model folder
  train video FILE|FOLDER --out DIR [--system PRESET] [settings]
                         train one on your own video; the end of it is held out
  train digits --out DIR [--system PRESET] [settings]
                         train one on moving digits
  train kicked-balls|two-way-balls --out DIR [--system PRESET] [settings]
                         train one on balls whose future is not certain
  train reber|digits-3|digits-8x9 --out DIR, train grammar FILE.json --out DIR [--system PRESET] [settings]
                         train one on symbols in the order of a grammar
  train words FOLDER|FILE --out DIR [--system PRESET] [settings]
                         train one on the words of a text
  train --resume --out DIR [--minutes M | --steps N]
                         go on with a run, for longer than it was begun for if you wish
  predict MODEL FILE --out FILM.mp4 [--frames N] [--clip N] [--json FILE]
                         predict each frame of a video from those before it: truth, prediction, overlay, error
  watch FILE|0|-|URL [--threshold 4] [--alerts FILE.jsonl] [--film FILE.mp4] [--model MODEL] [--out DIR]
                         learn from a video, a camera or a stream while it plays; a line of JSON for each frame
  serve [MODEL ...] [--host 127.0.0.1] [--port 8000]
                         a page to watch, play with and train models (extra: web)
  evaluate MODEL [FILE] [--frames ARRAY] [--json FILE] [--strip PNG] [--rollout-steps N] [--plot PNG]
                         score next-frame predictions and dreams on frames that were never learned from: the test
                         sequences, the end of the run's own video, or a file
  dream MODEL --out FILE [--prime 50] [--steps 150] [--sequences N] [--prime-from VIDEO | --frames FILE | --seed S]
                         let a model imagine what comes next, as .mp4, .gif, .png or .npz; strings of symbols as .txt
  bench balls --minutes M --out DIR [--systems all|NAME,NAME] [--seeds N] [--memory-from-length 10,50,200]
                         train systems for the same time and score them alike; one table
  bench memory --minutes M --out DIR [--worlds all|NAME,NAME] [--systems all|NAME,NAME] [--seeds N]
                         the same in worlds where the past decides: balls of which not all is seen, symbols
  export MODEL --out FILE.onnx|FILE.pt2 [--batch 1] [--height H --width W]
                         write one step of a model as a program that runs without torchrsm (.onnx: extra onnx)
  push MODEL USER/NAME [--private]
                         upload a model to the Hugging Face Hub (extra: hub)
  pull USER/NAME --out DIR
                         download one
  presets                list the presets
  info MODEL|PRESET [--csv FILE]
                         describe a model, a run or a preset; write the record of a run as a table
  doctor [--device D]    say what is installed, and try for some seconds whether all works

MODEL is a folder that `train` wrote, a shipped model ({shipped}) or a baseline (copy-last, constant-velocity).
Commands that compute take --device auto|cpu|cuda|cuda:N|mps. `torchrsm COMMAND --help` lists every flag."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    It is 0 where all is done, 1 where the numbers went wrong or another process of the launch is gone, 2 for bad input,
    130 for an interrupt, and 141 where the reader of the output left before the end (128 and the number of the signal,
    as shells count).

    Args:
        arguments: the command and its flags; None for those of the process.
    """
    with prepared():
        code = _ended(list(sys.argv[1:] if arguments is None else arguments))
        discard_output()
        return code


def _ended(arguments: list[str]) -> int:
    """Run a command, say in one line why it failed, if it did, and return the exit code."""
    try:
        _run(arguments)
        sys.stdout.flush()
    except SystemExit as end:  # of a command's help
        return int(end.code or 0)
    except BrokenPipeError:
        return 141
    except ImportError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _fail(f"{error.name} is missing; install the extra: pip install 'torchrsm[{extra}]'", 2)
    except LostRankError as error:
        return _fail(str(error), 1) if error.speaks else 1
    except (ValueError, OSError) as error:
        return _fail(_text(error), 2)
    except ArithmeticError as error:
        return _fail(str(error), 1)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        return _fail(f"not enough memory: {error}", 2)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted", 130)
    return 0


def _run(arguments: list[str]) -> None:
    command, *rest = arguments or [""]
    if command in ("-h", "--help"):
        print(USAGE.format(shipped=", ".join(shipped_models()) or "none"))
        return
    if command == "--version":
        print(__version__)
        return
    if command not in _MODULES:
        raise ValueError(f"command must be one of {', '.join(_MODULES)}; got {command or 'none'}; see --help")
    if "WORLD_SIZE" in os.environ:  # torch would say at length, beside our one line, that a connection is gone
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torchrsm.rsm import kernels

    kernels.set_threads(kernels.threads())
    function = getattr(importlib.import_module(f"torchrsm.cli.{_MODULES[command]}"), command)
    if command not in _TOGETHER:
        function(rest)
        return
    from torchrsm.learning.distributed import joined

    with joined(shlex.join(arguments)) as ranks, _printing(ranks.rank == 0):
        function(rest, ranks)


@contextlib.contextmanager
def _printing(prints: bool) -> Iterator[None]:
    """Show what is printed until the end of the block, or hide it; errors and warnings are always shown."""
    if prints:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _text(error: ValueError | OSError) -> str:
    """Say what is wrong; settings that were refused say it in a form of their own."""
    from pydantic import ValidationError

    from torchrsm.config import first_error

    return first_error(error) if isinstance(error, ValidationError) else re.sub(r"^\[Errno \d+\] ", "", str(error))


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody listens
        print(f"torchrsm: {' '.join(message.split())}", file=sys.stderr)
    return code
