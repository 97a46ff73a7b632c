"""The command `pyvirtnet`: finds the module of a subcommand, and lets it run."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import pyvirtnet

from ..errors import LibraryMissing
from ._command import EPILOG, OK, USAGE, open_streams, run


@dataclass(frozen=True)
class Command:
    """A subcommand: `main` of this module is called with these words before the user's."""

    module: str
    about: str
    words: tuple[str, ...] = ()

    def load(self) -> ModuleType:
        """Ctrl-C ends the import, a second long in a small machine, without a traceback.

        Raises LibraryMissing where it cannot be imported.
        """
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        try:
            return import_module(f"{__package__}.{self.module}")
        except ModuleNotFoundError as error:
            raise _lacking(str(error.name)) from None
        finally:
            signal.signal(signal.SIGINT, before)


COMMANDS = {
    "bind": Command("bind", "hand NICs to vfio-pci"),
    "restore": Command("bind", "give NICs back to the kernel", ("restore",)),
    "status": Command("bind", "list the NICs: who has them, what uses them", ("status",)),
    "doctor": Command("doctor", "what this machine lacks, and what mends it"),
    "pktgen": Command("pktgen", "send, receive and verify frames"),
    "rfc2544": Command("rfc2544", "throughput, latency, loss and bursts through a device"),
    "fwd": Command("fwd", "forward frames, changed or not; answer ARP and pings"),
    "capture": Command("capture", "write what arrives to a file, pcap or pcapng"),
    "replay": Command("replay", "send the frames of a capture"),
    "top": Command("top", "ports of running processes: rates, drops, ring fill"),
    "completion": Command("completion", "completion for bash, zsh or fish"),
    "bench": Command("bench", "measure the driver (in a clone of the project)"),
    "soak": Command("soak", "numbered frames round and round, and what became of them"),
    "fuzz": Command("fuzz", "drive the driver against devices that misbehave"),
    "vm": Command("vm", "run a command in a guest (in a clone of the project)"),
    "demo": Command("demo", "frames from one card to another, in a guest (in a clone)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    open_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    match words[:1]:
        case []:
            print(_usage(), file=sys.stderr)
            return USAGE
        case ["-h" | "--help" | "help"]:
            return run("", lambda: _say(_help()))
        case ["--version"]:
            return run("", lambda: _say(f"pyvirtnet {pyvirtnet.__version__}"))
        case [name] if name not in COMMANDS:
            print(f"pyvirtnet: {_unknown(name)} (--help lists the commands)", file=sys.stderr)
            return USAGE
    command = COMMANDS[words[0]]
    return run(words[0], lambda: command.load().main([*command.words, *words[1:]]))


def _lacking(module: str) -> LibraryMissing:
    what, mend = f"cannot import {module}", f"{sys.executable} -m pip install {module}"
    if module.partition(".")[0] != "pyvirtnet":
        return LibraryMissing(what, "it is not installed", mend)
    why = "this folder has the source of pyvirtnet, unbuilt"
    return LibraryMissing(
        what, why, "go to another folder; or take what is in the folder tools, which builds it"
    )


def _say(text: str) -> int:
    print(text)
    return OK


def _usage() -> str:
    return "usage: pyvirtnet COMMAND …, pyvirtnet COMMAND --help, or --help | --version"


def _help() -> str:
    width = max(map(len, COMMANDS))
    table = [f"  {name:{width}}  {command.about}" for name, command in COMMANDS.items()]
    return "\n".join([_usage(), "", "A virtio-net driver's tools.", "", *table, "", EPILOG])


def _unknown(name: str) -> str:
    if name.startswith("-"):
        return f"no option {name!r}"
    (near,) = difflib.get_close_matches(name, COMMANDS, 1) or [""]
    return f"no command {name!r}" + (f", did you mean {near!r}?" if near else "")


if __name__ == "__main__":
    sys.exit(main())
