"""From a YAML file and `--set key=value` to plain nested dicts; what the values mean is decided by the JobSpec."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import UserError

Values = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, without two traps: a doubled key is an error, and `1e-3` is a number as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                mark = node.value[position][0].start_mark
                raise yaml.constructor.ConstructorError(problem=f"the key '{key}' stands twice", problem_mark=mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str) -> Any:
    """The value of one YAML document. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 (a subclass of SafeLoader)


def read(path: Path) -> Values:
    """The keys of a YAML file. Raises UserError where it cannot be read, is no YAML, or holds no keys."""
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; write the path of a JobSpec (.yaml) or of a script (.py)") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not text; write the path of a JobSpec in YAML, encoded in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}{_place(error)}; write 'key: value' lines, indented by spaces") from None
    if not isinstance(values, dict):
        held = "nothing" if values is None else f"a {type(values).__name__}"
        raise UserError(f"{path}: holds {held}, not keys; write at least 'name: my-job'")
    return values


def _place(error: yaml.YAMLError) -> str:
    """Where and what, as ':LINE:COLUMN: is not valid YAML (problem)'."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f": is not valid YAML ({' '.join(str(error).split())})"
    mark = error.problem_mark
    return f":{mark.line + 1}:{mark.column + 1}: is not valid YAML ({error.problem})"


def assign(values: Values, setting: str) -> str:
    """Apply one `a.b=value` of `--set` to `values`, the value read as YAML; returns the key.

    Raises UserError where there is no '=', the value is no YAML, or the key leads through something that has no keys.
    """
    key, equals, text = setting.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise UserError(f"--set {setting}: is not of the form key=value; write for example --set hosts.max=3")
    try:
        value = parse(text)
    except yaml.YAMLError:
        raise UserError(f"--set {setting}: the value is not valid YAML; put it in quotes") from None
    *groups, last = key.split(".")
    target = values
    for depth, group in enumerate(groups, start=1):
        if target.get(group) is None:
            target[group] = {}
        target = target[group]
        if not isinstance(target, dict):
            parent = ".".join(groups[:depth])
            raise UserError(f"--set {setting}: {parent} is {target!r}, which has no keys; remove {parent} from the JobSpec")
    target[last] = value
    return key
