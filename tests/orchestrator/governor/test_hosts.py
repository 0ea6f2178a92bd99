"""GM-13: an event about one host costs little, however many there are."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.governor.hosts import HostRecord, Hosts, HostState
from orchestrator.governor.policy import decide
from orchestrator.governor.state import GovernorState
from tests.orchestrator.governor.test_log import ENFORCED, history


def out(hosts: Hosts) -> set[str]:
    return {host for host, record in hosts.items() if not record.state.is_live}


@settings(max_examples=20)
@given(st.integers(0, 1 << 30))
def test_gm13_who_is_not_live_is_known_after_any_event_and_the_state_before_it_stays(seed: int) -> None:
    state = GovernorState(8, seed)
    for event in history(seed):
        before, was_out = dict(state.hosts), set(state.hosts.out)
        after, _ = decide(state, event, ENFORCED)
        assert (state.hosts, state.hosts.out) == (before, was_out)
        state = after
        assert state.hosts.out == out(state.hosts)
        assert state.hosts.num_live == len(state.hosts) - len(out(state.hosts))


def test_gm13_records_of_any_kind_are_counted() -> None:
    records = {state.value: HostRecord(state.value, "", state, 0.0) for state in HostState}
    hosts = Hosts(records)
    assert hosts.out == {"quarantined", "evicted", "cooling"} and hosts.num_live == 3
    del hosts["cooling"], hosts["healthy"]
    assert hosts.out == {"quarantined", "evicted"} and hosts.num_live == 2
