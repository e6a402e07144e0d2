"""The base of all settings: frozen, validated on construction, no unknown field, no silent conversion."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class Config(BaseModel):
    """Settings that cannot change after they were checked; also the command line's flags and the saved JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def first_error(error: ValidationError) -> str:
    """Say the first thing that is wrong with settings in one line: where, what, and the value received."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    where = f"{place}: " if place else ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{where}unknown setting"
    if first["type"] == "value_error":
        return where + message
    received = "" if first["type"] in ("json_invalid", "missing") else f"; got {_short(first['input'])}"
    return f"{where}{message[0].lower()}{message[1:]}{received}"


def _short(value: object) -> str:
    """Write a value in at most a line: a whole file may have come where a number was due."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
