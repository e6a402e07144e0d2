"""``serve``: the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from torchrsm.cli.parsing import parse
from torchrsm.config import Config
from torchrsm.runs.settings import DeviceFlag
from torchrsm.storage.shipped import find_model


class ServeCommand(Config):
    """Serve the page: watch models live, play with them, train one.

    Attributes:
        models: folders of models to offer beside the shipped ones.
        host: address to listen on; the default is reached from this machine only.
        port: 0 for any that is free.
        upload_mebibytes: most of a video that a viewer sends.
        device: where the model computes, by its name (`torchrsm.devices.choose_device`).
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = ()
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    upload_mebibytes: Annotated[float, Field(gt=0, le=4096)] = 32
    device: DeviceFlag = "cpu"


def serve(arguments: list[str]) -> None:
    """Serve the page until it is stopped."""
    command = parse(ServeCommand, arguments, "serve")
    from torchrsm.web.fairness import Limits  # not at the top: the help needs no extra
    from torchrsm.web.library import Library
    from torchrsm.web.server import serve as serve_page

    library = Library([find_model(folder) for folder in command.models], command.device)
    serve_page(
        library,
        command.host,
        command.port,
        limits=Limits(upload_bytes=round(command.upload_mebibytes * 2**20)),
        ready=lambda address: print(f"watch at {address} (end with Ctrl-C)", flush=True),
    )
