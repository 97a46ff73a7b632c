"""Header work on whole bursts, in place: what numpy would need several passes for."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ._burst cimport LONG_BURST, Burst
from ._pages cimport HEAD_BYTES, Store, heads


cdef inline void _swap(uint8_t *first, uint8_t *second, size_t size) noexcept nogil:
    cdef uint8_t[16] kept
    memcpy(kept, first, size)
    memcpy(first, second, size)
    memcpy(second, kept, size)


cdef inline void _swap_addresses(uint8_t *frame) noexcept nogil:
    """The MAC addresses of a frame change places, as two words."""
    cdef uint64_t first, source
    cdef uint32_t last
    memcpy(&first, frame, 8)  # the destination and two bytes of the source
    memcpy(&last, frame + 8, 4)
    source = first >> 48 | <uint64_t>last << 16
    last = <uint32_t>(first >> 16)
    first = source | first << 48
    memcpy(frame, &first, 8)
    memcpy(frame + 8, &last, 4)


cdef void _swap_all(Burst burst) noexcept nogil:
    cdef uint8_t *first = heads(burst.store)
    cdef const uint32_t *index = burst.index
    cdef Py_ssize_t i, count = burst.count, stride = burst.store.stride
    if index != NULL:
        for i in range(count):
            _swap_addresses(first + index[i] * stride)
        return
    first += burst.start * stride
    stride *= burst.step
    for i in range(count):
        _swap_addresses(first + i * stride)


def swap_macs(Burst burst not None):
    """Swap source and destination MAC address of every frame of an RxBurst or TxBurst."""
    if burst.count < LONG_BURST:
        _swap_all(burst)
        return
    with nogil:
        _swap_all(burst)


def swap_flows(Burst burst not None):
    """Turn every frame round: MAC addresses, IPv4 or IPv6 addresses, TCP, UDP or SCTP ports.

    Up to two VLAN tags are stepped over. Checksums stay right: they do not depend on the order.
    Frames that are not IP have their MAC addresses swapped; other protocols, fragments but the
    first, and IPv6 with extension headers keep what stands in place of ports.
    Returns how many frames had their ports swapped.
    """
    cdef uint32_t ports
    if burst.count < LONG_BURST:
        return _turn_all(burst)
    with nogil:
        ports = _turn_all(burst)
    return ports


cdef uint32_t _turn_all(Burst burst) noexcept nogil:
    cdef Store *store = burst.store
    cdef uint32_t frame, ports = 0
    cdef Py_ssize_t i
    for i in range(burst.count):
        frame = burst.frame(i)
        ports += _turn_round(
            heads(store) + <size_t>frame * store.stride,
            min(store.lengths[frame], min(store.head_room, <uint32_t>HEAD_BYTES)))
    return ports


cdef bint _turn_round(uint8_t *frame, uint32_t length) noexcept nogil:
    """One frame, of which `length` bytes may be touched. True if it had ports."""
    cdef uint32_t at = ETHERNET
    cdef uint16_t kind
    _swap_addresses(frame)
    kind = be16(frame + 12)
    while is_tag(kind) and at < ETHERNET + MAX_TAGS * VLAN_TAG:
        if length < at + VLAN_TAG:
            return False
        kind = be16(frame + at + 2)
        at += VLAN_TAG
    if kind == TYPE_IPV4:
        return _turn_ipv4(frame + at, length - at)
    if kind == TYPE_IPV6:
        return _turn_ipv6(frame + at, length - at)
    return False


cdef bint _turn_ipv4(uint8_t *header, uint32_t length) noexcept nogil:
    cdef uint32_t size
    if length < IPV4_LEAST or header[0] >> 4 != 4:
        return False
    _swap(header + ADDRESSES_V4, header + ADDRESSES_V4 + 4, 4)
    size = (header[0] & 15) * 4
    if size < IPV4_LEAST or header[6] & 0x1F or header[7]:  # a later fragment has no ports
        return False
    return _turn_ports(header, size, length, header[9])


cdef bint _turn_ipv6(uint8_t *header, uint32_t length) noexcept nogil:
    if length < IPV6 or header[0] >> 4 != 6:
        return False
    _swap(header + ADDRESSES_V6, header + ADDRESSES_V6 + 16, 16)
    return _turn_ports(header, IPV6, length, header[6])


cdef bint _turn_ports(uint8_t *header, uint32_t size, uint32_t length,
                      uint8_t protocol) noexcept nogil:
    if length < size + 4 or not (protocol == TCP or protocol == UDP or protocol == SCTP):
        return False
    _swap(header + size, header + size + 2, 2)
    return True
