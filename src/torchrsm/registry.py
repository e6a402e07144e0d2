"""Registries: tables of settings and classes, in which the ``kind`` of the settings names an entry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator


def chosen_from(name: str, entries: Mapping[str, tuple[type[BaseModel], Any]]) -> WrapValidator:
    """Return the validator of a field whose settings are those of an entry of a registry.

    The registry is read when settings are checked, so that an entry which is added later counts, too. The annotated
    type is the base of all settings in it; mark it with `pydantic.SerializeAsAny`, so that all fields are written.

    Args:
        name: what is chosen, for messages.
        entries: settings and class by kind.
    """

    def choose(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if value is None:
            return handler(value)
        if isinstance(value, BaseModel):
            known = [config for config, _ in entries.values()]
            if type(value) not in known:
                names = ", ".join(config.__name__ for config in known)
                raise ValueError(f"{name} must be one of {names}; got {type(value).__name__}")
            return type(value).model_validate(value, context=info.context)
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be settings with a kind; got {value!r:.100}")
        kind = value.get("kind")
        if not isinstance(kind, str) or kind not in entries:
            got = f"{kind!r:.100}" if "kind" in value else "none"
            raise ValueError(f"kind must be one of {', '.join(entries)}; got {got}")
        config = entries[kind][0]
        if info.mode == "json":  # where a tuple is written as a list
            return config.model_validate_json(json.dumps(value), context=info.context)
        return config.model_validate(value, context=info.context)

    return WrapValidator(choose)
