"""Checksums of whole bursts left to a device, and segmentation with them (VIRTIO 1.3, 5.1.6.2)."""

from libc.stdint cimport uint16_t, uint32_t

from ._burst cimport Burst
from ._checksums cimport Checksums, find_checksums, write_word
from ._layout cimport NetHdr
from ._offload cimport GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM
from ._pages cimport Store, attach_headers

cdef enum:
    TCP_CSUM = 16               # offset of the checksum in a TCP header
    UDP_CSUM = 6


def defer_checksums(Burst burst not None, uint16_t gso_size=0):
    """Leave the TCP, UDP or ICMPv6 checksum of every frame to the device that sends it.

    Writes the pseudo-header's sum into the checksum field and sets `burst.offload`. With
    `gso_size`, TCP and UDP with more bytes of payload are left to be segmented, so many bytes to a
    segment. Frames in which `fix_checksums` would write no such checksum are left as they are, as
    are frames with bytes behind their IP packet.
    Returns how many frames were changed. Raises MemoryError.
    """
    cdef Store *store = burst.store
    cdef Py_ssize_t i, changed = 0
    if burst.count and store.headers == NULL and not attach_headers(store):
        raise MemoryError
    with nogil:
        for i in range(burst.count):
            changed += _defer(store, burst.frame(i), gso_size)
    return changed


cdef bint _defer(Store *store, uint32_t frame, uint16_t gso_size) noexcept nogil:
    cdef NetHdr *header = &store.headers[frame].net
    cdef Checksums sums
    if not find_checksums(store, frame, &sums) or sums.payload.at == 0:
        return False
    if sums.payload.end != store.lengths[frame]:  # the device would sum all the bytes there are
        return False
    write_word(store, frame, sums.payload.at, sums.payload.pseudo)
    header.flags = NEEDS_CSUM
    header.csum_start = sums.payload.start
    header.csum_offset = sums.payload.at - sums.payload.start
    header.gso_type = GSO_NONE
    header.hdr_len = header.gso_size = 0
    if gso_size and sums.payload.bytes > gso_size:
        if header.csum_offset == UDP_CSUM:
            header.gso_type = GSO_UDP_L4
        elif header.csum_offset == TCP_CSUM:
            header.gso_type = GSO_TCPV4 if sums.header.at else GSO_TCPV6
        header.gso_size = gso_size if header.gso_type else 0
    return True
