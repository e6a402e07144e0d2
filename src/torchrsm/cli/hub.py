"""``push`` and ``pull``: models to and from the Hugging Face Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import tyro

from torchrsm.cli.parsing import parse
from torchrsm.config import Config
from torchrsm.hub import pulled, push_to_hub
from torchrsm.storage.tensors import make_folder
from torchrsm.streams.paths import printable
from torchrsm.systems import load


class PushCommand(Config):
    """Upload a model to the Hugging Face Hub, with the settings of its run and a card (extra: hub).

    The account is that of `hf auth login`, or of the variable HF_TOKEN.

    Attributes:
        model: folder of a model or a run, or the name of a shipped model.
        repository: where to; one that is not there is made.
        private: a new repository can be seen by its owner alone.
        endpoint: address of the server; None for the Hub's own.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="USER/NAME")]
    private: bool = False
    endpoint: str | None = None


class PullCommand(Config):
    """Download a model from the Hugging Face Hub to a folder (extra: hub).

    Attributes:
        repository: where from.
        out: a new folder, which is then a model like any other.
        revision: branch, tag or commit; None for the newest.
        endpoint: address of the server; None for the Hub's own.
    """

    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="USER/NAME")]
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    revision: str | None = None
    endpoint: str | None = None


def push(arguments: list[str]) -> None:
    """Upload a model and print its address."""
    command = parse(PushCommand, arguments, "push")
    address = push_to_hub(command.model, command.repository, private=command.private, endpoint=command.endpoint)
    print(f"{printable(command.model)} is at {address}")


def pull(arguments: list[str]) -> None:
    """Download a model, check that it can be loaded, and put it into a folder."""
    command = parse(PullCommand, arguments, "pull")
    if command.out.exists():
        raise FileExistsError(f"out must be new; {command.out} is there")
    found = Path(pulled(command.repository, command.revision, endpoint=command.endpoint))
    load(found)
    make_folder(command.out)
    for file in found.iterdir():
        if file.is_file():
            shutil.copyfile(file, command.out / file.name)
    print(f"{printable(command.out)} is the model {command.repository}")
