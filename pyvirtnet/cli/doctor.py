"""doctor: what this machine and its NICs have, what they lack, and the command that mends it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from ..bind import Host
from ..errors import named
from ._command import ENVIRONMENT, OK, Parser, program, run
from ._doctor_machine import Finding, machine
from ._doctor_nics import nics, opened


def parser() -> Parser:
    made = Parser(
        prog=program("doctor"),
        description=__doc__,
        epilog="exit status: 0 nothing is missing, 3 something is, 2 wrong usage",
    )
    made.add_argument("nics", nargs="*", metavar="NIC", help="these NICs alone (all virtio NICs)")
    made.add_argument("--open", action="store_true", help="open each NIC that is ready, too")
    made.add_argument("--json", action="store_true", help="the findings as one JSON object")
    return made


def main(argv: Sequence[str] | None = None, host: Host | None = None) -> int:
    args = parser().parse_args(argv)
    return run("doctor", lambda: _examine(host or Host(), args.nics, args.open, args.json))


def _examine(host: Host, only: Sequence[str], try_them: bool, as_json: bool) -> int:
    found: list[Finding] = []

    def tell(one: Finding) -> None:
        mend = named(one.mend, program(""))
        found.append(Finding(one.subject, one.state, named(one.said, program("")), mend))
        if not as_json:
            _print(found[-1])

    for one in machine(host):
        tell(one)
    for one in nics(host, only):
        tell(one)
    if try_them:
        for name in [one.subject for one in found if one.said.startswith("ready: ")]:
            for one in opened(name):
                tell(one)
    missing = [one for one in found if one.state == "missing"]
    if as_json:
        print(json.dumps({"ok": not missing, "findings": [asdict(one) for one in found]}))
    else:
        print(f"missing: {len(missing)}" if missing else "nothing is missing")
    return ENVIRONMENT if missing else OK


def _print(one: Finding) -> None:
    print(f"{one.state:8} {one.subject:12}  {one.said}", flush=True)
    if one.mend:
        print(f"{'':8} {'':12}  mend: {one.mend}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
