"""How the members of a generation find each other: fresh gloo groups over a fresh prefix of the store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from workers.collectives.exchange import PHASES, Abandoned, ExchangeError, FlatExchange, Topology
from workers.compression.product import fingerprint
from workers.identity import Generation, StateId

MIN_TIMEOUT_SECONDS = 30.0


class Connector:
    """Opens exchanges in a thread of its own, because gloo's rendezvous cannot be interrupted either.

    Each attempt has a client of the store to itself: an abandoned one goes on waiting in the store for a dead member's
    key, and whoever shared its client would wait behind it.
    """

    def connect(
        self,
        topology: Topology,
        store_address: str,
        prefix: str,
        state: StateId,
        stop: Callable[[], bool],
        timeout: float = MIN_TIMEOUT_SECONDS,
    ) -> FlatExchange:
        """Connect all members of `topology`, which must all stand at `state`.

        Raises Abandoned as soon as `stop()`; ExchangeError if it fails, or if a member stands elsewhere: two ranks that
        issue different operations in one group would be ended by gloo.
        """
        if topology.world == 1:
            return FlatExchange(topology)
        outcome: list[Any] = []
        done = threading.Event()

        def work() -> None:
            try:
                client = _store_client(store_address)
                everybody = tuple(range(topology.world))
                groups = _gloo_groups(client, prefix, topology, everybody, timeout)
                alike = _check_agreement(groups[0], topology, state)
                inside: list[Any] = []
                if 1 < len(topology.group) < topology.world:
                    prefix_inside = f"{prefix}/group of {topology.group[0]}"
                    inside = _gloo_groups(client, prefix_inside, topology, topology.group, timeout)
                lane = None
                if 1 < len(topology.lane) < topology.world:
                    store = dist.PrefixStore(f"{prefix}/lane of {topology.lane[0]}", client)
                    lane = _gloo_group(store, topology, topology.lane, timeout)
                outcome.append(FlatExchange(topology, groups, inside, lane, alike=alike))
            except BaseException as error:
                outcome.append(error)
            done.set()

        threading.Thread(target=work, name="connect", daemon=True).start()
        while not done.wait(0.005):
            if stop():
                raise Abandoned
        result = outcome[0]
        if isinstance(result, BaseException):
            raise ExchangeError(str(result).split("\n")[0])
        exchange: FlatExchange = result
        return exchange


def _store_client(address: str) -> dist.Store:
    host, _, port = address.rpartition(":")
    return dist.TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=10))


def _gloo_groups(
    client: dist.Store, prefix: str, topology: Topology, members: tuple[int, ...], timeout: float
) -> list[Any]:
    """One of these members for each phase."""
    stores = [dist.PrefixStore(f"{prefix}/{phase}", client) for phase in range(PHASES)]
    return [_gloo_group(store, topology, members, timeout) for store in stores]


def _gloo_group(store: dist.Store, topology: Topology, members: tuple[int, ...], timeout: float) -> Any:
    gloo: Any = dist.ProcessGroupGloo  # its type stub lacks what it has
    options = gloo._Options()
    address = topology.places[topology.index].address
    options._devices = [gloo.create_device(hostname=address)]
    options._timeout = timedelta(seconds=timeout)
    options._threads = 2
    return gloo(store, members.index(topology.index), len(members), options)


def _check_agreement(group: Any, topology: Topology, state: StateId) -> bool:
    """Compare state ids over the new group. Returns whether the members' machines are alike."""
    words = [state.step, state.round, *state.generation, state.lineage >> 32, state.lineage & 0xFFFFFFFF]
    mine = torch.tensor([*words, fingerprint()], dtype=torch.int64)
    theirs = [torch.empty_like(mine) for _ in topology.places]
    group.allgather([theirs], [mine]).wait()
    for place, words_there in zip(topology.places, theirs, strict=True):
        if words_there[:-1].tolist() != words:
            raise ExchangeError(f"rank {place.rank} stands at {words_there[:-1].tolist()}, this rank at {words}")
    return all(int(each[-1]) == int(mine[-1]) for each in theirs)


def store_prefix(job: str, generation: Generation) -> str:
    """A fresh prefix per generation is the fence of its rendezvous."""
    return f"{job}/{generation}"
