"""Capture files of Ethernet frames, pcap and pcapng: what tcpdump and Wireshark read and write."""

from __future__ import annotations

import gzip
import struct
import sys
import zlib
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from errno import EAGAIN
from io import RawIOBase
from os import PathLike
from typing import BinaryIO, NamedTuple, cast

from ._burst import RxBurst, TxBurst
from ._pcap import records
from .errors import Error

ETHERNET = 1  # the link type
SNAPLEN = 262144  # the most that programs ask for
SECOND = 10**9

_MICRO, _NANO, _SECTION = 0xA1B2C3D4, 0xA1B23C4D, 0x0A0D0D0A
_BYTE_ORDER = 0x1A2B3C4D
_INTERFACE, _OLD_PACKET, _SIMPLE, _STATISTICS, _ENHANCED = 1, 2, 3, 5, 6
_MOST = 1 << 24  # bytes of a block or record; what claims more is damaged


class Packet(NamedTuple):
    """A captured frame: nanoseconds since 1970, the bytes that were kept, and its length."""

    stamp: int
    data: bytes
    length: int


@dataclass
class _Interface:
    link: int
    snaplen: int
    tick: tuple[int, int] = (1000, 1)  # nanoseconds of a tick: a number divided by another
    offset: int = 0  # seconds


class Reader:
    """Iterates over the packets of a file, compressed by gzip or not: `for packet in Reader(path)`.

    As often as you like; "-" is the standard input, which can be read once.
    `truncated` is True once the file turned out to end in the middle of a packet, as one does whose
    writer was killed, or to be compressed with damage; what came before was read. Raises Error for
    a file that is no capture, is damaged, or holds other frames than Ethernet's, and OSError.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.name, self.truncated = str(path), False

    def __iter__(self) -> Iterator[Packet]:
        self.truncated = False
        mine = copy(self)  # with a place in the file of its own
        try:
            yield from mine._run()
        finally:
            self.truncated = mine.truncated

    def _run(self) -> Iterator[Packet]:
        self.truncated = False
        path = sys.stdin.fileno() if self.name == "-" else self.name
        with open(path, "rb", closefd=path == self.name) as file:
            self._file: BinaryIO = file
            if file.peek(2)[:2] == b"\x1f\x8b":
                self._file = cast(BinaryIO, gzip.GzipFile(fileobj=file))
            yield from self._packets()

    def _packets(self) -> Iterator[Packet]:
        self._interfaces: list[_Interface] = []
        start = self._read(4)
        for order in "<>":
            magic = struct.unpack(f"{order}I", start)[0] if len(start) == 4 else 0
            self._order = order
            if magic in (_MICRO, _NANO):
                yield from self._classic(1000 if magic == _MICRO else 1)
                return
            if magic == _SECTION:
                yield from self._blocks(start)
                return
        if self.truncated:
            raise self._damaged("what was compressed is cut short or damaged")
        raise self._damaged("it begins as neither pcap nor pcapng does")

    # pcap

    def _classic(self, tick: int) -> Iterator[Packet]:
        header = self._least(self._read(20), 20, "it ends in its header")
        self._check_link(struct.unpack(f"{self._order}I", header[16:])[0] & 0xFFFF)
        record = struct.Struct(f"{self._order}4I")
        while head := self._take(16, first=True):
            seconds, fraction, kept, length = record.unpack(head)
            self._check_size(kept, 0)
            if (data := self._take(kept)) is None:
                return
            yield Packet(seconds * SECOND + fraction * tick, data, length)

    # pcapng

    def _blocks(self, start: bytes) -> Iterator[Packet]:
        while start:
            kind = struct.unpack(f"{self._order}I", start)[0]
            body = self._section() if kind == _SECTION else self._body()
            if body is None:
                return
            if kind == _INTERFACE:
                self._interfaces.append(self._interface(body))
            elif packet := self._packet(kind, body):
                yield packet
            start = self._take(4, first=True) or b""

    def _section(self) -> bytes | None:
        """A section header: the byte order of what follows, and its interfaces, are its own."""
        head = self._take(8)
        if not head:
            return None
        for order in "<>":
            if struct.unpack(f"{order}I", head[4:])[0] == _BYTE_ORDER:
                self._order, self._interfaces = order, []
                return self._rest(struct.unpack(f"{order}I", head[:4])[0] - 12)
        raise self._damaged("a section has no byte order")

    def _body(self) -> bytes | None:
        head = self._take(4)
        return self._rest(struct.unpack(f"{self._order}I", head)[0] - 8) if head else None

    def _rest(self, size: int) -> bytes | None:
        """The body of a block, without the length that is repeated behind it."""
        self._check_size(size, 4)
        body = self._take(size)
        return body[:-4] if body else None

    def _interface(self, body: bytes) -> _Interface:
        found = _Interface(*struct.unpack_from(f"{self._order}HxxI", self._least(body, 8)))
        for code, value in self._options(body[8:]):
            if code == 9 and value:  # if_tsresol
                power = value[0] & 0x7F
                divisor = 2**power if value[0] & 0x80 else 10**power
                found.tick = SECOND, divisor
            elif code == 14 and len(value) == 8:  # if_tsoffset
                (found.offset,) = struct.unpack(f"{self._order}q", value)
        return found

    def _options(self, rest: bytes) -> Iterator[tuple[int, bytes]]:
        at = 0
        while at + 4 <= len(rest):
            code, size = struct.unpack_from(f"{self._order}HH", rest, at)
            if code == 0:
                return
            yield code, rest[at + 4 : at + 4 + size]
            at += 4 + (size + 3 & ~3)

    def _packet(self, kind: int, body: bytes) -> Packet | None:
        if kind == _SIMPLE:
            (length,) = struct.unpack_from(f"{self._order}I", self._least(body, 4))
            interface = self._interface_of(0)
            kept = min(length, interface.snaplen or length)
            return Packet(0, self._least(body, 4 + kept)[4 : 4 + kept], length)
        if kind == _ENHANCED:
            layout = "5I"
        elif kind == _OLD_PACKET:
            layout = "Hxx4I"
        else:
            return None
        fields = struct.unpack_from(self._order + layout, self._least(body, 20))
        number, high, low, kept, length = fields
        interface = self._interface_of(number)
        stamp = (high << 32 | low) * interface.tick[0] // interface.tick[1]
        data = self._least(body, 20 + kept)[20 : 20 + kept]
        return Packet(stamp + interface.offset * SECOND, data, length)

    def _interface_of(self, number: int) -> _Interface:
        if number >= len(self._interfaces):
            raise self._damaged(f"a packet is of interface {number}, which was not described")
        self._check_link(self._interfaces[number].link)
        return self._interfaces[number]

    # what both need

    def _take(self, size: int, first: bool = False) -> bytes | None:
        """The next bytes; None where the file ends: it may in front of a packet's `first`."""
        data = self._read(size)
        if len(data) == size:
            return data
        self.truncated |= data != b"" or not first
        return None

    def _read(self, size: int) -> bytes:
        """The next bytes, fewer where the file ends, none where what was compressed is damaged."""
        try:
            return self._file.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self.truncated = True
            return b""

    def _least(self, body: bytes, size: int, why: str = "a block is too short") -> bytes:
        if len(body) < size:
            raise self._damaged(why)
        return body

    def _check_size(self, size: int, least: int) -> None:
        if not least <= size <= _MOST:
            raise self._damaged(f"a packet claims {size} bytes")

    def _check_link(self, link: int) -> None:
        if link != ETHERNET:
            why = f"its link type is {link}, and a port carries Ethernet, {ETHERNET}"
            raise Error(f"cannot read {self.name}", why, "capture on an Ethernet interface")

    def _damaged(self, why: str) -> Error:
        return Error(f"cannot read {self.name}", why, "see what `file` or `capinfos` says of it")


