"""A port is one NIC: `open()` brings the device to life, `Port` is what the caller holds."""

from __future__ import annotations

import atexit
import operator
import os
import secrets
import struct
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from math import inf
from threading import RLock
from types import TracebackType
from typing import Any

from . import dma
from ._burst import RxBurst, TxBurst, make_tx_burst, tx_stride
from ._pages import PagePool, disown_stores
from ._queue import QueuePair, ring_bytes, ring_parts
from .arena import arena
from .control import CONTROL_BYTES, Control, Events, Filters, Tuning
from .errors import (
    DeviceBroken,
    DeviceGone,
    Error,
    FeatureMissing,
    NotVirtioNet,
    PortClosed,
    QueueBusy,
)
from .negotiate import Features, negotiate, parse
from .nic import Link, Mac, Stats
from .spec import LINK_UP, MAX_FRAME, MAX_SPLIT_QUEUE, MIN_FRAME, PAGE, Feature, NetConfig, Status
from .transport import open_transport
from .transport.base import Doorbell, QueueAddresses, Transport, check_status

ETHERNET_HEADER = 14
NET_HEADER = 12
MIN_MTU = 68  # 5.1.4.1
DEFAULT_MTU = 1500
PAGES_PER_ENTRY = 3  # one with the device, one in a burst, one on its way out again
SLOTS_PER_ENTRY = 8
RETRY_SECONDS = 0.05  # between attempts to reach a device that is away


def open(
    address: str,
    *,
    ring_size: int | None = None,
    pages: int | None = None,
    features: Iterable[str] = (),
    reconnect: bool | float = False,
    noiommu: bool = False,
) -> Port:
    """Open a NIC: "0000:00:04.0" (bound to vfio-pci), "vhost-user:/path" for a device that is a
    process, or "sim:loopback" for one without hardware.

    "vhost-user:/path?server=on&wait=30": the back end connects to us, within so many seconds.

    ring_size   entries of each ring, a power of two; the device's own size if not given
    pages       receive pages of 4096 bytes; 3 for each ring entry if not given
    features    switches such as "-mrg_rxbuf" for a feature that is not to be used
    reconnect   a vhost-user back end may go and come back: until it does, for ever or for so many
                seconds, nothing is received and send_burst takes nothing
    noiommu     a device that no IOMMU holds back may be opened too, by root: it can then read and
                write all of the machine's memory; "0000:00:04.0?noiommu=on" says the same
    """
    wanted = parse(features)
    transport = open_transport(address, noiommu=noiommu)
    try:
        return Port(transport, ring_size=ring_size, pages=pages, wanted=wanted, reconnect=reconnect)
    except BaseException:
        transport.close()
        raise


