"""A device that lives in this process: `sim:` addresses, over pyvirtnet.testing."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from .. import dma
from ..dma import Region
from ..errors import DeviceGone, DeviceTimeout, NoSuchDevice
from ..testing import DEFAULT_FEATURES, FEATURES, Loopback, MemoryMap, NetDevice, mask
from .base import Doorbell, QueueAddresses, Transport

_CONFIG_TRIES = 100


class SimTransport(Transport, dma.Mapper):
    """Registers and doorbells of a `NetDevice`, which sees the process's DMA memory.

    start_index  where the rings' indices start; a back end over vhost-user has one too
    """

    def __init__(self, device: NetDevice, name: str = "sim:") -> None:
        self.device, self.name = device, name
        self.start_index = device.start_index
        self._memory = MemoryMap()
        self._fds: dict[int | None, int] = {}
        self._closed = False
        device.translate = self._memory.translate
        device.interrupt = self._interrupt
        dma.memory.attach(self)

    # What the device sees of memory

    def map(self, region: Region) -> None:
        self._memory.add(region.iova, region.buffer())

    def unmap(self, iova: int, size: int) -> None:
        self.device.withdrawn(iova, size)
        self._memory.remove(iova)

    # Registers

    def reset(self) -> None:
        self._open().write_status(0)
        if self.device.read_status():
            raise DeviceTimeout(f"{self.name} did not reset", "its status does not read 0")

    def status(self) -> int:
        return self._open().read_status()

    def add_status(self, bits: int) -> None:
        device = self._open()
        device.write_status(device.read_status() | bits)

    def offered_features(self) -> int:
        return self._open().offered_features() & (1 << 64) - 1

    def accept_features(self, features: int) -> None:
        self._open().accept_features(features)

    def read_config(self, offset: int, length: int) -> bytes:
        device = self._open()
        for _ in range(_CONFIG_TRIES):
            generation = device.config_generation
            data = device.read_config(offset, length)
            if generation == device.config_generation:
                return data
        raise DeviceTimeout(f"cannot read the configuration of {self.name}", "it keeps changing")

    def queue_max_size(self, index: int) -> int:
        return self._open().queue_max_size(index)

    def setup_queue(self, index: int, addresses: QueueAddresses) -> Doorbell:
        device = self._open()
        device.configure_queue(
            index, addresses.size, addresses.descriptors, addresses.driver, addresses.device
        )
        device.enable(index)
        return Doorbell("call", device.kick, index)

    def interrupt_fd(self, index: int | None) -> int:
        self._open()
        if index not in self._fds:
            self._fds[index] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self._fds[index]

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.device.write_status(0)
        dma.memory.detach(self)
        self._memory.replace(())
        self.device.translate = self.device.interrupt = None
        self._close_fds()

    def abandon(self) -> None:
        self._closed = True
        self._close_fds()

    def _close_fds(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _interrupt(self, index: int | None) -> None:
        fd = self._fds.get(index)
        if fd is not None:
            os.eventfd_write(fd, 1)

    def _open(self) -> NetDevice:
        if self._closed:
            raise DeviceGone(f"{self.name} is closed", "its port was closed", "open it again")
        return self.device


def _switch(text: str) -> bool:
    return {"on": True, "off": False}[text]


def _number(text: str) -> int:
    return int(text, 0)


_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "mtu": ("mtu", _number),
    "start": ("start_index", _number),
    "seed": ("seed", _number),
    "backlog": ("backlog", _number),
    "link": ("link", _switch),
    "fill": ("fill", _switch),
    "strict_kicks": ("strict_kicks", _switch),
    "merge": ("merge", lambda text: {"fill": "fill", "random": "random"}[text]),
    "mac": ("mac", lambda text: bytes.fromhex(text.replace(":", ""))),
}


def open_sim(address: str) -> SimTransport:
    """`sim:loopback`, with options: `sim:loopback?mrg_rxbuf=off&mtu=1500&queue_size=256`.

    Beside the options of `NetDevice`, every feature has a switch of its name.
    """
    kind, _, query = address.removeprefix("sim:").partition("?")
    if not address.startswith("sim:") or kind != "loopback":
        raise NoSuchDevice(f"no simulator {address!r}", "there is sim:loopback", "use sim:loopback")
    features, size, pairs = DEFAULT_FEATURES, 256, 1
    options: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        try:
            if key == "queue_size":
                size = _number(text)
            elif key == "pairs":
                pairs = _number(text)
            elif key in _OPTIONS:
                name, convert = _OPTIONS[key]
                options[name] = convert(text)
            else:
                features = features & ~mask(key) | (mask(key) if _switch(text) else 0)
        except (KeyError, ValueError) as error:
            known = ", ".join(sorted([*_OPTIONS, "queue_size", "pairs"]))
            why = f"option {key}={text} is not known"
            mend = f"options: {known}; or a feature on or off: {', '.join(FEATURES)}"
            raise NoSuchDevice(f"no simulator {address!r}", why, mend) from error
    device = Loopback(features=features, queue_sizes=(size,) * (2 * pairs), **options)
    return SimTransport(device, address)
