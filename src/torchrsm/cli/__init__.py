"""The command line: `main` runs one command; each file beside it holds one command, or two that belong together."""

from torchrsm.cli.main import main

__all__ = ["main"]
