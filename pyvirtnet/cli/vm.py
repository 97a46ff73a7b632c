"""vm: builds the guest image; runs a command in a guest with virtio-net NICs and an IOMMU."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ..errors import Error
from ._command import OK, Parser, program, run
from ._vm_guest import Guest, Sink
from ._vm_image import DEFAULT, image, say
from ._vm_link import TapNamespace, address
from ._vm_machine import Machine, bdf, mac
from ._vm_package import payload

_RUN = """\
CMD runs as root in /root of a Debian guest, with the package installed, this clone read-only at
/mnt/project and the folder of --share at /mnt/share. Its output streams through; its exit status
is this command's. 124: CMD took too long, or the guest died. 125: it could not be started.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)  # what follows is CMD's, untouched
    made = parser()
    options, strange = made.parse_known_args(given[:cut])
    options.command = given[cut + 1 :]
    if strange and strange[0].startswith("-"):
        made.error(f"unrecognized arguments: {' '.join(strange)}")
    if strange or (options.action == "run" and not options.command):
        command = shlex.join(strange) or "CMD…"
        made.error(f"no command: {made.prog} run [OPTIONS] -- {command}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    return run("vm", lambda: _do(options))


def _do(options: argparse.Namespace) -> int:
    try:
        if options.action == "build":
            folder = image(options.image).disk.parent
            say(f"the image is in {folder}")
            if options.json:
                print(json.dumps({"image": options.image, "folder": str(folder)}))
            return OK
        return _run(options)
    except Error as error:
        say(str(error))
        return 125
    except KeyboardInterrupt:
        say("interrupted")
        raise


def parser() -> Parser:
    made = Parser(prog=program("vm"), description=__doc__, epilog=None)
    actions = made.add_subparsers(dest="action", required=True, metavar="build|run")
    build = actions.add_parser(
        "build", help="build the guest image, if it is not in the cache", epilog=None
    )
    start = actions.add_parser(
        "run",
        help="run a command in a guest",
        description=_RUN,
        epilog=None,
        usage=f"{program('vm')} run [OPTIONS] -- CMD…",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for action in (build, start):
        about = "which guest: a folder of vm-images/"
        action.add_argument("--image", default=DEFAULT, metavar="NAME", help=about)
    build.add_argument("--json", action="store_true", help="where it is, as JSON")
    add = start.add_argument
    about = "CMD's status and output as JSON, at its end, instead of its streams"
    add("--json", action="store_true", help=about)
    add("--ports", type=int, default=2, metavar="N", help="NICs, at 0000:00:04.0 and up")
    add("--link", choices=["hub", "tap", "dgram"], default="hub", help="what they are cabled to")
    add("--iommu", choices=["intel", "virtio", "none"], default="intel", help="the virtual IOMMU")
    about = "QEMU's options for every NIC, as a=b,c=d; or for one after the other, as a=b|c=d"
    add("--port-opts", default="", metavar="STR", help=about)
    add("--queues", type=int, default=1, metavar="N", help="queue pairs of every NIC (tap only)")
    add("--accel", choices=["auto", "kvm", "tcg"], default="auto", help="KVM or emulation")
    add("--share", type=Path, metavar="DIR", help="a folder for /mnt/share, read and write")
    add("--timeout", type=float, default=600, metavar="S", help="seconds that CMD may take")
    add("--memory", type=int, default=1536, metavar="MIB", help="the guest's memory")
    add("--cpus", type=int, default=2, metavar="N", help="the guest's processors")
    hotplug = "NICs that can be unplugged, at 0000:01:00.0, 0000:02:00.0 and so on"
    add("--hotplug", action="store_true", help=hotplug)
    return made


def _run(options: argparse.Namespace) -> int:
    share: Path | None = options.share
    if share is not None and not share.is_dir():
        raise Error(f"cannot share {share}", "it is not a folder", f"mkdir -p {share}")
    machine = Machine(
        options.ports,
        options.link,
        options.iommu,
        options.port_opts,
        options.queues,
        options.accel,
        options.memory,
        options.cpus,
        options.hotplug,
    )
    system = image(options.image)
    package = payload(system)
    kept = bytearray(), bytearray()
    with ExitStack() as stack:
        prefix: list[str] = []
        if machine.link == "tap":
            namespace = stack.enter_context(TapNamespace(machine.ports, machine.queues))
            prefix = namespace.prefix
            say(f"network namespace {namespace.name}")
        guest = stack.enter_context(
            Guest(
                system,
                package,
                machine,
                options.command,
                stdout=kept[0].extend if options.json else _to(sys.stdout.fileno()),
                stderr=kept[1].extend if options.json else _to(sys.stderr.fileno()),
                timeout=options.timeout,
                share=share and share.resolve(),
                prefix=prefix,
            )
        )
        _describe(machine, guest.folder)
        while guest.status is None:
            guest.pump()
        if guest.failure:
            say(guest.failure)
        if options.json:
            out, err = (part.decode(errors="replace") for part in kept)
            result = {"status": guest.status, "stdout": out, "stderr": err}
            print(json.dumps(result | {"failure": guest.failure or None}))
        return guest.status


def _to(fd: int) -> Sink:
    def write(data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(fd, left) :]
        except BrokenPipeError:  # nobody reads it any more
            raise
        except OSError as error:
            why = str(error.strerror)
            raise Error("cannot write the guest's output", why, "make room") from None

    return write


def _describe(machine: Machine, folder: Path) -> None:
    for port in range(machine.ports):
        peer = {
            "hub": f"hub {port // 2}",
            "tap": f"tap{port} {address(port)}",
            "dgram": f"{folder}/port{port}.host (send to port{port}.guest)",
        }[machine.link]
        say(f"port {port}: {bdf(port, machine.hotplug)} {mac(port)} on {peer}")


if __name__ == "__main__":
    sys.exit(main())
