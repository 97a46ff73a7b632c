"""Frames that are sent as they are, round and round: out of a file, or made beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from math import lcm

from .._burst import tx_stride
from ..errors import Error
from ..pcap import Reader
from ..spec import MIN_FRAME
from ._pktgen_frames import Template
from ._pktgen_options import MAX_VALUES, Mix, Vary, flows
from ._pktgen_sender import FRAMES_MEMORY, check_memory

PAYLOAD = 4  # bytes at least, see `_payload`
PLAIN_TYPE = 0x88B6  # IEEE 802's second one for local experiments: rx expects probes of the first


@dataclass(frozen=True)
class Plain:
    """Frames with headers, lengths and checksums as probes have them, and with nothing in them."""

    header: bytes
    varies: list[Vary]

    def check(self, mix: Mix) -> None:
        """Raises WrongUsage for sizes that headers do not leave room in."""
        Template(self.header).check(mix.sizes, PAYLOAD)

    def frames(self, mix: Mix) -> list[bytes]:
        """A round: the sizes of a mix in turn, and each header once at least, if there is room."""
        template = Template(self.header)
        self.check(mix)
        tables = template.tables(mix.sizes, self.varies)
        turns = zip(range(self._count(mix)), cycle(mix.sizes), strict=False)
        return [
            tables[size][i % len(tables[size])].tobytes() + _payload(size - template.at)
            for i, size in turns
        ]

    def _count(self, mix: Mix) -> int:
        """Frames until headers and sizes come round together, or of all headers if that is long."""
        headers, sizes = flows(self.varies), len(mix.sizes)
        count = lcm(headers, sizes)
        if count > MAX_VALUES:
            count = -(-headers // sizes) * sizes
        room = FRAMES_MEMORY // tx_stride(max(mix.sizes))
        return min(count, max(1, room // sizes) * sizes)

    def remarks(self, mix: Mix) -> list[str]:
        """What was to be sent, and is not."""
        count, headers = self._count(mix), flows(self.varies)
        if count >= headers:
            return []
        room = f"--plain keeps {FRAMES_MEMORY >> 20} MiB of frames"
        return [f"{mix.label} bytes: the first {count} of {headers} headers are sent: {room}"]


def _payload(length: int) -> bytes:
    """Zeros but for a word that makes its Internet sum a probe's, which checksums count with."""
    return bytes(2) + (0xFFFF - length).to_bytes(2, "big") + bytes(length - 4)


@dataclass(frozen=True)
class Recorded:
    """Frames of a capture that a port sends, and what became of the others.

    unfit      left out: too short or too long for the port
    cut        sent without the bytes that were not captured
    truncated  the file ends in the middle of a packet, or is damaged
    """

    contents: list[bytes]
    unfit: int
    cut: int
    truncated: bool

    def frames(self, _: Mix) -> list[bytes]:
        return self.contents

    def remarks(self, _: Mix) -> list[str]:
        """What was to be sent, and is not."""
        counts = {
            "of the file's frames not sent: too short or too long for the port": self.unfit,
            "of the file's frames sent without the bytes that were not captured": self.cut,
        }
        said = [f"{count} {what}" for what, count in counts.items() if count]
        ends = ["the file ends in the middle of a packet, or is damaged"]
        return said + ends if self.truncated else said


def recorded(path: str, longest: int) -> Recorded:
    """Raises Error for what cannot be read, or holds no frame that can be sent."""
    reader = Reader(path)
    contents: list[bytes] = []
    octets = unfit = cut = 0
    try:
        for packet in reader:
            if not MIN_FRAME <= len(packet.data) <= longest:
                unfit += 1
                continue
            octets += len(packet.data)
            check_memory(octets)
            cut += packet.length > len(packet.data)
            contents.append(packet.data)
    except OSError as error:
        raise Error(f"cannot read {path}", str(error.strerror or error), f"ls -l {path}") from None
    if not contents:
        why = f"of its {unfit} frames none has {MIN_FRAME} to {longest} bytes"
        raise Error(f"nothing of {path} can be sent", why, "choose another file")
    return Recorded(contents, unfit, cut, reader.truncated)
