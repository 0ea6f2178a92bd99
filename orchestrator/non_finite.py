"""Whose fault a gradient is that is not finite (GM-20).

Ranks compute such a step once more, each the share of a rank on another host. Where it is finite then, the host was wrong;
where it is not, data or model are, and the step is skipped. Nobody is guilty whose step was not computed again, or where
nobody has said what came of it.
"""

from __future__ import annotations

SETTLE_SECONDS = 2.0
"""After it was said that a step is finite now, all that ranks have said of it before has arrived."""


class NonFinite:
    """What ranks have told of steps that are not judged yet. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._suspects: dict[int, set[str]] = {}
        self._finite_at: dict[int, float] = {}

    def told(self, host: str, step: int, *, again: bool) -> bool:
        """A rank of `host` had one in `step`; `again`: when that was computed once more. True where it clears a host."""
        if again:
            return self._suspects.pop(step, None) is not None
        self._suspects.setdefault(step, set()).add(host)
        return False

    def finite(self, step: int, now: float) -> None:
        """On all hosts, when it was computed once more."""
        self._finite_at[step] = now

    def guilty(self, now: float) -> list[str]:
        """Hosts whose share was finite on another one. Several in one step have a cause in common that lies elsewhere."""
        found: list[str] = []
        for step in [step for step, at in self._finite_at.items() if now - at >= SETTLE_SECONDS]:
            del self._finite_at[step]
            hosts = self._suspects.pop(step, set())
            found += hosts if len(hosts) == 1 else []
        return found

    def forget(self) -> None:
        """Members are others now, and nobody computes again what was begun before."""
        self._suspects = {step: hosts for step, hosts in self._suspects.items() if step in self._finite_at}
