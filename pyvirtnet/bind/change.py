"""Bind and restore: what is refused, and the steps, which can be shown before they are done."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from ..errors import (
    DeviceBusy,
    Error,
    InterfaceInUse,
    NoIommu,
    NoPermission,
    NoSuchDevice,
    NotVirtioNet,
)
from . import steps
from .host import IOMMU_MEND, VFIO_PCI, Host, Until, read
from .memo import forget, recall, remember, who_had
from .persist import let_go, persist, persists
from .steps import Owner
from .uses import traffic, uses

Say = Callable[[str], None]
Do = Callable[[Until], str | None]


@dataclass
class _Plan:
    """What to say and do for one NIC. `undo` puts it back; false when that took nothing."""

    bdf: str
    undo: Callable[[Until], bool]
    notes: list[str] = field(default_factory=list)
    steps: list[tuple[str, Do]] = field(default_factory=list)

    def step(self, text: str, do: Do) -> None:
        self.steps.append((text, do))


def bind(
    nics: Sequence[str],
    *,
    owner: Owner | None = None,
    force: bool = False,
    noiommu: bool = False,
    at_boot: bool = False,
    dry_run: bool = False,
    host: Host | None = None,
    say: Say = lambda line: None,
) -> None:
    """Bind NICs to vfio-pci: all of them, or none if one can't be. `owner` gets their nodes.

    `noiommu` takes those without an IOMMU too, with all that this exposes. `at_boot` binds them at
    each boot from now on, until they are restored.
    """
    host = host or Host()
    bdfs = list(dict.fromkeys(_resolve(host, nic) for nic in nics))
    with _present(host, bdfs):
        for bdf in bdfs:
            _refuse_bind(host, bdf, force, noiommu)
        plans = [_plan_bind(host, bdf, bdfs, owner or Owner(), noiommu) for bdf in bdfs]
        for plan in plans if at_boot else ():
            _stay(host, plan, owner or Owner(), noiommu)
        _run(host, plans, dry_run, say)


def restore(
    nics: Sequence[str],
    *,
    dry_run: bool = False,
    host: Host | None = None,
    say: Say = lambda line: None,
) -> None:
    """Give NICs back to the drivers they came from, and wait for their interfaces."""
    host = host or Host()
    bdfs = list(dict.fromkeys(_resolve(host, nic) for nic in nics))
    with _present(host, bdfs):
        for bdf in bdfs:
            _refuse_restore(host, bdf)
        _run(host, [_plan_restore(host, bdf) for bdf in bdfs], dry_run, say)


def _resolve(host: Host, text: str) -> str:
    """As the host does; the interface that a bound NIC had is known too."""
    try:
        return host.resolve(text)
    except Error:
        bdf = who_had(host, text)
        if bdf is None:
            raise
        return bdf


@contextmanager
def _present(host: Host, bdfs: list[str]) -> Iterator[None]:
    """A function that goes meanwhile is the cause of whatever fails."""
    try:
        yield
    except (Error, OSError) as error:
        for bdf in bdfs:
            if not host.path(bdf).exists():
                mend = "tools/bind status lists the NICs of this machine"
                raise NoSuchDevice(f"{bdf} has gone", "it was unplugged meanwhile", mend) from error
        raise


def _run(host: Host, plans: list[_Plan], dry_run: bool, say: Say) -> None:
    if not dry_run and not os.access(host.pci / "drivers_probe", os.W_OK):
        why = "only root may, and /sys must be writable"
        raise NoPermission("cannot change drivers", why, "run it again with sudo")
    begun: list[_Plan] = []
    with host.watch() as until:
        try:
            for plan in plans:
                begun.append(plan)
                _run_one(plan, until, dry_run, say)
        except BaseException:
            for plan in reversed(begun):
                _undo(plan, until, say)
            raise


def _run_one(plan: _Plan, until: Until, dry_run: bool, say: Say) -> None:
    for note in plan.notes:
        say(f"{plan.bdf}: {note}")
    for text, do in plan.steps:
        if dry_run:
            say(f"{plan.bdf}: would {text}")
        else:
            remark = do(until)
            say(f"{plan.bdf}: {remark or text}")


def _undo(plan: _Plan, until: Until, say: Say) -> None:
    try:
        if plan.undo(until):
            say(f"{plan.bdf}: put back as it was")
    except (Error, OSError) as error:
        say(f"{plan.bdf}: could not be put back: {error}")


# Binding

_DANGERS = (
    "warning: there is no IOMMU: once a program has opened it, nothing keeps the device, or a "
    "mistake in the program, from reading and writing ALL memory of this machine",
    "warning: only root can open it, with noiommu=True; the kernel marks itself tainted",
)


def _refuse_bind(host: Host, bdf: str, force: bool, noiommu: bool) -> None:
    what = f"cannot bind {bdf}"
    if not host.is_network(bdf):
        why = f"class {read(host.path(bdf) / 'class')} is not a network device"
        raise NotVirtioNet(what, why, "tools/bind status lists the NICs of this machine")
    if noiommu and host.group(bdf) is not None and not host.is_bare(bdf):
        raise Error(what, "it is behind an IOMMU: it needs no such mode", "leave --noiommu out")
    if host.driver(bdf) == VFIO_PCI or force:
        return
    if reasons := [*uses(host, bdf), *traffic(host, bdf)]:
        mend = f"take it out of use, or: tools/bind {bdf} --force"
        raise InterfaceInUse(what, f"in use: {'; '.join(reasons)}", mend)
    if _without_iommu(host, bdf) and not noiommu:
        mend = f"{IOMMU_MEND}; without one: --noiommu, which protects no memory from the device"
        raise NoIommu(what, "it has no IOMMU group, so VFIO can't map memory for it", mend)


def _without_iommu(host: Host, bdf: str) -> bool:
    return host.group(bdf) is None and not host.noiommu()


def _plan_bind(host: Host, bdf: str, bdfs: list[str], owner: Owner, noiommu: bool) -> _Plan:
    old = host.driver(bdf)
    was_up = {name: host.is_up(name) for name in host.interfaces(bdf)}
    notes = [*_notes(host, bdf, bdfs, noiommu), *(_DANGERS if noiommu else ())]
    plan = _Plan(bdf, partial(_back, host, bdf, old, was_up), notes=notes)
    if old == VFIO_PCI:
        plan.undo = lambda until: False
        plan.step(f"keep {VFIO_PCI}: already bound to it", lambda until: None)
    else:
        plan.step(f"load {VFIO_PCI}", partial(steps.load, host))
        if noiommu and not host.noiommu():
            plan.step("switch VFIO's unsafe no-IOMMU mode on", partial(steps.allow_noiommu, host))
        plan.step(f"remember {old or 'no driver'}", lambda until: remember(host, bdf))
        for name in filter(was_up.get, was_up):
            plan.step(f"take {name} down", partial(steps.take_down, host, name))
        plan.step(f"move from {old or 'no driver'} to {VFIO_PCI}", partial(steps.take, host, bdf))
    plan.step("wait for its node under /dev/vfio", partial(steps.await_node, host, bdf))
    if owner:
        _ = owner.uid, owner.gid  # an unknown name fails before anything is changed
        plan.step(f"give the node to {owner}", partial(steps.give, host, bdf, owner))
    return plan


def _stay(host: Host, plan: _Plan, owner: Owner, noiommu: bool) -> None:
    """The last step: a rule that binds it at each boot. Undone with the others."""
    if noiommu:
        why = "nothing switches VFIO's no-IOMMU mode on at boot"
        raise Error(f"cannot bind {plan.bdf} at each boot", why, "leave --persist out")
    undo, before = plan.undo, persists(host, plan.bdf)

    def back(until: Until) -> bool:
        if not before:
            let_go(host, plan.bdf)
        return undo(until)

    plan.undo = back
    plan.step("bind it at each boot", partial(persist, host, plan.bdf, owner))


def _back(host: Host, bdf: str, old: str | None, was_up: dict[str, bool], until: Until) -> bool:
    moved = steps.put_back(host, bdf, old, until)
    if moved and was_up:
        steps.await_interface(host, bdf, until)
    if old is not None:
        forget(host, bdf)
    fallen = [n for n in host.interfaces(bdf) if was_up.get(n) and not host.is_up(n)]
    for name in fallen:
        steps.take_up(host, name)
    return moved or bool(fallen)


def _notes(host: Host, bdf: str, bdfs: list[str], noiommu: bool) -> list[str]:
    notes = [f"IOMMU group {host.group(bdf) or 'none'}, {_company(host, bdf)}"]
    if not host.is_virtio_net(bdf):
        notes.append("warning: not a virtio-net device, pyvirtnet cannot drive it")
    if _without_iommu(host, bdf) and not noiommu:
        notes.append(f"warning: it has no IOMMU group: {IOMMU_MEND}")
    elif host.ignores_iommu(bdf):
        notes.append(
            "warning: it does not offer ACCESS_PLATFORM, so its DMA goes past the IOMMU and "
            "misses (QEMU: -device virtio-net-pci,…,iommu_platform=on)"
        )
    spoilers = [f"{one} ({host.driver(one)})" for one in host.spoilers(bdf) if one not in bdfs]
    if spoilers:
        notes.append(
            f"warning: the group can't be opened until these are bound to {VFIO_PCI} or to no "
            f"driver: {', '.join(spoilers)}"
        )
    if host.driver(bdf) != VFIO_PCI:
        notes += [f"warning: this ends: {use}" for use in uses(host, bdf)]
    return notes


def _company(host: Host, bdf: str) -> str:
    members = [
        f"{one} ({'bridge, harmless' if host.is_bridge(one) else host.driver(one) or 'no driver'})"
        for one in host.members(bdf)
    ]
    return f"with {', '.join(members)}" if members else "alone in it"


# Restoring


def _refuse_restore(host: Host, bdf: str) -> None:
    holders = host.holders(bdf) if host.driver(bdf) == VFIO_PCI else []
    if holders:
        why = f"held by {', '.join(holders)}"
        raise DeviceBusy(f"cannot restore {bdf}", why, "end that process, then restore again")


def _plan_restore(host: Host, bdf: str) -> _Plan:
    now, memo = host.driver(bdf), recall(host, bdf)
    plan = _Plan(bdf, lambda until: False)
    if persists(host, bdf):
        plan.step("no longer bind it at each boot", lambda until: let_go(host, bdf))
    if now not in (None, VFIO_PCI):
        names = ", ".join(host.interfaces(bdf)) or "none"
        plan.step(f"keep {now}: not bound to {VFIO_PCI}, interface {names}", lambda until: None)
        return plan
    plan.step(
        f"move from {now or 'no driver'} to {memo.driver or 'the driver the kernel chooses'}",
        partial(steps.give_back, host, bdf, memo.driver),
    )
    if memo.interfaces or memo.driver is None:
        plan.step("wait for its interface", partial(steps.await_interface, host, bdf))
    plan.step("forget what it was", lambda until: forget(host, bdf))
    return plan
