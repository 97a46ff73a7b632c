"""A binding that outlasts a reboot: a udev rule for each NIC, which restoring removes."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from ..errors import BindFailed
from .host import VFIO_PCI, Host, Until, exists, failing
from .steps import Owner

_HEAD = "# Made by `pyvirtnet bind {bdf} --persist`; `pyvirtnet restore {bdf}` removes it.\n"
# At boot udev is told of every function: by then another driver may have this one.
_TAKE = (
    'ACTION=="add", SUBSYSTEM=="pci", KERNEL=="{bdf}", ATTR{{vendor}}=="{vendor:#06x}", '
    'ATTR{{device}}=="{device:#06x}", RUN+="/bin/sh -c \'{script}\'"\n'
)
_SCRIPT = (
    "cd /sys/bus/pci; [ ! -e drivers/{driver}/{bdf} ] || exit 0; {modprobe} {driver}; "
    "echo {driver} >devices/{bdf}/driver_override; "
    "[ ! -e devices/{bdf}/driver ] || echo {bdf} >devices/{bdf}/driver/unbind; "
    "echo {bdf} >drivers_probe"
)
# The group's number may be another one after each boot.
_GIVE = (
    'ACTION=="add", SUBSYSTEM=="vfio", '
    "PROGRAM=\"/bin/sh -c 'ls /sys/kernel/iommu_groups/%k/devices'\", "
    'RESULT=="*{bdf}*"{owner}\n'
    'ACTION=="add", SUBSYSTEM=="vfio-dev", KERNELS=="{bdf}"{owner}\n'
)


def path_of(host: Host, bdf: str) -> Path:
    return host.sys.parent / "etc/udev/rules.d" / f"70-pyvirtnet-{bdf}.rules"


def persists(host: Host, bdf: str) -> bool:
    """Will the NIC be bound at the next boot?"""
    return exists(path_of(host, bdf))


def persist(host: Host, bdf: str, owner: Owner, until: Until) -> str:
    """Write the rule; udev reads it by itself."""
    path = path_of(host, bdf)
    if not path.parent.parent.exists():
        why = f"{path.parent.parent} does not exist: no udev here"
        mend = "bind it where the machine starts, for instance in a script of its init"
        raise BindFailed(f"cannot bind {bdf} at each boot", why, mend)
    with failing(f"write {path}", "see that /etc is writable"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(rule(host, bdf, owner))
    return f"bound at each boot from now on ({path})"


def rule(host: Host, bdf: str, owner: Owner) -> str:
    vendor, device = host.ids(bdf)
    modprobe = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin") or "/sbin/modprobe"
    script = _SCRIPT.format(bdf=bdf, driver=VFIO_PCI, modprobe=modprobe)
    text = _HEAD.format(bdf=bdf)
    text += _TAKE.format(bdf=bdf, vendor=vendor, device=device, script=script)
    whose = f', OWNER="{owner.uid}"' if owner.user is not None else ""
    whose += f', GROUP="{owner.gid}", MODE="0660"' if owner.group is not None else ""
    return text + (_GIVE.format(bdf=bdf, owner=whose) if whose else "")


def let_go(host: Host, bdf: str) -> None:
    """Remove the rule, if there is one."""
    with failing(f"remove {path_of(host, bdf)}", "see that /etc is writable"):
        with suppress(FileNotFoundError):
            path_of(host, bdf).unlink()
