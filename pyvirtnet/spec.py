"""Virtio's constants, each with its section (VIRTIO 1.3)."""

from enum import Enum, IntEnum, IntFlag

PCI_VENDOR = 0x1AF4  # 4.1.2
PCI_DEVICE_NET = 0x1041  # 4.1.2: 0x1040 + device type 1
PCI_DEVICE_NET_TRANSITIONAL = 0x1000  # 4.1.2.1

NET_HEADER = 12  # bytes of a virtio header, 5.1.6
PAGE = 4096  # bytes of a receive buffer
MAX_FRAME = 65535  # bytes; largest frame taken or delivered
MAX_SEGMENTED = 65589  # bytes, 5.1.6.3.1; of a frame that is to be segmented
MIN_FRAME = 14  # bytes; an Ethernet header
MAX_SPLIT_QUEUE = 32768  # 2.7


class Status(IntFlag):
    """Device status field, 2.1."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class Feature(IntEnum):
    """Feature bit numbers: 5.1.3 for the network device, 6 for all devices."""

    CSUM = 0
    GUEST_CSUM = 1
    CTRL_GUEST_OFFLOADS = 2
    MTU = 3
    MAC = 5
    GUEST_TSO4 = 7
    GUEST_TSO6 = 8
    GUEST_ECN = 9
    GUEST_UFO = 10
    HOST_TSO4 = 11
    HOST_TSO6 = 12
    HOST_ECN = 13
    HOST_UFO = 14
    MRG_RXBUF = 15
    STATUS = 16
    CTRL_VQ = 17
    CTRL_RX = 18
    CTRL_VLAN = 19
    CTRL_RX_EXTRA = 20
    GUEST_ANNOUNCE = 21
    MQ = 22
    CTRL_MAC_ADDR = 23
    INDIRECT_DESC = 28
    EVENT_IDX = 29
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    RING_PACKED = 34
    IN_ORDER = 35
    ORDER_PLATFORM = 36
    SR_IOV = 37
    NOTIFICATION_DATA = 38
    NOTIF_CONFIG_DATA = 39
    RING_RESET = 40
    DEVICE_STATS = 50
    HASH_TUNNEL = 51
    VQ_NOTF_COAL = 52
    NOTF_COAL = 53
    GUEST_USO4 = 54
    GUEST_USO6 = 55
    HOST_USO = 56
    HASH_REPORT = 57
    GUEST_HDRLEN = 59
    RSS = 60
    RSC_EXT = 61
    STANDBY = 62
    SPEED_DUPLEX = 63


class HeaderFlag(IntFlag):
    """flags of a virtio header, 5.1.6: of `burst.offload`."""

    NEEDS_CSUM = 1
    DATA_VALID = 2


class Gso(IntEnum):
    """gso_type of a virtio header, 5.1.6: what a frame is to be segmented as."""

    NONE = 0
    TCPV4 = 1
    TCPV6 = 4
    UDP_L4 = 5
    ECN = 0x80  # beside one of TCP


class PciCap(IntEnum):
    """cfg_type of a virtio PCI capability, 4.1.4."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI_ACCESS = 5


PCI_CAP_VENDOR = 0x09  # 4.1.4: cap_vndr
NO_VECTOR = 0xFFFF  # 4.1.4.3


class CommonCfg(IntEnum):
    """Offsets in struct virtio_pci_common_cfg, 4.1.4.3."""

    DEVICE_FEATURE_SELECT = 0x00
    DEVICE_FEATURE = 0x04
    DRIVER_FEATURE_SELECT = 0x08
    DRIVER_FEATURE = 0x0C
    CONFIG_MSIX_VECTOR = 0x10
    NUM_QUEUES = 0x12
    DEVICE_STATUS = 0x14
    CONFIG_GENERATION = 0x15
    QUEUE_SELECT = 0x16
    QUEUE_SIZE = 0x18
    QUEUE_MSIX_VECTOR = 0x1A
    QUEUE_ENABLE = 0x1C
    QUEUE_NOTIFY_OFF = 0x1E
    QUEUE_DESC = 0x20
    QUEUE_DRIVER = 0x28
    QUEUE_DEVICE = 0x30
    QUEUE_RESET = 0x3A  # with RING_RESET


COMMON_CFG_SIZE = 0x38  # what every device exposes; later fields come with features


class NetConfig(IntEnum):
    """Offsets in struct virtio_net_config, 5.1.4."""

    MAC = 0
    STATUS = 6
    MAX_QUEUE_PAIRS = 8
    MTU = 10
    SPEED = 12
    DUPLEX = 16
    RSS_MAX_KEY = 17
    RSS_MAX_TABLE = 18
    HASH_TYPES = 20


LINK_UP, ANNOUNCE = 1, 2  # 5.1.4: VIRTIO_NET_S_
MAX_PAIRS = 0x8000  # 5.1.4.1


class Command(Enum):
    """Class and command of what is sent through the control virtqueue, 5.1.6.5."""

    PROMISC = (0, 0)
    ALLMULTI = (0, 1)
    ALLUNI = (0, 2)
    NOMULTI = (0, 3)
    NOUNI = (0, 4)
    NOBCAST = (0, 5)
    MAC_TABLE_SET = (1, 0)
    MAC_ADDR_SET = (1, 1)
    VLAN_ADD = (2, 0)
    VLAN_DEL = (2, 1)
    ANNOUNCE_ACK = (3, 0)
    VQ_PAIRS_SET = (4, 0)
    RSS_CONFIG = (4, 1)
    HASH_CONFIG = (4, 2)
    GUEST_OFFLOADS_SET = (5, 0)
    NOTF_COAL_TX_SET = (6, 0)
    NOTF_COAL_RX_SET = (6, 1)
    NOTF_COAL_VQ_SET = (6, 2)
    NOTF_COAL_VQ_GET = (6, 3)
    STATS_QUERY = (8, 0)
    STATS_GET = (8, 1)


ACK_OK, ACK_ERR = 0, 1  # 5.1.6.5


class HashType(IntFlag):
    """What of a packet its hash is taken over, 5.1.6.4.3.2."""

    IPV4 = 1 << 0
    TCPV4 = 1 << 1
    UDPV4 = 1 << 2
    IPV6 = 1 << 3
    TCPV6 = 1 << 4
    UDPV6 = 1 << 5
    IP_EX = 1 << 6
    TCP_EX = 1 << 7
    UDP_EX = 1 << 8
