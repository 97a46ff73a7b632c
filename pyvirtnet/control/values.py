"""What is set through the control queue, as Python values, and as the bytes of commands."""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from ..nic import Mac
from ..spec import HashType

# A key with this period gives both directions of a flow the same hash.
_SYMMETRIC_KEY = bytes.fromhex("6d5a") * 20
MAX_VLAN = 4095


def mac_of(value: object) -> Mac:
    """A MAC address from six bytes or from text such as "52:54:00:12:34:56"."""
    raw = b""
    if isinstance(value, str):
        digits = value.replace("-", ":").split(":")
        if len(digits) == 6 and all(len(two) == 2 for two in digits):
            with suppress(ValueError):
                raw = bytes.fromhex("".join(digits))
    elif isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)
    if len(raw) != 6:
        raise ValueError(f"a MAC address is six bytes, or 52:54:00:12:34:56; not {value!r}")
    return Mac(raw)


def is_group(mac: bytes) -> bool:
    """A multicast or broadcast address."""
    return bool(mac[0] & 1)


def mac_table(macs: Iterable[Mac]) -> bytes:
    """Two counted lists, unicast first (5.1.6.5.2)."""
    lists: tuple[list[Mac], list[Mac]] = [], []
    for mac in macs:
        lists[is_group(mac)].append(mac)
    return b"".join(struct.pack("<I", len(each)) + b"".join(each) for each in lists)


def vlan_of(value: object) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number <= MAX_VLAN:
        raise ValueError(f"a VLAN is a number from 0 to {MAX_VLAN}, not {value!r}")
    return number


@dataclass(frozen=True)
class RssLimits:
    """What the device can do: bytes of a key, entries of a table, hash types (5.1.4)."""

    key: int
    table: int
    hash_types: HashType


@dataclass(frozen=True)
class Rss:
    """How received packets are spread over queues (5.1.6.5.7).

    table         the queue pair for each hash, by its low bits; a power of two of entries
    hash_types    what the hash is taken over; all that the device can, if not given
    key           of the Toeplitz hash; one that treats both directions alike, if not given
    unclassified  the queue pair of packets without a hash
    tx_queues     transmit queues in use; as many as there are pairs, if not given
    """

    table: tuple[int, ...] = (0,)
    hash_types: HashType | None = None
    key: bytes = _SYMMETRIC_KEY
    unclassified: int = 0
    tx_queues: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", tuple(self.table))
        object.__setattr__(self, "key", bytes(self.key))

    def encode(self, limits: RssLimits, pairs: int) -> bytes:
        """The command's data. ValueError: the device, or `pairs` queue pairs, do not allow it."""
        entries, types = len(self.table), self.hash_types
        types = limits.hash_types if types is None else HashType(types)
        if entries & (entries - 1) or not 1 <= entries <= limits.table:
            raise ValueError(
                f"an RSS table has a power of two of entries up to {limits.table}, not {entries}"
            )
        if not all(0 <= pair < pairs for pair in (*self.table, self.unclassified)):
            raise ValueError(f"an RSS table names queue pairs from 0 to {pairs - 1}")
        if int(types) & ~int(limits.hash_types):
            raise ValueError(f"hash types {types!r}: the device has {limits.hash_types!r}")
        if len(self.key) > min(limits.key, 255):
            raise ValueError(f"an RSS key of {len(self.key)} bytes: {limits.key} is the most")
        tx_queues = pairs if self.tx_queues is None else self.tx_queues
        if not 1 <= tx_queues <= pairs:
            raise ValueError(f"tx_queues is from 1 to {pairs}, not {tx_queues}")
        return (
            struct.pack("<IHH", types, entries - 1, self.unclassified)
            + struct.pack(f"<{entries}H", *self.table)
            + struct.pack("<HB", tx_queues, len(self.key))
            + self.key
        )


def encode_hashing(types: HashType, supported: HashType, most: int) -> bytes:
    """What a device is to hash, by the key that treats both directions alike, or so many bytes of
    it as the device takes (5.1.6.5.6.4)."""
    if int(types) & ~int(supported):
        raise ValueError(f"hash types {types!r}: the device has {supported!r}")
    key = _SYMMETRIC_KEY[:most]
    return struct.pack("<I8xB", types, len(key)) + key


@dataclass(frozen=True)
class Coalescing:
    """When the device interrupts: after so many microseconds or frames, whichever comes first.

    0 of either: for every frame (5.1.6.5.9).
    """

    usecs: int
    frames: int

    def __post_init__(self) -> None:
        for value in (self.usecs, self.frames):
            if not isinstance(value, int) or not 0 <= value <= 0xFFFFFFFF:
                raise ValueError(f"microseconds and frames are from 0 to 4294967295, not {value!r}")

    def encode(self) -> bytes:
        return struct.pack("<II", self.frames, self.usecs)

    @classmethod
    def decode(cls, data: bytes) -> Coalescing:
        frames, usecs = struct.unpack("<II", data)
        return cls(usecs, frames)
