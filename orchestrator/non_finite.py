"""Whose fault a gradient is that is not finite (GM-20).

Ranks compute such a step once more, each the share of a rank on another host. Where it is finite then, the host was wrong;
where it is not, data or model are, and the step is skipped.
"""

from __future__ import annotations

SETTLE_SECONDS = 2.0
"""After a step was seen to be committed, what ranks have said of it has arrived."""


class NonFinite:
    """What ranks have told of steps that are not judged yet. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._suspects: dict[int, set[str]] = {}
        self._committed_at: dict[int, float] = {}

    def told(self, host: str, step: int, *, again: bool) -> bool:
        """A rank of `host` had one in `step`; `again`: when that was computed once more. True where it clears a host."""
        if again:
            return self._suspects.pop(step, None) is not None
        self._suspects.setdefault(step, set()).add(host)
        return False

    def guilty(self, step: int, now: float) -> list[str]:
        """Hosts whose share was finite on another one, as far as `step` is committed. Several in one step have a cause in
        common that lies elsewhere."""
        found = []
        for each, hosts in list(self._suspects.items()):
            if each <= step and now - self._committed_at.setdefault(each, now) >= SETTLE_SECONDS:
                del self._suspects[each], self._committed_at[each]
                found += sorted(hosts) if len(hosts) == 1 else []
        return found
