"""How a device spreads a packet over receive buffers (VIRTIO 1.3, 5.1.6.4)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .layout import HASHED_HEADER, NET_HEADER

# (bytes with the header, capacity of each free buffer, source of chance) -> bytes for each buffer
# used, in order; None if they do not suffice.
Merge = Callable[[int, Sequence[int], random.Random], list[int] | None]


def fill(total: int, capacities: Sequence[int], rng: random.Random) -> list[int] | None:
    """As few buffers as possible, each filled before the next."""
    lengths: list[int] = []
    for capacity in capacities:
        lengths.append(min(total, capacity))
        total -= lengths[-1]
        if not total:
            return lengths
    return None


def scatter(total: int, capacities: Sequence[int], rng: random.Random) -> list[int] | None:
    """Each buffer is given a random part of what it could hold, the first at least a header."""
    lengths: list[int] = []
    left = total
    for capacity in capacities:
        least = HASHED_HEADER if not lengths else 1
        lengths.append(rng.randint(min(least, left), min(left, capacity)))
        left -= lengths[-1]
        if not left:
            return lengths
    return fill(total, capacities, rng)


MERGES: dict[str, Merge] = {"fill": fill, "random": scatter}


def exactly(lengths: Sequence[int]) -> Merge:
    """The spread that a test asks for by name of its lengths."""
    return lambda total, capacities, rng: list(lengths)


def spread(
    merge: Merge, total: int, capacities: Sequence[int], rng: random.Random
) -> list[int] | None:
    """What `merge` says, if it is possible; None if there are too few buffers."""
    lengths = merge(total, capacities, rng)
    if lengths is None or len(lengths) > len(capacities):
        return None
    fits = all(0 < part <= size for part, size in zip(lengths, capacities, strict=False))
    if sum(lengths) != total or not fits or lengths[0] < min(total, NET_HEADER.size):
        raise ValueError(f"{lengths} does not spread {total} bytes over buffers of {capacities}")
    return lengths
