"""A port is one NIC: `open()` brings the device to life, `Port` is what the caller holds."""

from __future__ import annotations

import errno
import operator
import struct
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ._burst import RxBurst, TxBurst, make_tx_burst, tx_stride
from .aio import Awaited
from .arena import arena
from .control import Events, Filters, Tuning
from .errors import DeviceGone, Error, OutOfMemory, mend_of
from .life import Life
from .negotiate import OFFLOADS, Features, parse, receive_mode
from .nic import Link, Stats
from .spec import LINK_UP, MAX_SEGMENTED, MIN_FRAME, Feature, NetConfig
from .transport import open_transport
from .transport.base import Transport

_LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def open(
    address: str,
    *,
    ring_size: int | None = None,
    pages: int | None = None,
    features: Iterable[str] = (),
    offloads: bool = False,
    reconnect: bool | float = False,
    noiommu: bool = False,
    queue_pairs: int = 1,
) -> Port:
    """Open a NIC: "0000:00:04.0" (bound to vfio-pci), "vhost-user:/path" for a device that is a
    process, or "sim:loopback" for one without hardware.

    "vhost-user:/path?server=on&wait=30": the back end connects to us, within so many seconds;
    "&reconnect=on", or "&reconnect=10", is `reconnect`.

    ring_size   entries of each ring, a power of two; the device's own size if not given
    pages       pages of 4096 bytes, of each queue pair, for what is received and for copies of
                longer frames that are sent; 3 a ring entry if not given. The receive ring takes as
                many as it has entries: with no more than that, no copy over 128 bytes is sent
    features    switches such as "-mrg_rxbuf" for a feature that is not to be used
    offloads    leave checksums and segmentation to the device, as `burst.offload` says, and take
                frames whose checksums are not made yet, of up to 64 KiB; what of it the device can
                do is in `port.features.negotiated`. features=["+csum"] and the like ask for less
    reconnect   a vhost-user back end may go and come back: until it does, for ever or for so many
                seconds, nothing is received and send_burst takes nothing
    noiommu     a device that no IOMMU holds back may be opened too, by root: it can then read and
                write all of the machine's memory; "0000:00:04.0?noiommu=on" says the same
    queue_pairs receive and transmit queues, each with rings and pages of its own: `port.queues`
    """
    if isinstance(features, str):
        raise TypeError(f"features takes a list of switches: [{features!r}]")
    for name, value in (("ring_size", ring_size), ("pages", pages), ("queue_pairs", queue_pairs)):
        if value is not None and not hasattr(value, "__index__"):
            raise TypeError(f"{name} takes an integer, not {value!r}")
    wanted = parse([*(feature.name for feature in OFFLOADS if offloads), *features])
    try:
        transport = open_transport(address, noiommu=noiommu)
        try:
            return Port(
                transport,
                ring_size=ring_size,
                pages=pages,
                wanted=wanted,
                reconnect=reconnect,
                queue_pairs=operator.index(queue_pairs),
            )
        except BaseException:
            transport.close()
            raise
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        why, mend = error.strerror or str(error), mend_of(error, "free memory")
        raise OutOfMemory(f"cannot open {address}", why, mend) from error


