"""The device's side of the control queue: commands checked and carried out (5.1.6.5)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from .layout import mask
from .violation import Violation

OK, ERR = b"\0", b"\1"
MAX_MACS = 64  # of a table; the device refuses more
MAX_KEY, MAX_TABLE, HASH_TYPES = 40, 128, 0x1FF
OFFLOADS = mask(
    "guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo", "guest_uso4", "guest_uso6"
)
_MODES = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast",
          "no_broadcast")  # fmt: skip
# Types of statistics with the number of their counters, by kind of queue (5.1.6.5.10)
_COUNTERS = {"rx": {0: 6, 1: 4, 2: 4, 3: 2}, "tx": {16: 6, 17: 2, 18: 6, 19: 2}, "cvq": {32: 2}}
STAT_TYPES = sum(1 << bit for kind in _COUNTERS.values() for bit in kind)

_Answer = tuple[bytes, bytes]  # ack, result


@dataclass
class Filter:
    """What the driver wants to receive; a device that has just been reset is promiscuous."""

    promiscuous: bool = True
    all_multicast: bool = False
    all_unicast: bool = False
    no_multicast: bool = False
    no_unicast: bool = False
    no_broadcast: bool = False
    unicast: list[bytes] = field(default_factory=list)
    multicast: list[bytes] = field(default_factory=list)
    vlans: set[int] = field(default_factory=set)

    def passes(self, frame: bytes, mac: bytes, by_vlan: bool) -> bool:
        """Whether the frame is let in to a NIC with that address."""
        if self.promiscuous:
            return True
        tag = int.from_bytes(frame[14:16], "big")
        if by_vlan and frame[12:14] == b"\x81\x00" and tag & 0xFFF not in self.vlans:
            return False
        to = frame[:6]
        if to == b"\xff" * 6:
            return not self.no_broadcast
        if to[0] & 1:
            return not self.no_multicast and (self.all_multicast or to in self.multicast)
        return not self.no_unicast and (self.all_unicast or to == mac or to in self.unicast)


class ControlUnit:
    """Carries out commands, and objects to what no driver may send.

    filter      receive modes, tables, VLANs
    mac         the address that was set, if one was
    pairs       queue pairs in use; transmit queues with RSS, whose data rss has
    offloads    the mask that was set, if one was
    coalescing  (packets, microseconds) by queue
    announced   announcements that were acknowledged
    commands    every one carried out or refused: class, command, data
    refuse      those that are answered with ERR: pairs of class and command
    mute        answer nothing, until this is switched off
    """

    def __init__(self, max_pairs: int) -> None:
        self.max_pairs = max_pairs
        self.commands: list[tuple[int, int, bytes]] = []
        self.refuse: set[tuple[int, int]] = set()
        self.mute = False
        self.reset()

    def reset(self) -> None:
        """Back to the beginning (2.4); what is refused, and what was logged, stays."""
        self.filter = Filter()
        self.mac: bytes | None = None
        self.pairs, self.rss, self.hashing = 1, b"", b""
        self.offloads: int | None = None
        self.coalescing: dict[int, tuple[int, int]] = {}
        self._of_all: dict[int, tuple[int, int]] = {}  # coalescing by side
        self.announced = 0
        self._queried = False
        self._ok = 0
        self._room = 0
        self._enabled: set[int] = {0, 1}

    def execute(self, data: bytes, room: int, features: int, enabled: set[int]) -> bytes:
        """Carry out what is in a buffer with `room` for the answer; the answer."""
        if len(data) < 2 or not room:
            seen = f"{len(data)} bytes to read, {room} to write"
            raise Violation("a command is class, command and data; an answer follows", _5165, seen)
        group, number = data[:2]
        self.commands.append((group, number, data[2:]))
        known = _COMMANDS.get((group, number))
        if known is None:
            return ERR
        need, lengths, method = known
        seen = f"class {group}, command {number}: {data[2:].hex()}"
        if need & ~features:
            raise Violation("a command is sent where its feature was negotiated", _5165, seen)
        if lengths is not None and len(data) - 2 != lengths:
            raise Violation(f"this command has {lengths} bytes of data", _5165, seen)
        if (group, number) in self.refuse:
            return ERR
        self._features, self._enabled, self._room = features, enabled, room - 1
        ack, result = method(self, number, data[2:])
        self._ok += ack == OK
        return ack + result

    def forget(self, queue: int) -> None:
        """A queue was reset alone: it is coalesced as all are that were not named (5.1.6.5.9.2)."""
        self.coalescing[queue] = self._of_all.get(queue % 2, (0, 0))

    # Commands

    def _mode(self, number: int, data: bytes) -> _Answer:
        if data[0] > 1:
            _object("a mode is 0 or 1", "5.1.6.5.1", data)
        setattr(self.filter, _MODES[number], bool(data[0]))
        return OK, b""

    def _mac_table(self, _: int, data: bytes) -> _Answer:
        lists: list[list[bytes]] = []
        at = 0
        for _ in range(2):
            if at + 4 > len(data):
                _object("a MAC table is two counted lists", "5.1.6.5.2", data)
            (count,) = struct.unpack_from("<I", data, at)
            end = at + 4 + 6 * count
            if end > len(data):
                _object("a MAC table is two counted lists", "5.1.6.5.2", data)
            lists.append([data[start : start + 6] for start in range(at + 4, end, 6)])
            at = end
        if at != len(data):
            _object("a MAC table is two counted lists", "5.1.6.5.2", data)
        if any(mac[0] & 1 for mac in lists[0]) or not all(mac[0] & 1 for mac in lists[1]):
            _object("unicast addresses come first, multicast ones then", "5.1.6.5.2", data)
        if sum(map(len, lists)) > MAX_MACS:
            return ERR, b""
        self.filter.unicast, self.filter.multicast = lists
        return OK, b""

    def _mac_address(self, _: int, data: bytes) -> _Answer:
        if data[0] & 1:
            return ERR, b""
        self.mac = data
        return OK, b""

    def _vlan(self, number: int, data: bytes) -> _Answer:
        (vlan,) = struct.unpack("<H", data)
        if vlan > 0xFFF:
            _object("a VLAN has 12 bits", "5.1.6.5.3", data)
        (self.filter.vlans.discard if number else self.filter.vlans.add)(vlan)
        return OK, b""

    def _announced(self, _: int, __: bytes) -> _Answer:
        self.announced += 1
        return OK, b""

    def _set_pairs(self, _: int, data: bytes) -> _Answer:
        (pairs,) = struct.unpack("<H", data)
        if not 1 <= pairs <= self.max_pairs:
            _object("pairs are from 1 to max_virtqueue_pairs", "5.1.6.5.6.1", data)
        if not set(range(2 * pairs)) <= self._enabled:
            _object("queues are set up before they are turned on", "5.1.6.5.6.1", data)
        self.pairs, self.rss = pairs, b""
        return OK, b""

    def _set_rss(self, _: int, data: bytes) -> _Answer:
        if len(data) < 8:
            _object("RSS_CONFIG has all of its fields", "5.1.6.5.7", data)
        types, last, unclassified = struct.unpack_from("<IHH", data)
        entries, end = last + 1, 8 + 2 * (last + 1)
        if end + 3 > len(data) or end + 3 + data[end + 2] != len(data):
            _object("RSS_CONFIG has all of its fields", "5.1.6.5.7", data)
        table = struct.unpack_from(f"<{entries}H", data, 8)
        (tx_queues,) = struct.unpack_from("<H", data, end)
        if entries & last or entries > MAX_TABLE:
            _object(f"a table has a power of two of entries up to {MAX_TABLE}", _RSS, data)
        if not {2 * pair for pair in (*table, unclassified)} <= self._enabled:
            _object("a table names receive queues that are enabled", _RSS, data)
        if types & ~HASH_TYPES:
            _object("hash types are those that are supported", _RSS, data)
        if data[end + 2] > MAX_KEY or not 1 <= tx_queues <= self.max_pairs:
            return ERR, b""
        self.rss, self.pairs = data, tx_queues
        return OK, b""

    def _set_hash(self, _: int, data: bytes) -> _Answer:
        if len(data) < 13 or 13 + data[12] != len(data):
            _object("HASH_CONFIG has all of its fields", "5.1.6.5.6.4", data)
        if any(data[4:12]):
            _object("reserved words of HASH_CONFIG are 0", "5.1.6.5.6.4", data)
        (types,) = struct.unpack_from("<I", data)
        if types & ~HASH_TYPES:
            _object("hash types are those that are supported", _RSS, data)
        if data[12] > MAX_KEY:
            return ERR, b""
        self.hashing = data
        return OK, b""

    def _set_offloads(self, _: int, data: bytes) -> _Answer:
        (offloads,) = struct.unpack("<Q", data)
        if offloads & ~(OFFLOADS & self._features):
            _object("only offloads that were negotiated are switched on", "5.1.6.5.8", data)
        self.offloads = offloads
        return OK, b""

    def _coalesce(self, number: int, data: bytes) -> _Answer:
        side = 1 - number  # TX_SET is 0, receive queues are even
        self._of_all[side] = struct.unpack("<II", data)
        for queue in self._enabled:
            if queue % 2 == side and queue < 2 * self.max_pairs:
                self.coalescing[queue] = struct.unpack("<II", data)
        return OK, b""

    def _coalesce_queue(self, number: int, data: bytes) -> _Answer:
        queue, reserved = struct.unpack_from("<HH", data)
        if reserved:
            _object("what is reserved is 0", "5.1.6.5.9", data)
        if queue not in self._enabled or queue >= 2 * self.max_pairs:
            _object("a receive or transmit queue is named that is enabled", "5.1.6.5.9.1", data)
        if number == 2:
            self.coalescing[queue] = struct.unpack_from("<II", data, 4)
            return OK, b""
        return self._result(struct.pack("<II", *self.coalescing.get(queue, (0, 0))), data)

    def _statistics(self, number: int, data: bytes) -> _Answer:
        if number == 0:
            self._queried = True
            return self._result(struct.pack("<Q", STAT_TYPES), data)
        if not self._queried or not data or len(data) % 16:
            _object("STATS_GET asks for what STATS_QUERY listed", "5.1.6.5.10.1", data)
        replies = b""
        for queue, *reserved, types in struct.iter_unpack("<HHHHQ", data):
            if any(reserved):
                _object("what is reserved is 0", "5.1.6.5.10", data)
            replies += self._counters(queue, types, data)
        return self._result(replies, data)

    def _counters(self, queue: int, types: int, data: bytes) -> bytes:
        """Counters that tell where they come from: queue, type and place."""
        control = queue == max(self._enabled)
        kind = _COUNTERS["cvq" if control else "tx" if queue % 2 else "rx"]
        if queue not in self._enabled or types & ~sum(1 << bit for bit in kind):
            _object("statistics suit the queue they are asked of", "5.1.6.5.10.1", data)
        entries = b""
        for bit in (bit for bit in kind if types >> bit & 1):
            counters = [queue << 16 | bit << 8 | place for place in range(kind[bit])]
            if control:
                counters = [len(self.commands), self._ok]
            size = 8 + 8 * len(counters)
            entries += struct.pack(f"<BBHHH{len(counters)}Q", bit, 0, queue, 0, size, *counters)
        return entries

    def _result(self, result: bytes, data: bytes) -> _Answer:
        if len(result) > self._room:
            _object("there is room for all of the answer", "5.1.6.5, 5.1.6.5.10.1", data)
        return OK, result


def _object(rule: str, section: str, data: bytes) -> NoReturn:
    raise Violation(rule, section, f"data {data.hex()}")


_5165, _RSS = "5.1.6.5", "5.1.6.5.7.1"
_Method = Callable[[ControlUnit, int, bytes], _Answer]
# Features needed, bytes of data if their number is fixed, what carries it out
_COMMANDS: dict[tuple[int, int], tuple[int, int | None, _Method]] = {
    **{(0, mode): (mask("ctrl_rx"), 1, ControlUnit._mode) for mode in (0, 1)},
    **{(0, mode): (mask("ctrl_rx_extra"), 1, ControlUnit._mode) for mode in (2, 3, 4, 5)},
    (1, 0): (mask("ctrl_rx"), None, ControlUnit._mac_table),
    (1, 1): (mask("ctrl_rx", "ctrl_mac_addr"), 6, ControlUnit._mac_address),
    **{(2, act): (mask("ctrl_vlan"), 2, ControlUnit._vlan) for act in (0, 1)},
    (3, 0): (mask("guest_announce"), 0, ControlUnit._announced),
    (4, 0): (mask("mq"), 2, ControlUnit._set_pairs),
    (4, 1): (mask("rss"), None, ControlUnit._set_rss),
    (4, 2): (mask("hash_report"), None, ControlUnit._set_hash),
    (5, 0): (mask("ctrl_guest_offloads"), 8, ControlUnit._set_offloads),
    **{(6, side): (mask("notf_coal"), 8, ControlUnit._coalesce) for side in (0, 1)},
    (6, 2): (mask("vq_notf_coal"), 12, ControlUnit._coalesce_queue),
    (6, 3): (mask("vq_notf_coal"), 4, ControlUnit._coalesce_queue),
    (8, 0): (mask("device_stats"), 0, ControlUnit._statistics),
    (8, 1): (mask("device_stats"), None, ControlUnit._statistics),
}
