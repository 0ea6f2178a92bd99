"""`quantarion hosts`: what it prints of each host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quantarion.v1 import operator_pb2 as pb

from orchestrator import operator_commands
from tests.orchestrator.fake_operator import FakeOperator, make_job, served

HOSTS = [
    pb.HostStatus(
        host="host-1",
        address="10.0.0.1",
        state="healthy",
        standing="healthy",
        score=1.0,
        trust=0.5,
        memory=0.4149,
        disk=0.93,
        load=1.75,
        cpu=1.0,
        short_of=["RESOURCE_DISK", "RESOURCE_LOAD"],
    ),
    pb.HostStatus(host="host-2", address="10.0.0.2", state="gone"),
]


def test_gm21_what_hosts_have_left_is_shown_and_marked_where_it_is_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(FakeOperator(pb.StatusReply(job="demo", hosts=HOSTS))) as address:
        make_job(tmp_path, "demo", address=address)
        assert operator_commands.hosts("demo", tmp_path, as_json=False) == 0
        assert operator_commands.hosts("demo", tmp_path, as_json=True) == 0
    head, first, second, *text = capsys.readouterr().out.splitlines()
    assert head.split() == list(operator_commands.COLUMNS)
    assert " ".join(first.split()) == "host-1 10.0.0.1 healthy healthy 1.00 0.50 41 % 93 %! 1.75! 100 %"
    assert second.split() == ["host-2", "10.0.0.2", "gone"]
    one, two = json.loads("\n".join(text))
    assert (one["disk"], one["short_of"]) == (0.93, ["RESOURCE_DISK", "RESOURCE_LOAD"])
    assert (two["disk"], two["short_of"]) == (None, [])
