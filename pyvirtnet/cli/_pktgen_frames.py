"""Headers of frames to be sent: built, taken from scapy, varied; lengths and checksums right."""

from __future__ import annotations

import ipaddress
import re
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._meter import payload_at
from .._probe import PROBE_BYTES
from .._stamp import ETHERTYPE
from ..errors import LibraryMissing
from ._command import WrongUsage
from ._pktgen_options import Vary, flows

Bytes = NDArray[np.uint8]
UDP, TCP, ICMP, ICMPV6 = 17, 6, 1, 58
_CHECKSUM = {UDP: 6, TCP: 16, ICMP: 2, ICMPV6: 2}  # in their headers
_VLANS = (0x8100, 0x88A8)
_LAYER = re.compile(r"(\w+)(?:\((.*)\))?")
GRAMMAR = (
    "vlan(id=5,prio=0) or qinq(id=5), then ipv4(src=…,dst=…,ttl=64,tos=0) or ipv6(src=…,dst=…,"
    "hop=64), then udp(src=1024,dst=9), tcp(src=…,dst=…) or icmp(id=1), with slashes between"
)


def _values(text: str | None, defaults: dict[str, str], layer: str) -> dict[str, str]:
    given = dict(pair.partition("=")[::2] for pair in (text or "").split(",") if pair)
    if strange := set(given) - set(defaults):
        raise ValueError(f"{layer} has no {', '.join(sorted(strange))}, but {', '.join(defaults)}")
    return defaults | given


def _numbers(layer: str, have: dict[str, str], **most: int) -> list[int]:
    """The values of fields, each from 0 to what is given."""
    found = []
    for field, highest in most.items():
        try:
            value = int(have[field], 0)
        except ValueError:
            value = -1
        if not 0 <= value <= highest:
            raise ValueError(f"{layer}({field}={have[field]}): {field} is from 0 to {highest}")
        found.append(value)
    return found


def _tag(name: str, text: str | None, inner: int) -> tuple[int, bytes]:
    have = _values(text, {"id": "1", "prio": "0"}, name)
    vlan, priority = _numbers(name, have, id=4095, prio=7)
    return _VLANS[name == "qinq"], struct.pack(">HH", priority << 13 | vlan, inner)


def _ipv4(text: str | None, protocol: int) -> tuple[int, bytes]:
    defaults = {"src": "192.0.2.1", "dst": "192.0.2.2", "ttl": "64", "tos": "0"}
    have = _values(text, defaults, "ipv4")
    ends = b"".join(ipaddress.IPv4Address(have[end]).packed for end in ("src", "dst"))
    tos, ttl = _numbers("ipv4", have, tos=255, ttl=255)
    return 0x0800, struct.pack(">BBHHHBBH", 0x45, tos, 0, 0, 0x4000, ttl, protocol, 0) + ends


def _ipv6(text: str | None, protocol: int) -> tuple[int, bytes]:
    have = _values(text, {"src": "2001:db8::1", "dst": "2001:db8::2", "hop": "64"}, "ipv6")
    ends = b"".join(ipaddress.IPv6Address(have[end]).packed for end in ("src", "dst"))
    (hop,) = _numbers("ipv6", have, hop=255)
    return 0x86DD, struct.pack(">IHBB", 6 << 28, 0, protocol, hop) + ends


def _udp(text: str | None) -> bytes:
    have = _values(text, {"src": "1024", "dst": "9"}, "udp")
    return struct.pack(">HHHH", *_numbers("udp", have, src=65535, dst=65535), 0, 0)


def _tcp(text: str | None) -> bytes:
    have = _values(text, {"src": "1024", "dst": "9"}, "tcp")
    ends = _numbers("tcp", have, src=65535, dst=65535)
    return struct.pack(">HHIIBBHHH", *ends, 0, 0, 5 << 4, 16, 8192, 0, 0)


def _icmp(kind: int) -> Callable[[str | None], bytes]:
    def layer(text: str | None) -> bytes:
        have = _values(text, {"id": "1"}, "icmp")
        return struct.pack(">BBHHH", kind, 0, 0, *_numbers("icmp", have, id=65535), 1)

    return layer


def build(text: str, dst: bytes, src: bytes, kind: int = ETHERTYPE) -> bytes:
    """All headers of a frame, as GRAMMAR says; `kind` is its type without IP. Raises WrongUsage."""
    try:
        return dst + src + _network([part for part in text.split("/") if part], kind)
    except ValueError as error:
        raise WrongUsage(f"no frame {text!r}", str(error), f"a frame is {GRAMMAR}") from None


