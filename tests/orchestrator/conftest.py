"""Ray reads how it authenticates when it is imported, so this comes before any test of this folder imports it."""

from __future__ import annotations

from orchestrator import rayenv

rayenv.prepare(embedded=True)
