"""The host's end of the tap of tools/bench papers: sends what the guest asks for.

The guest asks by a frame: how large, and how many. No more are under way than the tap's queue
holds, so that none is lost there; what the device does not take yet waits.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ETHERTYPE = 0x88B5  # local experimental
ORDER = struct.Struct(">II")  # bytes of a frame, how many; behind the Ethernet header
FOR_EVER = 0xFFFFFFFF
SEGMENT = 1460  # bytes of payload in what is to become one frame of 1514 bytes
HEADERS = 54  # Ethernet, IPv4, TCP
UNDER_WAY = 400  # frames between here and the device; the tap's queue takes 500 or more
BATCH = 64  # frames between looks at what has been asked and taken
PAUSE = 1e-4
LAPSE = 60.0  # seconds, after which nobody can want the rest of an order
_VNET_HEADER = struct.Struct("<BBHHHH")  # 5.1.6, without num_buffers
_PACKET, _PACKET_VNET_HDR = 263, 15


def order(size: int, count: int = FOR_EVER) -> bytes:
    """The frame that asks for others; with size 0, for no more."""
    head = b"\xff" * 6 + b"\x02\0\0\0\0\1" + ETHERTYPE.to_bytes(2, "big")
    return (head + ORDER.pack(size, count)).ljust(60, b"\0")


def frame(size: int) -> bytes:
    """A virtio header and a TCP segment over IPv4; one to be cut up if it is over 1514 bytes."""
    cut = size > HEADERS + SEGMENT
    header = _VNET_HEADER.pack(1, 1, HEADERS, SEGMENT, 34, 16) if cut else bytes(10)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, size - 14, 0, 0, 64, 6, 0, b"\xc6\x33\x64\1" * 1,
                     b"\xc6\x33\x64\2")  # fmt: skip
    tcp = struct.pack(">HHIIBBHHH", 9, 9, 0, 0, 0x50, 0x10, 0xFFFF, 0, 0)
    return header + b"\xff" * 6 + b"\x02\0\0\0\0\2\x08\0" + ip + tcp + bytes(size - HEADERS)


class Peer:
    """Sends on `tap` as it is asked."""

    def __init__(self, tap: str) -> None:
        self._orders = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._orders.bind((tap, ETHERTYPE))
        self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._out.setsockopt(_PACKET, _PACKET_VNET_HDR, 1)
        self._out.bind((tap, 0))
        self._counters = Path(f"/sys/class/net/{tap}/statistics")
        self._sent, self._before = 0, self._through()
        self._frame, self._left, self._end = b"", 0, 0.0

    def serve(self) -> None:
        while True:
            self._hear()
            if time.monotonic() > self._end:
                self._left = 0
            room = UNDER_WAY - (self._sent - (self._through() - self._before))
            batch = min(BATCH, room, self._left)
            for _ in range(batch):
                self._out.send(self._frame)
            if batch > 0:
                self._sent += batch
                self._left -= batch
            else:
                time.sleep(PAUSE)

    def _hear(self) -> None:
        """The last order that came; waits for one while there is nothing to do."""
        try:
            heard = self._orders.recv(2048, 0 if not self._left else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        size, count = ORDER.unpack_from(heard, 14)
        self._frame, self._left = (frame(size), count) if size else (b"", 0)
        self._end = time.monotonic() + LAPSE

    def _through(self) -> int:
        """Frames that the device took, or that were dropped on the way to it."""
        return sum(
            int((self._counters / f"tx_{what}").read_text()) for what in ("packets", "dropped")
        )


def main(arguments: Sequence[str] | None = None) -> int:
    (tap,) = sys.argv[1:] if arguments is None else arguments
    peer = Peer(tap)
    print("ready", flush=True)
    peer.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
