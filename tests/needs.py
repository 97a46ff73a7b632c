"""What tests need of the machine: without it they skip and say so; in CI they run, and fail."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pyvirtnet.cli import _bench_testpmd

IN_CI = os.environ.get("CI") == "true"


def _needs(lacking: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(lacking) and not IN_CI, reason=lacking or "-")


def _no_program(name: str, package: str) -> str:
    return "" if shutil.which(name) else f"{name} is not installed (apt-get install {package})"


def _no_testpmd() -> str:
    if len(os.sched_getaffinity(0)) < 2:
        return "driver and device need a core each"
    return _no_program("dpdk-testpmd", "dpdk-dev")


def _no_huge_pages() -> str:
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    enough = free.exists() and int(free.read_text()) >= _bench_testpmd.HUGE_PAGES
    if enough or os.geteuid() == 0:
        return ""
    return f"there are no {_bench_testpmd.HUGE_PAGES} huge pages, and only root can make some"


needs_testpmd = _needs(_no_testpmd())
needs_dpdk = _needs(_no_testpmd() or _no_huge_pages())  # testpmd on both sides, as fast as it is
needs_root = _needs("" if os.geteuid() == 0 else "only root makes network namespaces")
needs_valgrind = _needs(_no_program("valgrind", "valgrind"))
needs_guest = _needs(_no_program("qemu-system-x86_64", "qemu-system-x86"))
