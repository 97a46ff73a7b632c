"""demo: frames of every interesting size from one vfio-pci NIC to another, in a guest."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from ..errors import Error
from ._command import FAILED, OK, Parser, program, run
from ._vm_guest import Guest
from ._vm_image import image
from ._vm_machine import Machine, bdf
from ._vm_package import payload

SIZES = (60, 128, 129, 1514, 4084, 4085, 9014, 65535)
SECONDS = 2.0  # of traffic, for each size
TIMEOUT = 300.0

_KEYS = ("size", "sent", "received", "lost", "corrupt", "pps", "gbps", "buffers_per_frame")
_BOUND = "demo: both NICs are bound"  # the guest says so between tools/bind and tools/pktgen
_STAGES = (
    "guest image, and the package for it",
    "guest: QEMU, a virtual IOMMU, two virtio NICs on one cable",
    "tools/bind: both NICs go from virtio-pci to vfio-pci",
    "tools/pktgen: every frame is numbered, and verified on arrival",
)


class Progress:
    """Says which stage runs, and how long each one took."""

    def __init__(self) -> None:
        self.number = 0
        self._began = time.monotonic()

    def start(self, number: int) -> None:
        self.end()
        self.number, self._began = number, time.monotonic()
        _say(f"[{number}/{len(_STAGES)}] {_STAGES[number - 1]} …")

    def end(self) -> None:
        if self.number:
            took = time.monotonic() - self._began
            _say(f"[{self.number}/{len(_STAGES)}] done ({took:.1f} s)")


class Output:
    """The guest's output: figures on its stdout; tools/bind's lines and the table on stderr."""

    def __init__(self, progress: Progress, table: TextIO) -> None:
        self._progress, self._table = progress, table
        self._figures, self._line = b"", b""

    def stdout(self, data: bytes) -> None:
        self._figures += data

    def stderr(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._show(line.decode(errors="replace"))

    def rows(self) -> list[dict[str, Any]] | None:
        """What tools/pktgen found; None if it did not come to its end."""
        try:
            rows = json.loads(self._figures.splitlines()[-1])["rows"]
            return [{key: row[key] for key in _KEYS} for row in rows]
        except (IndexError, KeyError, ValueError):
            sys.stderr.write(self._figures.decode(errors="replace"))
            return None

    def _show(self, line: str) -> None:
        if line == _BOUND:
            self._progress.start(4)
        elif self._progress.number < 4:
            _say(f"      {line}")
        else:
            print(line, file=self._table, flush=True)


def demonstrate(seconds: float, table: TextIO) -> list[dict[str, Any]]:
    """The demo; its rows. The table's lines go to `table` as they come."""
    progress = Progress()
    progress.start(1)
    system = image()
    package = payload(system)
    progress.start(2)
    output = Output(progress, table)
    with Guest(
        system,
        package,
        Machine(),
        ["sh", "-c", _script(seconds)],
        stdout=output.stdout,
        stderr=output.stderr,
        timeout=TIMEOUT,
    ) as guest:
        _pump(guest, lambda: guest.booted_after is not None)
        if guest.booted_after is not None and progress.number == 2:
            progress.start(3)
        _pump(guest, lambda: False)
        return _outcome(guest, output, progress)


def _pump(guest: Guest, done: Callable[[], bool]) -> None:
    while guest.status is None and not done():
        guest.pump()


def _outcome(guest: Guest, output: Output, progress: Progress) -> list[dict[str, Any]]:
    rows = output.rows()
    if rows is None or guest.failure:
        why = guest.failure or f"its command ended with {guest.status}; its output is above"
        raise Error(f"stage {progress.number} of {len(_STAGES)} failed", why)
    progress.end()
    return rows


def _script(seconds: float) -> str:
    nics = [bdf(0), bdf(1)]
    bind = shlex.join(["/mnt/project/tools/bind", *nics])
    loop = ["/mnt/project/tools/pktgen", "loop", *nics, "--time", f"{seconds:g}", "--json"]
    loop += ["--size", ",".join(map(str, SIZES))]
    return f"{bind} >&2 && echo {shlex.quote(_BOUND)} >&2 && exec {shlex.join(loop)}"


def whole(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether frames of every size went, and all of them arrived as they were sent."""
    return [row["size"] for row in rows] == list(SIZES) and all(
        row["sent"] == row["received"] > 0 == row["lost"] == row["corrupt"] for row in rows
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: the guest goes with it."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parser() -> Parser:
    made = Parser(prog=program("demo"), description=__doc__)
    made.add_argument("--json", action="store_true", help="the rows as JSON, on the last line")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return run("demo", lambda: _run(args.json))


def _run(as_json: bool) -> int:
    try:
        with _terminated():
            rows = demonstrate(SECONDS, sys.stderr if as_json else sys.stdout)
    except KeyboardInterrupt:
        _say("interrupted")
        raise
    if as_json:
        print(json.dumps({"rows": rows}), flush=True)
    if whole(rows):
        _say(f"all {sum(row['sent'] for row in rows)} frames arrived, none lost, none damaged")
        return OK
    _say("frames were lost or damaged")
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
