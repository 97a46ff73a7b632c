"""A vhost-user back end over the device model, in a thread: for tests of the front end."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from vhost_endpoint import Endpoint
from vhost_wire import EVERYTHING, Message, answer, receive

from pyvirtnet.testing import Loopback, NetDevice, mask
from pyvirtnet.testing.cable import Wire

FEATURES = mask("version_1", "mrg_rxbuf", "mac", "status")


class BackEnd(Endpoint):
    """Serves front ends, one after another, until it is killed.

    device    the model behind it
    protocol  protocol features it offers; None: it knows nothing of them
    hooks     request: called with the message before it is handled; what it returns, unless it is
              None, is sent instead of handling it. b"" sends nothing
    log       every message that came
    client    connect to the path instead of listening there
    """

    def __init__(
        self,
        path: str,
        device: NetDevice | None = None,
        *,
        protocol: int | None = EVERYTHING,
        hooks: dict[int, Callable[[Message], bytes | None]] | None = None,
        client: bool = False,
    ) -> None:
        super().__init__(device or Loopback(features=FEATURES), protocol)
        self.path, self.hooks = path, hooks or {}
        self.log: list[Message] = []
        self.error: BaseException | None = None
        self.alive = True
        self._link: socket.socket | None = None
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._listener = None if client else self._listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """End as a process does: sockets close, memory is let go of."""
        self.alive = False
        os.eventfd_write(self._stop, 1)
        with self._no_more_frames():
            self._thread.join(60)
        assert not self._thread.is_alive(), "the back end hangs"
        os.close(self._stop)
        if self._listener:
            self._listener.close()
            with suppress(FileNotFoundError):
                os.unlink(self.path)

    @contextmanager
    def _no_more_frames(self) -> Iterator[None]:
        """A kick ends, though the driver's thread sends faster than frames are carried."""
        wires: list[Wire] = getattr(self.device, "wires", [])
        limits = [wire.limit for wire in wires]
        for wire in wires:
            wire.limit = 0
        yield
        for wire, limit in zip(wires, limits, strict=True):
            wire.limit = limit

    def requests(self) -> list[int]:
        return [message.request for message in self.log]

    # The thread

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen()
        return listener

    def _run(self) -> None:
        try:
            while self._meet():
                self._serve()
        except BaseException as error:
            self.error = error
        finally:
            self._hang_up()

    def _meet(self) -> bool:
        """Wait for a front end; False if told to stop."""
        while self._listener is None:
            if select.select([self._stop], [], [], 0.01)[0]:
                return False
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            if link.connect_ex(self.path) == 0:
                self._link = link
                return True
            link.close()
        ready = select.select([self._listener, self._stop], [], [])[0]
        if self._stop in ready:
            return False
        self._link = self._listener.accept()[0]
        return True

    def _serve(self) -> None:
        while self._link is not None:
            kicks = {ring.kick: index for index, ring in self.rings.items() if ring.enabled}
            ready = select.select([self._link, self._stop, *kicks], [], [])[0]
            if self._stop in ready:
                self._hang_up()
                os.eventfd_write(self._stop, 1)  # for _meet, too
                return
            if self._link in ready:
                self._message()
                continue
            for fd in ready:
                with suppress(BlockingIOError):
                    os.eventfd_read(fd)
                if self.device.live:
                    self.device.kick(kicks[fd])

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        self.let_go()

    def _message(self) -> None:
        assert self._link is not None
        message = receive(self._link)
        if message is None:
            self._hang_up()
            return
        self.log.append(message)
        try:
            instead = self.hooks.get(message.request, lambda _: None)(message)
            if self._link is None:
                return
            if instead is not None:
                self._send(instead)
                return
            reply = self.handle(message)
            if reply is not None:
                self._send(answer(message.request, reply))
            elif message.flags & 8:
                self._send(answer(message.request, bytes(8)))
        finally:
            for fd in message.fds:
                os.close(fd)
            message.fds = []

    def _send(self, data: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            assert self._link is not None
            self._link.sendall(data)

    def close_link(self, message: Message | None = None) -> bytes:
        """A hook: hang up instead of handling the message."""
        self._hang_up()
        return b""

    def say(self, data: bytes, fds: list[int] | None = None) -> None:
        """Send what nobody asked for."""
        assert self._link is not None
        socket.send_fds(self._link, [data], fds or [])
