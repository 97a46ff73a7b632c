"""top: the ports of running processes: rates, drops, how full their rings are."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from ..errors import Error
from ..publishing import folder
from ._command import FAILED, OK, Parser, number, program, run, seconds

ANSWER_SECONDS = 1.0  # for a process to say what it publishes

Snapshot = dict[str, Any]
_HEADINGS = ("PID", "PROGRAM", "PORT", "Q", "RX PPS", "RX GB/S", "TX PPS", "TX GB/S",
             "DROPS", "FULL/S", "TX RING", "RX RING", "PAGES")  # fmt: skip
_DROPS = ("rx_runts", "rx_bad_headers", "rx_lost", "tx_lost")
_TEXT = 3  # columns that are no numbers
_NOBODY = (
    "no process publishes ports: pyvirtnet's commands do while they run, a program of your own "
    "with pyvirtnet.publish()"
)


def parser() -> Parser:
    made = Parser(prog=program("top"), description=__doc__)
    add = made.add_argument
    add("pids", nargs="*", type=int, metavar="PID", help="these processes alone, until they end")
    add("--interval", type=seconds, default=1.0, metavar="S", help="between two looks (1)")
    add("--count", type=number(1, 10**9), metavar="N", help="end after N looks")
    add("--json", action="store_true", help="an object a look, one a line")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return run("top", lambda: _watch(args.pids, args.interval, args.count, args.json))


def _watch(pids: Sequence[int], interval: float, looks: int | None, as_json: bool) -> int:
    before, quiet = look(pids), False
    if pids and not before and not any(map(_alive, pids)):
        raise Error(
            "nothing to look at",
            f"there is no process {' or '.join(map(str, pids))}",
            "tools/top shows every process that publishes ports",
        )
    for number_of_look in count(1):
        time.sleep(interval)
        now = look(pids)
        if pids and not now and not any(map(_alive, pids)):
            return OK  # they have ended
        rows = [row for one in now.values() for row in figures(one, before.get(one["pid"]))]
        if as_json:
            print(json.dumps({"queues": rows}), flush=True)
        elif rows or not quiet or sys.stdout.isatty():
            _show(rows)
        quiet = not rows
        if number_of_look == looks:
            break
        before = now
    return OK if rows else FAILED


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def look(pids: Sequence[int] = ()) -> dict[int, Snapshot]:
    """What every process says that publishes; files of those that are gone are cleared away."""
    found = {}
    for path in sorted(folder().glob("*.sock")):
        if pids and path.stem not in map(str, pids):
            continue
        with suppress(OSError, ValueError):
            if told := _ask(path):
                found[int(told["pid"])] = told
    return found


def _ask(path: Path) -> Snapshot | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        asker.settimeout(ANSWER_SECONDS)
        try:
            asker.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return None
        told: Snapshot = json.loads(asker.makefile("rb").readline())
        return told


def figures(now: Snapshot, before: Snapshot | None) -> Iterator[dict[str, Any]]:
    """A row for each queue pair; rates since `before`, or None where it was not there yet."""
    past = {port["name"]: port["queues"] for port in (before or {"ports": []})["ports"]}
    passed = now["time"] - before["time"] if before else 0.0
    for port in now["ports"]:
        for index, queue in enumerate(port["queues"]):
            earlier = past.get(port["name"], [])[index : index + 1]
            yield {
                "pid": now["pid"],
                "program": now["program"],
                "port": port["name"],
                "queue": index,
                **_rates(queue, earlier[0] if earlier and passed > 0 else None, passed),
                "drops": sum(queue.get(name, 0) for name in _DROPS),
                "tx_ring_percent": round(100 * queue["tx_pending"] / queue["tx_ring"], 1),
                "rx_ring_percent": round(100 * queue["rx_posted"] / queue["rx_ring"], 1),
                "free_pages": port["free_pages"],
                "counters": queue,
            }


def _rates(
    queue: dict[str, int], earlier: dict[str, int] | None, passed: float
) -> dict[str, float | None]:
    names = {"rx_pps": "rx_frames", "rx_gbps": "rx_bytes", "tx_pps": "tx_frames",
             "tx_gbps": "tx_bytes", "tx_full_per_second": "tx_full"}  # fmt: skip
    if earlier is None:
        return dict.fromkeys(names)
    scale = {"rx_gbps": 8e-9, "tx_gbps": 8e-9}
    return {
        name: round((queue[counter] - earlier[counter]) * scale.get(name, 1.0) / passed, 6)
        for name, counter in names.items()
    }


def _show(rows: list[dict[str, Any]]) -> None:
    if sys.stdout.isatty():
        print("\x1b[H\x1b[J", end="")
    if not rows:
        print(_NOBODY, flush=True)
        return
    cells = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADINGS))]
    for row in cells:
        texts = (
            text.ljust(width) if column in range(1, _TEXT) else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(texts).rstrip())
    sys.stdout.flush()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def rate(name: str, form: str) -> str:
        return "-" if row[name] is None else format(row[name], form)

    return (
        str(row["pid"]),
        row["program"][:24],
        row["port"],
        str(row["queue"]),
        rate("rx_pps", ".0f"),
        rate("rx_gbps", ".3f"),
        rate("tx_pps", ".0f"),
        rate("tx_gbps", ".3f"),
        str(row["drops"]),
        rate("tx_full_per_second", ".0f"),
        f"{row['tx_ring_percent']:.0f} %",
        f"{row['rx_ring_percent']:.0f} %",
        str(row["free_pages"]),
    )


if __name__ == "__main__":
    sys.exit(main())
