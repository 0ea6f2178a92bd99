"""The JSON schema of the JobSpec, read field by field: for the documentation and for error messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]

LIST_OF = "a list, each item "
_NOUNS = {"string": "a text", "boolean": "true or false", "object": "a group of keys", "null": "null"}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


@dataclass(frozen=True)
class SchemaField:
    """One key of the JobSpec, with its dots: `hosts.min`."""

    key: str
    node: Schema
    required: bool

    @property
    def is_group(self) -> bool:
        return "properties" in self.node

    @property
    def unit(self) -> str | None:
        unit = self.node.get("unit")
        return unit if isinstance(unit, str) else None

    @property
    def example(self) -> Any:
        """A value that may be written: the first example, else the default."""
        examples = self.node.get("examples")
        return examples[0] if examples else self.node.get("default")

    @property
    def expectation(self) -> str:
        """What may be written, in words: 'a whole number of seconds, at least 0'."""
        return _expectation(self.node, self.unit)


def fields(schema: Schema) -> list[SchemaField]:
    """Every key of the schema in the order of declaration, each group before the keys in it."""
    return list(_walk(schema, schema, ""))


def _walk(root: Schema, node: Schema, prefix: str) -> Iterator[SchemaField]:
    required = node.get("required", [])
    for name, declared in node["properties"].items():
        resolved = _resolve(root, declared)
        yield SchemaField(prefix + name, resolved, name in required)
        if "properties" in resolved:
            yield from _walk(root, resolved, f"{prefix}{name}.")


def _resolve(root: Schema, node: Schema) -> Schema:
    """The node with its reference into `$defs` followed; what stands beside the reference wins."""
    if "$ref" not in node:
        return node
    target = root["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return {**target, **{key: value for key, value in node.items() if key != "$ref"}}


def _expectation(node: Schema, unit: str | None = None) -> str:
    if "expectation" in node:  # said by the owner of the field, where a pattern would be shown otherwise
        return str(node["expectation"])
    if "anyOf" in node:
        return " or ".join(_expectation(option, unit) for option in node["anyOf"])
    if "enum" in node:
        return "one of " + ", ".join(str(value) for value in node["enum"])
    if node.get("type") == "array":
        return LIST_OF + _expectation(node["items"])
    if node.get("type") not in ("integer", "number"):
        return _NOUNS[node["type"]]
    noun = "a whole number" if node["type"] == "integer" else "a number"
    bounds = [f"{words} {node[bound]}" for bound, words in _BOUNDS.items() if bound in node]
    return f"{noun}{f' of {unit}' if unit else ''}{', ' + ' and '.join(bounds) if bounds else ''}"


def markdown(schema: Schema) -> str:
    """The reference page of the JobSpec, docs/jobspec.md."""
    keys = fields(schema)
    lines = [
        "# The JobSpec",
        "",
        "One YAML file describes a job. Only `name` is required. Paths are relative to the folder in which quantarion",
        "is started. `--set key=value` on the command line replaces a key; `quantarion schema` prints the JSON schema,",
        "for editors. Unknown keys and values that do not fit are refused.",
        "",
        "This page is made by `quantarion schema --markdown > docs/jobspec.md`.",
        "",
        *_table([field for field in keys if "." not in field.key and not field.is_group]),
    ]
    for group in (field for field in keys if field.is_group):
        inside = [field for field in keys if field.key.rpartition(".")[0] == group.key and not field.is_group]
        lines += ["", f"## {group.key}", "", str(group.node["description"]), "", *_table(inside)]
    return "\n".join(lines) + "\n"


def _table(rows: list[SchemaField]) -> Iterator[str]:
    if rows:
        yield "| key | value | default | meaning |"
        yield "|---|---|---|---|"
    for field in rows:
        default = "required" if field.required else f"`{json.dumps(field.node.get('default'))}`"
        yield f"| `{field.key}` | {field.expectation} | {default} | {field.node['description']} |"
