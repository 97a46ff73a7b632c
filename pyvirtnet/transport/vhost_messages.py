"""Messages of the vhost-user protocol, as a front end sends them over a Unix socket."""

from __future__ import annotations

import array
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from math import inf
from threading import RLock

from .._attempt import Attempt
from ..errors import DeviceBroken, DeviceGone, DeviceTimeout, Error

ANSWER_SECONDS = 5.0
MAX_CONFIG = 256  # bytes of configuration space in one message
_HEADER = struct.Struct("<III")  # request, flags, size
_VERSION, _REPLY, _NEED_REPLY = 1, 1 << 2, 1 << 3
_VERSION_MASK = 3
_MAX_PAYLOAD = 4096
_MEND = (
    "start the back end again, then port.reset(); "
    "an address with ?reconnect=on, or open(..., reconnect=True), does it by itself"
)
Composer = Callable[[], tuple[bytes, Sequence[int]]]


class Request(IntEnum):
    """Front-end message types."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_STATUS = 39
    GET_STATUS = 40


class Protocol(IntEnum):
    """Protocol feature bits that this front end knows."""

    MQ = 0
    REPLY_ACK = 3
    CONFIG = 9
    STATUS = 16


class Connection:
    """A connected socket and the messages over it. Every answer is waited for, for a bound time.

    A connection that failed once is closed: whatever comes later on it would be out of step.

    acknowledged  REPLY_ACK was agreed on: the back end confirms what it was told
    failure       why it is closed
    hung_up       it was the back end that closed it
    """

    def __init__(self, link: socket.socket, path: str) -> None:
        self.path, self.acknowledged = path, False
        self.failure: Error | None = None
        self.hung_up = False
        self._socket = link
        self._lock = RLock()  # a signal handler may come to it in the thread that has it
        self._in_step = True  # no answer is outstanding
        self._asked: Request | None = None  # ahead of the call that takes the answer
        self._due_at = inf
        # Of the thread that has the lock: an exchange is under way, or what is to be sent is made.
        self._talking = self._composing = False
        self._due: dict[Request, Composer] = {}
        self._poller = select.poll()
        self._poller.register(link, select.POLLIN | select.POLLRDHUP)

    def close(self) -> None:
        if self.failure is None:
            self.failure = self._gone("it was closed here")
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def check(self) -> None:
        """Raise if the back end has gone. One system call."""
        if self.failure is not None:
            raise self._gone(self.failure.why)
        try:
            with Attempt(self._lock) as mine:
                if not mine or self._talking:
                    return  # who holds it will find out
                events = self._poller.poll(0)
                if events and events[0][1] & ~select.POLLIN:
                    raise self._end("it closed the connection")
                if events:
                    raise self._fail(self._broken("it sends what nobody asked for"))
        finally:
            self._catch_up()

    # Messages

    def tell(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send; with REPLY_ACK, wait until the back end says that it did it."""
        with self._turn():
            self._tell(request, payload, fds)

    def tell_composed(self, request: Request, compose: Composer) -> None:
        """Tell what `compose` returns when the message's turn has come."""
        with self._turn():
            self._tell_composed(request, compose)

    def tell_soon(self, request: Request, compose: Composer) -> None:
        """As `tell_composed`, but once an exchange that is under way has ended.

        For finalisers, which may run in the middle of one. A failure shows at the next call.
        """
        self._due[request] = compose
        self._catch_up()

    def ask_ahead(self, request: Request) -> None:
        """Send a question, the first of all; `ask` will find it sent."""
        with self._turn():
            self._exchange(request, _VERSION, b"", (), ())
            self._asked, self._due_at = request, time.monotonic() + ANSWER_SECONDS

    @property
    def overdue(self) -> bool:
        """Has what was asked ahead not been answered in time?"""
        return time.monotonic() > self._due_at

    def waits(self, seconds: float) -> bool:
        """Wait so long for what comes next, or for the end."""
        return not self._poller.poll(seconds * 1000)

    def ask(self, request: Request, payload: bytes, *sizes: int) -> bytes:
        """Send and return the answer's payload, of one of these sizes."""
        with self._turn():
            return self._exchange(request, _VERSION, payload, (), sizes)

    def tell_u64(self, request: Request, value: int) -> None:
        self.tell(request, struct.pack("<Q", value))

    def ask_u64(self, request: Request) -> int:
        value: int = struct.unpack("<Q", self.ask(request, b"", 8))[0]
        return value

    def tell_vring_state(self, request: Request, index: int, value: int) -> None:
        self.tell(request, struct.pack("<II", index, value))

    def ask_vring_state(self, request: Request, index: int) -> int:
        answer = self.ask(request, struct.pack("<II", index, 0), 8)
        queue, value = struct.unpack("<II", answer)
        if queue != index:
            raise self._fail(self._broken(f"it answers {request.name} for queue {queue}"))
        return int(value)

    def set_vring_addr(self, index: int, descriptors: int, used: int, available: int) -> None:
        payload = struct.pack("<IIQQQQ", index, 0, descriptors, used, available, 0)
        self.tell(Request.SET_VRING_ADDR, payload)

    def set_vring_fd(self, request: Request, index: int, fd: int) -> None:
        self.tell(request, struct.pack("<Q", index), [fd])

    def get_config(self, offset: int, length: int) -> bytes:
        head = struct.pack("<III", offset, length, 0)
        # An empty answer is the protocol's way to refuse.
        answer = self.ask(Request.GET_CONFIG, head + bytes(length), 12 + length, 0)
        if not answer:
            raise self._refusal(Request.GET_CONFIG)
        return answer[12:]

    # One exchange at a time

    @contextmanager
    def _turn(self) -> Iterator[None]:
        try:
            with Attempt(self._lock, ANSWER_SECONDS) as mine:
                if not mine:
                    raise self._late("another thread is talking to it")
                yield
        finally:
            self._catch_up()

    @property
    def interrupted(self) -> bool:
        """Is an exchange of this thread's under way, below on its stack?"""
        with Attempt(self._lock) as mine:
            return mine and (self._talking or self._composing)

    def _catch_up(self) -> None:
        while self._due:
            with Attempt(self._lock) as mine:
                # one that is below on the stack catches up after it
                if not mine or self._talking or self._composing:
                    return
                try:
                    request, compose = self._due.popitem()
                    self._tell_composed(request, compose)
                except KeyError:
                    return  # another thread was faster
                except Error as error:
                    if self.failure is None:  # it refused: what it knows is not what it has to know
                        self._fail(error)

    def _tell_composed(self, request: Request, compose: Composer) -> None:
        """What changes while it is composed is told afterwards."""
        try:
            self._composing = True
            self._tell(request, *compose())
        finally:
            self._composing = False

    def _tell(self, request: Request, payload: bytes, fds: Sequence[int]) -> None:
        if not self.acknowledged:
            self._exchange(request, _VERSION, payload, fds, ())
            return
        answer = self._exchange(request, _VERSION | _NEED_REPLY, payload, fds, (8,))
        if any(answer):
            raise self._refusal(request)

    def _exchange(
        self,
        request: Request,
        flags: int,
        payload: bytes,
        fds: Sequence[int],
        sizes: tuple[int, ...],
    ) -> bytes:
        """Send, and read an answer of one of `sizes`; with none, no answer is expected."""
        if self.failure is not None:
            raise self._gone(self.failure.why)
        if self._talking or not self._in_step:  # a signal handler's, or a Ctrl-C has broken one off
            raise self._fail(self._interrupted())
        deadline = time.monotonic() + ANSWER_SECONDS
        self._in_step = False
        self._talking = True
        try:
            if request != self._asked:
                self._send(_HEADER.pack(request, flags, len(payload)) + payload, fds, deadline)
            self._asked = None
            answer = self._answer(request, sizes, deadline) if sizes else b""
        except TimeoutError as error:
            why = f"no answer to {request.name} came for {ANSWER_SECONDS:g} s"
            raise self._fail(self._late(why)) from error
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._end(f"at {request.name}: {error.strerror}") from error
        except OSError as error:
            raise self._fail(self._gone(f"at {request.name}: {error.strerror}")) from error
        finally:
            self._talking = False
        self._in_step = True
        return answer

    def _send(self, data: bytes, fds: Sequence[int], deadline: float) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._socket.settimeout(_left(deadline))
        sent = self._socket.sendmsg([data], rights)
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(data[sent:])

    def _answer(self, request: Request, sizes: tuple[int, ...], deadline: float) -> bytes:
        kind, flags, length = _HEADER.unpack(self._read(request, _HEADER.size, deadline))
        if kind != request or not flags & _REPLY or flags & _VERSION_MASK != _VERSION:
            raise self._fail(
                self._broken(f"it answers {request.name} with message {kind}, flags {flags:#x}")
            )
        if length > _MAX_PAYLOAD or length not in sizes:
            raise self._fail(
                self._broken(f"it answers {request.name} with {length} bytes instead of {sizes[0]}")
            )
        return self._read(request, length, deadline)

    def _read(self, request: Request, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            self._socket.settimeout(_left(deadline))
            # Without room for them, the kernel closes file descriptors that come along.
            part, _, flags, _ = self._socket.recvmsg(size - len(data))
            if flags & socket.MSG_CTRUNC:
                raise self._fail(self._broken(f"it answers {request.name} with a file descriptor"))
            if not part:
                raise self._end(f"it closed the connection at {request.name}")
            data += part
        return data

    # Failures

    def _fail(self, error: Error) -> Error:
        """Close for good; `error` is what the caller is told now."""
        self.failure = error
        self._socket.close()
        return error

    def _end(self, why: str) -> Error:
        self.hung_up = True
        return self._fail(self._gone(why))

    def silent(self) -> DeviceTimeout:
        return self._late("it has not answered yet")

    def _interrupted(self) -> DeviceGone:
        return self._gone("an exchange with it was interrupted")

    def _gone(self, why: str) -> DeviceGone:
        return DeviceGone(f"the vhost-user back end at {self.path} is gone", why, _MEND)

    def _broken(self, why: str) -> DeviceBroken:
        return DeviceBroken(
            f"the vhost-user back end at {self.path} breaks the protocol",
            why,
            "see that a vhost-user back end is at that socket; report it to who makes it",
        )

    def _late(self, why: str) -> DeviceTimeout:
        return DeviceTimeout(
            f"the vhost-user back end at {self.path} does not answer",
            why,
            "see whether the back end is stopped or busy",
        )

    def _refusal(self, request: Request) -> Error:
        return Error(
            f"the vhost-user back end at {self.path} refused {request.name}",
            "it says that it failed",
            "its own log says why",
        )


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
