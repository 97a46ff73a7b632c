"""Where the connection to a vhost-user back end comes from: we go to it, or it comes to us."""

from __future__ import annotations

import os
import socket
import stat
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from math import inf
from urllib.parse import parse_qsl

from ..errors import DeviceBusy, Error, NoPermission, NoSuchDevice

SERVER_WAIT = 30.0  # seconds for a back end that has yet to be started
RETRY_SECONDS = 0.05


class Meeting(ABC):
    """A socket path at which front end and back end meet, any number of times in turn."""

    def __init__(self, path: str, wait: float, reconnect: float = 0.0) -> None:
        self.path, self.wait = path, wait
        self.reconnect = reconnect  # seconds that a back end may be away

    @abstractmethod
    def link(self, seconds: float) -> socket.socket:
        """A connection, waited for that long. Raises NoSuchDevice if no back end is there."""

    def close(self) -> None:  # noqa: B027
        """Leave nothing behind."""

    def abandon(self) -> None:  # noqa: B027
        """In a forked child: what is at the path is the parent's."""


class Client(Meeting):
    """The back end listens at the path."""

    def link(self, seconds: float) -> socket.socket:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self._connect()
            except NoSuchDevice:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(RETRY_SECONDS)

    def _connect(self) -> socket.socket:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.setblocking(False)  # a listener that accepts nobody has a backlog, and it fills
        try:
            link.connect(self.path)
        except OSError as error:
            link.close()
            raise self._explain(error) from error
        return link

    def _explain(self, error: OSError) -> Error:
        what, why = f"cannot connect to the vhost-user socket {self.path}", _words(error)
        if isinstance(error, PermissionError):
            mend = f"give this user access: setfacl -m u:$USER:rw {self.path}"
            return NoPermission(what, why, mend)
        mode = stat.S_IFSOCK
        with suppress(OSError):  # it may go at any time
            mode = os.stat(self.path).st_mode
        if not stat.S_ISSOCK(mode):
            why = "it is a directory" if stat.S_ISDIR(mode) else "it is no socket"
            mend = "name the back end's socket: what testpmd has as iface= of its net_vhost"
            return NoSuchDevice(what, why, mend)
        vdev = f"dpdk-testpmd --vdev 'net_vhost0,iface={self.path}'"
        return NoSuchDevice(what, why, f"start the back end first, e.g. {vdev}")


class Server(Meeting):
    """We listen at the path, and the back end connects."""

    def __init__(self, path: str, wait: float, reconnect: float = 0.0) -> None:
        super().__init__(path, wait, reconnect)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._bind()
            self._listener.listen(1)
            self._inode = os.stat(path).st_ino
        except BaseException:
            self._listener.close()
            raise

    def link(self, seconds: float) -> socket.socket:
        self._listener.settimeout(seconds)
        try:
            return self._listener.accept()[0]
        except (TimeoutError, BlockingIOError) as error:
            vdev = f"dpdk-testpmd --vdev 'net_vhost0,iface={self.path},client=1'"
            raise NoSuchDevice(
                f"no vhost-user back end connected to {self.path}",
                f"waited for {seconds:g} s",
                f"start one, e.g. {vdev}, or wait longer: ?server=on&wait=60",
            ) from error

    def close(self) -> None:
        self._listener.close()
        with suppress(OSError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)

    def abandon(self) -> None:
        self._listener.close()

    def _bind(self) -> None:
        """Take the path; what a server that crashed has left there is replaced."""
        what = f"cannot listen at {self.path}"
        try:
            self._remove_stale()
            self._listener.bind(self.path)
        except PermissionError as error:
            folder = os.path.dirname(self.path) or "."
            raise NoPermission(what, _words(error), f"give this user access to {folder}") from error
        except OSError as error:
            mend = "use another path, in a directory that exists"
            raise NoSuchDevice(what, _words(error), mend) from error

    def _remove_stale(self) -> None:
        try:
            mode = os.stat(self.path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise OSError(0, "there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.path)
            except ConnectionRefusedError:
                os.unlink(self.path)
                return
            except BlockingIOError:
                pass
        raise DeviceBusy(
            f"cannot listen at {self.path}",
            "another server listens there",
            "end it, use another path, or connect to it: leave server=on out",
        )


def parse(address: str) -> Meeting:
    """`/path`, with `?server=on` for a back end that connects to us, `wait=SECONDS` for it, and
    `reconnect=on`, or so many seconds, for one that may go and come back."""
    path, _, query = address.partition("?")
    server, wait, reconnect = False, None, 0.0
    for key, text in parse_qsl(query, keep_blank_values=True):
        try:
            if key == "server":
                server = {"on": True, "off": False}[text]
            elif key == "wait":
                wait = _seconds(text)
            elif key == "reconnect":
                reconnect = {"on": inf, "off": 0.0}[text] if text[:1] == "o" else _seconds(text)
            else:
                raise KeyError(key)
        except (KeyError, ValueError) as error:
            raise NoSuchDevice(
                f"no vhost-user address {address!r}",
                f"option {key}={text} is not known or not possible",
                "vhost-user:/path, options ?server=on&wait=SECONDS&reconnect=on",
            ) from error
    if not path:
        what = f"no vhost-user address {address!r}"
        raise NoSuchDevice(what, "it has no path", "vhost-user:/path of a back end's socket")
    if wait is None:
        wait = SERVER_WAIT if server else 0.0
    return (Server if server else Client)(path, wait, reconnect)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 86400:
        raise ValueError(text)
    return value


def _words(error: OSError) -> str:
    return error.strerror or str(error)