class Writer:
    """Writes bursts to a file opened in binary: pcap, or pcapng with `ng`; stamps in nanoseconds.

    `snaplen` bytes of a frame are kept; `interface` is the name that pcapng gives its source.
    `octets` is what was written. The file stays the caller's, who closes it.
    """

    def __init__(
        self, file: BinaryIO, *, ng: bool = False, snaplen: int = SNAPLEN, interface: str = ""
    ) -> None:
        if not 1 <= snaplen <= SNAPLEN:
            raise ValueError(f"snaplen is 1 to {SNAPLEN} bytes, not {snaplen}")
        self._file, self._ng, self._snaplen = file, ng, snaplen
        self.octets = 0
        if not ng:
            self._put(struct.pack("=IHHiIII", _NANO, 2, 4, 0, 0, snaplen, ETHERNET))
            return
        self._put(_block(_SECTION, struct.pack("=IHHq", _BYTE_ORDER, 1, 0, -1)))
        body = struct.pack("=HHI", ETHERNET, 0, snaplen)
        options = _option(2, interface.encode()) + _option(9, b"\x09") + _option(0, b"")
        self._put(_block(_INTERFACE, body + options))

    def write(self, burst: RxBurst | TxBurst, stamp: int) -> None:
        """All frames of `burst`, with the time `stamp`, nanoseconds since 1970."""
        self._put(records(burst, stamp, self._snaplen, ng=self._ng))

    def finish(self, stamp: int, received: int, dropped: int) -> None:
        """What the interface counted, which pcapng has a block for: the last thing written."""
        if self._ng:
            body = struct.pack("=III", 0, stamp >> 32, stamp & 0xFFFFFFFF)
            counts = _option(4, struct.pack("=Q", received)) + _option(
                5, struct.pack("=Q", dropped)
            )
            self._put(_block(_STATISTICS, body + counts + _option(0, b"")))

    def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # a file without a buffer writes as much as it likes
            done = self._file.write(rest)
            if not isinstance(self._file, RawIOBase):  # it takes all, whatever it says
                done = len(rest)
            elif not done:
                raise BlockingIOError(EAGAIN, "a capture is written to a file that may wait")
            self.octets += done
            rest = rest[done:]


def _option(code: int, value: bytes) -> bytes:
    padded = value + bytes(-len(value) % 4)
    return struct.pack("=HH", code, len(value)) + padded if value or not code else b""


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("=I", 12 + len(body))
    return struct.pack("=I", kind) + size + body + size
