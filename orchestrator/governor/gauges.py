"""Two gauges of the whole job, which never decide about a host (GM-24, GM-25)."""

from __future__ import annotations

import cmath
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

MOST_CLASSES = 4096
"""Of vertices that differ; the eigenvalues of so many are a matter of a minute."""

SPLIT = 1e-9
"""Relative: a smaller second eigenvalue is 0 to rounding."""


class Lockstep(NamedTuple):
    """`r`: 1 where all arrive at once, about 0.886/sqrt(N) where they do at random; `out_of_phase`: how many are half a
    step or more away, where angles begin to wrap."""

    r: float
    out_of_phase: int


def lockstep(arrivals: Sequence[float], period: float) -> Lockstep | None:
    """R = |sum exp(i theta)|/N, theta = 2 pi (a - median a)/T; None where nobody arrives or T is not positive.

    Args:
        arrivals: of each host at the reduce, in seconds.
        period: the median duration of a step, T, in seconds.
    """
    if not arrivals or period <= 0:
        return None
    middle = median(arrivals)
    offsets = [arrival - middle for arrival in arrivals]
    total = sum(cmath.exp(2j * math.pi * offset / period) for offset in offsets)
    return Lockstep(abs(total) / len(offsets), sum(abs(offset) >= period / 2 for offset in offsets))


def phi_topology(vertices: int, links: Iterable[tuple[int, int]]) -> float | None:
    """1 + lambda_1/lambda_max of the Laplacian of the graph; 1 where it is split, None for one vertex.

    A round of averaging, x - L x/lambda_max, shrinks disagreement by 2 - phi. Vertices with the same neighbours, themselves
    among them, as in a clique, are taken together, which is exact: vectors that add up to 0 over such a class have the
    eigenvalue degree + 1, and all others are those of a weighted graph of classes.

    Raises:
        ValueError: more than `MOST_CLASSES` vertices differ.
    """
    if vertices < 2:
        return None
    neighbours = [{vertex} for vertex in range(vertices)]
    for one, other in links:
        neighbours[one].add(other)
        neighbours[other].add(one)
    classes: dict[frozenset[int], list[int]] = defaultdict(list)
    for vertex, around in enumerate(neighbours):
        classes[frozenset(around)].append(vertex)
    if len(classes) > MOST_CLASSES:
        raise ValueError(f"{len(classes)} vertices differ, and eigenvalues are computed of at most {MOST_CLASSES}")
    found = list(np.linalg.eigvalsh(_between(classes, vertices)))
    found += [float(len(around)) for around, members in classes.items() for _ in members[1:]]
    found.sort()
    largest = found[-1]
    if largest <= 0 or found[1] < SPLIT * largest:
        return 1.0
    return float(1 + found[1] / largest)


def _between(classes: dict[frozenset[int], list[int]], vertices: int) -> np.ndarray:
    """The Laplacian on vectors that are the same all over each class, symmetric: float64 [classes, classes]."""
    number = np.empty(vertices, dtype=np.int64)
    for index, members in enumerate(classes.values()):
        number[members] = index
    sizes = np.array([len(members) for members in classes.values()], dtype=np.float64)
    matrix = np.zeros((len(classes), len(classes)))
    for index, (around, members) in enumerate(classes.items()):
        others = {int(number[vertex]) for vertex in around} - {index}
        for other in others:
            matrix[index, other] = -math.sqrt(sizes[index] * sizes[other])
        matrix[index, index] = len(around) - len(members)  # links that leave the class, of each member
    return matrix
