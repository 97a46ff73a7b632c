"""A device with a control queue, and what tests of commands need of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

from nic import Nic

from pyvirtnet import Mac, dma
from pyvirtnet.control import Control
from pyvirtnet.negotiate import Features
from pyvirtnet.spec import Feature, Status
from pyvirtnet.testing import DEFAULT_FEATURES, NetDevice, mask
from pyvirtnet.transport.base import QueueAddresses
from pyvirtnet.transport.sim import SimTransport

COMMANDS = (
    "ctrl_vq", "ctrl_rx", "ctrl_rx_extra", "ctrl_vlan", "ctrl_mac_addr", "guest_announce", "mq",
    "rss", "ctrl_guest_offloads", "notf_coal", "vq_notf_coal", "device_stats",
)  # fmt: skip
ALL = DEFAULT_FEATURES | mask(*COMMANDS)
RING = 1 << 16
MODES = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast",
         "no_broadcast")  # fmt: skip
OURS, OTHER = Mac(bytes.fromhex("020000000009")), Mac(bytes.fromhex("02000000000a"))
GROUP = Mac(bytes.fromhex("01005e000001"))


def to(mac: bytes, tag: int | None = None) -> bytes:
    """A frame for an address, with a VLAN tag or without."""
    tagged = b"" if tag is None else b"\x81\x00" + tag.to_bytes(2, "big")
    return bytes(mac) + bytes(6) + tagged + b"\x08\x00" + bytes(60)


def arrives(nic: Nic, frame: bytes) -> bool:
    """Whether the device lets a frame in."""
    assert nic.device.deliver(frame)
    got = nic.receive()
    assert got in ([], [frame])
    return bool(got)


class Commander:
    """A device whose data queues lie idle, and its control queue in any format.

    The model's own doorbell tells of violations; `sent` does not return while there are any.
    """

    def __init__(self, *features: str, start: int = 0, size: int = 64, **options: Any) -> None:
        agreed = mask("version_1", "access_platform", *COMMANDS, *features)
        self.device = NetDevice(features=agreed, start_index=start, **options)
        self.device.control_size = size
        self.transport = SimTransport(self.device, "sim:test")
        self.control = Control("sim:test", self.transport, RLock())
        names = frozenset(feature for feature in Feature if agreed >> feature & 1)
        self.transport.reset()
        for bit in (Status.ACKNOWLEDGE, Status.DRIVER):
            self.transport.add_status(bit)
        self.transport.accept_features(agreed)
        self.transport.add_status(Status.FEATURES_OK)
        self.transport.status()
        room = self.control.prepare(Features(names, names, names, agreed))
        self.region = dma.memory.allocate(2 * RING + room)
        for index in (0, 1):
            self._idle_ring(index, start, packed="ring_packed" in features)
        self.control.set_up(self.region)
        self.transport.add_status(Status.DRIVER_OK)
        self.control.start()

    def _idle_ring(self, index: int, start: int, packed: bool) -> None:
        at = self.region.iova + index * RING
        memory = self.region.buffer()
        for offset in () if packed else (0x2000, 0x4000):
            memory[index * RING + offset + 2 : index * RING + offset + 4] = start.to_bytes(
                2, "little"
            )
        self.transport.setup_queue(index, QueueAddresses(256, at, at + 0x2000, at + 0x4000))

    @property
    def queue(self) -> Any:
        return self.device.queues[self.device.control_index]

    def answer(self) -> None:
        """The device, mute until now, answers what waits."""
        with self.device.lock:
            self.device.control.mute = False
            self.device.look(self.queue)

    def close(self) -> None:
        self.transport.close()


@contextmanager
def commander(*features: str, **options: Any) -> Iterator[Commander]:
    """A commander that has kept to the rules in the end."""
    made = Commander(*features, **options)
    try:
        yield made
        made.device.check()
    finally:
        made.close()
