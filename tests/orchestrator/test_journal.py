"""What a restarted coordinator knows of the groups of hosts (CC-9, EP-12)."""

from __future__ import annotations

from pathlib import Path

from orchestrator.journal import Journal
from workers.paths import DISTRUSTED


def test_cc9_groups_outlive_the_coordinator_but_not_the_start_of_the_job(tmp_path: Path) -> None:
    first = Journal(tmp_path, launch=1.0)
    first.begin()
    for number, group in enumerate(("site", "", "")):
        placed = {"host": f"host-{number}", "node_id": "n", "address": f"10.0.0.{number}", "group": group}
        first.write({"entry": "host", **placed})
    first.write({"entry": "host_dropped", "host": "host-2"})
    found = {"host-1": "probe-1", "host-2": "probe-1"}
    first.write({"entry": "probed", "groups": found, "by_address": {"10.0.0.1": "probe-1", "10.0.0.2": "probe-1"}})
    second = Journal(tmp_path, launch=1.0).remembered
    assert {host: entry["group"] for host, entry in second.hosts.items()} == {"host-0": "site", "host-1": "probe-1"}
    assert second.probed == {"10.0.0.1": "probe-1", "10.0.0.2": "probe-1"}
    later = Journal(tmp_path, launch=2.0)
    assert (later.remembered.hosts, later.remembered.probed) == ({}, {})
    later.begin()
    assert Journal(tmp_path, launch=2.0).remembered.probed == {}


def test_gm6_gm38_what_operators_have_done_outlives_the_coordinator_but_not_the_start_of_the_job(tmp_path: Path) -> None:
    first = Journal(tmp_path, launch=1.0)
    first.begin()
    for number in (1, 2):
        placed = {"host": f"host-{number}", "node_id": f"node-{number}", "address": f"10.0.0.{number}", "group": ""}
        first.write({"entry": "host", **placed})
    first.write({"entry": "host_leaves", "host": "host-1", "reason": "drained"})
    for entry, host in (("drained", "host-1"), ("drained", "host-2"), ("readmitted", "host-2"), ("host_dropped", "host-2")):
        first.write({"entry": entry, "host": host})
    first.write({"entry": "scaled", "hosts": 7})
    found = Journal(tmp_path, launch=1.0).remembered
    assert {host: entry.get("leaving") for host, entry in found.hosts.items()} == {"host-1": "drained"}
    assert (found.drained, found.hosts_max) == ({"host-1"}, 7)
    assert found.names == {"node-1": "host-1", "node-2": "host-2"}
    Journal(tmp_path, launch=2.0).begin()
    later = Journal(tmp_path, launch=2.0).remembered
    assert (later.drained, later.hosts_max, later.names) == (set(), 0, {})


def test_gm17_a_coordinator_that_dies_while_the_job_goes_back_is_followed_by_one_that_knows(tmp_path: Path) -> None:
    first = Journal(tmp_path, launch=1.0)
    first.begin()
    first.write({"entry": "sound", "step": 50})
    first.write({"entry": "rolls_back", "at_most": 50, "reason": "digests differ"})
    first.distrust(50)
    second = Journal(tmp_path, launch=1.0)
    assert (second.remembered.sound, second.remembered.rolling_back) == (50, 50)
    second.write({"entry": "rolled_back", "generation": [2, 1]})
    assert Journal(tmp_path, launch=1.0).remembered.rolling_back is None
    later = Journal(tmp_path, launch=2.0)
    later.begin()
    remembered = Journal(tmp_path, launch=2.0).remembered
    assert (remembered.sound, remembered.rolling_back) == (0, None)
    assert (tmp_path / "control" / DISTRUSTED).exists()  # what is wrong stays wrong, until it is put aside
    later.trust()
    later.trust()
    assert not (tmp_path / "control" / DISTRUSTED).exists()


def test_gm19_gm30_who_has_a_vote_and_who_hung_outlive_the_coordinator_but_not_the_start_of_the_job(tmp_path: Path) -> None:
    first = Journal(tmp_path, launch=1.0)
    first.begin()
    members = [{"rank": rank, "host": f"host-{rank // 2}", "pid": 1, "worker": f"w{rank}"} for rank in range(6)]
    first.write({"entry": "generation", "generation": [1, 1], "members": members[:1]})
    first.write({"entry": "generation", "generation": [1, 2], "members": members})
    first.write({"entry": "host_lost", "host": "host-1", "reason": "its node is dead", "certain": True})
    first.write({"entry": "host_lost", "host": "host-2", "reason": "no agent for 20 s", "certain": False})
    for time, ranks in ((5.0, (0, 1)), (9.0, (0, 5)), (11.0, ())):
        culprits = [{"host": f"host-{rank // 2}", "rank": rank} for rank in ranks]
        first.write({"entry": "hang", "t": time, "culprits": culprits})
    found = Journal(tmp_path, launch=1.0).remembered
    assert found.voters == {"w0": "host-0", "w1": "host-0", "w4": "host-2", "w5": "host-2"}
    assert found.members.keys() == {f"w{rank}" for rank in range(6)}
    assert found.hung == [(5.0, "host-0"), (9.0, "host-0"), (9.0, "host-2")]
    Journal(tmp_path, launch=2.0).begin()
    later = Journal(tmp_path, launch=2.0).remembered
    assert (later.voters, later.hung) == ({}, [])


def test_gm38_notices_outlive_the_coordinator_until_they_are_over(tmp_path: Path) -> None:
    first = Journal(tmp_path, launch=1.0)
    first.begin()
    for number in (1, 2, 3):
        notice = {"host": f"host-{number}", "source": "ray", "reason": "r", "heard": 5.0, "deadline": 35.0}
        first.write({"entry": "notice", **notice})
    first.write({"entry": "notice_withdrawn", "host": "host-1"})
    first.write({"entry": "host", "host": "host-2", "node_id": "n", "address": "10.0.0.2", "group": ""})  # taken again
    found = Journal(tmp_path, launch=1.0).remembered.notices
    assert found == {"host-3": {"host": "host-3", "source": "ray", "reason": "r", "heard": 5.0, "deadline": 35.0}}
    Journal(tmp_path, launch=2.0).begin()
    assert Journal(tmp_path, launch=2.0).remembered.notices == {}


def test_a_checkpoint_that_was_asked_for_is_remembered_until_it_lies_on_disk(tmp_path: Path) -> None:
    first = Journal(tmp_path, launch=1.0)
    first.begin()
    first.write({"entry": "save", "step": 12})
    second = Journal(tmp_path, launch=1.0)
    assert second.remembered.save == 12
    second.write({"entry": "saved"})
    assert Journal(tmp_path, launch=1.0).remembered.save == 0
    second.write({"entry": "save", "step": 40})
    Journal(tmp_path, launch=2.0).begin()
    assert Journal(tmp_path, launch=2.0).remembered.save == 0


def test_gm33_a_job_that_ends_to_be_started_again_does_so_under_the_next_coordinator_too(tmp_path: Path) -> None:
    first = Journal(tmp_path, launch=1.0)
    first.begin()
    first.write({"entry": "stopping", "reason": "an operator asked for it", "requeue": False})
    found = Journal(tmp_path, launch=1.0).remembered
    assert (found.stopping, found.requeue) == (True, "")
    first.write({"entry": "stopping", "reason": "too few hosts", "requeue": True})
    found = Journal(tmp_path, launch=1.0).remembered
    assert (found.stopping, found.requeue) == (True, "too few hosts")
    Journal(tmp_path, launch=2.0).begin()
    later = Journal(tmp_path, launch=2.0).remembered
    assert (later.stopping, later.requeue) == (False, "")
