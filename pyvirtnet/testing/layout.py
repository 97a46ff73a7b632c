"""Virtio as the device sees it: constants and wire formats, each with its section (VIRTIO 1.3).

Written from the specification and shared with no driver: a mistake made on one side only shows.
"""

from struct import Struct

# Device status, 2.1
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128

# Feature bits by name: 5.1.3 (network device), 6 (every device)
FEATURES = {
    "csum": 0, "guest_csum": 1, "ctrl_guest_offloads": 2, "mtu": 3, "mac": 5,
    "guest_tso4": 7, "guest_tso6": 8, "guest_ecn": 9, "guest_ufo": 10,
    "host_tso4": 11, "host_tso6": 12, "host_ecn": 13, "host_ufo": 14,
    "mrg_rxbuf": 15, "status": 16, "ctrl_vq": 17, "ctrl_rx": 18, "ctrl_vlan": 19,
    "ctrl_rx_extra": 20, "guest_announce": 21, "mq": 22, "ctrl_mac_addr": 23,
    "indirect_desc": 28, "event_idx": 29, "version_1": 32, "access_platform": 33,
    "ring_packed": 34, "in_order": 35, "order_platform": 36, "sr_iov": 37,
    "notification_data": 38, "notif_config_data": 39, "ring_reset": 40, "admin_vq": 41,
    "device_stats": 50, "hash_tunnel": 51, "vq_notf_coal": 52, "notf_coal": 53,
    "guest_uso4": 54, "guest_uso6": 55, "host_uso": 56, "hash_report": 57,
    "guest_hdrlen": 59, "rss": 60, "rsc_ext": 61, "standby": 62, "speed_duplex": 63,
    "rss_context": 64, "guest_udp_tunnel_gso": 65, "guest_udp_tunnel_gso_csum": 66,
    "host_udp_tunnel_gso": 67, "host_udp_tunnel_gso_csum": 68, "out_net_header": 69,
}  # fmt: skip


def mask(*names: str) -> int:
    """The feature bits of these names."""
    return sum(1 << FEATURES[name] for name in names)


def feature_names(features: int) -> str:
    """The features of a mask, for messages."""
    known = [name.upper() for name, bit in FEATURES.items() if features >> bit & 1]
    unknown = features & ~mask(*FEATURES)
    return ", ".join(known + ([f"{unknown:#x}"] if unknown else [])) or "none"


CSUM = mask("csum")
MTU = mask("mtu")
MRG_RXBUF = mask("mrg_rxbuf")
INDIRECT_DESC = mask("indirect_desc")
EVENT_IDX = mask("event_idx")
VERSION_1 = mask("version_1")
ACCESS_PLATFORM = mask("access_platform")
RING_PACKED = mask("ring_packed")
IN_ORDER = mask("in_order")
NOTIFICATION_DATA = mask("notification_data")
RING_RESET = mask("ring_reset")
CTRL_VQ, CTRL_VLAN = mask("ctrl_vq"), mask("ctrl_vlan")
MANY_QUEUES = mask("mq", "rss")
HOST_TSO4, HOST_TSO6, HOST_ECN = mask("host_tso4"), mask("host_tso6"), mask("host_ecn")
GUEST_HDRLEN, HASH_REPORT = mask("guest_hdrlen"), mask("hash_report")
HOST_UFO, HOST_USO = mask("host_ufo"), mask("host_uso")
GUEST_SEGMENTS = mask("guest_tso4", "guest_tso6", "guest_ufo", "guest_uso4", "guest_uso6")

# Split virtqueue, 2.7: descriptor (addr, len, flags, next), used element (id, len)
DESCRIPTOR = Struct("<QIHH")
USED_ELEMENT = Struct("<II")
U16 = Struct("<H")
DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4  # 2.7.5
NO_INTERRUPT = 1  # avail.flags, 2.7.7
NO_NOTIFY = 1  # used.flags, 2.7.10
MAX_QUEUE = 32768  # 2.7

# Packed virtqueue, 2.8: descriptor (addr, len, id, flags), what a used one says (len, id), event
# suppression (place and wrap counter, flags)
USED_PART = Struct("<IH")
EVENT_SUPPRESS = Struct("<HH")
DESC_AVAIL, DESC_USED = 1 << 7, 1 << 15  # 2.8.1
EVENT_ENABLE, EVENT_DISABLE, EVENT_AT = 0, 1, 2  # 2.8.10

# struct virtio_net_hdr, 5.1.6: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset,
# num_buffers
NET_HEADER = Struct("<BBHHHHH")
HASHED_HEADER = 20  # with HASH_REPORT: hash_value, hash_report and padding behind
HASH_FIELDS = Struct("<IHH")
NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80

# struct virtio_net_config, 5.1.4: mac, status, max_virtqueue_pairs, mtu, speed, duplex, then the
# RSS and hash fields, zero here
NET_CONFIG = Struct("<6sHHHIBBHII")
LINK_UP, ANNOUNCE = 1, 2
# Offset of each field past the MAC, and the features one of which must be offered to read it
CONFIG_FIELDS = (
    (6, 2, mask("status")),
    (8, 2, mask("mq", "rss")),
    (10, 2, MTU),
    (12, 5, mask("speed_duplex")),
    (17, 1, mask("rss", "hash_report")),
    (18, 2, mask("rss")),
    (20, 4, mask("rss", "hash_report")),
    (24, 4, mask("hash_tunnel")),
)

ETHERNET_HEADER = 14
LARGEST_FRAME = 65589  # 5.1.6.3.1: what a receive buffer holds beside the header, at most
