"""Device: queues, kicks and interrupts, whatever kind of device it is (VIRTIO 1.3, 2.6, 4.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from threading import RLock
from typing import Any, TypeVar, cast

from .chain import Chain
from .layout import MAX_QUEUE
from .memory import Ledger, Translate
from .registers import Registers
from .split import Areas, SplitQueue
from .violation import Violation

_F = TypeVar("_F", bound=Callable[..., Any])


def witnessed(method: _F) -> _F:
    """A method the driver calls: what it breaks is also kept in `device.violations`.

    A driver may swallow what its doorbell raises, so the test's side raises it again.
    """

    @wraps(method)
    def call(self: Device, *args: Any, **options: Any) -> Any:
        with self.lock:
            try:
                return method(self, *args, **options)
            except Violation as violation:
                self.note(violation)
                raise

    return cast(_F, call)


def examined(method: _F) -> _F:
    """A method the test calls: it fails on anything the driver has broken before."""
    body = witnessed(method)

    @wraps(method)
    def call(self: Device, *args: Any, **options: Any) -> Any:
        if self.violations:
            raise self.violations[0]
        return body(self, *args, **options)

    return cast(_F, call)


class Device(Registers):
    """Registers and virtqueues, and every rule of them that a device can see broken.

    translate      how addresses become memory; may be set later, before queues are
    violations     what the driver broke so far, first to last
    interrupts     how often each queue interrupted (None: the configuration)
    interrupt      called with the queue's index, or None, for each interrupt
    on_kick        called after a kick was looked at
    strict_kicks   also object to kicks the device asked not to get (a SHOULD NOT)
    """

    def __init__(
        self,
        translate: Translate | None,
        *,
        features: int,
        required: int,
        queue_sizes: Sequence[int],
        start_index: int,
        strict_kicks: bool,
        interrupt: Callable[[int | None], None] | None,
    ) -> None:
        super().__init__(features, required)
        self.translate = translate
        self.violations: list[Violation] = []
        self.interrupts: Counter[int | None] = Counter()
        self.interrupt = interrupt
        self.on_kick: Callable[[], object] | None = None
        self.strict_kicks = strict_kicks
        self.start_index = start_index
        self.queues: dict[int, SplitQueue] = {}
        self.lock = RLock()
        self._queue_sizes = tuple(queue_sizes)
        self._areas: dict[int, Areas] = {}
        self._ledger = Ledger()

    # The driver's face

    write_status = witnessed(Registers.write_status)
    accept_features = witnessed(Registers.accept_features)
    read_config = witnessed(Registers.read_config)
    write_config = witnessed(Registers.write_config)

    def reset(self) -> None:
        """Back to the beginning: the device forgets its queues and all memory."""
        super().reset()
        self.queues.clear()
        self._areas.clear()
        self._ledger = Ledger()

    def queue_max_size(self, index: int) -> int:
        """0 for a queue that the device lacks (4.1.4.3)."""
        return self._queue_sizes[index] if 0 <= index < len(self._queue_sizes) else 0

    @witnessed
    def configure_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> None:
        """Size and addresses of a queue, as written to its registers (4.1.4.3.2)."""
        seen = f"queue {index}, size {size}"
        self._check_set_up_time(f"configuring queue {index}")
        most = self.queue_max_size(index)
        if not most:
            raise Violation("only queues that exist are set up", "4.1.4.3", seen)
        if index in self.queues:
            raise Violation("an enabled queue is not set up again", "4.1.4.3.2", seen)
        if size < 1 or size > min(most, MAX_QUEUE) or size & (size - 1):
            raise Violation("a size is a power of two up to the maximum", "2.7, 4.1.4.3.2", seen)
        areas = Areas(size, desc, driver, device)
        for name, address, length, alignment in areas.spans():
            part = f"queue {index}, {name} at {address:#x}"
            if address % alignment:
                raise Violation(f"the {name} is aligned to {alignment}", "2.7", part)
            self._reach(address, length, part)
        self._areas[index] = areas

    @witnessed
    def enable(self, index: int, value: int = 1) -> None:
        """What is written to queue_enable."""
        seen = f"queue {index}, value {value}"
        self._check_set_up_time(f"enabling queue {index}")
        if value != 1:
            raise Violation("queue_enable is only ever written 1", "4.1.4.3.2", seen)
        if index in self.queues:
            raise Violation("a queue is enabled once", "4.1.4.3.2", seen)
        if index not in self._areas:
            raise Violation("a queue is set up before it is enabled", "4.1.4.3.2", seen)
        areas = self._areas[index]
        for name, address, length, _ in areas.spans():
            self._ledger.lend_exclusive(address, length, (f"{name} of queue", index))
        self.queues[index] = SplitQueue(
            index, areas, self._translator(), self.accepted, self.start_index
        )

    @witnessed
    def kick(self, index: int) -> None:
        """The driver's notification, 2.9: the queue `index` has new buffers."""
        if not self.live:
            raise Violation("no kick before DRIVER_OK", "3.1.1", f"queue {index}")
        queue = self.queues.get(index)
        if queue is None:
            raise Violation("only enabled queues are kicked", "4.1.5.2", f"queue {index}")
        queue.kicked(self.strict_kicks)
        self.look(queue)
        queue.kick_due = False
        if self.on_kick is not None:
            self.on_kick()

    # The test's face

    def note(self, violation: Violation) -> None:
        """Remember what the driver broke, once."""
        if violation not in self.violations:
            self.violations.append(violation)

    def withdrawn(self, iova: int, length: int) -> None:
        """Memory is being unmapped: the device must not have any of it (3.3.1)."""
        held = self._ledger.holder(iova, length)
        if held is not None:
            self.note(Violation("memory is unmapped after the device is reset", "3.3.1", held))

    @examined
    def silence(self, index: int, on: bool = True) -> None:
        """Tell the driver that queue `index` needs no kicks, or that it does again (2.7.10)."""
        self.look(self.queues[index])
        self.queues[index].silence(on)

    @examined
    def missed_kicks(self) -> list[int]:
        """Queues with new buffers for which the driver owes a kick (2.7.10.1)."""
        for queue in self.queues.values():
            self.look(queue)
        return [index for index, queue in self.queues.items() if queue.kick_due]

    @examined
    def check(self) -> None:
        """Everything the driver has lent is as it was, and nothing was broken before."""
        for queue in self.queues.values():
            self.look(queue)
            queue.verify_all()

    def look(self, queue: SplitQueue) -> int:
        """Fetch what the driver exposed; how many buffers are ready."""
        for chain in queue.fetch():
            self.admit(queue, chain)
            queue.ready.append(chain)
        return len(queue.ready)

    def admit(self, queue: SplitQueue, chain: Chain) -> None:
        """Check a fresh buffer by the rules of this kind of device."""

    def raise_interrupt(self, index: int | None) -> None:
        self.interrupts[index] += 1
        if self.interrupt is not None:
            self.interrupt(index)

    # Helpers

    def _check_set_up_time(self, what: str) -> None:
        self._check_features_read_back(what)
        if self.live:
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
