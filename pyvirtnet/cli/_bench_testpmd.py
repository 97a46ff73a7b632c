"""DPDK's testpmd under our control: as the device of a vhost-user port, or as another driver."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import Error, NoPermission, NoSuchDevice, OutOfMemory

PROMPT = "testpmd> "
MEMORY_MIB = 128  # of each testpmd
HUGE_PAGES = 160  # of 2 MiB: two of them, and our own DMA memory
MBUFS = 8192
SEED_BURST = 32  # frames of one `start tx_first` burst
PATIENCE = 30.0  # seconds, for a start or an answer on a busy machine
_HUGE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_COUNTER = re.compile(r"\b([RT][xX]-(?:packets|bytes|pps)|RX-missed|TX-errors): +(\d+)")


@contextmanager
def huge_pages(needed: int = HUGE_PAGES, *, dpdk: bool = True) -> Iterator[None]:
    """At least `needed` free huge pages of 2 MiB; what had to be added goes afterwards."""
    if dpdk:  # whom they are for
        _program()
    with _alone():
        yield from _added(needed)


def refill(needed: int) -> bool:
    """More of them, within `huge_pages()`, where other processes have taken some. Are there?"""
    if (taken := needed - _read("free_hugepages")) > 0:
        _reserve(_read("nr_hugepages") + taken)
    return _read("free_hugepages") >= needed


def _program() -> str:
    program = shutil.which("dpdk-testpmd")
    if program is None:
        raise NoSuchDevice(
            "cannot run dpdk-testpmd", "it is not installed", "apt-get install dpdk-dev"
        )
    return program


@contextmanager
def _alone() -> Iterator[None]:
    """Two at once would take each other's pages, and their figures would say nothing."""
    _read("nr_hugepages")  # there is such a file
    with open(_HUGE / "nr_hugepages") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("bench: waiting for the end of another one", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _added(needed: int) -> Iterator[None]:
    total, free = (_read(name) for name in ("nr_hugepages", "free_hugepages"))
    missing = max(0, needed - free)
    mend = f"as root: echo {total + missing} > {_HUGE}/nr_hugepages"
    if not missing:
        yield
        return
    print(f"bench: reserving {missing} huge pages of 2 MiB", file=sys.stderr)
    try:
        _reserve(total + missing)
    except OSError as error:
        raise NoPermission("cannot reserve huge pages for DPDK", str(error), mend) from error
    try:
        if not refill(needed):
            why = f"{_read('free_hugepages')} of {needed} pages of 2 MiB are to be had"
            raise OutOfMemory("no huge pages for DPDK", why, f"free memory, then {mend}")
        yield
    finally:
        _reserve(total)


def _read(name: str) -> int:
    try:
        return int((_HUGE / name).read_text())
    except FileNotFoundError:
        raise OutOfMemory(
            "no huge pages for DPDK", "this kernel has none of 2 MiB", "use a kernel with HUGETLBFS"
        ) from None


def _reserve(pages: int) -> None:
    (_HUGE / "nr_hugepages").write_text(str(pages))


def cores() -> tuple[int, int]:
    """The driver's core and the device's: the first two that this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise Error(
            "cannot measure", "driver and device need a core each", "give this process two cores"
        )
    return allowed[0], allowed[1]


@dataclass(frozen=True)
class Counters:
    """What `show port stats` says; the rates are testpmd's own, since it was last asked."""

    rx: int
    tx: int
    rx_bytes: int
    tx_bytes: int
    rx_pps: int
    tx_pps: int


class Testpmd:
    """A dpdk-testpmd that forwards on one core and is commanded through its prompt."""

    def __init__(
        self,
        core: int,
        main_core: int,
        devices: Sequence[str],
        options: Sequence[str] = (),
        *,
        huge: bool = True,
    ) -> None:
        """`devices` are EAL's options for what it drives, `options` those of testpmd itself.

        Without huge pages it is slower, needs no privileges, and can only be the device.
        """
        program = _program()
        pages = ["--in-memory", "--single-file-segments"] if huge else ["--no-huge", "--no-shconf"]
        # neither leaves files behind; pdeathsig: it must not outlive this process
        # stdbuf: answers must come before the prompt that ends them
        command = ["setpriv", "--pdeathsig", "KILL", "stdbuf", "-oL", program]
        command += ["-v", "--no-telemetry", *pages, *devices]
        command += ["--log-level=lib.vhost.config:warning"]
        command += ["--main-lcore", str(main_core), "-l", f"{core},{main_core}"]
        command += ["-m", str(MEMORY_MIB)]
        command += ["--", "-i", "--nb-cores=1", f"--total-num-mbufs={MBUFS}", *options]
        self._text = ""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C is for this process, which ends it
        )
        try:
            assert self._process.stdout is not None
            self._out = self._process.stdout.fileno()
            os.set_blocking(self._out, False)
            banner = self._wait("")
        except BaseException:
            self.close()
            raise
        found = re.search(r"RTE Version: '([^']+)'", banner)
        self.version = found.group(1) if found else "unknown"

    # ---- the prompt

    def command(self, line: str) -> str:
        """What testpmd answers."""
        self.ask(line)
        return self._wait(line)

    def ask(self, line: str) -> None:
        """Give a command; `answer()` or `wait_answer()` has what comes of it."""
        assert self._process.stdin is not None
        self._asked, self._text = line, ""
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._read_some()
            raise self._gone() from None

    def answer(self) -> str | None:
        """The answer to what was asked, None as long as it is not complete. Never blocks."""
        return self._parse(self._asked) if self._read_some() else None

    def wait_answer(self) -> str:
        return self._wait(self._asked)

    def _wait(self, line: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while (found := self._parse(line)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Error(f"dpdk-testpmd does not answer {line!r}", self._text[-500:])
            select.select([self._out], [], [], left)
            self._read_some()
        return found

    def _read_some(self) -> bool:
        """True if something new was there."""
        try:
            data = os.read(self._out, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            raise self._gone()
        self._text += data.decode(errors="replace").replace("\r", "")
        return True

    def _parse(self, line: str) -> str | None:
        """testpmd echoes a command, then answers, then shows its prompt."""
        echo = self._text.find(line + "\n") if line else 0
        end = self._text.find(PROMPT, echo + len(line)) if echo >= 0 else -1
        return self._text[echo + len(line) : end] if end >= 0 else None

    def _gone(self) -> Error:
        status = self._process.wait()
        lines = "\n".join(self._text.splitlines()[-8:])
        return Error("dpdk-testpmd has ended", f"status {status}:\n{lines}", "see what it says")

    # ---- its counters

    def stats(self, port: int = 0) -> Counters:
        return parse_stats(self.command(show(port)))

    # ---- its end

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


def show(port: int) -> str:
    return f"show port stats {port}"


def parse_stats(text: str) -> Counters:
    found = {name.lower(): int(value) for name, value in _COUNTER.findall(text)}
    return Counters(
        found["rx-packets"],
        found["tx-packets"],
        found["rx-bytes"],
        found["tx-bytes"],
        found["rx-pps"],
        found["tx-pps"],
    )


def backend(folder: Path, ports: int, options: Sequence[str] = ()) -> Testpmd:
    """The device: a net_vhost port for each socket `folder`/N."""
    driver_core, device_core = cores()
    vdevs = [f"--vdev=net_vhost{port},iface={folder / str(port)},queues=1" for port in range(ports)]
    return Testpmd(device_core, driver_core, ["--no-pci", *vdevs], options)


def peer(socket: Path, ring_size: int, packed: bool, burst: int) -> Testpmd:
    """DPDK's own driver, virtio-user, at a device's socket."""
    driver_core, device_core = cores()
    vdev = f"--vdev=net_virtio_user0,path={socket},queues=1,queue_size={ring_size}"
    vdev += ",packed_vq=1" if packed else ""
    return Testpmd(driver_core, device_core, ["--no-pci", vdev], [f"--burst={burst}"])
