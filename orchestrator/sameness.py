"""Whether a host that joins would train with what the job trains with (GM-9).

That it is the host it claims to be, and speaks now, its certificate shows in the handshake of TLS 1.3, which signs what
both sides have drawn for this connection. Which state its ranks have is in their state ids, whose lineage is a running hash
of everything committed. What neither shows is whether it would do the same with it: that is looked at here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orchestrator.governor.codes import Code

_NAMES = {
    "python": "Python",
    "torch": "torch",
    "quantarion": "another Quantarion",
    "job": "another job.json",
    "script": "another file as task.script",
}
_ADVICE = {
    "job": "its storage is not the folder that the job lies in",
    "script": "put the script where all hosts see the same file",
}
_INSTALL = "install the same on all hosts"


class Sameness:
    """Of the hosts of one job.

    Args:
        own: what the first coordinator of the job had, as `workers.installed.software` says it.
        tell: takes the fields of the event `join_refused`.

    Attributes:
        admitted: hosts of the job. What lies on their disks by now is not what their processes have loaded.
    """

    def __init__(self, own: Mapping[str, str], tell: Callable[[dict[str, object]], None]) -> None:
        self._own, self._tell = dict(own), tell
        self._told: dict[str, str] = {}
        self.admitted: set[str] = set()

    def objection(self, host: str, has: Mapping[str, str]) -> str | None:
        """Why `host` may not join, as the end of a sentence about it; None where it may. Told once, until it is another."""
        if host in self.admitted:
            return None
        own = self._own
        differs = [what for what, value in own.items() if value and has.get(what, "") != value]
        if not differs:
            own["script"] = own["script"] or has.get("script", "")  # where the coordinator's machine lacks the file
            self._told.pop(host, None)
            self.admitted.add(host)
            return None
        reason = _sentence(differs, own, has)
        if self._told.get(host) != reason:
            self._told[host] = reason
            self._tell({"host": host, "code": Code.JOIN_MISMATCH.value, "differs": differs, "message": f"{host} {reason}"})
        return reason


def _sentence(differs: list[str], own: Mapping[str, str], has: Mapping[str, str]) -> str:
    if not has:
        return f"may not join: it does not say what is installed there; {_INSTALL}"
    parts, advice = [], []
    for what in differs:
        if what in ("python", "torch"):
            parts.append(f"{_NAMES[what]} {has.get(what) or 'of no known version'} instead of {own[what]}")
        else:
            parts.append(_NAMES[what] if has.get(what) else f"no {_NAMES[what].removeprefix('another ')}")
        advice.append(_ADVICE.get(what, _INSTALL))
    return f"may not join: it has {', '.join(parts)}; {'; '.join(dict.fromkeys(advice))}"
