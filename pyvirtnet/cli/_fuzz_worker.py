"""The process that fuzzes: rounds one after another, until one fails or the time is over."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import mmap
import os
import resource
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..control import control, events
from ..port import open as open_port
from ._fuzz_round import Finding, InChild, Round

PROGRESS = struct.Struct("<5Q")  # round, steps, calls, accomplices' steps, rounds that ended
SLACK = 64 << 20  # bytes by which memory may grow after the first third of the rounds
FOUND = 1


class Progress:
    """What the watching process sees of this one, even when it crashes."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, PROGRESS.size)
        self.round, self.steps, self.calls, self.aside, self.ended = PROGRESS.unpack(self._memory)
        self._pid = os.getpid()

    def note(self, steps: int, calls: int) -> None:
        self.steps += steps
        self.calls += calls
        self.show()

    def show(self) -> None:
        if os.getpid() == self._pid:  # not a forked child
            now = (self.round, self.steps, self.calls, self.aside, self.ended)
            PROGRESS.pack_into(self._memory, 0, *now)


class Worker:
    """Rounds from `first` on, each `times` times."""

    def __init__(self, seed: int, progress: Progress) -> None:
        self.seed, self.progress = seed, progress
        self.errors: Counter[str] = Counter()
        self._sizes: list[int] = []

    def run(self, first: int, rounds: int, seconds: float, steps: int) -> str | None:
        """The traceback of what was found, if anything was."""
        until = time.monotonic() + seconds
        progress = self.progress
        for number in range(first, first + rounds):
            if time.monotonic() >= until or progress.steps >= steps:
                break
            progress.round = number
            try:
                self.play(number)
            except Exception:
                return traceback.format_exc()
            progress.ended += 1
            progress.show()
        return None

    def play(self, number: int) -> None:
        files = open_files()
        one = Round(self.seed, number, self.progress.note)
        one.play()
        self.errors += one.errors
        self.progress.aside += one.aside
        if (now := open_files()) != files:
            raise Finding(f"{files} files were open before the round, {now} after it")
        self._sizes.append(resident())
        first = self._sizes[: len(self._sizes) // 3]
        if len(first) > 20 and self._sizes[-1] > max(first) + SLACK:
            raise Finding(f"memory grows: {self._sizes[::20]} bytes, every 20 rounds")


def open_files() -> int:
    """Files that are open, but for those of DMA memory."""
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    names = [os.readlink(link) for link in links if os.path.lexists(link)]
    return sum(not name.startswith("/memfd:pyvirtnet") for name in names)


def resident() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


held: list[Any] = []  # what is alive when the interpreter ends


def hold() -> None:
    """Ports open, frames on their way, bursts and views in use: the interpreter ends so."""
    port = open_port("sim:loopback")
    port.send_burst([bytes(60), bytes(5000)])
    burst = port.recv_burst(8)
    tx = port.alloc_burst(4, 100)
    port.send_burst(tx)
    port.send_burst(burst)
    held.extend((port, burst[1:], burst.heads, *burst[1].frags, tx.data, iter(burst), port.queues))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    for name, kind in (("seed", int), ("first", int), ("rounds", int), ("fd", int), ("steps", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args(argv)
    faulthandler.enable()
    gc.freeze()  # modules are no garbage: collections look at the rounds' own objects
    vars(control)["ANSWER_SECONDS"] = 0.01  # devices that don't answer are many
    vars(events)["ANNOUNCE_SECONDS"] = 0.01
    worker = Worker(args.seed, Progress(args.fd))
    try:
        found = worker.run(args.first, args.rounds, args.seconds, args.steps)
    except InChild:
        hold()
        return 0
    hold()
    print(json.dumps({"errors": worker.errors, "found": found, "resident": resident()}), flush=True)
    return FOUND if found else 0


if __name__ == "__main__":
    sys.exit(main())
