"""Setting queues up, and resetting one alone (VIRTIO 1.3, 2.6, 4.1.4.3)."""

from __future__ import annotations

from collections.abc import Sequence

from .chain import Chain
from .layout import MAX_QUEUE, RING_PACKED, RING_RESET
from .memory import Ledger, Translate
from .packed import PackedQueue
from .queue import Areas, Join, Virtqueue
from .registers import Registers
from .split import SplitQueue
from .violation import Violation


class Setup(Registers):
    """Registers of queues: sizes, addresses, queue_enable, queue_reset.

    translate  how addresses become memory; may be set later, before queues are
    queues     those that are enabled, by index
    """

    translate: Translate | None = None

    def __init__(
        self,
        offered: int,
        required: int,
        queue_sizes: Sequence[int],
        start_index: int,
        join: Join,
    ) -> None:
        super().__init__(offered, required)
        self.start_index = start_index
        self.queues: dict[int, Virtqueue] = {}
        self._queue_sizes, self._join = tuple(queue_sizes), join
        self._areas: dict[int, Areas] = {}
        self._resetting: dict[int, int] = {}  # reads of queue_reset that still say 1
        self._stopped: set[int] = set()  # reset alone, to be set up anew
        self._ledger = Ledger()

    def reset(self) -> None:
        """Back to the beginning: the device forgets its queues and all memory."""
        super().reset()
        for state in (self.queues, self._areas, self._resetting, self._stopped):
            state.clear()
        self._ledger = Ledger()

    def queue_max_size(self, index: int) -> int:
        """0 for a queue that the device lacks (4.1.4.3)."""
        return self._queue_sizes[index] if 0 <= index < len(self._queue_sizes) else 0

    def configure_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """Size and addresses of a queue, as written to its registers (4.1.4.3.2)."""
        seen = f"queue {index}, size {size}"
        self._check_set_up_time(index, f"configuring queue {index}")
        most = self.queue_max_size(index)
        if not most:
            raise Violation("only queues that exist are set up", "4.1.4.3", seen)
        if index in self.queues:
            raise Violation("an enabled queue is not set up again", "4.1.4.3.2", seen)
        packed = bool(self.accepted & RING_PACKED)
        if size < 1 or size > min(most, MAX_QUEUE) or (size & (size - 1) and not packed):
            kind = "from 1" if packed else "a power of two"
            raise Violation(f"a size is {kind} up to the maximum", "2.7, 2.8, 4.1.4.3.2", seen)
        areas = Areas(size, desc, driver, device)
        for name, address, length, alignment in self._format.spans(areas):
            part = f"queue {index}, {name} at {address:#x}"
            if address % alignment:
                raise Violation(f"the {name} is aligned to {alignment}", "2.7, 2.8.11", part)
            self._reach(address, length, part)
        self._areas[index] = areas

    def enable(self, index: int, value: int = 1) -> None:
        """What is written to queue_enable."""
        seen = f"queue {index}, value {value}"
        self._check_set_up_time(index, f"enabling queue {index}")
        if value != 1:
            raise Violation("queue_enable is only ever written 1", "4.1.4.3.2", seen)
        if index in self.queues:
            raise Violation("a queue is enabled once", "4.1.4.3.2", seen)
        if index not in self._areas:
            raise Violation("a queue is set up before it is enabled", "4.1.4.3.2", seen)
        areas = self._areas[index]
        for name, address, length, _ in self._format.spans(areas):
            self._ledger.lend_exclusive(address, length, (f"{name} of queue", index))
        self.queues[index] = self._format(
            index,
            areas,
            self._translator(),
            features=self.accepted,
            start=self.start_index,
            join=self._join,
        )
        self._stopped.discard(index)

    def reset_queue(self, index: int) -> None:
        """What is written to queue_reset: this queue alone, 2.6.1."""
        seen = f"queue {index}"
        if not self.accepted & RING_RESET:
            raise Violation("a queue is reset alone where that was negotiated", "2.6.1", seen)
        if index not in self.queues:
            raise Violation("only enabled queues are reset", "2.6.1, 4.1.4.3.2", seen)
        self._resetting[index] = 1

    def read_queue_reset(self, index: int) -> int:
        """1 while the queue is being reset: the device still has its memory. 0 from then on."""
        reads = self._resetting.get(index)
        if reads:
            self._resetting[index] -= 1
            return 1
        if reads == 0:
            self._drop(index)
        return 0

    def running(self, index: int) -> bool:
        """The device works on this queue."""
        return self.live and index in self.queues and index not in self._resetting

    def release(self, queue: Virtqueue, chain: Chain) -> None:
        """The driver has a buffer's memory back."""

    # Helpers

    @property
    def _format(self) -> type[Virtqueue]:
        return PackedQueue if self.accepted & RING_PACKED else SplitQueue

    def _drop(self, index: int) -> None:
        queue, areas = self.queues.pop(index), self._areas.pop(index)
        for chain in queue.in_flight():
            self.release(queue, chain)
        for _, address, length, _ in self._format.spans(areas):
            self._ledger.give_back_exclusive(address, length)
        del self._resetting[index]
        self._stopped.add(index)

    def _check_set_up_time(self, index: int, what: str) -> None:
        self._check_features_read_back(what)
        if index in self._resetting:
            raise Violation("a queue reset is over when queue_reset reads 0", "4.1.4.3.2", what)
        if self.live and index not in self._stopped:
            raise Violation("queues are set up before DRIVER_OK", "3.1.1", what)

    def _reach(self, address: int, length: int, seen: str) -> memoryview:
        try:
            return self._translator()(address, length)
        except LookupError as error:
            raise Violation("virtqueues lie in DMA memory", "2.6, 4.1.4.3", seen) from error

    def _translator(self) -> Translate:
        if self.translate is None:
            raise RuntimeError("the device was given no way to reach memory")
        return self.translate
