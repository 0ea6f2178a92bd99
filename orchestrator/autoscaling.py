"""The Ray autoscaler is asked for nodes, so that a job finds the hosts that it lacks."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger("quantarion.autoscaling")

AGAIN_SECONDS = 60.0
"""A head that was started again has forgotten what it was asked for."""

RETRY_SECONDS = 10.0
"""After a request that has failed."""


class Autoscaling:
    """Of one job.

    Args:
        request: asks for a cluster with room for so many hosts; 0 takes that back. It may raise.
    """

    def __init__(self, request: Callable[[int], None]) -> None:
        self._request = request
        self._hosts = 0  # asked for
        self._again_at = 0.0

    def ask(self, hosts: int, now: float) -> None:
        """When it is another number, and now and then. `now`: Unix seconds."""
        if hosts == self._hosts and now < self._again_at:
            return
        self._hosts, self._again_at = hosts, now + AGAIN_SECONDS
        try:
            self._request(hosts)
        except Exception:
            logger.exception("the autoscaler could not be asked for %d hosts; trying again", hosts)
            self._again_at = now + RETRY_SECONDS

    def withdraw(self) -> None:
        """The job ends. What cannot be taken back is told in the log."""
        try:
            self._request(0)
        except Exception:
            logger.exception("the autoscaler could not be told that the job ends")


def hosts_wanted(most: int, placed: int, leaving: int, refused: int) -> int:
    """For how many hosts the cluster is to have room. To the autoscaler a node has room even if the job cannot use it.

    Args:
        most: hosts that the job may have.
        placed: that it has, those included that are `leaving`.
        refused: nodes that are free and kept away from it.
    """
    return most + leaving + (refused if placed < most else 0)
