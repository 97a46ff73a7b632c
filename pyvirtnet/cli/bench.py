"""bench: measures the driver, beside DPDK, the kernel's sockets, and itself."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ._bench_report import page, progress, warn_if_busy, watched
from ._command import OK, Parser, program, run
from ._vm_image import project

JUDGES = ("vs-dpdk", "core", "queues", "latency", "sweep", "vm", "papers")
RUNS = {  # of `all`: the name of the result, and how it comes about
    "vs-dpdk": ["vs-dpdk"],
    "vs-dpdk-packed": ["vs-dpdk", "--packed"],
    "core": ["core", "--callgrind"],
    "core-packed": ["core", "--callgrind", "--packed"],
    "queues": ["queues"],
    "latency": ["latency"],
    "sweep": ["sweep"],
    "vm": ["vm"],
    "papers": ["papers"],
}
_EPILOG = (
    "exit status: 0 measured, 1 an error or unequal work, 2 wrong usage, "
    "3 this machine lacks something, 130 Ctrl-C, 143 SIGTERM"
)
_ALL = "every judge with its defaults; results go to docs/benchmarks/"


def _judge(name: str) -> ModuleType:
    return import_module(f"{__package__}._bench_{name.replace('-', '_')}")


def parser() -> Parser:
    made = Parser(prog=program("bench"), description=__doc__, epilog=_EPILOG)
    names = "|".join((*JUDGES, "all"))
    commands = made.add_subparsers(dest="command", required=True, metavar=names)
    for name in JUDGES:
        judge = _judge(name)
        command = commands.add_parser(
            name, help=judge.HELP, description=judge.__doc__, epilog=_EPILOG
        )
        judge.add_arguments(command)
        command.add_argument("--json", action="store_true", help="the result as JSON, on stdout")
    every = commands.add_parser("all", help=_ALL, description=_ALL, epilog=_EPILOG)
    every.add_argument("--out", type=Path, metavar="DIR", help="instead of docs/benchmarks/")
    every.add_argument(
        "--only", action="append", choices=list(RUNS), help="this one; may be repeated"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    return run("bench", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    warn_if_busy()
    if options.command == "all":
        _all(options.out or project() / "docs/benchmarks", options.only or list(RUNS))
        return OK
    judge = _judge(options.command)
    result = watched(lambda: judge.run(options))
    print(json.dumps(result) if options.json else "\n".join(judge.lines(result)))
    return OK


def _all(folder: Path, names: Sequence[str]) -> None:
    """Each judge's result into FOLDER/NAME.json; then the page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        words = [*RUNS[name], *(["--out", str(folder)] if name in ("sweep", "papers") else [])]
        progress(f"tools/bench {' '.join(words)}")
        judge, given = _judge(words[0]), parser().parse_args(words)
        result = watched(lambda judge=judge, given=given: judge.run(given))  # type: ignore[misc]
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    write_page(folder)
    progress(f"written: {folder}/README.md")


def write_page(folder: Path) -> None:
    """Every result that is in the folder, for people."""
    found: dict[str, Any] = {}
    for name, words in RUNS.items():
        if (folder / f"{name}.json").exists():
            result = json.loads((folder / f"{name}.json").read_text())
            judge = _judge(words[0])
            found[name] = (judge.__doc__, result["machine"], judge.lines(result))
    (folder / "README.md").write_text(page(found))


if __name__ == "__main__":
    sys.exit(main())