class Port(Filters, Tuning, Events):
    """One NIC. Made by `open()`; close it, or use it in a `with` statement."""

    def __init__(
        self,
        transport: Transport,
        *,
        ring_size: int | None = None,
        pages: int | None = None,
        wanted: frozenset[Feature] | None = None,
        reconnect: bool | float = False,
    ) -> None:
        if reconnect and not transport.reconnects:
            raise ValueError(f"reconnect= is for vhost-user ports, not for {transport.name}")
        self._reconnect = inf if reconnect is True else float(reconnect)
        self._gone_at: float | None = None  # while a device is away that may come back
        self._next_try = 0.0
        self._care = RLock()  # of what resets the device: reset, close, a look at it
        self._transport = transport
        self._control = Control(transport.name, transport, self._care)
        self._seen: dict[str, Any] = {}
        self._ring_size, self._pages = ring_size, pages
        self._wanted = parse(()) if wanted is None else wanted
        self.name = transport.name
        self._queues: list[QueuePair] = []
        self._past: list[QueuePair] = []  # stopped; some wait for a call to end
        self._format: dict[str, bool] = {}
        self._sizes: list[int] = []  # of the rings that the memory was allocated for
        self._memory: dma.Region | None = None
        self._pool: PagePool | None = None
        self._bells: dict[int, Doorbell] = {}
        self._random_mac = Mac(bytes([0x02]) + secrets.token_bytes(5))
        self._closed = False
        self._down: Error | None = None  # why the device is not live
        self._changing = False  # reset() or a return of the device is under way
        self._close_wanted = False  # and close() was called in the middle of it
        with self._change():
            self._bring_up()
        _open_ports.add(self)

    # ---- the datapath: bound to queue pair 0, without a Python frame in between -------------

    def recv_burst(self, n: int, *, timeout: float | None = 0.0) -> RxBurst:
        """Up to `n` received frames; empty when none came within `timeout` seconds.

        0 polls, None waits for ever; Ctrl-C ends a wait. Raises DeviceBroken, PortClosed,
        QueueBusy, and ValueError for n < 1.
        """
        return self.queues[0].recv_burst(n, timeout=timeout)

    def send_burst(self, frames: RxBurst | TxBurst | Iterable[Any]) -> int:
        """Queue frames for transmission; how many were taken, always a prefix. Never blocks.

        Bursts and frames are sent from where they lie; bytes-likes and tuples of them are copied.
        Raises ValueError or TypeError for what is no frame, and then has sent nothing;
        DeviceBroken, PortClosed, QueueBusy.
        """
        return self.queues[0].send_burst(frames)

    def reclaim(self) -> int:
        """Take back what the device has sent; how many frames. Sending does it by itself."""
        return self.queues[0].reclaim()

    def alloc_burst(self, n: int, size: int) -> TxBurst:
        """`n` frames of `size` bytes in DMA memory, zeroed: fill `.data`, send it, again and again.

        Any port can send it. Raises ValueError, OutOfMemory, MemlockLimit.
        """
        n, size = operator.index(n), operator.index(size)
        if n < 1 or not MIN_FRAME <= size <= MAX_FRAME:
            raise ValueError(
                f"alloc_burst takes at least one frame, of {MIN_FRAME} to {MAX_FRAME} bytes"
            )
        if self._closed:
            raise PortClosed(f"{self.name} is closed", mend="open the port again")
        block = arena.take(n * tx_stride(size))
        return make_tx_burst(block, block.address, block.iova, n, size)

    @property
    def queues(self) -> tuple[QueuePair, ...]:
        """The queue pairs; each has `recv_burst`, `send_burst` and `reclaim` of its own."""
        return tuple(self._queues)

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
        up, speed, duplex = True, None, None
        if self._down is not None:
            raise self._down.copy()
        with self._care:
            try:
                self._transport.check()
            except Error as gone:
                if self._reconnect:
                    return Link(False, None, None)
                if not self._closed and not self._changing:
                    self._take_down(gone)
                raise
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
        the port still takes frames of up to 65535 bytes. Its last word, while it is stopped."""
        if Feature.MTU in self._features.negotiated and self._down is None:
            self._mtu = self._config("<H", NetConfig.MTU)
        return self._mtu

    @property
    def max_frame(self) -> int:
        """Bytes of the largest frame that the port sends."""
        return self._max_frame

    @property
    def stats(self) -> Stats:
        """The counters of all queue pairs, added up."""
        rows = [queue.counters() for queue in (*self._past, *self.queues)]
        return Stats(**{f.name: sum(row[f.name] for row in rows) for f in fields(Stats)})

    def info(self) -> dict[str, Any]:
        """What the port runs on, for people and for bug reports."""
        mergeable = Feature.MRG_RXBUF in self._features.negotiated
        return {
            "name": self.name,
            "transport": type(self._transport).__name__,
            "mac": str(self.mac),
            "mtu": self._mtu,
            "max_frame": self.max_frame,
            "receive_mode": "mergeable" if mergeable else "small",
            "ring_format": "packed" if self._format["packed"] else "split",
            "ring_sizes": self._sizes,
            "pages": self._pool.pages if self._pool else 0,
            "free_pages": self._pool.free_pages if self._pool else 0,
            "posted_pages": sum(queue.posted for queue in self.queues),
            "page_size": self._memory.page_size if self._memory else 0,
            "features": sorted(feature.name.lower() for feature in self._features.negotiated),
        }

    # ---- life -------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset the device and start anew: after DeviceBroken, after DeviceGone once it is back,
        or to begin from empty rings.

        Frames in flight are lost; bursts and views stay as they are; counters go on.
        """
        with self._care, self._change():
            if self._closed:
                raise PortClosed(f"{self.name} is closed", mend="open the port again")
            mend = "call it again; if it failed, port.reset() once more"
            self._take_down(PortClosed(f"{self.name} is closed", "the port is being reset", mend))
            self._transport.revive()
            self._bring_up()
            self._gone_at = None

    def close(self) -> None:
        """Reset the device, then let go of it. Live views stay readable. May be called twice."""
        why = PortClosed(f"{self.name} is closed", "the port was closed", "open the port again")
        with self._care:
            if self._closed:
                return
            if self._changing:  # by a signal handler or finaliser in the middle of reset()
                self._close_wanted = True
                return
            self._take_down(why)
            self._transport.close()
            self._closed = True  # not before: a close() that Ctrl-C broke off can be repeated
            _open_ports.discard(self)
            self._memory = self._pool = None

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Taking the device down and up again; what comes in between is refused or put off."""
        if self._changing:
            raise QueueBusy(
                f"{self.name} cannot be reset", "a reset is under way", "let it finish first"
            )
        self._changing = True
        try:
            yield
        finally:
            self._changing = False
            if self._close_wanted:
                self._close_wanted = False
                self.close()

    def __enter__(self) -> Port:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def __repr__(self) -> str:
        return f"<Port {self.name}{' (closed)' if self._closed else ''}>"

    def _bring_up(self) -> None:
        """The initialisation sequence (3.1.1)."""
        device = self._transport
        device.reset()
        device.add_status(Status.ACKNOWLEDGE)
        device.add_status(Status.DRIVER)
        try:
            self._negotiate()
            self._set_up_queues()
            self._go_live()
            self._control.start()
            self.queues[0]._start(self._bells[0], self._bells[1], device.interrupt_fd(0))
        except Exception:
            with suppress(Error):  # whatever that says, the first error is the one to report
                device.add_status(Status.FAILED)
                device.reset()
            raise
        self._down = None

    def _negotiate(self) -> None:
        """Steps 4 to 6: agree on features, and see that the device agrees too."""
        device = self._transport
        features = self._features = negotiate(device.offered_features(), self._wanted)
        mtu = self._read_mtu() if Feature.MTU in features.negotiated else None
        mergeable = Feature.MRG_RXBUF in features.negotiated
        most = min(self._ring_size or MAX_FRAME, self._pages or MAX_FRAME) if mergeable else 1
        if mtu is not None and mtu + ETHERNET_HEADER + NET_HEADER > most * PAGE:
            # 5.1.4.2: with MTU accepted, there would have to be buffers for such a frame
            features = negotiate(device.offered_features(), self._wanted - {Feature.MTU})
            self._features, mtu = features, None
        self._mtu = DEFAULT_MTU if mtu is None else mtu
        self._max_frame = MAX_FRAME if mtu is None else min(MAX_FRAME, mtu + ETHERNET_HEADER)
        device.accept_features(features.bits)
        device.add_status(Status.FEATURES_OK)
        if not device.status() & Status.FEATURES_OK:
            names = ", ".join(sorted(feature.name.lower() for feature in features.negotiated))
            raise FeatureMissing(
                f"{self.name} refused the features it was asked for",
                f"asked for {names}",
                'leave some out: open(..., features=["-mrg_rxbuf"]) and the like',
            )
        self._mac = self._read_mac()

    def _set_up_queues(self) -> None:
        """Step 7: memory for rings and pages, rings empty, the device told where they are."""
        ring_format = self._ring_format()
        packed = ring_format["packed"]
        sizes = [self._queue_size(index, packed) for index in (0, 1)]
        fits = (sizes, ring_format) == (self._sizes, self._format)
        if self._memory is None or self._pool is None or not fits:
            self._memory, self._pool = self._allocate(sizes, ring_format)
        self._pool.clear_headers()
        self._sizes, self._format = sizes, ring_format
        offsets = (0, ring_bytes(sizes[0], packed=packed))
        if not self._queues:
            self._make_queues()
        self.queues[0]._set_up(
            self._pool,
            offsets[0],
            sizes[0],
            offsets[1],
            sizes[1],
            mergeable=Feature.MRG_RXBUF in self._features.negotiated,
            max_frame=self._max_frame,
            start=self._transport.start_index,
            **self._format,
        )
        for index, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
            parts = (self._memory.iova + offset + part for part in ring_parts(size, packed=packed))
            self._bells[index] = self._transport.setup_queue(index, QueueAddresses(size, *parts))
        self._control.set_up(self._features, self._memory)

    def _ring_format(self) -> dict[str, bool]:
        negotiated = self._features.negotiated
        return {
            "packed": Feature.RING_PACKED in negotiated,
            "in_order": Feature.IN_ORDER in negotiated,
            "event_idx": Feature.EVENT_IDX in negotiated,
            "indirect": Feature.INDIRECT_DESC in negotiated,
        }

    def _go_live(self) -> None:
        """Step 8. A stage of the status that was reached stays until a reset (2.1.1)."""
        self._transport.add_status(Status.DRIVER_OK)
        status = self._transport.status()
        check_status(self.name, status)
        if not status & Status.FEATURES_OK or not status & Status.DRIVER_OK:
            raise DeviceBroken(
                f"{self.name} cannot be set up",
                f"it took back what its status said: {status:#x} after DRIVER_OK (2.1.1)",
                "port.reset() tries again; report it to who makes the device",
            )

    def _make_queues(self) -> None:
        """A pair that was stopped serves again, so that what refers to it goes on."""
        idle = [queue for queue in self._past if queue.pool is None]
        if idle:
            queue = idle[-1]
            self._past.remove(queue)
        else:
            queue = QueuePair(self.name, _look_at(weakref.WeakMethod(self._look)))
        self._queues = [queue]
        # The documented methods are shadowed by the queue's own, which take no Python frame.
        vars(self).update(
            recv_burst=queue.recv_burst, send_burst=queue.send_burst, reclaim=queue.reclaim
        )

    def _allocate(
        self, sizes: Sequence[int], ring_format: dict[str, bool]
    ) -> tuple[dma.Region, PagePool]:
        """One region: rings, head slots, pages, control queue. It stays while the sizes do."""
        pages = self._pages if self._pages is not None else PAGES_PER_ENTRY * sizes[0]
        if pages < 1:
            raise ValueError(f"a port needs at least one page, not {pages}")
        slots = -(-SLOTS_PER_ENTRY * sizes[0] // 64) * 64
        packed, tables = ring_format["packed"], ring_format["indirect"]
        rings = ring_bytes(sizes[0], packed=packed)
        rings += ring_bytes(sizes[1], packed=packed, tables=tables)
        pool = PagePool.bytes_needed(pages, slots)
        memory = dma.memory.allocate(rings + pool + CONTROL_BYTES)
        return memory, PagePool(memory, rings, pages, slots, max(*sizes, 64))

    def _queue_size(self, index: int, packed: bool) -> int:
        """The size asked for, else the device's; one that both can have (2.7, 2.8).

        A packed ring has any size, a split one a power of two.
        """
        largest = self._transport.queue_max_size(index)
        if largest == 0:
            raise NotVirtioNet(
                f"{self.name} has no queue {index}",
                "every network device has two",
                "see `tools/bind status` for network devices",
            )
        if (largest & (largest - 1) and not packed) or largest > MAX_SPLIT_QUEUE:
            raise DeviceBroken(
                f"{self.name} cannot be set up",
                f"its queue {index} has the size {largest}, not a power of two up to 32768 (2.7)",
                "report it to who makes the device",
            )
        if largest == 1:
            raise NotVirtioNet(
                f"{self.name} cannot be driven",
                f"its queue {index} has one entry, and this driver needs two",
                "give the device longer queues; QEMU: rx_queue_size=256",
            )
        if self._ring_size is None:
            return self._transport.default_ring_size or largest
        size = self._ring_size
        shrunk = bool(self._sizes)  # a device that could, and can no more: set-up will say so
        if size < 2 or (size & (size - 1) and not packed) or (size > largest and not shrunk):
            kind = "sizes" if packed else "powers of two"
            raise ValueError(f"ring_size={size}: {self.name} takes {kind} from 2 to {largest}")
        return size

    def _read_mtu(self) -> int:
        mtu = self._config("<H", NetConfig.MTU)
        if mtu < MIN_MTU:
            raise DeviceBroken(
                f"{self.name} cannot be set up",
                f"it says that its MTU is {mtu}; none is below {MIN_MTU} (5.1.4.1)",
                'leave the MTU out of it: open(..., features=["-mtu"])',
            )
        return mtu

    def _read_mac(self) -> Mac:
        if Feature.MAC in self._features.negotiated:
            return Mac(self._transport.read_config(NetConfig.MAC, 6))
        return self._random_mac

    def _config(self, layout: str, offset: int) -> int:
        raw = self._transport.read_config(offset, struct.calcsize(layout))
        value: int = struct.unpack(layout, raw)[0]
        return value

    def _take_down(self, why: Error) -> None:
        """Reset first; only then does what the device held go back to its holders (2.4)."""
        self._down = why
        self._control.stop(why)
        try:
            self._transport.reset()
        except DeviceGone:
            pass  # and with it all it could reach
        except Error:
            self._memory = self._pool = None  # it may go on writing: leave that memory to it
        queues, self._queues = self._queues, []
        self._past += queues
        for queue in queues:
            if not queue._stop(why):  # a call is under way: the next rings get memory of their own
                self._memory = self._pool = None
        if isinstance(why, DeviceGone):
            self._transport.let_go(why)

    def _look(self) -> None:
        """A queue idles. A device that has gone raises DeviceGone, or is waited for."""
        if self._closed or not self._care.acquire(blocking=False):
            return
        try:
            if self._changing:
                return
            if self._gone_at is None:
                self._check()
            if self._gone_at is not None and time.monotonic() >= self._next_try:
                self._try_again(self._gone_at)
        finally:
            self._care.release()

    def _check(self) -> None:
        try:
            self._transport.check()
        except Error as gone:
            if not self._reconnect:
                self._take_down(gone)
                raise
            if not all(queue._pause(gone) for queue in self.queues):
                return  # another thread is in a call: look again later
            if not isinstance(gone, DeviceGone):
                self._memory = self._pool = None  # it may go on writing
            self._gone_at = time.monotonic()

    def _try_again(self, gone_at: float) -> None:
        try:
            with self._change():
                self._transport.revive(0.0)
                self._bring_up()
                self._gone_at = None
        except Error as error:
            now = time.monotonic()
            self._next_try = now + RETRY_SECONDS
            if now - gone_at < self._reconnect:
                return
            gone = DeviceGone(
                f"{self.name} is gone",
                f"it did not come back within {self._reconnect:g} s; {error.what}: {error.why}",
                "start the back end again, then port.reset()",
            )
            self._take_down(gone)
            raise gone from error

    def _abandon(self) -> None:
        """In a forked child: the device is the parent's; only our copies of files go."""
        self._closed, self._changing, self._care = True, False, RLock()
        why = "it belongs to the process that this one was forked from"
        closed = PortClosed(f"{self.name} is closed", why, "open the port again")
        self._control.abandon(closed)
        for queue in self.queues:
            queue._abandon(closed)
        self._transport.abandon()


def _look_at(method: weakref.WeakMethod[Callable[[], None]]) -> Callable[[], None]:
    """A call of a port's method that does not keep the port."""

    def look() -> None:
        if (call := method()) is not None:
            call()

    return look


_open_ports: weakref.WeakSet[Port] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Leave no device alive at exit. The kernel does the same for a process that is killed."""
    for port in list(_open_ports):
        try:
            port.close()
        except BaseException:  # one that cannot be closed keeps no other from it
            sys.excepthook(*sys.exc_info())


def _after_fork() -> None:
    disown_stores()
    for port in list(_open_ports):
        port._abandon()
    _open_ports.clear()


os.register_at_fork(after_in_child=_after_fork)
