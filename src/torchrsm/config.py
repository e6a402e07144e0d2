"""The base of all settings: frozen, checked as a whole, no unknown field, no silent conversion, none without effect."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator


class Config(BaseModel):
    """Settings that cannot change after they were checked; also the command line's flags and the saved JSON.

    - **Types are strict.** "64", 64.0 and True are no integers, "yes" is no bool, a string is no path. Equal values of
      another type are taken: an integer where a float is due, a list where a tuple is due, a NumPy number as Python's,
      a dict as the section that it describes.
    - **Every setting acts.** One that can have no effect beside the others must have its default; a class lists its own
      in `without_effect`.
    - **Changes are checked.** `replace` and `model_copy` run every check of every level again.
    - **Values.** Settings of one class with equal fields are equal, have one hash and can be keys. `repr` is Python
      that makes them again. ``model_dump_json()`` writes them and `from_json` reads them.

    A bad value raises a ``pydantic.ValidationError``, which is a ``ValueError``; `first_error` says it in one line.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        revalidate_instances="always",
    )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List the settings that have no effect beside the others, whatever their value.

        Yields:
            The path from these settings, such as ``layers.0.pool``, and why: what stands after "where".
        """
        yield from ()

    @property
    def copies(self) -> int:
        """In how many places a model with these settings may hold one number, which its file may hold once."""
        return 1

    def replace(self, **changes: Any) -> Self:
        """Return settings with some of them changed, checked as a whole.

        A path is a name or names with dots between them, list indices among them::

            run.replace(**{"training.minutes": 5, "training.steps": None, "model.layers.0.groups": 128})

        Args:
            changes: new values by path; a section is given as settings or as a dict, and takes the old one's place.

        Raises:
            ValueError: a path names nothing that is there, two paths overlap, or the settings do not fit together; one
                line that names the path and the value.
        """
        return self._with(changes)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Do what `replace` does with ``update``; pydantic's own method checks nothing. Settings need no deep copy."""
        return self.replace(**update) if update else super().model_copy(deep=deep)

    def copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # type: ignore[override]
        """Do what `model_copy` does, under pydantic's former name."""
        return self.model_copy(update=update, deep=deep)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read settings that were saved.

        Earlier versions took and saved settings that have no effect. Such a setting becomes its default here, which
        changes nothing that a model or a run does. Everything else is checked as ever.

        Raises:
            ValueError: no JSON, an unknown setting, or a value out of its range; one line that names both.
        """
        try:
            config = cls.model_validate_json(text, context=_TAKE_IDLE)
        except ValidationError as error:
            raise ValueError(first_error(error, _parsed(text))) from None
        # A setting that becomes its default may leave others without effect, hence another round.
        while idle := dict(_idle_everywhere(config, "")):
            config = config._with(idle, _TAKE_IDLE)
        return config

    def _with(self, changes: Mapping[str, Any], context: Mapping[str, str] | None = None) -> Self:
        by_parts = {tuple(path.split(".")): value for path, value in changes.items()}
        settings = _changed(self, by_parts, (), self)
        try:
            return type(self).model_validate(settings, context=context)
        except ValidationError as error:
            raise ValueError(first_error(error, settings)) from None

    @model_validator(mode="before")
    @classmethod
    def _in_plain_types(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        plain = {name: _plain(value) for name, value in given.items()}
        for name, field in cls.model_fields.items():
            # pydantic finds True and 1.0 among the choices of Literal[1, 3].
            if get_origin(field.annotation) is Literal and name in plain:
                choices = get_args(field.annotation)
                if type(plain[name]) not in {type(choice) for choice in choices}:
                    raise ValueError(f"{name} must be {_either(choices)}; got {_short(plain[name])}")
        return plain

    @model_validator(mode="after")
    def _acts(self, info: ValidationInfo) -> Self:
        if info.context != _TAKE_IDLE:
            idle = list(_idle(self))
            if idle:
                raise ValueError(_refusal([setting for setting in idle if setting.reason == idle[0].reason]))
        return self


_TAKE_IDLE = {"without effect": "take"}


class _Idle(NamedTuple):
    """A setting without effect that has another value than its default."""

    path: str
    reason: str
    value: Any
    default: Any


def _idle(config: Config) -> Iterator[_Idle]:
    """Find the settings without effect that these settings list themselves; sections inside list their own."""
    for path, reason in config.without_effect():
        *way, name = path.split(".")
        holder: Any = config
        for part in way:
            holder = holder[int(part)] if isinstance(holder, tuple) else getattr(holder, part)
        value, default = getattr(holder, name), type(holder).model_fields[name].get_default(call_default_factory=True)
        if value != default:
            yield _Idle(path, reason, value, default)


def _idle_everywhere(config: Config, place: str) -> Iterator[tuple[str, Any]]:
    """Yield path and default of every setting without effect, here and in all sections."""
    for found in _idle(config):
        yield place + found.path, found.default
    for path, section in _sections(config):
        yield from _idle_everywhere(section, f"{place}{path}.")


def _sections(config: Config) -> Iterator[tuple[str, Config]]:
    for name in type(config).model_fields:
        value = getattr(config, name)
        entries = [(name, value)] if not isinstance(value, tuple) else [(f"{name}.{i}", v) for i, v in enumerate(value)]
        for path, entry in entries:
            if isinstance(entry, Config):
                yield path, entry


def _refusal(idle: Sequence[_Idle]) -> str:
    their, they = ("its default", "it has") if len(idle) == 1 else ("their defaults", "they have")
    return (
        f"{_and(s.path for s in idle)} must be {_and(repr(s.default) for s in idle)}, {their}, "
        f"where {idle[0].reason}: {they} no effect there; got {_and(repr(s.value) for s in idle)}"
    )


def _changed(value: Any, changes: Mapping[tuple[str, ...], Any], place: tuple[str, ...], whole: Config) -> Any:
    """Return settings, plain as far down as something changes, with the changes by the rest of their paths.

    Args:
        value: the settings at ``place``.
        changes: new values by the path from there; the empty path is the place itself.
        place: path from ``whole``.
        whole: settings that are to be changed.
    """
    here = ".".join(place)
    if () in changes:
        if len(changes) > 1:
            raise ValueError(f"{here} cannot be replaced as a whole and in part at once; give one of both")
        return changes[()]
    by_name: dict[str, dict[tuple[str, ...], Any]] = {}
    for (name, *rest), new in changes.items():
        by_name.setdefault(name, {})[tuple(rest)] = new
    if isinstance(value, Config):
        parts = {name: getattr(value, name) for name in type(value).model_fields}
    elif isinstance(value, tuple):
        parts = {str(index): entry for index, entry in enumerate(value)}
    else:
        wanted = ".".join((*place, next(iter(by_name))))
        what = "is None; replace it as a whole first" if value is None else f"is {_short(value)}, not a section"
        raise ValueError(f"{wanted}: unknown setting; {here} {what}")
    for name, inner in by_name.items():
        if name not in parts:
            raise ValueError(_unknown((*place, name, *next(iter(inner))), parts, here, whole))
        parts[name] = _changed(parts[name], inner, (*place, name), whole)
    return parts if isinstance(value, Config) else tuple(parts.values())


def _unknown(path: tuple[str, ...], parts: Mapping[str, Any], here: str, whole: Config) -> str:
    """Return the message for a path that does not exist, with the nearest ones."""
    wanted, known = ".".join(path), list(_paths(whole, ""))
    by_name: dict[str, list[str]] = {}
    for name in known:
        by_name.setdefault(name.split(".")[-1], []).append(name)
    alike = [name for last in difflib.get_close_matches(path[-1], by_name, 2, 0.7) for name in by_name[last]]
    nearest = list(dict.fromkeys([*by_name.get(path[-1], []), *difflib.get_close_matches(wanted, known, 3), *alike]))
    if not nearest:
        return f"{wanted}: unknown setting; known{' in ' if here else ''}{here}: {', '.join(parts)}"
    return f"{wanted}: unknown setting; nearest known: {', '.join(nearest[:3])}"


def _paths(value: Any, place: str) -> Iterator[str]:
    """Yield the path of every setting, sections too."""
    entries: Iterator[tuple[str, Any]] | list[tuple[str, Any]] = []
    if isinstance(value, Config):
        entries = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, tuple):
        entries = [(str(index), entry) for index, entry in enumerate(value)]
    for name, entry in entries:
        yield place + name
        yield from _paths(entry, f"{place}{name}.")


def _plain(value: Any) -> Any:
    """Take lists as tuples, and the integers of NumPy as Python's; its other numbers are taken by pydantic itself."""
    if isinstance(value, list | tuple):
        return tuple(_plain(entry) for entry in value)
    return int(value) if isinstance(value, Integral) and not isinstance(value, int) else value


