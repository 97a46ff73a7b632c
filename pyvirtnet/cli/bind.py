"""bind: shows NICs, binds them to vfio-pci, gives them back to the kernel."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from ..bind import IOMMU_MEND, VFIO_PCI, Host, Nic, Owner, bind, restore, status
from ..errors import Error
from ._command import OK, Parser, program, run, text

_COMMANDS = ("status", "bind", "restore")
_HEADINGS = ("BDF", "ID", "DRIVER", "INTERFACE", "LINK", "GROUP", "NODE", "OWNER", "STATE")


def parser() -> Parser:
    made = Parser(prog=program("bind"), description=__doc__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    show = commands.add_parser("status", help="list the NICs, who has them and what uses them")
    take = commands.add_parser("bind", help="bind NICs to vfio-pci (the default: bind BDF…)")
    give = commands.add_parser("restore", help="give NICs back to the drivers they came from")
    for command in (take, give):
        command.add_argument(
            "nics",
            nargs="+",
            metavar="BDF",
            help="0000:00:04.0, 00:04.0 or the name of a network interface",
        )
        command.add_argument("--dry-run", action="store_true", help="print the steps, do nothing")
    for command in (show, take, give):
        command.add_argument("--json", action="store_true", help="the same as one JSON object")
    take.add_argument("--user", help="who shall own /dev/vfio/N, by name or number")
    take.add_argument("--group", help="the group that may open it too, by name or number")
    take.add_argument("--force", action="store_true", help="take it even if the kernel uses it")
    about = "bind it at each boot, too, by a rule of udev's; restore ends that"
    take.add_argument("--persist", action="store_true", help=about)
    about = "take it without an IOMMU: nothing then protects this machine's memory from it"
    take.add_argument("--noiommu", action="store_true", help=about)
    return made


def main(argv: Sequence[str] | None = None, host: Host | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] not in (*_COMMANDS, "-h", "--help"):
        words.insert(0, "bind")
    args = parser().parse_args(words)
    return run("bind", lambda: _do(args, host or Host()))


def _do(args: argparse.Namespace, host: Host) -> int:
    if args.command == "status":
        _status(host, args.json)
        return OK
    lines: list[str] = []
    say = lines.append if args.json else _say
    try:
        if args.command == "bind":
            owner = Owner(args.user, args.group)
            switches = {word: getattr(args, word) for word in ("force", "noiommu", "dry_run")}
            switches["at_boot"] = args.persist
            bind(args.nics, owner=owner, **switches, host=host, say=say)
        else:
            restore(args.nics, dry_run=args.dry_run, host=host, say=say)
    except Error as error:
        if args.json:
            print(json.dumps({"ok": False, "said": lines, "error": text(error)}))
        raise
    if args.json:
        print(json.dumps({"ok": True, "said": lines}))
    return OK


def _say(line: str) -> None:
    print(line, flush=True)


def _status(host: Host, as_json: bool) -> None:
    nics = status(host)
    if as_json:
        found = [{**asdict(nic), "ready": nic.ready} for nic in nics]
        iommu = {"iommu": host.has_iommu(), "noiommu": host.noiommu()}
        print(json.dumps({**iommu, "nics": found}, indent=2))
        return
    if not host.has_iommu():
        print(_without_iommu(host))
    if not nics:
        print("no NIC on the PCI bus")
        return
    rows = [_HEADINGS, *(_row(nic) for nic in nics)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row in rows:
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    for nic in nics:
        for line in _details(nic):
            print(f"{nic.bdf}: {line}")


def _without_iommu(host: Host) -> str:
    if host.noiommu():
        return "no IOMMU; VFIO's unsafe no-IOMMU mode is on: devices can write to any memory"
    return f"no IOMMU here, VFIO cannot open any NIC\n  mend: {IOMMU_MEND}"


def _row(nic: Nic) -> tuple[str, ...]:
    return (
        nic.bdf,
        f"{nic.vendor:04x}:{nic.device:04x}",
        nic.driver or "-",
        ",".join(one.name for one in nic.interfaces) or "-",
        ",".join(_link(one.up, one.link) for one in nic.interfaces) or "-",
        nic.group or "-",
        nic.node or "-",
        f"{nic.owner} {nic.mode}" if nic.node else "-",
        _state(nic),
    )


def _link(up: bool, link: bool) -> str:
    return ("up" if link else "no-carrier") if up else "down"


def _state(nic: Nic) -> str:
    if nic.ready:
        return "ready to open" if nic.iommu else "ready: noiommu"
    if nic.uses:
        return "in use"
    return "not ready" if nic.driver == VFIO_PCI else "idle"


def _details(nic: Nic) -> list[str]:
    lines = [nic.name] if nic.name else []
    lines += ["bound to vfio-pci at each boot"] if nic.at_boot else []
    lines += [f"in use: {use}" for use in nic.uses]
    for one in nic.members:
        what = "a bridge, harmless" if one.bridge else one.driver or "no driver"
        lines.append(f"shares IOMMU group {nic.group} with {one.bdf} ({what})")
    if nic.driver == VFIO_PCI:
        lines += [f"not ready: {obstacle}" for obstacle in nic.obstacles]
    return lines


if __name__ == "__main__":
    sys.exit(main())
