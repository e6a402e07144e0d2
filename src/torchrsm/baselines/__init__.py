"""The systems that a model is compared with, each a `Predictor`, by the name that the command line takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchrsm.baselines.copy_last import CopyLast
from torchrsm.predictor import Predictor

__all__ = ["BASELINES", "CopyLast", "baseline"]

BASELINES: dict[str, Callable[[], Predictor[Any, Any]]] = {"copy-last": CopyLast}


def baseline(name: str) -> Predictor[Any, Any]:
    """Return the baseline called ``name``.

    Raises:
        ValueError: there is no baseline of that name.
    """
    if name not in BASELINES:
        raise ValueError(f"baseline must be one of {', '.join(sorted(BASELINES))}, received {name!r}")
    return BASELINES[name]()