class Port(Life, Awaited, Filters, Tuning, Events):
    """One NIC. Made by `open()`; close it, or use it in a `with` statement."""

    def __init__(
        self,
        transport: Transport,
        *,
        ring_size: int | None = None,
        pages: int | None = None,
        wanted: frozenset[Feature] | None = None,
        reconnect: bool | float = False,
        queue_pairs: int = 1,
    ) -> None:
        self._seen: dict[str, Any] = {}
        self._awaited = set()
        super().__init__(
            transport,
            ring_size=ring_size,
            pages=pages,
            wanted=wanted,
            queue_pairs=queue_pairs,
            reconnect=reconnect,
        )

    if not TYPE_CHECKING:  # type checkers find such a thing without it, and not with it

        def __setattr__(self, name: str, value: object) -> None:
            """A setting that is misspelt would be lost in silence."""
            known = name == "name" or name.startswith("_") or hasattr(type(self), name)
            if not known and type(self) is Port:
                raise AttributeError(f"a port has no setting {name!r}", name=name, obj=self)
            super().__setattr__(name, value)

    # ---- the datapath: bound to queue pair 0, without a Python frame in between -------------

    def recv_burst(self, n: int, *, timeout: float | None = 0.0) -> RxBurst:
        """Up to `n` received frames; empty when none came within `timeout` seconds.

        0 polls, None waits for ever; Ctrl-C ends a wait. Raises DeviceBroken, DeviceGone,
        PortClosed, QueueBusy, and ValueError for n < 1.
        """
        return self._pair(0).recv_burst(n, timeout=timeout)

    def send_burst(self, frames: RxBurst | TxBurst | Iterable[Any]) -> int:
        """Queue frames for transmission; how many were taken, always a prefix. Never blocks.

        Bursts and frames are sent from where they lie; bytes-likes and tuples of them are copied.
        An iterator gives up one frame more than were taken if they were not all: use a list.
        Raises ValueError or TypeError for what is no frame, and then has sent nothing;
        DeviceBroken, DeviceGone, PortClosed, QueueBusy.
        """
        return self._pair(0).send_burst(frames)

    def fileno(self) -> int:
        """A file descriptor for select, epoll and asyncio: readable when there may be frames for
        `recv_burst`, or `events()`.

        It stays readable until `recv_burst` finds nothing: only then sleep. It may be readable in
        vain. The same number until the port is gone, or `reset()` while a call is under way.
        Raises FeatureMissing for a device without interrupts, PortClosed.
        """
        return self._pair(0).fileno()

    def reclaim(self) -> int:
        """Take back what the device has sent; how many frames. Sending does it by itself."""
        return self._pair(0).reclaim()

    def alloc_burst(self, n: int, size: int) -> TxBurst:
        """`n` frames of `size` bytes in DMA memory, zeroed: fill `.data`, send it, again and again.

        Any port can send it. Raises ValueError, OutOfMemory, MemlockLimit, PortClosed.
        """
        n, size = operator.index(n), operator.index(size)
        if n < 1 or not MIN_FRAME <= size <= MAX_SEGMENTED:
            raise ValueError(
                f"alloc_burst takes at least one frame, of {MIN_FRAME} to {MAX_SEGMENTED} bytes"
            )
        if self._closed:
            raise self._gone()
        block = arena.take(n * tx_stride(size))
        return make_tx_burst(block, block.address, block.iova, n, size)

    # ---- what the NIC is --------------------------------------------------------------------

    @property
    def tx_pending(self) -> int:
        """Frames sent whose memory is still held, because they were not reclaimed yet."""
        return sum(queue.tx_pending for queue in self.queues)

    @property
    def features(self) -> Features:
        """Features offered, wanted and negotiated."""
        return self._features

    @property
    def link(self) -> Link:
        """The link as the device says it is now; up if it cannot say (5.1.5).

        Down while a device is away that may come back; one that has gone raises DeviceGone, one
        that was stopped what stopped it.
        """
        if self._down is not None:
            raise self._down.copy()
        with self._care:
            if self._down is not None:  # while another thread was closing or resetting the port
                raise self._down.copy()
            try:
                self._transport.check()
            except Error as gone:
                if self._reconnect:
                    return Link(False, None, None)
                if not self._closed and not self._changing:
                    self._take_down(gone)
                raise
            try:
                return self._read_link()
            except DeviceGone:
                if self._down is not None:  # a signal handler's doing
                    raise self._down.copy() from None
                if self._reconnect:
                    return Link(False, None, None)
                raise

    def _read_link(self) -> Link:
        up, speed, duplex = True, None, None
        if Feature.STATUS in self._features.negotiated:
            up = bool(self._config("<H", NetConfig.STATUS) & LINK_UP)
        if Feature.SPEED_DUPLEX in self._features.negotiated:
            raw = self._transport.read_config(NetConfig.SPEED, 5)  # both of one generation
            speed, full = struct.unpack("<IB", raw)
            speed = speed if speed <= 0x7FFFFFFF else None
            duplex = {0: "half", 1: "full"}.get(full)
        return Link(up, speed, duplex)

    @property
    def mtu(self) -> int:
        """Largest payload of a frame: the device's word, else 1500. Without VIRTIO_NET_F_MTU
        the port still takes frames of up to 65535 bytes. Its last word, while it is stopped or
        away."""
        if Feature.MTU in self._features.negotiated and self._down is None:
            with self._care:
                if self._down is not None:  # since then
                    return self._mtu
                try:
                    self._mtu = self._config("<H", NetConfig.MTU)
                except DeviceGone:
                    if not self._reconnect:
                        raise
        return self._mtu

    @property
    def max_frame(self) -> int:
        """Bytes of the largest frame that the port sends."""
        return self._max_frame

    @property
    def stats(self) -> Stats:
        """The counters of all queue pairs, added up."""
        rows = [queue.counters() for queue in tuple(self._made)]
        return Stats(**{f.name: sum(row[f.name] for row in rows) for f in fields(Stats)})

    def info(self) -> dict[str, Any]:
        """What the port runs on, for people and for bug reports."""
        return {
            "name": self.name,
            "transport": type(self._transport).__name__,
            "mac": str(self.mac),
            "mtu": self._mtu,
            "max_frame": self.max_frame,
            "receive_mode": receive_mode(self._features.negotiated),
            "ring_format": "packed" if self._format["packed"] else "split",
            "ring_sizes": self._sizes,
            "queue_pairs": self._pairs,
            "pages": self._memory.pages if self._memory else 0,
            "free_pages": self._memory.free_pages if self._memory else 0,
            "posted_pages": sum(queue.posted for queue in self.queues),
            "page_size": self._memory.region.page_size if self._memory else 0,
            "features": sorted(feature.name.lower() for feature in self._features.negotiated),
        }

    def __repr__(self) -> str:
        return f"<Port {self.name}{' (closed)' if self._closed else ''}>"
