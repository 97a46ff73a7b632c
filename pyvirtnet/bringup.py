"""A device is brought to life: the initialisation sequence (3.1.1), and the memory it takes."""

from __future__ import annotations

import secrets
import struct
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import RLock
from typing import Any

from . import dma
from ._pages import PagePool
from ._queue import QueuePair
from ._ring import ring_bytes, ring_parts
from .control import CONTROL_BYTES, Control
from .errors import DeviceBroken, Error, FeatureMissing, NotVirtioNet, PortClosed
from .negotiate import Features, negotiate, parse
from .nic import Mac
from .spec import MAX_FRAME, MAX_SPLIT_QUEUE, PAGE, Feature, NetConfig, Status
from .transport.base import Doorbell, QueueAddresses, Transport, check_status

ETHERNET_HEADER = 14
NET_HEADER = 12
MIN_MTU = 68  # 5.1.4.1
DEFAULT_MTU = 1500
PAGES_PER_ENTRY = 3  # one with the device, one in a burst, one on its way out again
SLOTS_PER_ENTRY = 8


class BringUp:
    """What a port has of its device while that lives."""

    _features: Features
    _mac: Mac
    _mtu: int
    _max_frame: int

    def __init__(
        self,
        transport: Transport,
        ring_size: int | None,
        pages: int | None,
        wanted: frozenset[Feature] | None,
    ) -> None:
        self._transport = transport
        self.name = transport.name
        self._ring_size, self._pages = ring_size, pages
        self._wanted = parse(()) if wanted is None else wanted
        self._care = RLock()  # of what resets the device: reset, close, a look at it
        self._control = Control(self.name, transport, self._care)
        self._queues: list[QueuePair] = []
        self._past: list[QueuePair] = []  # stopped; some wait for a call to end
        self._format: dict[str, Any] = {}
        self._sizes: list[int] = []  # of the rings that the memory was allocated for
        self._memory: dma.Region | None = None
        self._pool: PagePool | None = None
        self._bells: dict[int, Doorbell] = {}
        self._random_mac = Mac(bytes([0x02]) + secrets.token_bytes(5))
        self._down: Error | None = None  # why the device is not live

    @property
    def queues(self) -> tuple[QueuePair, ...]:
        """The queue pairs; each has `recv_burst`, `send_burst` and `reclaim` of its own."""
        return tuple(self._queues)

    @property
    def _first(self) -> QueuePair:
        """Queue pair 0; what stopped it, if it was stopped."""
        if not self._queues:
            never = PortClosed(f"{self.name} is closed", "it is not open yet", "pyvirtnet.open()")
            raise (self._down or never).copy()
        return self._queues[0]

    def _look(self) -> None:
        """A queue idles: see how the device is."""
        raise NotImplementedError

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
        sizes = [self._queue_size(index, ring_format["packed"]) for index in (0, 1)]
        fits = (sizes, ring_format) == (self._sizes, self._format)
        if self._memory is None or self._pool is None or not fits:
            self._memory, self._pool = self._allocate(sizes, ring_format)
        self._pool.clear_headers()
        self._sizes, self._format = sizes, ring_format
        layout = _layout(ring_format)
        offsets = (0, ring_bytes(sizes[0], **layout))
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
            parts = (self._memory.iova + offset + part for part in ring_parts(size, **layout))
            self._bells[index] = self._transport.setup_queue(index, QueueAddresses(size, *parts))
        self._control.set_up(self._features, self._memory)

    def _ring_format(self) -> dict[str, Any]:
        negotiated, device = self._features.negotiated, self._transport
        mergeable = Feature.MRG_RXBUF in negotiated
        return {
            "packed": Feature.RING_PACKED in negotiated,
            "in_order": Feature.IN_ORDER in negotiated,
            "event_idx": Feature.EVENT_IDX in negotiated,
            "indirect": Feature.INDIRECT_DESC in negotiated,
            "header_bytes": NET_HEADER if mergeable else device.plain_header_bytes,
            "alignment": device.ring_alignment,
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
        self, sizes: Sequence[int], ring_format: dict[str, Any]
    ) -> tuple[dma.Region, PagePool]:
        """One region: rings, head slots, pages, control queue. It stays while the sizes do."""
        pages = self._pages if self._pages is not None else PAGES_PER_ENTRY * sizes[0]
        if pages < 1:
            raise ValueError(f"a port needs at least one page, not {pages}")
        slots = -(-SLOTS_PER_ENTRY * sizes[0] // 64) * 64
        layout = _layout(ring_format)
        rings = ring_bytes(sizes[0], **layout)
        rings += ring_bytes(sizes[1], tables=ring_format["indirect"], **layout)
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


def _layout(ring_format: dict[str, Any]) -> dict[str, Any]:
    """What decides where the parts of a ring lie."""
    return {name: ring_format[name] for name in ("packed", "alignment")}


def _look_at(method: weakref.WeakMethod[Callable[[], None]]) -> Callable[[], None]:
    """A call of a port's method that does not keep the port."""

    def look() -> None:
        if (call := method()) is not None:
            call()

    return look
