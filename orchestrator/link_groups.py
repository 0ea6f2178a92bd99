"""From measured links between hosts to groups of hosts (CC-9). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count, pairwise

Pair = tuple[str, str]

GAP = 4.0
"""So many times as fast are links inside a group as links between groups."""


def rounds(hosts: Sequence[str]) -> list[list[Pair]]:
    """All pairs of hosts, in rounds in which no host is in two pairs: a round-robin tournament by the circle method."""
    ring: list[str | None] = [*hosts, *([None] if len(hosts) % 2 else [])]
    half = len(ring) // 2
    played = []
    for _ in range(len(ring) - 1 if len(hosts) > 1 else 0):
        facing = zip(ring[:half], reversed(ring[half:]), strict=True)
        played.append([(a, b) for a, b in facing if a is not None and b is not None])
        ring.insert(1, ring.pop())
    return played


def found_groups(hosts: Sequence[str], rates: Mapping[Pair, float], told: Mapping[str, str]) -> dict[str, str]:
    """The groups of the hosts that have none, as far as the measured links show some.

    A cluster in which hosts have been told a group takes that group's name, of several the most frequent one; the others
    are probe-1, probe-2, … in the order of `hosts`.

    Args:
        rates: bytes/s of measured links, of the slower direction; in any order of the two hosts.
        told: groups by JobSpec or label, which stay.
    """
    taken = set(told.values())
    names = (name for number in count(1) if (name := f"probe-{number}") not in taken)
    groups: dict[str, str] = {}
    for cluster in clusters(hosts, rates):
        known = Counter(sorted(told[host] for host in cluster if told.get(host)))
        name = known.most_common(1)[0][0] if known else next(names)
        groups.update({host: name for host in cluster if not told.get(host)})
    return groups


def clusters(hosts: Sequence[str], rates: Mapping[Pair, float]) -> list[list[str]]:
    """Single-linkage clusters of the hosts, cut where the links of the maximum spanning tree, from fast to slow, fall by
    the largest factor; [] where that is less than `GAP`.

    A link that was not measured says nothing. Where the measured ones do not connect all hosts, only the largest connected
    part is looked at.
    """
    links = _tree(hosts, rates)
    part = max(_components(hosts, links), key=len, default=[])
    heights = sorted((rates[link] for link in links if link[0] in part), reverse=True)
    falls = [fast / slow for fast, slow in pairwise(heights)]
    if not falls or max(falls) < GAP:
        return []
    slowest_inside = heights[falls.index(max(falls))]
    return _components(part, [link for link in links if rates[link] >= slowest_inside])


def _tree(hosts: Sequence[str], rates: Mapping[Pair, float]) -> list[Pair]:
    """The links of a maximum spanning tree of each connected part (Kruskal), fast ones first."""
    order = {host: number for number, host in enumerate(hosts)}
    links = sorted(rates, key=lambda link: (-rates[link], sorted(order[host] for host in link)))
    owner = {host: host for host in hosts}
    tree = []
    for a, b in links:
        merged, kept = owner[b], owner[a]
        if merged != kept:
            tree.append((a, b))
            owner = {host: kept if each == merged else each for host, each in owner.items()}
    return tree


def _components(hosts: Sequence[str], links: Sequence[Pair]) -> list[list[str]]:
    """What `links` connect, each component and all of them in the order of `hosts`."""
    component = {host: [host] for host in hosts}
    for a, b in links:
        if a in component and b in component and component[a] is not component[b]:
            merged = component[a] + component[b]
            component.update(dict.fromkeys(merged, merged))
    found = {id(members): sorted(members, key=hosts.index) for members in component.values()}
    return list(found.values())
