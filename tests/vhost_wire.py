"""The vhost-user protocol as tests spell it: requests, feature bits, a message."""

from __future__ import annotations

import array
import socket
import struct
from dataclasses import dataclass, field

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL = 12, 13
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
GET_CONFIG, SET_STATUS, GET_STATUS = 24, 39, 40

MQ, REPLY_ACK, CONFIG, STATUS = 1 << 0, 1 << 3, 1 << 9, 1 << 16
EVERYTHING = MQ | REPLY_ACK | CONFIG | STATUS
PROTOCOL_FEATURES = 1 << 30
_HEADER = struct.Struct("<III")


@dataclass
class Message:
    """A message as it came."""

    request: int
    flags: int
    payload: bytes
    fds: list[int] = field(repr=False)  # open only while it is handled


def answer(request: int, payload: bytes, flags: int = 5) -> bytes:
    """Version 1 and the reply flag, unless told otherwise."""
    return _HEADER.pack(request, flags, len(payload)) + payload


def receive(link: socket.socket) -> Message | None:
    """The next message; None if the front end has hung up."""
    head, fds = b"", array.array("i")
    while len(head) < _HEADER.size:
        room = socket.CMSG_SPACE(16 * fds.itemsize)
        try:
            part, extra, _, _ = link.recvmsg(_HEADER.size - len(head), room)
        except ConnectionResetError:  # it left without reading what was sent
            return None
        for _, _, data in extra:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        if not part:
            return None
        head += part
    request, flags, size = _HEADER.unpack(head)
    payload = b""
    while len(payload) < size:
        payload += link.recv(size - len(payload))
    return Message(request, flags, payload, list(fds))
