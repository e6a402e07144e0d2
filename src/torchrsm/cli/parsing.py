"""From flags to settings, and from what is wrong with them to one line."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any, TypeVar, cast

import tyro
from pydantic import ValidationError

from torchrsm.config import first_error

_T = TypeVar("_T")


def parse(kind: type[_T], arguments: list[str], name: str, default: Any = None) -> _T:
    """Parse flags with the schema of ``kind``; tyro's boxed message becomes one line."""
    output = io.StringIO()
    known = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(output):
            return cast(_T, tyro.cli(kind, args=arguments, prog=f"torchrsm {name}", config=_TYRO, **known))
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise ValueError(_one_line(end, output.getvalue(), name)) from None


def taken(arguments: list[str], flag: str, default: str) -> tuple[list[str], str]:
    """Return the arguments without one flag and its value, and the value."""
    rest, value = [], default
    given = iter(arguments)
    for argument in given:
        if argument == flag:
            value = next(given, "")
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
        else:
            rest.append(argument)
    return rest, value


def _one_line(end: SystemExit, box: str, name: str) -> str:
    """Say what is wrong with the flags: what the schema says, or else what stands first in tyro's box."""
    place, cause = "", end.__context__
    while cause is not None:
        if isinstance(cause, ValidationError):
            return place + first_error(cause)
        place = str(getattr(cause, "arg", "")).removeprefix("run").strip(".")  # such as model.layers.0
        place, cause = place and f"{place}: ", cause.__context__
    title, *parts = re.split(r"[-─]{9,}", re.sub(r"[╭╮╰╯│]", " ", box))
    text = " ".join((parts or [title])[0].split())
    for words, better in _PHRASES:
        text = re.sub(words, better, text)
    return f"{name}: {text}; see torchrsm {name} --help"


def _choices(found: re.Match[str]) -> str:
    """Say what may be chosen; where nothing may be chosen, too, tyro gives the rest in no order."""
    names = found[3].split(", ")
    if "'None'" in names:
        names = sorted(set(names) - {"'None'"})
    return f"{found[2]} must be one of {', '.join(names)}; got {found[1]}"


# What kind of rectifier there is, and whether there is one, is the preset's to say; the flags are its settings.
_TYRO = (tyro.conf.AvoidSubcommands,)

_PHRASES = (  # what tyro says, and the same in our words
    (r"^Missing from [^:]*: ((?:--\S+ )?\S+) (.*?)\.? \(required\).*", r"missing \1 (\2)"),
    (r"^Unrecognized options: ", "unknown: "),
    (r"^Missing value for argument '(.*)'\. Expected (\d+) values\.", r"\1 needs \2 value(s)"),
    (r"^invalid choice (.*) for argument '(.*)'\. Expected one of \((.*)\)\.", _choices),
    (r"^Error parsing (\S+): invalid literal for int\(\) with base 10: ", r"\1 must be INT; got "),
    (r"^Error parsing (\S+): could not convert string to float: ", r"\1 must be FLOAT; got "),
    (
        r"^Error parsing (\S+): no type matching (\S+) could be instantiated from \[(.*?)\]\. .*",
        r"\1 must be \2; got \3",
    ),
    (r"^Error parsing (\S+): Could not find valid parse for arguments: ", r"\1 does not take "),
    (r"\{None\}\|", ""),  # what is left out need not be said
)
