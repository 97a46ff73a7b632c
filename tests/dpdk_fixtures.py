"""DPDK's testpmd as a vhost-user back end: fixtures that start it beside the test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import pyvirtnet
from pyvirtnet.cli import _bench_testpmd as dpdk

Start = Callable[..., dpdk.Testpmd]


@pytest.fixture(scope="module")
def huge() -> Iterator[bool]:
    """Are there huge pages?"""
    with ExitStack() as stack:
        try:
            stack.enter_context(dpdk.huge_pages())
        except pyvirtnet.Error:
            yield False
            return
        yield True


@pytest.fixture
def start(huge: bool, tmp_path: Path) -> Iterator[Start]:
    """Starts a testpmd with the sockets `tmp_path`/0 and so on; this process is on another core."""
    driver_core, device_core = dpdk.cores()
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {driver_core})
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, allowed)

        def make(
            mode: str = "io",
            ports: int = 1,
            *,
            extra: str = "",
            huge: bool = huge,
            queues: int = 1,
            **sets: str,
        ) -> dpdk.Testpmd:
            vdevs = [
                f"--vdev=net_vhost{port},iface={tmp_path / str(port)},queues={queues}{extra}"
                for port in range(ports)
            ]
            devices, options = ["--no-pci", *vdevs], ["--port-topology=loop"]
            options += [f"--rxq={queues}", f"--txq={queues}"] if queues > 1 else []
            pages = huge and dpdk.refill(dpdk.HUGE_PAGES // 2)  # others may have taken some
            testpmd = dpdk.Testpmd(device_core, driver_core, devices, options, huge=pages)
            stack.enter_context(testpmd)
            for name, value in {"fwd": mode, **sets}.items():
                testpmd.command(f"set {name} {value}")
            testpmd.command("start")
            return testpmd

        yield make


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "0")
