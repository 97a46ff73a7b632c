"""Runs the whole suite in stages, those side by side that leave each other alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

# The stages of each lane follow each other. Guests have processes and memory of their own, and
# keep one of two cores busy, as a minute of fuzzing does.
LANES = (("--guests", "--fuzz"), ("--here", "--sanitizers"))
WORD = 60.0  # seconds between words of what is under way: a silent quarter of an hour looks dead


@dataclass
class Stage:
    """One stage: `command`, and what it wrote, kept together until it is over."""

    command: Sequence[str]
    output: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    status: int | None = None
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.command[-1].lstrip("-")

    def start(self) -> None:
        self._began = time.monotonic()
        self._process = subprocess.Popen(self.command, stdout=self.output, stderr=subprocess.STDOUT)

    def over(self) -> bool:
        """Whether it has ended by now."""
        self.status = self._process.poll()
        self.seconds = time.monotonic() - self._began
        return self.status is not None

    def __str__(self) -> str:
        words = {0: "passed", None: "not run"}.get(self.status, f"FAILED ({self.status})")
        return f"{self.name:<12} {words:<12} {self.seconds:4.0f} s"


def run(lanes: Sequence[Sequence[Stage]], out: IO[bytes], word: float = WORD) -> int:
    """All stages, each one's output whole when it is over, then a line for each; 0 if all passed.

    Every `word` seconds a line says what is under way.

    A stage that fails keeps no other from running. Ctrl-C reaches the stages as it does this
    process: they end, and no other begins.
    """
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    running = [deque(lane) for lane in lanes]
    for lane in running:
        lane[0].start()
    due = time.monotonic() + word
    while running:
        time.sleep(0.1)
        if time.monotonic() >= due:
            due += word
            _say("; ".join(f"{lane[0].name} for {lane[0].seconds:.0f} s" for lane in running), out)
        for lane in [each for each in running if each[0].over()]:
            _show(lane.popleft(), out)
            if lane and not interrupts:
                lane[0].start()
            else:
                running.remove(lane)
    signal.signal(signal.SIGINT, before)
    stages = [stage for lane in lanes for stage in lane]
    out.write(("\n" + "".join(f"tools/test: {stage}\n" for stage in stages)).encode())
    out.flush()
    return 130 if interrupts else int(any(stage.status for stage in stages))


def _say(words: str, out: IO[bytes]) -> None:
    out.write(f"tools/test: {words}\n".encode())
    out.flush()


def _show(stage: Stage, out: IO[bytes]) -> None:
    stage.output.seek(0)
    out.write(f"\n===== {stage}\n".encode() + stage.output.read())
    out.flush()


def main(door: str) -> int:
    lanes = [[Stage((door, name)) for name in lane] for lane in LANES]
    names = " and ".join(" then ".join(stage.name for stage in lane) for lane in lanes)
    print(f"tools/test: {names}, side by side; each tells when it is over", flush=True)
    return run(lanes, sys.stdout.buffer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
