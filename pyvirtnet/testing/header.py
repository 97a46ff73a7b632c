"""Checks of the header before a transmitted frame (VIRTIO 1.3, 5.1.6.2)."""

from __future__ import annotations

from typing import NoReturn

from . import layout
from .layout import CSUM, ETHERNET_HEADER, LARGEST_FRAME, NEEDS_CSUM, NET_HEADER
from .violation import Violation, Where, words

_SECTION = "5.1.6.2.1"
_SIZE = NET_HEADER.size
_BLANK = bytes(_SIZE)
_GSO_NEEDS = {
    layout.GSO_TCPV4: layout.HOST_TSO4,
    layout.GSO_TCPV6: layout.HOST_TSO6,
    layout.GSO_UDP: layout.HOST_UFO,
    layout.GSO_UDP_L4: layout.HOST_USO,
}


def check_transmitted(data: bytes, features: int, mtu: int | None, where: Where) -> None:
    """Header and frame obey what was negotiated; `mtu` is None unless MTU was."""
    frame = len(data) - _SIZE
    if frame < ETHERNET_HEADER or frame > LARGEST_FRAME:
        limits = f"{ETHERNET_HEADER} to {LARGEST_FRAME} bytes"
        raise Violation(f"a frame has {limits}", "5.1.6.2", f"{words(where)}: {frame} bytes")
    blank = data.startswith(_BLANK)
    segmented = not blank and data[1] & ~layout.GSO_ECN != layout.GSO_NONE
    if mtu is not None and frame > mtu + ETHERNET_HEADER and not segmented:
        seen = f"{words(where)}: {frame} bytes, MTU {mtu}"
        raise Violation("a frame is no longer than the MTU and its header", "5.1.4.2", seen)
    if not blank:
        _check_offloads(data, features, where)


def _check_offloads(data: bytes, features: int, where: Where) -> None:
    fields = NET_HEADER.unpack_from(data)
    flags, gso_type, _, gso_size, start, offset, buffers = fields

    def broken(rule: str) -> NoReturn:
        raise Violation(rule, _SECTION, f"{words(where)}: header {data[:_SIZE].hex()}")

    if buffers:
        broken("num_buffers is 0 in what is transmitted")
    if not features & CSUM:
        broken("the header is zero where no offload was negotiated")
    if flags & ~NEEDS_CSUM:
        broken("no flag but NEEDS_CSUM is transmitted")
    end = len(data) - _SIZE
    if flags & NEEDS_CSUM and start + offset + 2 > end:
        broken("the checksum that NEEDS_CSUM asks for lies in the frame")
    kind = gso_type & ~layout.GSO_ECN
    if kind != layout.GSO_NONE:
        if not features & _GSO_NEEDS.get(kind, 0):
            broken("gso_type asks only for what was negotiated")
        if not flags & NEEDS_CSUM:
            broken("segmentation needs NEEDS_CSUM")
        if not gso_size:
            broken("segmentation needs a gso_size")
    if gso_type & layout.GSO_ECN and not (
        features & layout.HOST_ECN and kind in (layout.GSO_TCPV4, layout.GSO_TCPV6)
    ):
        broken("GSO_ECN goes with TCP segmentation where HOST_ECN was negotiated")