def _network(parts: list[str], kind: int) -> bytes:
    """From the EtherType on."""
    tags, body = [], b""
    found = [_LAYER.fullmatch(part) for part in parts]
    layers = [(str(match[1]), match[2]) for match in found if match]
    if len(layers) != len(parts):
        raise ValueError("a layer is a name, or a name(key=value,…)")
    while layers and layers[0][0] in ("vlan", "qinq"):
        tags.append(layers.pop(0))
    if layers:
        kind, body = _internet(layers)
    for name, values in reversed(tags):
        kind, tag = _tag(name, values, kind)
        body = tag + body
    return kind.to_bytes(2, "big") + body


def _internet(layers: list[tuple[str, str | None]]) -> tuple[int, bytes]:
    name, values = layers.pop(0)
    makers = {"ipv4": _ipv4, "ipv6": _ipv6}
    uppers: dict[str, tuple[int, Callable[[str | None], bytes]]] = {
        "udp": (UDP, _udp),
        "tcp": (TCP, _tcp),
        "icmp": (ICMP, _icmp(8)) if name == "ipv4" else (ICMPV6, _icmp(128)),
    }
    if name not in makers or len(layers) > 1 or (layers and layers[0][0] not in uppers):
        raise ValueError(f"{'/'.join([name, *(one for one, _ in layers)])} is not known here")
    protocol, upper = 253, b""  # 253 is for experiments (RFC 3692)
    if layers:
        protocol, make = uppers[layers[0][0]]
        upper = make(layers[0][1])
    kind, body = makers[name](values, protocol)
    return kind, body + upper


def from_scapy(expression: str) -> bytes:
    """The headers of the frame that an expression makes, in the names of scapy.all."""
    try:
        from scapy import all as scapy  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        what = "cannot make a frame of scapy's"
        raise LibraryMissing(what, str(error), f"{sys.executable} -m pip install scapy") from None
    try:
        names = vars(scapy)
        made = eval(expression, names)
        if isinstance(made, (bytearray, names["Raw"])):
            made = bytes(made)
        if not isinstance(made, (bytes, names["Ether"], names["Dot3"])):
            raise TypeError(f"it is {type(made).__name__}, and a frame begins with Ether")
        frame, last = bytes(made), made
        while not isinstance(last, bytes) and not _ends(last.payload, names):
            last = last.payload
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        mend = "such as 'Ether()/IP(dst=\"192.0.2.2\")/UDP(dport=9)'"
        raise WrongUsage(f"no frame {expression!r}", why, mend) from None
    at = payload_at(frame)
    echo = isinstance(last, (names["ICMPv6EchoRequest"], names["ICMPv6EchoReply"]))  # has its data
    if not isinstance(last, bytes) and not echo and not _whole(frame, at, len(last.payload)):
        why = f"{last.name} is none of the headers that a payload of ours can follow"
        mend = "Ether, Dot1Q, IP, IPv6, UDP, TCP, ICMP; other frames from a file: --pcap"
        raise WrongUsage(f"no frame {expression!r}", why, mend)
    return frame[:at]


def _whole(frame: bytes, at: int, payload: int) -> bool:
    """Whether all headers are there, and end before `at`, where a payload of ours begins."""
    return len(frame) - payload <= at <= len(frame)


def _ends(payload: Any, names: dict[str, Any]) -> bool:
    """Whether the headers do: what follows is replaced."""
    return isinstance(payload, (names["NoPayload"], names["Raw"], names["Padding"]))


