"""ARP requests, pings and IPv6 neighbour solicitations of whole bursts, answered in place."""

cimport numpy as cnp

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from ._burst cimport Burst
from ._headers cimport (
    ADDRESSES_V4,
    ADDRESSES_V6,
    ETHERNET,
    ICMP,
    ICMPV6,
    IPV4_LEAST,
    IPV6,
    MAX_TAGS,
    TYPE_IPV4,
    TYPE_IPV6,
    VLAN_TAG,
    be16,
    is_tag,
)
from ._pages cimport HEAD_BYTES, Store, heads

import ipaddress

import numpy as np

cnp.import_array()

cdef enum:
    TYPE_ARP = 0x0806
    ARP = 28                    # bytes, with Ethernet and IPv4 addresses
    ARP_SENDER = 8
    ARP_TARGET = 18
    ECHO = 8                    # bytes of an echo message's header
    ECHO_REQUEST_V4 = 8
    ECHO_REQUEST_V6 = 128
    SOLICITATION = 135
    ADVERTISEMENT = 136
    NEIGHBOUR = 24              # bytes of either, without options
    LINK_OPTION = 8             # bytes of the option that holds the link-layer address
    NO_ROUTER_PASSED = 255      # hop limit of all neighbour discovery (RFC 4861, 7.1)
    SOLICITED_OVERRIDE = 0x60

cdef struct Station:
    # Who answers. Without addresses: whatever is asked for.
    const uint8_t *mac
    const uint8_t *v4
    Py_ssize_t v4_bytes
    const uint8_t *v6
    Py_ssize_t v6_bytes
    bint any


def answer_pings(Burst burst not None, mac, addresses=None):
    """Turn requests into their answers, where they lie; bool[n]: which frames are answers now.

    Answered are ARP requests, ICMP and ICMPv6 echo requests (RFC 792, 4443) and neighbour
    solicitations (RFC 4861, 7.2.4), behind up to two VLAN tags. All other frames stay as they are.
    `burst[answer_pings(burst, port.mac)]` is what to send back.

    mac         six bytes; frames for other stations are left alone
    addresses   IPv4 and IPv6 addresses that are ours, or one; left out: whichever is asked for

    Left alone are fragments, requests whose lengths do not fit, and who asks whether an address is
    free, by an ARP probe or for duplicate address detection: it would never find one.
    Raises ValueError for what is no address.
    """
    if isinstance(mac, str):
        raise TypeError(f"mac is six bytes, such as port.mac, not {mac!r}")
    cdef bytes own = bytes(mac)
    cdef bytes v4 = b"", v6 = b""
    cdef Station station
    cdef Store *store = burst.store
    cdef Py_ssize_t i
    cdef uint32_t frame
    cdef cnp.ndarray answers = np.empty(burst.count, np.bool_)
    cdef uint8_t *answered = <uint8_t *>cnp.PyArray_DATA(answers)
    if len(own) != 6:
        raise ValueError(f"a MAC address has six bytes, not {len(own)}")
    if isinstance(addresses, (str, ipaddress.IPv4Address, ipaddress.IPv6Address)):
        addresses = (addresses,)
    for one in map(ipaddress.ip_address, () if addresses is None else addresses):
        v4, v6 = (v4 + one.packed, v6) if one.version == 4 else (v4, v6 + one.packed)
    station.mac, station.any = own, addresses is None
    station.v4, station.v4_bytes, station.v6, station.v6_bytes = v4, len(v4), v6, len(v6)
    with nogil:
        for i in range(burst.count):
            frame = burst.frame(i)
            answered[i] = _answer(
                &station, heads(store) + <size_t>frame * store.stride, store.lengths[frame],
                min(store.lengths[frame], min(store.head_room, <uint32_t>HEAD_BYTES)))
    return answers