def first_error(error: ValidationError, given: Any = None) -> str:
    """Say the first thing that is wrong with settings in one line: which one, what it must be, and the value received.

    Args:
        error: from pydantic.
        given: what was checked, if known; the place is then named by the path in it, without the kinds of sections.
    """
    first = error.errors(include_url=False)[0]
    kind, context, received = first["type"], first.get("ctx", {}), _short(first["input"])
    place = ".".join(_path_in(given, first["loc"], kind))
    if kind == "value_error":
        return f"{place}: {context['error']}" if place else str(context["error"])
    if kind == "extra_forbidden":
        return f"{place}: unknown setting"
    if kind == "missing":
        return f"{place} must be given"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        name = context["discriminator"].strip("'")
        place = f"{place}.{name}" if place else name
        if "tag" not in context:
            return f"{place} must be given"
        return f"{place} must be one of {context['expected_tags']}; got {context['tag']!r}"
    told = re.fullmatch(r"\w+ should (.*?)(?: after validation, not .*)?", first["msg"], re.DOTALL)
    if told is not None:
        return f"{place or 'settings'} must {told[1]}; got {received}"
    where, ending = f"{place}: " if place else "", "" if kind == "json_invalid" else f"; got {received}"
    return f"{where}{first['msg'][0].lower()}{first['msg'][1:]}{ending}"


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _path_in(given: Any, location: Sequence[int | str], kind: str) -> Iterator[str]:
    """Yield the parts of a location that are in what was given; pydantic puts the kind of a section among them."""
    for number, part in enumerate(location):
        if isinstance(given, Config):
            inside: Any = {name: getattr(given, name) for name in type(given).model_fields}
        else:
            inside = dict[Any, Any](enumerate(given)) if isinstance(given, list | tuple) else given
        if not isinstance(inside, Mapping):
            yield from map(str, location[number:])
            return
        if part in inside or (kind == "missing" and number == len(location) - 1):
            yield str(part)
            given = inside.get(part)


def _short(value: object) -> str:
    """Write a value in at most a line: a whole file may have come where a number was due."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _and(words: Any) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else str(last)


def _either(choices: Sequence[Any]) -> str:
    return f"one of {', '.join(repr(choice) for choice in choices)}"
