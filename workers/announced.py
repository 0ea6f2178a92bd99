"""Where a job's coordinator listens: `coordinator.json` in its folder, read anew before each connection."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Announced:
    """What the coordinator says of itself."""

    address: str  # host:port of its gRPC server
    server_name: str = ""  # that its certificate is for; empty: it speaks without TLS


def announced(job_folder: Path) -> Announced | None:
    """Of the job in this folder; None while its coordinator has not said."""
    try:
        content = json.loads((job_folder / "coordinator.json").read_text())
        return Announced(str(content["address"]), str(content.get("tls", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
