"""tools/bench: measures the driver, beside DPDK, the kernel's sockets, and itself."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from ..errors import Error

FAILED = 1
JUDGES = ("vs-dpdk",)
_EPILOG = "exit status: 0 measured, 1 an error or unequal work, 2 wrong usage, 130 Ctrl-C"


def _judge(name: str) -> ModuleType:
    return import_module(f"{__package__}._bench_{name.replace('-', '_')}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench", description=__doc__, epilog=_EPILOG, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(JUDGES))
    for name in JUDGES:
        judge = _judge(name)
        command = commands.add_parser(
            name, help=judge.HELP, description=judge.__doc__, allow_abbrev=False
        )
        judge.add_arguments(command)
        command.add_argument("--json", action="store_true", help="the result as JSON, on stdout")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    judge = _judge(options.command)
    try:
        result = judge.run(options)
    except Error as error:
        print(f"tools/bench: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(json.dumps(result) if options.json else "\n".join(judge.lines(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
