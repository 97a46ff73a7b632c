"""One command at a time through the control virtqueue, whatever its format: bounded and checked."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from struct import Struct

from .._ring import ring_bytes
from .._words import ring
from ..errors import DeviceBroken, DeviceTimeout, Error, QueueBusy
from ..transport.base import Doorbell, QueueAddresses

ANSWER_SECONDS = 5.0  # that the device has for one command
MAX_ENTRIES = 64
MAX_ANSWER, MAX_COMMAND = 4096, 24576
_PAGE = 4096
UNANSWERED = 0xFF
_LOOK_SECONDS = 0.05  # between looks at the device during a long wait

DESCRIPTOR = Struct("<QIHH")
DESC_NEXT, DESC_WRITE = 1, 2  # 2.7.5, 2.8.1


def control_bytes(size: int, alignment: int = 0) -> int:
    """Bytes of memory for a queue of `size` entries, whole pages; `alignment` of a legacy one."""
    return _ring_room(size, alignment) + MAX_ANSWER + MAX_COMMAND


def _ring_room(size: int, alignment: int) -> int:
    if not alignment:
        return _PAGE  # MAX_ENTRIES fit, in either format
    return -(-ring_bytes(size, alignment=alignment) // _PAGE) * _PAGE


class ControlQueue(ABC):
    """A ring that holds one buffer: a command that the device reads, an answer that it writes.

    memory     that the device sees at `iova`, `control_bytes(…)`: ring, answer, command
    check      raises what is wrong with the device, if it is known
    alignment  of a legacy device's used ring; the lengths it says of answers may be wrong (5.1.6.6)
    seconds    how long an answer may take
    doorbell   set once the device knows the queue
    """

    doorbell: Doorbell
    addresses: QueueAddresses

    def __init__(
        self,
        name: str,
        memory: memoryview,
        iova: int,
        size: int,
        *,
        start: int,
        event_idx: bool,
        check: Callable[[], object],
        alignment: int = 0,
    ) -> None:
        self.name, self.size, self.seconds = name, size, ANSWER_SECONDS
        self._memory, self._iova, self._alignment = memory, iova, alignment
        self._event_idx, self._check = event_idx, check
        self._busy = False
        self._stopped: Error | None = None
        self._answer_at = _ring_room(size, alignment)
        self._command_at = self._answer_at + MAX_ANSWER
        memory[: self._answer_at] = bytes(self._answer_at)
        self._lay_out(start)

    def submit(self, deed: str, command: bytes, room: int) -> bytes:
        """Send a command; what the device wrote into an answer of up to `room` bytes.

        `deed` says in errors what the command is for. DeviceTimeout: no answer in time; the device
        may still carry it out. DeviceBroken: the answer cannot be; no more commands then.
        """
        if len(command) > MAX_COMMAND or not 0 < room <= MAX_ANSWER:
            raise ValueError(f"a command of {len(command)} bytes: {MAX_COMMAND} is the most")
        if self._busy:
            why = "another command is under way"
            raise QueueBusy(f"{self.name} cannot {deed}", why, "let it finish first")
        if self._stopped is not None:
            raise self._stopped.copy()
        self._busy = True
        try:
            if self._outstanding:  # given up before: its answer may be there by now
                self._notify()
                self._wait(deed, MAX_ANSWER)
            answer, at = self._answer_at, self._command_at
            self._memory[at : at + len(command)] = command
            self._memory[answer : answer + room] = bytes([UNANSWERED]) * room
            self._expose(len(command), room)
            self._notify()
            length = self._wait(deed, room)
            if self._stopped is not None:  # by a signal handler: the device has forgotten it
                raise self._stopped.copy()
            return bytes(self._memory[answer : answer + length])
        finally:
            self._busy = False

    def stop(self, why: Error) -> None:
        """The device is being reset: a command that is under way ends in `why`."""
        self._stopped = why
        # The next queue may lie in the same memory: a command that is under way writes elsewhere.
        self._memory = memoryview(bytearray(self._memory))

    def _notify(self) -> None:
        if self._publish():
            position = self._position
            if self._stopped is None:
                ring(self.doorbell, position)

    def _wait(self, deed: str, room: int) -> int:
        """Until the command was used; the bytes written for it."""
        start = time.monotonic()
        look, pause = start + _LOOK_SECONDS, 0.0
        while not self._answered(deed) or self._stopped is not None:
            if self._stopped is not None:  # by a signal handler
                raise self._stopped.copy()
            now = time.monotonic()
            if now >= look:
                self._check()
                look = now + _LOOK_SECONDS
            if now - start > self.seconds:
                raise DeviceTimeout(
                    f"{self.name} did not {deed}",
                    f"it did not answer within {self.seconds:g} s; it may still do it (5.1.6.5)",
                    "try again; if it stays silent, port.reset()",
                )
            time.sleep(pause)
            pause = min(pause * 2 or 20e-6, 1e-3)
        length = self._take(deed)
        if self._alignment:
            return room
        if not 0 < length <= room:
            raise self._lie(deed, f"it wrote {length} bytes into an answer of {room}")
        return length

    def _lie(self, deed: str, why: str) -> Error:
        if self._stopped is not None:  # by a signal handler, whose reset it looks like
            return self._stopped.copy()
        self._stopped = lie = DeviceBroken(
            f"{self.name} cannot {deed}",
            f"{why}; its control queue is stopped",
            "port.reset() starts it anew; report it to who makes the device",
        )
        return lie

    @property
    @abstractmethod
    def _outstanding(self) -> bool:
        """The device has a command that it has not answered yet."""

    @property
    @abstractmethod
    def _position(self) -> int:
        """What is exposed next, as a notification with data says it (2.9)."""

    @abstractmethod
    def _lay_out(self, start: int) -> None:
        """An empty ring in zeroed memory."""

    @abstractmethod
    def _expose(self, command: int, room: int) -> None:
        """Fill the next two descriptors: a command of so many bytes, room for the answer."""

    @abstractmethod
    def _publish(self) -> bool:
        """Show what is exposed to the device; True if it wants a kick. Harmless if repeated."""

    @abstractmethod
    def _answered(self, deed: str) -> bool:
        """Whether the device says that it has used the buffer. Raises DeviceBroken."""

    @abstractmethod
    def _take(self, deed: str) -> int:
        """Take the used buffer back; the bytes written. Raises DeviceBroken."""
