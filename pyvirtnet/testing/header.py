"""Checks of the header before a transmitted frame (VIRTIO 1.3, 5.1.6.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, NoReturn

from .checksum import Transport, transport
from .layout import (
    CSUM,
    ETHERNET_HEADER,
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    GSO_UDP_L4,
    GUEST_HDRLEN,
    HASH_REPORT,
    HASHED_HEADER,
    HOST_ECN,
    HOST_TSO4,
    HOST_TSO6,
    HOST_UFO,
    HOST_USO,
    LARGEST_FRAME,
    NEEDS_CSUM,
    NET_HEADER,
)
from .violation import Violation, Where, words

_SECTION = "5.1.6.2.1"
_SIZE = NET_HEADER.size
_BLANK = bytes(_SIZE)
_GSO_NEEDS = {
    GSO_TCPV4: HOST_TSO4,
    GSO_TCPV6: HOST_TSO6,
    GSO_UDP: HOST_UFO,
    GSO_UDP_L4: HOST_USO,
}


class Fields(NamedTuple):
    """Those of a virtio header, in their order."""

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    start: int
    offset: int
    buffers: int


def check_transmitted(data: bytes, features: int, mtu: int | None, where: Where) -> None:
    """Header and frame obey what was negotiated; `mtu` is None unless MTU was."""
    if features & HASH_REPORT:
        if any(data[_SIZE:HASHED_HEADER]):
            seen = f"{words(where)}: header {data[:HASHED_HEADER].hex()}"
            raise Violation("hash fields are 0 in what is transmitted", "5.1.6.2", seen)
        data = data[:_SIZE] + data[HASHED_HEADER:]
    frame = len(data) - _SIZE
    if frame < ETHERNET_HEADER or frame > LARGEST_FRAME:
        limits = f"{ETHERNET_HEADER} to {LARGEST_FRAME} bytes"
        raise Violation(f"a frame has {limits}", "5.1.6.2", f"{words(where)}: {frame} bytes")
    blank = data.startswith(_BLANK)
    segmented = not blank and data[1] & ~GSO_ECN != GSO_NONE
    if mtu is not None and frame > mtu + ETHERNET_HEADER and not segmented:
        seen = f"{words(where)}: {frame} bytes, MTU {mtu}"
        raise Violation("a frame is no longer than the MTU and its header", "5.1.4.2", seen)
    if not blank:
        _check_offloads(data, features, where)


def _check_offloads(data: bytes, features: int, where: Where) -> None:
    fields = Fields(*NET_HEADER.unpack_from(data))
    frame = data[_SIZE:]

    def broken(rule: str) -> NoReturn:
        raise Violation(rule, _SECTION, f"{words(where)}: header {data[:_SIZE].hex()}")

    if fields.buffers:
        broken("num_buffers is 0 in what is transmitted")
    if not features & CSUM:
        broken("the header is zero where no offload was negotiated")
    if fields.flags & ~NEEDS_CSUM:
        broken("no flag but NEEDS_CSUM is transmitted")
    found = transport(frame)
    if fields.flags & NEEDS_CSUM:
        at = fields.start + fields.offset
        if at + 2 > len(frame):
            broken("the checksum that NEEDS_CSUM asks for lies in the frame")
        if found is not None and (fields.start, fields.offset) != (found.start, found.field):
            broken("csum_start and csum_offset lead to the right checksum")
        seen = int.from_bytes(frame[at : at + 2], "big")
        if found is not None and seen % 0xFFFF != found.pseudo % 0xFFFF:
            broken("the checksum field holds the sum of the pseudo-header")
    _check_segmentation(fields, found, features, broken)


def _check_segmentation(
    fields: Fields, found: Transport | None, features: int, broken: Callable[[str], NoReturn]
) -> None:
    kind, ecn = fields.gso_type & ~GSO_ECN, fields.gso_type & GSO_ECN
    if ecn and not (features & HOST_ECN and kind in (GSO_TCPV4, GSO_TCPV6)):
        broken("GSO_ECN goes with TCP segmentation where HOST_ECN was negotiated")
    if kind == GSO_NONE:
        return
    if not features & _GSO_NEEDS.get(kind, 0):
        broken("gso_type asks only for what was negotiated")
    if not fields.flags & NEEDS_CSUM:
        broken("segmentation needs NEEDS_CSUM")
    if not fields.gso_size:
        broken("segmentation needs a gso_size")
    if found is None:
        return
    size = found.start + found.size
    if fields.hdr_len < size or (fields.hdr_len > size and features & GUEST_HDRLEN):
        broken("hdr_len covers the headers, exactly with GUEST_HDRLEN")
    if found.congestion and not ecn:
        broken("a packet with ECN is segmented as one with ECN, or not at all")
