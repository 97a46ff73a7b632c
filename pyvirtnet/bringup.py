"""A device is brought to life: the initialisation sequence (3.1.1)."""

from __future__ import annotations

import secrets
import struct
import weakref
from collections.abc import Callable
from threading import RLock
from typing import Any

from ._queue import QueuePair
from .control import Control
from .errors import DeviceBroken, Error, FeatureMissing, NotVirtioNet, PortClosed
from .memory import PortMemory
from .negotiate import SEGMENTS, Features, largest_frame, negotiate, parse, receive_mode
from .nic import Mac
from .spec import (
    MAX_FRAME,
    MAX_PAIRS,
    MAX_SEGMENTED,
    MAX_SPLIT_QUEUE,
    NET_HEADER,
    PAGE,
    Feature,
    NetConfig,
    Status,
)
from .transport.base import Doorbell, Transport, check_status
from .wakeup import WakeUp

ETHERNET_HEADER = 14
HASHED_HEADER = 20  # 5.1.6.3.1: with HASH_REPORT
MIN_MTU = 68  # 5.1.4.1
DEFAULT_MTU = 1500


class BringUp:
    """What a port has of its device while that lives."""

    _features: Features
    _mac: Mac
    _mtu: int
    _max_frame: int
    _seen: dict[str, Any]  # what events() told last

    def __init__(
        self,
        transport: Transport,
        *,
        ring_size: int | None,
        pages: int | None,
        wanted: frozenset[Feature] | None,
        queue_pairs: int,
    ) -> None:
        if not 1 <= queue_pairs <= MAX_PAIRS:
            raise ValueError(f"queue_pairs={queue_pairs}: a port has 1 to {MAX_PAIRS}")
        self._transport = transport
        self.name = transport.name
        self._ring_size, self._pages = ring_size, pages
        self._wanted = parse(()) if wanted is None else wanted
        self._pairs = queue_pairs
        self._care = RLock()  # of what resets the device: reset, close, a look at it
        self._control = Control(self.name, transport, self._care)
        self._queues: list[QueuePair] = []
        self._left: list[PortMemory] = []  # to a device that would not be reset
        self._made: list[QueuePair] = []  # all there were; of those stopped, some are in a call
        self._format: dict[str, Any] = {}
        self._sizes: list[int] = []  # of the rings
        self._memory: PortMemory | None = None
        self._changes: WakeUp | None = None  # of who waits for events
        self._random_mac = Mac(bytes([0x02]) + secrets.token_bytes(5))
        self._down: Error | None = None  # why the device is not live

    @property
    def queues(self) -> tuple[QueuePair, ...]:
        """The queue pairs; each has `recv_burst`, `send_burst` and `reclaim` of its own."""
        return tuple(self._queues)

    def _pair(self, index: int) -> QueuePair:
        """A queue pair; what stopped it, if it was stopped."""
        if not self._queues:
            raise self._gone()
        if not 0 <= index < len(self._queues):
            raise IndexError(f"{self.name} has {len(self._queues)} queue pairs, and no {index}")
        return self._queues[index]

    def _gone(self) -> Error:
        """Why the device is not live."""
        never = PortClosed(f"{self.name} is closed", "it is not open yet", "pyvirtnet.open()")
        return (self._down or never).copy()

    def _look(self) -> None:
        """A queue idles: see how the device is."""
        raise NotImplementedError

    def _restart(self, queue: QueuePair, size: int | None) -> None:
        """A queue pair is to be reset alone."""
        raise NotImplementedError

    def _bring_up(self) -> None:
        """The initialisation sequence (3.1.1)."""
        device = self._transport
        device.reset()
        device.add_status(Status.ACKNOWLEDGE)
        device.add_status(Status.DRIVER)
        try:
            self._negotiate()
            bells = self._set_up_queues()
            self._go_live()
            self._control.start()
            self._start(bells)
        except BaseException:
            try:
                device.add_status(Status.FAILED)
                device.reset()
            except Error as error:  # the first one is the one to report
                if device.may_write(error):
                    self._leave_memory()
            raise
        self._down = None

    def _leave_memory(self) -> None:
        """The device may go on writing there until it has been reset (3.3.1)."""
        if self._memory is not None and not self._transport.maps_files:
            self._left.append(self._memory)
        self._memory = None

    def _negotiate(self) -> None:
        """Steps 4 to 6: agree on features, and see that the device agrees too."""
        device = self._transport
        offered = device.offered_features()
        features = negotiate(offered, self._wanted)
        if SEGMENTS & features.negotiated and self._largest(features) < MAX_SEGMENTED:
            features = negotiate(offered, self._wanted - SEGMENTS)
        self._features = features
        mtu = self._read_mtu() if Feature.MTU in features.negotiated else None
        frame = ETHERNET_HEADER + (mtu or 0)
        # Of rings' sizes, which belong to step 7, only what a page does not hold depends.
        if mtu is not None and frame > PAGE - NET_HEADER and frame > self._largest(features):
            # 5.1.4.2: with MTU accepted, there would have to be buffers for such a frame
            features = self._features = negotiate(offered, features.wanted - {Feature.MTU})
            mtu = None
        self._mtu = DEFAULT_MTU if mtu is None else mtu
        self._max_frame = MAX_FRAME if mtu is None else min(MAX_FRAME, mtu + ETHERNET_HEADER)
        self._claim_pairs(features)
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

    def _largest(self, features: Features) -> int:
        device = self._transport
        ring = self._ring_size or device.default_ring_size
        if ring is None:
            ring = min(device.queue_max_size(2 * pair) for pair in range(self._pairs))
        return largest_frame(features.negotiated, ring, self._pages)

    def _claim_pairs(self, features: Features) -> None:
        """Are there as many queue pairs as are wanted, and can they be switched on?"""
        most, wanted = self._transport.max_pairs, self._pairs
        if most is None:
            most = self._control.read_max_pairs(features)
        if wanted > most:
            raise FeatureMissing(
                f"{self.name} cannot have {wanted} queue pairs",
                f"the device has {most}" if most > 1 else "the device has one, or cannot use more",
                f"QEMU: queues={wanted} for the netdev, mq=on,vectors={wanted + 1} for the NIC; "
                f"DPDK: queues={wanted}; sim: ?pairs={wanted}; or open(..., queue_pairs={most})",
            )
        self._transport.claim_pairs(wanted)

    def _set_up_queues(self) -> list[Doorbell]:
        """Step 7: memory for rings and pages, rings empty, the device told where they are."""
        form = self._ring_format()
        sizes = [self._queue_size(index, form["packed"]) for index in range(2 * self._pairs)]
        control = self._control.prepare(self._features, self._pairs)
        memory = self._memory
        if memory is None or not memory.suits(sizes, form, control):
            memory = self._memory = PortMemory(sizes, form, self._pages, control)
        memory.clear_headers()
        self._sizes, self._format = sizes, form
        if not self._queues:
            self._make_queues()
        bells = [bell for queue in self._queues for bell in self._set_up_pair(queue, memory)]
        self._control.set_up(memory.region)
        return bells

    def _set_up_pair(self, queue: QueuePair, memory: PortMemory) -> list[Doorbell]:
        rx, tx = 2 * queue.index, 2 * queue.index + 1
        queue._set_up(
            memory.pools[queue.index],
            memory.rings[rx],
            memory.sizes[rx],
            memory.rings[tx],
            memory.sizes[tx],
            mergeable=Feature.MRG_RXBUF in self._features.negotiated,
            max_frame=self._max_frame,
            start=self._transport.start_index,
            **self._format,
        )
        return [self._transport.setup_queue(index, memory.addresses(index)) for index in (rx, tx)]

    def _start(self, bells: list[Doorbell]) -> None:
        """Receive buffers are posted; who waits is told of all there is now."""
        self._seen.pop("needs-reset", None)  # it may ask for that again
        if self._changes is not None:
            self._changes.watch(self._change_fds())
            self._changes.call()
        for queue in self._queues:
            self._start_pair(queue, *bells[2 * queue.index : 2 * queue.index + 2])

    def _start_pair(self, queue: QueuePair, rx_bell: Doorbell, tx_bell: Doorbell) -> None:
        device = self._transport
        others = device.alarm_fds() if queue.index else self._change_fds()
        queue._start(rx_bell, tx_bell, device.interrupt_fd(2 * queue.index), others)

    def _change_fds(self) -> list[int]:
        """What is readable when the device has something to say."""
        return [self._transport.interrupt_fd(None), *self._transport.alarm_fds()]

    def _ring_format(self) -> dict[str, Any]:
        negotiated, device = self._features.negotiated, self._transport
        header = NET_HEADER if Feature.MRG_RXBUF in negotiated else device.plain_header_bytes
        if Feature.HASH_REPORT in negotiated:
            header = HASHED_HEADER
        return {
            "packed": Feature.RING_PACKED in negotiated,
            "in_order": Feature.IN_ORDER in negotiated,
            "event_idx": Feature.EVENT_IDX in negotiated,
            "indirect": Feature.INDIRECT_DESC in negotiated,
            "big": receive_mode(negotiated) == "big",
            "features": self._features.bits,
            "header_bytes": header,
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
        look = _weakly(weakref.WeakMethod(self._look))
        restart = _weakly(weakref.WeakMethod(self._restart))
        shared = self._pairs > 1
        for index in range(self._pairs):
            idle = [q for q in self._made if q.index == index and q.pool is None]
            if not idle:
                idle = [QueuePair(self.name, look, index, restart, shared=shared)]
                self._made += idle
            self._queues.append(idle[-1])
        # The documented methods are shadowed by the queue's own, which take no Python frame.
        first = self._queues[0]
        vars(self).update(
            recv_burst=first.recv_burst, send_burst=first.send_burst, reclaim=first.reclaim
        )

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
            wrong = f"ring_size={size}: {self.name} takes {kind} from 2 to {largest}"
            if shrunk:
                raise FeatureMissing(
                    f"{self.name} cannot be set up as before",
                    wrong,
                    "give the device packed rings again, or open the port anew",
                )
            raise ValueError(wrong)
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


def _weakly(method: weakref.WeakMethod[Callable[..., None]]) -> Callable[..., None]:
    """A call of a port's method that does not keep the port."""

    def call(*arguments: Any) -> None:
        if (bound := method()) is not None:
            bound(*arguments)

    return call
