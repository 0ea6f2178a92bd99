"""What Ray's autoscaler is asked for."""

from __future__ import annotations

import pytest

from orchestrator.autoscaling import AGAIN_SECONDS, RETRY_SECONDS, Autoscaling, hosts_wanted


class Ray:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.fails = False

    def request(self, hosts: int) -> None:
        self.asked.append(hosts)
        if self.fails:
            raise ConnectionError("the head is away")


def test_gm33_it_is_asked_when_the_number_changes_and_again_as_a_new_head_has_forgotten_it() -> None:
    ray = Ray()
    autoscaling = Autoscaling(ray.request)
    for hosts, now in ((4, 0.0), (4, 0.5), (5, 1.0), (5, AGAIN_SECONDS), (5, AGAIN_SECONDS + 1.0), (4, 62.0)):
        autoscaling.ask(hosts, now)
    assert ray.asked == [4, 5, 5, 4]
    autoscaling.withdraw()
    assert ray.asked[-1] == 0


def test_where_it_does_not_answer_the_job_goes_on_and_asks_again() -> None:
    ray = Ray()
    ray.fails = True
    autoscaling = Autoscaling(ray.request)
    for now in (0.0, 0.5, RETRY_SECONDS - 0.1, RETRY_SECONDS):
        autoscaling.ask(4, now)
    autoscaling.withdraw()
    assert ray.asked == [4, 4, 0]


@pytest.mark.parametrize(
    ("most", "placed", "leaving", "refused", "wanted"),
    [
        (4, 0, 0, 0, 4),
        (4, 4, 0, 0, 4),
        (4, 4, 2, 0, 6),  # two are about to go: the autoscaler sees room where they are
        (4, 3, 0, 1, 5),  # one is kept away
        (4, 4, 0, 1, 4),
    ],
)
def test_gm33_nodes_that_the_job_cannot_use_are_asked_for_on_top(
    most: int, placed: int, leaving: int, refused: int, wanted: int
) -> None:
    assert hosts_wanted(most, placed, leaving, refused) == wanted
