"""One end of the guest's cable, with one of the tools compared: sends frames, or counts them.

`send TOOL NIC SIZE SECONDS` and `receive TOOL NIC SIZE SECONDS` print what they did as JSON; a
receiver prints "ready" first, and ends when nothing more comes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import pyvirtnet

ETHERTYPE = 0x88B5  # local experimental
BURST = 64
QUIET = 1.0  # seconds without a frame, after which no more come
FIRST = 60.0  # seconds to wait for the first: the sender's tool takes its time to start


class Meter:
    """Frames counted, and the rate from the first arrival to the last."""

    def __init__(self) -> None:
        self.frames = self._first = 0
        self._start = self._last = self._begin = time.perf_counter()

    def add(self, frames: int) -> None:
        self._last = time.perf_counter()
        if not self.frames:
            self._first, self._begin = frames, self._last
        self.frames += frames

    def over(self) -> bool:
        now = time.perf_counter()
        return now - self._last > QUIET if self.frames else now - self._start > FIRST

    def result(self) -> dict[str, float]:
        taken = self._last - self._begin
        rate = (self.frames - self._first) / taken if taken > 0 else 0.0
        return {"frames": self.frames, "pps": rate}


def _ready() -> None:
    print("ready", flush=True)


def _frame(size: int) -> bytes:
    return b"\xff" * 6 + b"\x02\0\0\0\0\1" + ETHERTYPE.to_bytes(2, "big") + bytes(size - 14)


def _repeat(send: Callable[[], int], seconds: float) -> dict[str, float]:
    frames, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        frames += send()
    return {"frames": frames}


# ---- pyvirtnet


def send_pyvirtnet(nic: str, size: int, seconds: float) -> dict[str, float]:
    with pyvirtnet.open(nic) as port:
        tx = port.alloc_burst(BURST, size)
        for row in tx.data:
            row[:] = bytearray(_frame(size))
        result = _repeat(lambda: port.send_burst(tx), seconds)
        deadline = time.monotonic() + QUIET
        while port.tx_pending and time.monotonic() < deadline:
            port.reclaim()
    return result


def receive_pyvirtnet(nic: str, size: int, _: float) -> dict[str, float]:
    meter = Meter()
    with pyvirtnet.open(nic) as port:
        _ready()
        while not meter.over():
            if frames := len(port.recv_burst(BURST)):
                meter.add(frames)
        assert port.stats.rx_bytes == meter.frames * size, "frames of another size came"
    return meter.result()


# ---- AF_PACKET


def _packet_socket(nic: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # deaf until it is bound
    end.bind((nic, ETHERTYPE))
    return end


def send_af_packet(nic: str, size: int, seconds: float) -> dict[str, float]:
    frame = _frame(size)
    with _packet_socket(nic) as end:

        def send() -> int:
            for _ in range(BURST):
                end.send(frame)
            return BURST

        return _repeat(send, seconds)


def receive_af_packet(nic: str, size: int, _: float) -> dict[str, float]:
    meter, buffer = Meter(), bytearray(1 << 16)
    with _packet_socket(nic) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        end.setblocking(False)
        _ready()
        while not meter.over():
            frames = 0
            with suppress(BlockingIOError):
                for _ in range(BURST):
                    frames += end.recv_into(buffer) == size
            if frames:
                meter.add(frames)
    return meter.result()


# ---- scapy


def send_scapy(nic: str, size: int, seconds: float) -> dict[str, float]:
    scapy = import_module("scapy.all")
    frame = scapy.Ether(_frame(size))

    def send() -> int:
        scapy.sendp(frame, iface=nic, count=BURST, verbose=False)
        return BURST

    return _repeat(send, seconds)


def receive_scapy(nic: str, size: int, _: float) -> dict[str, float]:
    scapy, meter = import_module("scapy.all"), Meter()

    def count(frame: Any) -> None:
        if frame.type == ETHERTYPE and len(frame) == size:
            meter.add(1)

    sniffer = scapy.AsyncSniffer(iface=nic, prn=count, store=False, started_callback=_ready)
    sniffer.start()
    while not meter.over():
        time.sleep(QUIET / 10)
    sniffer.stop()
    return meter.result()


# ---- pcapy-ng


def send_pcapy(nic: str, size: int, seconds: float) -> dict[str, float]:
    frame = _frame(size)
    end = import_module("pcapy").open_live(nic, 1 << 16, 0, 10)

    def send() -> int:
        for _ in range(BURST):
            end.sendpacket(frame)
        return BURST

    return _repeat(send, seconds)


def receive_pcapy(nic: str, size: int, _: float) -> dict[str, float]:
    meter, frames = Meter(), 0
    end = import_module("pcapy").open_live(nic, 1 << 16, 1, 10)
    end.setnonblock(1)  # else it sleeps on a silent cable, whatever its time-out
    end.setfilter(f"ether proto {ETHERTYPE}")

    def count(_header: object, data: bytes) -> None:
        nonlocal frames
        frames += len(data) == size

    _ready()
    while not meter.over():
        frames = 0
        end.dispatch(BURST, count)
        if frames:
            meter.add(frames)
    return meter.result()


def main(arguments: Sequence[str] | None = None) -> int:
    role, tool, nic, size, seconds = sys.argv[1:] if arguments is None else arguments
    os.sched_setaffinity(0, {1 if role == "send" else 0})
    result = globals()[f"{role}_{tool}"](nic, int(size), float(seconds))
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
