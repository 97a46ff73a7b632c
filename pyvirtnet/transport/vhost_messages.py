"""Messages of the vhost-user protocol, as a front end sends them over a Unix socket."""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Sequence
from enum import IntEnum

from ..dma import Region
from ..errors import DeviceGone, DeviceTimeout, Error, NoPermission, NoSuchDevice

ANSWER_SECONDS = 5.0
_HEADER = struct.Struct("<III")  # request, flags, size
_VERSION, _REPLY, _NEED_REPLY = 1, 1 << 2, 1 << 3
_NO_FD = 1 << 8  # in the payload of SET_VRING_KICK and the like
_MAX_PAYLOAD = 4096


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


class Protocol(IntEnum):
    """Protocol feature bits that this front end knows."""

    MQ = 0
    REPLY_ACK = 3
    CONFIG = 9
    STATUS = 16


class Connection:
    """A connected socket and the messages over it. Every answer is waited for, for a bound time.

    acknowledged  REPLY_ACK was agreed on: the back end confirms what it was told
    """

    def __init__(self, path: str) -> None:
        self.path, self.acknowledged = path, False
        self._socket = _connect(path)

    def close(self) -> None:
        self._socket.close()

    def tell(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send; with REPLY_ACK, wait until the back end says that it did it."""
        flags = _VERSION | (_NEED_REPLY if self.acknowledged else 0)
        self._send(request, flags, payload, fds)
        if self.acknowledged:
            (failed,) = struct.unpack("<Q", self._answer(request, 8))
            if failed:
                raise Error(f"the vhost-user back end at {self.path} refused {request.name}")

    def ask(self, request: Request, payload: bytes, size: int) -> bytes:
        self._send(request, _VERSION, payload)
        return self._answer(request, size)

    def tell_u64(self, request: Request, value: int) -> None:
        self.tell(request, struct.pack("<Q", value))

    def ask_u64(self, request: Request) -> int:
        value: int = struct.unpack("<Q", self.ask(request, b"", 8))[0]
        return value

    def tell_vring_state(self, request: Request, index: int, value: int) -> None:
        self.tell(request, struct.pack("<II", index, value))

    def ask_vring_state(self, request: Request, index: int) -> int:
        value: int = struct.unpack("<II", self.ask(request, struct.pack("<II", index, 0), 8))[1]
        return value

    def set_vring_addr(self, index: int, descriptors: int, used: int, available: int) -> None:
        payload = struct.pack("<IIQQQQ", index, 0, descriptors, used, available, 0)
        self.tell(Request.SET_VRING_ADDR, payload)

    def set_vring_fd(self, request: Request, index: int, fd: int) -> None:
        self.tell(request, struct.pack("<Q", index), [fd])

    def set_mem_table(self, regions: Sequence[Region]) -> None:
        """Guest physical addresses are IOVAs; user addresses are this process's."""
        rows = [struct.pack("<QQQQ", r.iova, r.size, r.address, 0) for r in regions]
        payload = struct.pack("<II", len(rows), 0) + b"".join(rows)
        self.tell(Request.SET_MEM_TABLE, payload, [region.fd for region in regions])

    def get_config(self, offset: int, length: int) -> bytes:
        head = struct.pack("<III", offset, length, 0)
        answer = self.ask(Request.GET_CONFIG, head + bytes(length), 12 + length)
        return answer[12:]

    def _send(self, request: Request, flags: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        data = _HEADER.pack(request, flags, len(payload)) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self._socket.sendmsg([data], rights)
            self._socket.sendall(data[sent:])
        except OSError as error:
            raise self._gone(request, error) from error

    def _answer(self, request: Request, size: int) -> bytes:
        kind, flags, length = _HEADER.unpack(self._read(request, _HEADER.size))
        if kind != request or not flags & _REPLY or length > _MAX_PAYLOAD:
            raise self._gone(request, f"it answered with message {kind} of {length} bytes")
        payload = self._read(request, length)
        if length != size:
            raise self._gone(request, f"it answered with {length} bytes instead of {size}")
        return payload

    def _read(self, request: Request, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = self._socket.recv(size - len(data))
            except TimeoutError as error:
                raise DeviceTimeout(
                    f"the vhost-user back end at {self.path} does not answer {request.name}",
                    f"nothing came for {ANSWER_SECONDS:g} s",
                    "see whether the back end is stopped or busy",
                ) from error
            except OSError as error:
                raise self._gone(request, error) from error
            if not part:
                raise self._gone(request, "it closed the connection")
            data += part
        return data

    def _gone(self, request: Request, why: object) -> DeviceGone:
        return DeviceGone(
            f"the vhost-user back end at {self.path} is gone (at {request.name})",
            str(why),
            "start the back end again, then open the port again",
        )


def _connect(path: str) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(ANSWER_SECONDS)
    try:
        link.connect(path)
    except OSError as error:
        link.close()
        what = f"cannot connect to the vhost-user socket {path}"
        if isinstance(error, PermissionError):
            mend = f"give this user access: setfacl -m u:$USER:rw {path}"
            raise NoPermission(what, str(error), mend) from error
        mend = f"start the back end first, e.g. dpdk-testpmd --vdev 'net_vhost0,iface={path}'"
        raise NoSuchDevice(what, error.strerror or str(error), mend) from error
    return link
