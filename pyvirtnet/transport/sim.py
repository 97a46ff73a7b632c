"""A device that lives in this process: `sim:` addresses, over pyvirtnet.testing."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from threading import get_ident
from typing import Any
from urllib.parse import parse_qsl
from weakref import WeakValueDictionary

from .. import dma
from ..dma import Region
from ..errors import DeviceBroken, DeviceBusy, DeviceGone, DeviceTimeout, NoSuchDevice
from ..testing import (
    DEFAULT_FEATURES,
    SPOKEN,
    Cable,
    Loopback,
    MemoryMap,
    NetDevice,
    feature_names,
    mask,
)
from .base import Doorbell, QueueAddresses, Transport, check_status

_CONFIG_TRIES = _RESET_TRIES = 100


class SimTransport(Transport, dma.Mapper):
    """Registers and doorbells of a `NetDevice`, which sees the process's DMA memory.

    start_index  where the rings' indices start; a back end over vhost-user has one too
    """

    def __init__(self, device: NetDevice, name: str = "sim:") -> None:
        self.device, self.name = device, name
        self.start_index = device.start_index
        self._memory = MemoryMap()
        self._fds: dict[int | None, int] = {}
        self.closed = False
        self._lives, self._reset_by = 0, 0  # resets, and the thread that made the last one
        device.translate = self._memory.translate
        device.interrupt = self._interrupt
        dma.memory.attach(self)

    # What the device sees of memory

    def map(self, region: Region) -> None:
        """By a mapping of its own: what the driver may not touch, the device still may."""
        self._memory.add(region.iova, memoryview(mmap.mmap(region.fd, region.size)))

    def unmap(self, iova: int, size: int) -> None:
        self.device.withdrawn(iova, size)
        self._memory.remove(iova)

    # Registers

    def check(self) -> None:
        check_status(self.name, self._open().read_status())

    def reset(self) -> None:
        device = self._open()
        with device.lock:
            self._lives, self._reset_by = self._lives + 1, get_ident()
            device.write_status(0)
        if self.device.read_status():
            raise DeviceTimeout(
                f"{self.name} did not reset",
                "its status does not read 0 (4.1.4.3.2)",
                "port.reset() tries again",
            )

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
            if generation != device.config_generation:
                continue
            if len(data) != length:
                raise self._broken(f"its configuration ends {length - len(data)} bytes too early")
            return data
        raise DeviceTimeout(
            f"cannot read the configuration of {self.name}",
            f"it changed in each of {_CONFIG_TRIES} tries (2.5.1)",
            "port.reset(); if it stays so, the device is broken",
        )

    def queue_max_size(self, index: int) -> int:
        return self._open().queue_max_size(index)

    def setup_queue(self, index: int, addresses: QueueAddresses) -> Doorbell:
        device = self._open()
        largest = device.queue_max_size(index)
        if addresses.size > largest:
            raise self._broken(
                f"queue {index} has {largest} entries, and {addresses.size} are needed"
            )
        device.configure_queue(
            index, addresses.size, addresses.descriptors, addresses.driver, addresses.device
        )
        device.enable(index)
        if not device.accepted & mask("notification_data"):
            return Doorbell("call", self._ringer(device.kick), index)

        def notify(value: int) -> None:
            device.notify(value & 0xFFFF, value >> 16)

        return Doorbell("call", self._ringer(notify), index, with_data=True)

    def _ringer(self, kick: Callable[[int], None]) -> Callable[[int], None]:
        """`kick`, but not for who was about to when another thread reset the device: a register
        that nobody listens to takes no notice."""
        device, life = self.device, self._lives

        def ring(value: int) -> None:
            with device.lock:
                if life == self._lives or self._reset_by == get_ident():
                    kick(value)

        return ring

    def reset_queue(self, index: int) -> None:
        device = self._open()
        device.reset_queue(index)
        if any(not device.read_queue_reset(index) for _ in range(_RESET_TRIES)):
            return
        raise DeviceTimeout(
            f"{self.name} did not reset queue {index}",
            f"queue_reset was 1 in each of {_RESET_TRIES} tries (2.6.1)",
            "port.reset() starts it anew",
        )

    def interrupt_fd(self, index: int | None) -> int:
        self._open()
        if index not in self._fds:
            self._fds[index] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self._fds[index]

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.device.write_status(0)
        finally:
            dma.memory.detach(self)
            self._memory.replace(())
            self.device.translate = self.device.interrupt = None
            self._close_fds()
            self.closed = True  # not before: Ctrl-C may come in between

    def abandon(self) -> None:
        self.closed = True
        self._memory.replace(())
        self._close_fds()

    def _close_fds(self) -> None:
        for index in list(self._fds):
            if index in self._fds:  # else a signal handler's close() was faster
                fd = self._fds[index]
                del self._fds[index]  # no call, and so no Ctrl-C, until it is closed
                os.close(fd)

    def _interrupt(self, index: int | None) -> None:
        fd = self._fds.get(index)
        if fd is not None:
            os.eventfd_write(fd, 1)

    def _broken(self, why: str) -> DeviceBroken:
        return DeviceBroken(f"cannot drive {self.name}", why, "the device breaks the virtio rules")

    def _open(self) -> NetDevice:
        if self.closed:
            raise DeviceGone(f"{self.name} is closed", "its port was closed", "open it again")
        return self.device


def _switch(text: str) -> bool:
    """on or off"""
    return {"on": True, "off": False}[text]


def _number(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = int(text, 0)
        if not low <= value <= high:
            raise ValueError(f"{value} is not from {low} to {high}")
        return value

    convert.__doc__ = f"a number from {low} to {high}"
    return convert


def _one_of(*names: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        return names[names.index(text)]

    convert.__doc__ = " or ".join(names)
    return convert


def _mac(text: str) -> bytes:
    """a MAC address"""
    mac = bytes.fromhex(text.replace(":", ""))
    if len(mac) != 6:
        raise ValueError("a MAC address has six bytes")
    return mac


_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "queue_size": ("queue_size", _number(1, 32768)),
    "pairs": ("pairs", _number(1, 0x8000)),
    "mtu": ("mtu", _number(68, 0xFFFF)),
    "start": ("start_index", _number(0, 0xFFFF)),
    "seed": ("seed", _number(0, 1 << 64)),
    "backlog": ("backlog", _number(1, 1 << 20)),
    "link": ("link", _switch),
    "fill": ("fill", _switch),
    "strict_kicks": ("strict_kicks", _switch),
    "merge": ("merge", _one_of("fill", "random")),
    "used_batch": ("used_batch", _one_of("random", "all", "none")),
    "mac": ("mac", _mac),
}
_cable_ends: WeakValueDictionary[tuple[str, str], SimTransport] = WeakValueDictionary()


def open_sim(address: str) -> SimTransport:
    """`sim:loopback`, or an end of a cable, `sim:cable/NAME/0` and `sim:cable/NAME/1`.

    Options follow a question mark: `sim:loopback?mrg_rxbuf=off&mtu=1500&queue_size=256`. Beside
    those of `NetDevice`, every feature but `mac` and `mtu` has a switch of its name. Offloads are
    taken, checked and not done: what was deferred arrives as it was sent, with an empty header.
    """
    kind, _, query = address.removeprefix("sim:").partition("?")
    options = parse_options(address, query)
    match kind.split("/"):
        case ["loopback"]:
            return SimTransport(Loopback(**options), address)
        case ["cable", name, ("0" | "1") as end] if name:
            return _open_cable(address, name, end, options)
    raise NoSuchDevice(
        f"no simulator {address!r}",
        "there are sim:loopback, sim:cable/NAME/0, sim:cable/NAME/1 and sim:tap/NAME",
        "use one of these addresses",
    )


def _open_cable(address: str, name: str, end: str, options: dict[str, Any]) -> SimTransport:
    held = _cable_ends.get((name, end))
    if held is not None and not held.closed:
        raise DeviceBusy(f"{address} is open", "a port of this process has it", "close that port")
    backlog = options.pop("backlog", 1024)
    here = SimTransport(NetDevice(**options), address)
    _cable_ends[name, end] = here
    there = _cable_ends.get((name, "1" if end == "0" else "0"))
    if there is not None and not there.closed:
        Cable(here.device, there.device, backlog)
    return here


def parse_options(address: str, query: str) -> dict[str, Any]:
    """The keyword arguments of a device that the options ask for."""
    features, features_known = DEFAULT_FEATURES, feature_names(SPOKEN).lower()
    options: dict[str, Any] = {"queue_size": 256, "pairs": 1}
    pairs = [text for key, text in parse_qsl(query) if key == "pairs"]
    if pairs not in ([], ["1"]):
        features |= mask("mq", "ctrl_vq")  # else nobody could use them
    for key, text in parse_qsl(query, keep_blank_values=True):
        try:
            if key in _OPTIONS:
                name, convert = _OPTIONS[key]
                options[name] = convert(text)
            else:
                features = features & ~mask(key) | (mask(key) if _switch(text) else 0)
        except (KeyError, ValueError) as error:
            mend = (
                f"options, joined by &: {', '.join(_OPTIONS)}; "
                f"or a feature, on or off: {features_known}"
            )
            raise NoSuchDevice(
                f"no simulator {address!r}",
                f"option {key}={text} is not known or not possible",
                f"{key} takes {_OPTIONS[key][1].__doc__}" if key in _OPTIONS else mend,
            ) from error
    size = options.pop("queue_size")
    if size & (size - 1) and not features & mask("ring_packed"):
        raise NoSuchDevice(
            f"no simulator {address!r}",
            "ring sizes are powers of two (2.7), but those of packed rings",
            f"queue_size={1 << size.bit_length() - 1}, or ring_packed=on",
        )
    sizes = (size,) * (2 * options.pop("pairs"))
    return {"features": features, "queue_sizes": sizes, **options}
