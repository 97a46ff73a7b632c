"""Device: kicks, interrupts, buffers in flight, whatever kind of device it is (VIRTIO 1.3, 2.9)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from threading import RLock
from typing import Any, TypeVar, cast

from .chain import Chain
from .layout import NOTIFICATION_DATA
from .memory import Translate
from .queue import Join, Virtqueue
from .registers import Registers
from .setup import Setup
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


class Device(Setup):
    """Registers and virtqueues, and every rule of them that a device can see broken.

    violations     what the driver broke so far, first to last
    interrupts     how often each queue interrupted (None: the configuration)
    interrupt      called with the queue's index, or None, for each interrupt
    on_kick        called after a kick was looked at
    strict_kicks   also object to kicks the device asked not to get (a SHOULD NOT)
    prompt_kicks   kicks come before the driver's call returns, so that one too many, or one that
                   `check` misses, is the driver's; off where they come through an eventfd
    """

    prompt_kicks = True

    def __init__(
        self,
        translate: Translate | None,
        *,
        features: int,
        required: int,
        queue_sizes: Sequence[int],
        start_index: int,
        join: Join,
        strict_kicks: bool,
        interrupt: Callable[[int | None], None] | None,
    ) -> None:
        super().__init__(features, required, queue_sizes, start_index, join)
        self.translate = translate
        self.violations: list[Violation] = []
        self.interrupts: Counter[int | None] = Counter()
        self.interrupt = interrupt
        self.on_kick: Callable[[], object] | None = None
        self.strict_kicks = strict_kicks
        self.lock = RLock()

    # The driver's face

    write_status = witnessed(Registers.write_status)
    accept_features = witnessed(Registers.accept_features)
    read_config = witnessed(Registers.read_config)
    write_config = witnessed(Registers.write_config)
    configure_queue = witnessed(Setup.configure_queue)
    enable = witnessed(Setup.enable)
    reset_queue = witnessed(Setup.reset_queue)
    read_queue_reset = witnessed(Setup.read_queue_reset)

    @witnessed
    def kick(self, index: int) -> None:
        """The driver's notification, 2.9: the queue `index` has new buffers."""
        if self.accepted & NOTIFICATION_DATA:
            raise Violation("a notification carries its data", "2.9, 4.1.5.2.1", f"queue {index}")
        self._kicked(index, None)

    @witnessed
    def notify(self, index: int, data: int) -> None:
        """As `kick`, with what is exposed next: its place, and bit 15 of its index or its wrap."""
        if not self.accepted & NOTIFICATION_DATA:
            rule = "a notification carries data only where that was negotiated"
            raise Violation(rule, "2.9, 4.1.5.2.1", f"queue {index}, {data:#x}")
        self._kicked(index, data)

    def _kicked(self, index: int, data: int | None) -> None:
        if not self.live:
            raise Violation("no kick before DRIVER_OK", "3.1.1", f"queue {index}")
        if not self.running(index):
            raise Violation("only enabled queues are kicked", "4.1.5.2", f"queue {index}")
        queue = self.queues[index]
        self.look(queue)
        queue.kicked(self.strict_kicks and self.prompt_kicks, data)
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
    def ask_kick_after(self, index: int, places: int) -> None:
        """Tell the driver to kick queue `index` once `places` more are exposed (2.7.10, 2.8.10).

        Places are buffers in a split ring, descriptors in a packed one. From then on every kick
        is wanted again. ValueError: EVENT_IDX was not negotiated.
        """
        self.look(self.queues[index])
        self.queues[index].ask_kick_after(places)

    @examined
    def missed_kicks(self) -> list[int]:
        """Queues with new buffers for which the driver owes a kick (2.7.10.1)."""
        for queue in self._running():
            self.look(queue)
        return [queue.index for queue in self._running() if queue.kick_due]

    @examined
    def check(self) -> None:
        """Everything the driver has lent is as it was, and nothing was broken before."""
        for queue in self._running():
            self.look(queue)
            queue.verify_all()
            if self.prompt_kicks:
                queue.check_kicked()

    def look(self, queue: Virtqueue) -> int:
        """Fetch what the driver exposed; how many buffers are ready."""
        for chain in queue.fetch():
            self.admit(queue, chain)
            queue.ready.append(chain)
        return len(queue.ready)

    def admit(self, queue: Virtqueue, chain: Chain) -> None:
        """Check a fresh buffer by the rules of this kind of device."""

    def _running(self) -> list[Virtqueue]:
        return [queue for index, queue in self.queues.items() if self.running(index)]

    def raise_interrupt(self, index: int | None) -> None:
        self.interrupts[index] += 1
        if self.interrupt is not None:
            self.interrupt(index)