class Template:
    """Headers that frames begin with, and where their fields are."""

    def __init__(self, header: bytes) -> None:
        self.header, self.at = header, len(header)
        self.vlan: int | None = None
        self.ip: int | None = None
        self.upper: int | None = None
        self.protocol = self.version = 0
        at, kind = 14, int.from_bytes(header[12:14], "big")
        while kind in _VLANS:
            self.vlan = self.vlan or at
            at, kind = at + 4, int.from_bytes(header[at + 2 : at + 4], "big")
        if kind in (0x0800, 0x86DD):
            self.ip, self.version = at, 4 if kind == 0x0800 else 6
            self.protocol = header[at + (9 if self.version == 4 else 6)]
            length = (header[at] & 15) * 4 if self.version == 4 else 40
            self.upper = at + length if self.at > at + length else None
        if self.at % 2 or self.at != payload_at(header + bytes(64)):
            why = "its payload would not begin where its headers say"
            raise WrongUsage("no frame to be numbered", why, f"a frame is {GRAMMAR}")

    @property
    def least(self) -> int:
        """Bytes of the smallest frame that has room for a probe."""
        return self.at + PROBE_BYTES

    def check(self, sizes: Sequence[int], payload: int = PROBE_BYTES) -> None:
        """Raises WrongUsage where the smallest of `sizes` has no room for a probe, or `payload`."""
        if min(sizes) < (least := self.at + payload):
            what = "number" if payload == PROBE_BYTES else "payload"
            why = f"headers and {what} of such a frame take {least}"
            mend = f"--size {least} or more"
            raise WrongUsage(f"cannot send {min(sizes)} bytes", why, mend)

    def tables(self, sizes: Iterable[int], varies: list[Vary]) -> dict[int, Bytes]:
        """{frame length: uint8[flows, at]}, as probes take them."""
        rows = np.tile(np.frombuffer(self.header, np.uint8), (flows(varies), 1))
        for one in varies:
            self._write(rows, one)
        return {size: self._complete(rows.copy(), size) for size in dict.fromkeys(sizes)}

    def _write(self, rows: Bytes, one: Vary) -> None:
        at, width = self._place(one.field)
        if at is None or any(len(value) != width for value in one.values):
            why = f"the frame has no {one.field} of {len(one.values[0])} bytes"
            mend = "--frame vlan/ipv4/udp has all of them"
            raise WrongUsage(f"cannot vary {one.field}", why, mend)
        values = np.frombuffer(b"".join(one.values), np.uint8).reshape(-1, width)
        turns = values[np.arange(len(rows)) % len(values)]
        if one.field == "vlan":  # keeps the priority
            turns = turns | (rows[:, at : at + 2] & np.array([0xF0, 0], np.uint8))
        rows[:, at : at + width] = turns

    def _place(self, field: str) -> tuple[int | None, int]:
        """Where a field is, and its width."""
        layer, _, what = field.rpartition("-")
        second = layer == "dst"
        if what == "mac":
            return 0 if second else 6, 6
        if field == "vlan":
            return self.vlan, 2
        if what == "ip":
            width, first = (4, 12) if self.version == 4 else (16, 8)
            return None if self.ip is None else self.ip + first + width * second, width
        ported = self.upper is not None and self.protocol in (UDP, TCP)
        return (self.upper or 0) + 2 * second if ported else None, 2

    def _complete(self, rows: Bytes, size: int) -> Bytes:
        """Lengths and checksums, of frames of one size."""
        if self.ip is None:
            return rows
        ip, upper = self.ip, self.upper
        if self.version == 4:
            _put(rows, ip + 2, size - ip)
            _put(rows, ip + 10, 0)
            end = ip + 4 * (int(rows[0, ip]) & 15)
            _put(rows, ip + 10, 0xFFFF - _fold(_sum(rows, ip, end)))
        else:
            _put(rows, ip + 4, size - ip - 40)
        if upper is not None and self.protocol in _CHECKSUM:
            self._complete_upper(rows, ip, upper, size)
        return rows

    def _complete_upper(self, rows: Bytes, ip: int, upper: int, size: int) -> None:
        if self.protocol == UDP:
            _put(rows, upper + 4, size - upper)
        at = upper + _CHECKSUM[self.protocol]
        _put(rows, at, 0)
        total = _sum(rows, upper, self.at) + (0xFFFF - (size - self.at))  # a probe's own sum
        if self.protocol != ICMP:
            ends = (ip + 12, ip + 20) if self.version == 4 else (ip + 8, ip + 40)
            total = total + _sum(rows, *ends) + self.protocol + (size - upper)
        checksum = 0xFFFF - _fold(total)
        _put(
            rows,
            at,
            np.where(checksum == 0, 0xFFFF, checksum) if self.protocol == UDP else checksum,
        )


def _sum(rows: Bytes, start: int, end: int) -> NDArray[np.int64]:
    """Of the 16-bit words of each row."""
    found = rows[:, start:end:2].astype(np.int64) * 256 + rows[:, start + 1 : end : 2]
    total: NDArray[np.int64] = found.sum(axis=1)
    return total


def _fold(total: NDArray[np.int64]) -> NDArray[np.int64]:
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _put(rows: Bytes, at: int, value: Any) -> None:
    rows[:, at], rows[:, at + 1] = value >> 8, value & 0xFF


def dump(frames: Sequence[bytes]) -> str:
    """As text2pcap reads them."""
    lines = []
    for number, frame in enumerate(frames):
        lines.append(f"# frame {number}: {len(frame)} bytes")
        for at in range(0, len(frame), 16):
            lines.append(f"{at:06x}  {frame[at : at + 16].hex(' ')}")
    return "\n".join(lines)
