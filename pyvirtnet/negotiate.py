"""Features offered and wanted become features negotiated. Pure functions, no device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import FeatureMissing
from .spec import MAX_SEGMENTED, NET_HEADER, PAGE, Feature

# What the control queue is asked for, each with a feature of its own
_COMMANDS = frozenset(
    {
        Feature.CTRL_RX,
        Feature.CTRL_RX_EXTRA,
        Feature.CTRL_VLAN,
        Feature.CTRL_MAC_ADDR,
        Feature.GUEST_ANNOUNCE,
        Feature.MQ,
        Feature.RSS,
        Feature.CTRL_GUEST_OFFLOADS,
        Feature.NOTF_COAL,
        Feature.VQ_NOTF_COAL,
        Feature.DEVICE_STATS,
        Feature.HASH_REPORT,
    }
)

# What a device can do of a packet's checksums and segmentation: `open(offloads=True)`
OFFLOADS = frozenset(
    {
        Feature.CSUM,
        Feature.HOST_TSO4,
        Feature.HOST_TSO6,
        Feature.HOST_ECN,
        Feature.HOST_USO,
        Feature.GUEST_CSUM,
        Feature.GUEST_TSO4,
        Feature.GUEST_TSO6,
        Feature.GUEST_ECN,
        Feature.GUEST_USO4,
        Feature.GUEST_USO6,
        Feature.GUEST_HDRLEN,
    }
)
SEGMENTS = frozenset(
    {Feature.GUEST_TSO4, Feature.GUEST_TSO6, Feature.GUEST_USO4, Feature.GUEST_USO6}
)

# What this driver can do. Only VERSION_1 is required of a device (6.1).
SUPPORTED = (
    frozenset(
        {
            Feature.VERSION_1,
            Feature.ACCESS_PLATFORM,
            Feature.MAC,
            Feature.STATUS,
            Feature.MTU,
            Feature.SPEED_DUPLEX,
            Feature.MRG_RXBUF,
            Feature.CTRL_VQ,
            Feature.RING_PACKED,
            Feature.IN_ORDER,
            Feature.EVENT_IDX,
            Feature.INDIRECT_DESC,
            Feature.ORDER_PLATFORM,
            Feature.NOTIFICATION_DATA,
            Feature.RING_RESET,
        }
    )
    | _COMMANDS
    | OFFLOADS
)

# Wanted only where they are asked for: with CTRL_VLAN a device starts to drop tagged frames
# (5.1.6.5.3), which nobody expects of a port that was just opened.
# With offloads, frames come with checksums that are not made yet, and as large as 64 KiB.
ON_REQUEST = frozenset({Feature.CTRL_VLAN, Feature.HASH_REPORT}) | OFFLOADS

BIG_PAGES = 17  # of a receive buffer for 65589 bytes and a header, 5.1.6.3.1

# 5.1.3.1: a feature and those it cannot be accepted without, or would be of no use.
REQUIRES: dict[Feature, frozenset[Feature]] = {
    **dict.fromkeys(_COMMANDS, frozenset({Feature.CTRL_VQ})),
    Feature.GUEST_ANNOUNCE: frozenset({Feature.CTRL_VQ, Feature.STATUS}),  # 5.1.4: asked for there
    **dict.fromkeys(SEGMENTS, frozenset({Feature.GUEST_CSUM})),
    Feature.HOST_TSO4: frozenset({Feature.CSUM}),
    Feature.HOST_TSO6: frozenset({Feature.CSUM}),
    Feature.HOST_USO: frozenset({Feature.CSUM}),
}
REQUIRES_ONE: dict[Feature, frozenset[Feature]] = {
    Feature.GUEST_ECN: frozenset({Feature.GUEST_TSO4, Feature.GUEST_TSO6}),
    Feature.HOST_ECN: frozenset({Feature.HOST_TSO4, Feature.HOST_TSO6}),
    Feature.GUEST_HDRLEN: frozenset({Feature.HOST_TSO4, Feature.HOST_TSO6, Feature.HOST_USO}),
}


@dataclass(frozen=True)
class Features:
    """What the device offers, what this driver wants, and what both agreed on."""

    offered: frozenset[Feature]
    wanted: frozenset[Feature]
    negotiated: frozenset[Feature]
    offered_bits: int  # with bits that have no name here

    @property
    def bits(self) -> int:
        """The negotiated features as the device is told them."""
        return to_bits(self.negotiated)


def to_bits(features: Iterable[Feature]) -> int:
    return sum(1 << feature for feature in features)


def parse(switches: Iterable[str]) -> frozenset[Feature]:
    """What is wanted after `switches` such as "-mrg_rxbuf"; a bare name wants it, as "+" does."""
    wanted = set(SUPPORTED - ON_REQUEST)
    for switch in switches:
        if not isinstance(switch, str):
            raise TypeError(f'features takes switches such as "-mrg_rxbuf", not {switch!r}')
        name = (switch[1:] if switch[:1] in ("+", "-") else switch).upper()
        if name not in Feature.__members__:
            known = ", ".join(sorted(feature.name.lower() for feature in SUPPORTED))
            raise ValueError(f"there is no virtio-net feature {switch!r}; known here: {known}")
        feature = Feature[name]
        if switch.startswith("-"):
            if feature is Feature.VERSION_1:
                raise ValueError("version_1 cannot be switched off: the driver is modern only")
            wanted.discard(feature)
        elif feature not in SUPPORTED:
            raise FeatureMissing(
                f"no feature {name.lower()}", "this driver does not have it", f"leave {switch} out"
            )
        else:
            wanted.add(feature)
    return frozenset(wanted)


def _has_what_it_requires(feature: Feature, agreed: frozenset[Feature]) -> bool:
    one = REQUIRES_ONE.get(feature)
    return REQUIRES.get(feature, frozenset()) <= agreed and (one is None or bool(one & agreed))


def receive_mode(negotiated: frozenset[Feature]) -> str:
    """ "mergeable", "big" or "small": what receive buffers are (5.1.6.3.1)."""
    if Feature.MRG_RXBUF in negotiated:
        return "mergeable"
    return "big" if SEGMENTS & negotiated else "small"


def largest_frame(negotiated: frozenset[Feature], ring_size: int, pages: int | None) -> int:
    """Bytes of the largest frame that receive buffers of that mode hold."""
    mode = receive_mode(negotiated)
    most = 1 if mode == "small" else min(ring_size, pages or ring_size)  # 2.7.5.2, 2.7.5.3.1
    return (min(most, BIG_PAGES) if mode == "big" else most) * PAGE - NET_HEADER


def least_ring(negotiated: frozenset[Feature], max_frame: int) -> int:
    """Entries of a receive ring for the largest frame that was agreed to (5.1.4.2, 5.1.6.3.1)."""
    largest = 0
    if SEGMENTS & negotiated:
        largest = MAX_SEGMENTED
    elif Feature.MTU in negotiated and receive_mode(negotiated) == "mergeable":
        largest = max_frame
    return max(2, -(-(largest + NET_HEADER) // PAGE))


def negotiate(offered_bits: int, wanted: frozenset[Feature] = SUPPORTED) -> Features:
    """The features both sides have, without those whose prerequisites are missing (2.2.1)."""
    offered = frozenset(feature for feature in Feature if offered_bits >> feature & 1)
    if Feature.VERSION_1 not in offered:
        raise FeatureMissing(
            "the device cannot be driven",
            "it does not offer VIRTIO_F_VERSION_1: it is a legacy device",
            "in QEMU, give it disable-legacy=on,disable-modern=off",
        )
    agreed = offered & wanted
    while spoilt := {feature for feature in agreed if not _has_what_it_requires(feature, agreed)}:
        agreed -= spoilt
    if receive_mode(agreed) == "big" and Feature.INDIRECT_DESC not in agreed:
        agreed -= {Feature.RING_PACKED, Feature.IN_ORDER}  # buffers of many descriptors each
    return Features(offered, wanted, agreed, offered_bits)
