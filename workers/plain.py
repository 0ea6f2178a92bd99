"""Plain values to JSON and back, exactly: what state dicts hold besides tensors. No pickle."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def dumps(value: Any) -> str:
    """JSON text of None, bool, int, float, str, list, tuple, dict and Counter, nested; dict keys of any plain type.

    Raises TypeError for anything else, naming its type.
    """
    return json.dumps(_encode(value))


def loads(text: str) -> Any:
    """The value that `dumps` was given."""
    return _decode(json.loads(text))


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, Counter):
        return {"counter": [[_encode(k), _encode(v)] for k, v in value.items()]}
    if isinstance(value, dict):
        return {"dict": [[_encode(k), _encode(v)] for k, v in value.items()]}
    raise TypeError(f"a state holds a {type(value).__name__}, which cannot be saved as plain data")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict):
        [(kind, items)] = value.items()
        if kind == "tuple":
            return tuple(_decode(item) for item in items)
        pairs = {_decode(k): _decode(v) for k, v in items}
        return Counter(pairs) if kind == "counter" else pairs
    return value
