"""PCI configuration space of a virtio-net function, with the capabilities one asks for."""

import struct

COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000  # offsets in BAR 4


def capability(kind, offset, length, *, bar=4, size=16, multiplier=None):
    """A virtio PCI capability without its cap_vndr and cap_next."""
    body = struct.pack("<BBBB2xII", size, kind, bar, 0, offset, length)
    return body if multiplier is None else body + struct.pack("<I", multiplier)


def standard_capabilities():
    return [
        capability(5, 0, 0, bar=0, size=20, multiplier=0),
        capability(2, NOTIFY, 0x1000, size=20, multiplier=4),
        capability(4, DEVICE, 0x1000),
        capability(3, ISR, 0x1000),
        capability(1, COMMON, 0x1000),
    ]


def make_config(capabilities):
    """256 bytes: the header, then a linked list of vendor-specific capabilities."""
    config = bytearray(256)
    struct.pack_into("<HHHH", config, 0, 0x1AF4, 0x1041, 2, 0x10)
    struct.pack_into("<I", config, 0x10, 0xC001)  # BAR 0: I/O ports
    struct.pack_into("<II", config, 0x20, 0xFE00000C, 0)  # BAR 4: 64-bit memory
    position, link = 0x40, 0x34
    for body in capabilities:
        config[link] = position
        config[position] = 0x09
        config[position + 2 : position + 2 + len(body)] = body
        link, position = position + 1, position + (2 + len(body) + 3 & ~3)
    return config
