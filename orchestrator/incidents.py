"""What has befallen the gang, until it is as it was before."""

from __future__ import annotations

from orchestrator.actions import Action, Record
from orchestrator.roster import Incident
from workers.identity import Generation


class Incidents:
    """Those that are open."""

    def __init__(self) -> None:
        self.open: list[Incident] = []

    def add(self, incident: Incident) -> None:
        self.open.append(incident)

    def answered(self, generation: Generation, world: int, now: float, *, full: bool) -> list[Action]:
        """All `world` members of the generation run: say how long each incident has taken till then, and once more where
        the world is what it was.

        Args:
            full: nothing is lacking any more.
        """
        actions: list[Action] = []
        for incident in self.open:
            fields: dict[str, object] = {
                "incident": incident.kind,
                "incident_t": incident.t,
                "host": incident.host,
                "rank": incident.rank,
                "generation": list(generation),
                "seconds": now - incident.t,
                "world": world,
            }
            if not incident.recovered:
                incident.recovered = True
                actions.append(Record("recovered", fields))
            if full and world >= incident.world:
                actions.append(Record("rank_back", fields))
        if full:
            self.open = [incident for incident in self.open if world < incident.world]
        return actions
