"""fuzz: random calls of the driver against devices that lie, in a build with sanitizers.

A step is one thing a device does: a used element, a move of an index, a scribble into memory.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ._command import Parser, program, run
from ._fuzz_worker import PROGRESS

GENERATION = 30.0  # seconds after which a new process goes on: one more interpreter's exit
WORKER = f"{__package__}._fuzz_worker"
HANG = 60.0  # seconds without a call's end
CLEAN, FOUND = 0, 1
EVERY = sys.maxsize


@dataclass
class Report:
    """What a run came to."""

    seed: int
    round: int = 0
    steps: int = 0
    calls: int = 0
    aside: int = 0
    rounds: int = 0
    seconds: float = 0.0
    resident: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    found: str | None = None

    @property
    def replay(self) -> str:
        return f"tools/fuzz --seed {self.seed} --round {self.round}"


class Watch:
    """A process that fuzzes, watched: how far it is, whether it crashes or hangs."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, PROGRESS.size)
        self._progress = mmap.mmap(self._fd, PROGRESS.size)

    def run(self, first: int, rounds: int, seconds: float, steps: int) -> None:
        """One generation; the report says what came of it."""
        numbers = {"seed": self.report.seed, "first": first, "rounds": rounds, "fd": self._fd}
        numbers["steps"] = steps
        command = [sys.executable, "-P", "-m", WORKER]
        command += [f"--{name}={number}" for name, number in numbers.items()]
        command.append(f"--seconds={seconds}")
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
            process = subprocess.Popen(command, stdout=out, stderr=log, pass_fds=[self._fd])
            try:
                hung = self._wait(process)
            finally:
                process.kill()
                process.wait()
                self._read()
            out.seek(0)
            log.seek(0)
            self._judge(process.returncode, hung, out.read(), log.read().decode(errors="replace"))

    def _wait(self, process: subprocess.Popen[bytes]) -> bool:
        """Until it ends; True if it hangs."""
        before, since = bytes(self._progress), time.monotonic()
        while True:
            try:
                process.wait(0.2)
                return False
            except subprocess.TimeoutExpired:
                now = bytes(self._progress)
                if now != before:
                    before, since = now, time.monotonic()
                elif time.monotonic() - since > HANG:
                    process.send_signal(signal.SIGABRT)  # its faulthandler says where it is
                    time.sleep(1)
                    return True

    def _read(self) -> None:
        report = self.report
        now = PROGRESS.unpack(self._progress)
        report.round, report.steps, report.calls, report.aside, report.rounds = now

    def _judge(self, status: int, hung: bool, out: bytes, log: str) -> None:
        try:
            result: dict[str, Any] = json.loads(out)
        except ValueError:
            result = {}
        self.report.errors += Counter(result.get("errors", {}))
        self.report.resident = result.get("resident", 0)
        if hung:
            self.report.found = f"it hung\n{log}"
        elif result.get("found"):
            self.report.found = f"{result['found']}{log}"
        elif status or log.strip() or not result:
            self.report.found = f"it ended with {status}\n{log}"


def fuzz(report: Report, seconds: float, steps: int, only: int | None, times: int) -> None:
    """Generations until something is found, or time or steps are over."""
    watch = Watch(report)
    began = time.monotonic()
    if only is not None:
        for _ in range(times):
            watch.run(only, 1, HANG, EVERY)
            if report.found:
                break
    else:
        number = 0
        while not report.found and report.steps < steps:
            left = seconds - (time.monotonic() - began)
            if left <= 0:
                break
            watch.run(number, EVERY - number, min(left, GENERATION), steps)
            number = report.round + 1
    report.seconds = time.monotonic() - began


def parser() -> Parser:
    made = Parser(prog=program("fuzz"), description=__doc__)
    made.add_argument("--seconds", type=float, help="how long; 60 if neither is given")
    made.add_argument("--steps", type=int, help="until devices have made so many steps")
    made.add_argument("--seed", type=int, help="what follows from it; random if not given")
    made.add_argument("--round", type=int, help="replay this round of the seed, and no other")
    made.add_argument(
        "--times", type=int, default=10, help="replays: threads make rounds differ (10)"
    )
    made.add_argument("--json", action="store_true", help="the report as JSON, on stdout")
    made.epilog = "exit status: 0 clean, 1 something was found, 2 wrong usage, 130 Ctrl-C"
    return made


def _say(report: Report) -> None:
    rate = report.steps / report.seconds if report.seconds else 0.0
    print(
        f"{report.rounds} rounds, {report.steps} device steps ({rate:.0f}/s, {report.aside} more "
        f"beside the driver), {report.calls} calls in {report.seconds:.0f} s; seed {report.seed}",
        f"errors raised, all of kinds that may be: {dict(report.errors.most_common())}",
        sep="\n",
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return run("fuzz", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    seed = secrets.randbits(32) if args.seed is None else args.seed
    report = Report(seed)
    seconds = args.seconds if args.seconds is not None else 1e9 if args.steps else 60.0
    try:
        fuzz(report, seconds, args.steps or EVERY, args.round, args.times)
    except KeyboardInterrupt:
        print(f"{program('fuzz')}: interrupted; seed {seed}", file=sys.stderr)
        raise
    if args.json:
        print(json.dumps({**vars(report), "replay": report.replay}), flush=True)
    else:
        _say(report)
    if report.found:
        print(report.found, file=sys.stderr)
        print(
            f"found: seed {seed}, round {report.round}, step {report.steps}\n"
            f"  replay: {report.replay}",
            file=sys.stderr,
        )
    return FOUND if report.found else CLEAN


if __name__ == "__main__":
    sys.exit(main())
