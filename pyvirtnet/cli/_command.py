"""What commands share: exit statuses, a parser that answers in one line, types of arguments."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

from .. import errors

OK, FAILED, USAGE, ENVIRONMENT, INTERRUPTED = 0, 1, 2, 3, 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE  # `| head` has seen enough
EPILOG = (
    "exit status: 0 all well, 1 it ran and failed (frames lost, doubled or damaged; refused), "
    "2 wrong usage, 3 this machine or its NIC lacks something (the text says what mends it), "
    "130 Ctrl-C, 143 SIGTERM"
)
_LACKING = (
    errors.DeviceBusy,
    errors.FeatureMissing,
    errors.GroupNotViable,
    errors.LibraryMissing,
    errors.MemlockLimit,
    errors.NoIommu,
    errors.NoPermission,
    errors.NoSuchDevice,
    errors.NotBound,
    errors.NotVirtioNet,
    errors.OutOfMemory,
)


class WrongUsage(errors.Error):
    """Arguments that are each well-formed, and don't make sense together."""


def program(name: str) -> str:
    """What the user called the command: `pyvirtnet pktgen`, or by its door, `tools/pktgen`."""
    return os.environ.get("PYVIRTNET_DOOR", "pyvirtnet ") + name


class Parser(argparse.ArgumentParser):
    """Takes whole option names only, and answers a wrong one in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"epilog": EPILOG, **options}, allow_abbrev=False)
        open_streams()

    def exit(self, status: int = OK, message: str | None = None) -> NoReturn:
        """Help that could not be written is no success."""
        super().exit(delivered(self.prog, status), message)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (--help tells more)\n")


def status_of(error: errors.Error) -> int:
    """The exit status that an error means."""
    if isinstance(error, WrongUsage):
        return USAGE
    return ENVIRONMENT if isinstance(error, _LACKING) else FAILED


def text(error: errors.Error) -> str:
    """What an error says, with commands named as the user calls them."""
    return errors.named(str(error), program(""))


def run(name: str, work: Callable[[], int]) -> int:
    """The exit status of a command that ends in a number, an error, Ctrl-C or a full disk."""
    open_streams()
    try:
        status = work()
    except errors.Error as error:
        print(f"{program(name)}: {text(error)}", file=sys.stderr)
        status = status_of(error)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        status = UNREAD
    except OSError:
        status = delivered(program(name), OK)
        if status == OK:  # it was not stdout's
            raise
        return status
    return delivered(program(name), status)


def open_streams() -> None:
    """What is said to a stream that was closed, or in letters that it has not, is no error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif (
            isinstance(stream, io.TextIOWrapper) and not stream.closed and stream.errors == "strict"
        ):
            stream.reconfigure(errors="replace")


def first_line(error: errors.Error) -> str:
    """What an error says, without what mends it."""
    return str(error).partition("\n")[0]


def delivered(who: str, status: int) -> int:
    """`status`, or what it means that stdout does not take all that was written to it."""
    try:
        print(end="", flush=True)
        return status
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return UNREAD
        print(f"{who.strip()}: cannot write its output: {error.strerror}", file=sys.stderr)
        return FAILED


def watchable() -> AbstractContextManager[object]:
    """Lets `pyvirtnet top` watch while it lasts; without a place for that, nothing is said."""
    from ..publishing import publish  # which needs numpy, and not every command does

    try:
        return publish()
    except errors.Error:
        return nullcontext()


def number(low: int, high: int) -> Callable[[str], int]:
    """A type of arguments: whole numbers within bounds."""

    def convert(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return convert


def seconds(text: str) -> float:
    """A type of arguments: a time."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def mac(text: str) -> bytes:
    """A type of arguments: a MAC address."""
    parts = text.split(":")
    try:
        if len(parts) == 6 and all(len(part) == 2 for part in parts):
            return bytes.fromhex("".join(parts))
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a MAC address such as 02:00:00:00:00:02")