cdef bint _answer(const Station *station, uint8_t *frame, uint32_t length,
                  uint32_t linear) noexcept nogil:
    """One frame of `length` bytes, the first `linear` of which may be touched."""
    cdef uint32_t at = ETHERNET
    cdef uint16_t kind
    cdef bint to_us, done = False
    if linear < ETHERNET or frame[6] & 1:  # no station's address is a group's
        return False
    to_us = memcmp(frame, station.mac, 6) == 0
    if not to_us and not frame[0] & 1:
        return False
    kind = be16(frame + 12)
    while is_tag(kind) and at < ETHERNET + MAX_TAGS * VLAN_TAG:
        if linear < at + VLAN_TAG:
            return False
        kind = be16(frame + at + 2)
        at += VLAN_TAG
    if kind == TYPE_ARP:
        done = _answer_arp(station, frame + at, linear - at)
    elif kind == TYPE_IPV4:
        done = to_us and _answer_ipv4(station, frame + at, length - at, linear - at)
    elif kind == TYPE_IPV6:
        done = _answer_ipv6(station, frame + at, length - at, linear - at, to_us)
    if done:
        memcpy(frame, frame + 6, 6)
        memcpy(frame + 6, station.mac, 6)
    return done


cdef bint _is_among(const uint8_t *address, uint32_t size, const uint8_t *known,
                    Py_ssize_t known_bytes) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(known_bytes // size):
        if memcmp(address, known + i * size, size) == 0:
            return True
    return False


cdef inline bint _is_ours_v4(const Station *station, const uint8_t *address) noexcept nogil:
    if station.any:
        return _is_unicast_v4(address)
    return _is_among(address, 4, station.v4, station.v4_bytes)


cdef inline bint _is_ours_v6(const Station *station, const uint8_t *address) noexcept nogil:
    if station.any:
        return _is_unicast_v6(address)
    return _is_among(address, 16, station.v6, station.v6_bytes)


cdef inline bint _is_unicast_v4(const uint8_t *address) noexcept nogil:
    """Neither this network's (RFC 1122, 3.2.1.3), nor a group's, reserved or the broadcast one."""
    return 0 < address[0] < 224


cdef inline bint _is_unicast_v6(const uint8_t *address) noexcept nogil:
    """Neither unspecified nor a group's."""
    cdef uint8_t[16] unspecified
    memset(unspecified, 0, 16)
    return address[0] != 0xFF and memcmp(address, unspecified, 16) != 0


cdef bint _answer_arp(const Station *station, uint8_t *arp, uint32_t linear) noexcept nogil:
    cdef uint8_t[8] wanted = [0, 1, 8, 0, 6, 4, 0, 1]  # Ethernet, IPv4, a request
    cdef uint8_t[4] target
    if linear < ARP or memcmp(arp, wanted, 8) != 0:
        return False
    memcpy(target, arp + ARP_TARGET + 6, 4)
    if (not _is_ours_v4(station, target) or not _is_unicast_v4(arp + ARP_SENDER + 6)
            or memcmp(arp + ARP_SENDER + 6, target, 4) == 0):  # a probe, or an announcement
        return False
    arp[7] = 2
    memcpy(arp + ARP_TARGET, arp + ARP_SENDER, 10)
    memcpy(arp + ARP_SENDER, station.mac, 6)
    memcpy(arp + ARP_SENDER + 6, target, 4)
    return True


cdef bint _answer_ipv4(const Station *station, uint8_t *header, uint32_t length,
                       uint32_t linear) noexcept nogil:
    """The header's checksum stays right: addresses that change places do not change it."""
    cdef uint32_t size, total
    cdef uint8_t[4] source
    if linear < IPV4_LEAST or header[0] >> 4 != 4:
        return False
    size, total = (header[0] & 15) * 4, be16(header + 2)
    if size < IPV4_LEAST or total < size + ECHO or total > length or size + ECHO > linear:
        return False
    if be16(header + 6) & 0x3FFF or header[9] != ICMP:
        return False
    if header[size] != ECHO_REQUEST_V4 or header[size + 1] != 0:
        return False
    memcpy(source, header + ADDRESSES_V4, 4)
    if not _is_unicast_v4(source) or not _is_ours_v4(station, header + ADDRESSES_V4 + 4):
        return False
    memcpy(header + ADDRESSES_V4, header + ADDRESSES_V4 + 4, 4)
    memcpy(header + ADDRESSES_V4 + 4, source, 4)
    _change_type(header + size, 0)
    return True


cdef void _change_type(uint8_t *message, uint8_t kind) noexcept nogil:
    """Another type for an ICMP message, and the checksum brought up to date (RFC 1624, eqn. 3)."""
    cdef uint32_t sum = <uint16_t>~be16(message + 2)
    sum += <uint16_t>~(<uint32_t>message[0] << 8) + (<uint32_t>kind << 8)
    sum = (sum & 0xFFFF) + (sum >> 16)
    sum = ~((sum & 0xFFFF) + (sum >> 16))
    message[0], message[2], message[3] = kind, <uint8_t>(sum >> 8), <uint8_t>sum


cdef bint _answer_ipv6(const Station *station, uint8_t *header, uint32_t length, uint32_t linear,
                       bint to_us) noexcept nogil:
    cdef uint8_t *message = header + IPV6
    cdef uint8_t *target = header + ADDRESSES_V6 + 16
    cdef uint8_t[16] source
    cdef uint32_t size
    if linear < IPV6 + ECHO or header[0] >> 4 != 6 or header[6] != ICMPV6:
        return False
    size = be16(header + 4)
    if size < ECHO or size > length - IPV6 or message[1] != 0:
        return False
    memcpy(source, header + ADDRESSES_V6, 16)
    if not _is_unicast_v6(source):
        return False
    if message[0] == SOLICITATION:
        return _advertise(station, header, size, linear - IPV6)
    if message[0] != ECHO_REQUEST_V6 or not to_us or not _is_ours_v6(station, target):
        return False
    memcpy(header + ADDRESSES_V6, target, 16)
    memcpy(target, source, 16)
    _change_type(message, ECHO_REQUEST_V6 + 1)
    return True


cdef bint _advertise(const Station *station, uint8_t *header, uint32_t size,
                     uint32_t room) noexcept nogil:
    """A solicitation of `size` bytes becomes an advertisement, of up to `room`."""
    cdef uint8_t *message = header + IPV6
    cdef uint8_t *destination = header + ADDRESSES_V6 + 16
    cdef uint32_t length = NEIGHBOUR
    if size < NEIGHBOUR or room < NEIGHBOUR or header[7] != NO_ROUTER_PASSED:
        return False
    if not _is_ours_v6(station, message + 8) or not _is_unicast_v6(message + 8):
        return False
    if room >= NEIGHBOUR + LINK_OPTION:
        length = NEIGHBOUR + LINK_OPTION
        message[NEIGHBOUR], message[NEIGHBOUR + 1] = 2, 1
        memcpy(message + NEIGHBOUR + 2, station.mac, 6)
    elif destination[0] == 0xFF:  # who asked everybody has to be told the address (7.2.4)
        return False
    memcpy(destination, header + ADDRESSES_V6, 16)
    memcpy(header + ADDRESSES_V6, message + 8, 16)
    header[4], header[5] = 0, <uint8_t>length
    memset(message + 1, 0, 7)
    message[0], message[4] = ADVERTISEMENT, SOLICITED_OVERRIDE
    _write_checksum(header, length)
    return True


cdef void _write_checksum(uint8_t *header, uint32_t length) noexcept nogil:
    """Of an ICMPv6 message of even length, which holds zero in its place (RFC 8200, 8.1)."""
    cdef uint8_t *message = header + IPV6
    cdef uint32_t sum = length + ICMPV6, i
    for i in range(0, 32, 2):
        sum += be16(header + ADDRESSES_V6 + i)
    for i in range(0, length, 2):
        sum += be16(message + i)
    sum = (sum & 0xFFFF) + (sum >> 16)
    sum = ~((sum & 0xFFFF) + (sum >> 16))
    message[2], message[3] = <uint8_t>(sum >> 8), <uint8_t>sum
