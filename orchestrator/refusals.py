"""Why a JobSpec is refused, as one sentence: the key, the value, and what to write instead."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from orchestrator.schema import LIST_OF, SchemaField

_SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_QUANTITY = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*$")


def refusal(error: ValidationError, known: Sequence[SchemaField]) -> tuple[str, str]:
    """(key, sentence) of the first thing wrong; an unknown key comes first, since it often explains the rest."""
    details = error.errors(include_url=False)
    first = next((detail for detail in details if detail["type"] == "extra_forbidden"), details[0])
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("extra_forbidden", "invalid_key"):
        return key, _unknown(key, known)
    if first["type"] == "string_unicode":  # YAML can write one as an escape
        return (
            key,
            f"{first['input']!r} holds half of a surrogate pair, which is no character; write the character itself",
        )
    groups = ["", *(field.key for field in known if field.is_group)]
    if first["type"] == "value_error":  # a group's own check says which keys, a single key's does not
        reason = str(first["ctx"]["error"])
        return key, reason if key in groups else f"{key}: {reason}"
    field = _declared(key, known)
    if first["type"] == "missing":
        return key, f"{key} is missing; write for example {_written(key, field.example)}"
    instead = _inside(field, known) if field.is_group else field
    return key, (
        f"{key} is {_shown(first['input'])}, but must be {_expected(key, field)}; "
        f"write for example {_written(instead.key, _better(first['input'], instead))}"
    )


def _declared(key: str, known: Sequence[SchemaField]) -> SchemaField:
    """The field that `key` lies in: for `task.hidden.1` that of `task.hidden`."""
    return max((field for field in known if f"{key}.".startswith(f"{field.key}.")), key=lambda field: len(field.key))


def _inside(group: SchemaField, known: Sequence[SchemaField]) -> SchemaField:
    """The first key of a group that has a value of its own."""
    return next(field for field in known if field.key.startswith(f"{group.key}.") and not field.is_group)


def _expected(key: str, field: SchemaField) -> str:
    """What may stand at `key`: the field's value, or an item of its list."""
    return field.expectation if key == field.key else field.expectation.removeprefix(LIST_OF)


def _unknown(key: str, known: Sequence[SchemaField]) -> str:
    """Suggests a key of the same group that reads alike, else the same name elsewhere, else lists the group."""
    group, _, name = key.rpartition(".")
    siblings = [field.key for field in known if field.key.rpartition(".")[0] == group]
    names = {sibling.rpartition(".")[2]: sibling for sibling in siblings}
    near = [names[each] for each in get_close_matches(name, names, n=1, cutoff=0.6)]
    elsewhere = [field.key for field in known if field.key.rpartition(".")[2] == name]
    if near or elsewhere:
        return f"{key} is not a key of the JobSpec; write {(near or elsewhere)[0]} instead"
    return f"{key} is not a key of the JobSpec; the keys there are {', '.join(siblings)}"


def _better(value: Any, field: SchemaField) -> Any:
    """What was meant, if that is plain (a misspelt choice, '5m' for seconds, a number in quotes), else an example."""
    choices = [str(choice) for choice in field.node.get("enum", [])]
    if choices:
        return next(iter(get_close_matches(str(value), choices, n=1)), field.example)
    quantity = _QUANTITY.match(value) if isinstance(value, str) else None
    numeric = any(kind in json.dumps(field.node) for kind in ('"type": "integer"', '"type": "number"'))
    if quantity is None or not numeric:
        return field.example
    number, suffix = float(quantity[1]), quantity[2].lower()
    scale = _SECONDS.get(suffix) if field.unit == "seconds" else None
    if suffix and scale is None:
        return field.example
    meant = number * (scale or 1)
    return int(meant) if meant.is_integer() else meant


def _written(key: str, value: Any) -> str:
    """The line to write, a nested key with its dots as `--set` takes it."""
    return f"{key}: {value if isinstance(value, str) else json.dumps(value)}"


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
