"""The device's own statistics: what its queues have, and what its replies say (5.1.6.5.10)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_BASIC = ("notifications", "packets", "bytes", "interrupts", "drops")
_SPEED = ("packets_allowance_exceeded", "bytes_allowance_exceeded")
# Type of statistics: its counters, in order
_TYPES = {
    0: (*_BASIC, "drop_overruns"),
    1: ("csum_valid", "csum_needed", "csum_none", "csum_bad"),
    2: ("gso_packets", "gso_bytes", "gso_packets_coalesced", "gso_bytes_coalesced"),
    3: _SPEED,
    16: (*_BASIC, "drop_malformed"),
    17: ("csum_none", "csum_needed"),
    18: (
        "gso_packets", "gso_bytes", "gso_segments", "gso_segments_bytes",
        "gso_packets_noseg", "gso_bytes_noseg",
    ),
    19: _SPEED,
    32: ("commands", "commands_ok"),
}  # fmt: skip
RX, TX, CONTROL = range(4), range(16, 20), range(32, 33)
_HEADER = struct.Struct("<BBHHH")  # type, reserved, vq_index, reserved, size
ROOM = 2048  # for the replies of one queue: six times what they take today


def types_of(kind: range, supported: int) -> int:
    """The types that suit a kind of queue and that the device has, as a bitmap."""
    return sum(1 << bit for bit in kind if bit in _TYPES and supported >> bit & 1)


def request(queue: int, types: int) -> bytes:
    return struct.pack("<HHHHQ", queue, 0, 0, 0, types)


def parse(queue: int, types: int, reply: bytes) -> dict[str, int]:
    """Counters by name. ValueError: the reply is not one to that request."""
    found: dict[str, int] = {}
    for kind, counters in _entries(queue, reply):
        names = _TYPES.get(kind, ()) if types >> kind & 1 else ()
        if len(counters) < len(names) or not names:
            raise ValueError(f"{len(counters)} counters of type {kind} for queue {queue}")
        found.update(zip(names, counters, strict=False))  # a reply may grow
        types &= ~(1 << kind)
    if types:
        raise ValueError(f"no counters of types {types:#x} for queue {queue}")
    return found


def _entries(queue: int, reply: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    at = 0
    while at < len(reply):
        if at + _HEADER.size > len(reply):
            raise ValueError(f"{len(reply) - at} bytes too many")
        kind, _, of, _, size = _HEADER.unpack_from(reply, at)
        if of != queue or size < _HEADER.size or size % 8 or at + size > len(reply):
            raise ValueError(f"an entry of {size} bytes for queue {of}")
        yield kind, struct.unpack_from(f"<{size // 8 - 1}Q", reply, at + _HEADER.size)
        at += size
