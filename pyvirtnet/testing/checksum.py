"""What a transport header in a frame is, and the sum that its checksum field begins with."""

from __future__ import annotations

from dataclasses import dataclass

_IPV4, _IPV6, _TAGS = b"\x08\x00", b"\x86\xdd", (b"\x81\x00", b"\x88\xa8")
_TCP, _UDP, _ICMPV6 = 6, 17, 58
_FIELD = {_TCP: 16, _UDP: 6, _ICMPV6: 2}  # offset of the checksum


@dataclass(frozen=True)
class Transport:
    """The header of TCP, UDP or ICMPv6 in a frame: where it begins, where its checksum is in it,
    the sum of its pseudo-header, bytes of the header."""

    start: int
    field: int
    pseudo: int
    size: int
    congestion: bool  # CWR of TCP


def add(data: bytes) -> int:
    """The sum of 16-bit words, carries folded in (RFC 1071)."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in
                range(0, len(data), 2))  # fmt: skip
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return total


def transport(frame: bytes) -> Transport | None:
    """None for other protocols, fragments, IPv6 with extension headers, and headers cut short."""
    at = 12
    while frame[at : at + 2] in _TAGS:
        at += 4
    kind, at = frame[at : at + 2], at + 2
    if kind == _IPV4 and len(frame) >= at + 20:
        if int.from_bytes(frame[at + 6 : at + 8], "big") & 0x3FFF:
            return None
        start = at + (frame[at] & 15) * 4
        length = int.from_bytes(frame[at + 2 : at + 4], "big") - (start - at)
        protocol, addresses = frame[at + 9], frame[at + 12 : at + 20]
    elif kind == _IPV6 and len(frame) >= at + 40:
        start = at + 40
        length = int.from_bytes(frame[at + 4 : at + 6], "big")
        protocol, addresses = frame[at + 6], frame[at + 8 : at + 40]
    else:
        return None
    header = frame[start : start + 20]
    if protocol not in _FIELD or len(header) < (20 if protocol == _TCP else 8):
        return None
    pseudo = add(addresses + protocol.to_bytes(2, "big") + length.to_bytes(4, "big"))
    tcp = protocol == _TCP
    size = (header[12] >> 4) * 4 if tcp else 8
    return Transport(start, _FIELD[protocol], pseudo, size, tcp and bool(header[13] & 0x80))
