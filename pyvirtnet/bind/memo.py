"""What a NIC was before it was bound, kept under /run; its loss does no harm."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .host import Host, failing


@dataclass(frozen=True)
class Memo:
    """The driver and the interfaces to go back to."""

    driver: str | None = None
    interfaces: list[str] = field(default_factory=list)


def recall(host: Host, bdf: str) -> Memo:
    """What `remember` wrote; an empty memo if /run was cleared or the file is damaged."""
    with suppress(OSError, ValueError, TypeError):
        return Memo(**json.loads(_path(host, bdf).read_text()))
    return Memo()


def remember(host: Host, bdf: str) -> None:
    driver = host.driver(bdf)
    if driver is None and recall(host, bdf).driver:
        return  # an earlier change stopped half-way: what it remembered is worth more
    path = _path(host, bdf)
    fresh = path.with_suffix(f".{os.getpid()}")
    with failing(f"remember the driver of {bdf}", "see that /run is writable"):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(asdict(Memo(driver, host.interfaces(bdf)))))
        fresh.replace(path)


def forget(host: Host, bdf: str) -> None:
    with failing(f"forget the driver of {bdf}", "see that /run is writable"):
        _path(host, bdf).unlink(missing_ok=True)


def who_had(host: Host, interface: str) -> str | None:
    """The bound NIC that `interface` was on."""
    for path in sorted(_path(host, "x").parent.glob("*.json")):
        if interface in recall(host, path.stem).interfaces:
            return path.stem
    return None


def _path(host: Host, bdf: str) -> Path:
    return host.run / "pyvirtnet/bind" / f"{bdf}.json"
