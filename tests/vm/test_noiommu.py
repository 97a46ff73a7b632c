"""No-IOMMU mode on the kernel's own VFIO: opt-in, loud, physical addresses that are right."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvirtnet
from pyvirtnet import dma, hugepages
from pyvirtnet.bind import Host
from pyvirtnet.cli import bind
from pyvirtnet.errors import Error, NoIommu, NoPermission
from pyvirtnet.vfio.noiommu import UnsafeNoIommu

from .traffic import exchange, flood, forward, wake

# two modern NICs, two legacy ones, two transitional ones; see test_legacy.py
MACHINE = {
    "image": "debian13",
    "ports": 6,
    "iommu": "none",
    "port_opts": "||disable-legacy=off,disable-modern=on|disable-legacy=off,disable-modern=on"
    "|disable-legacy=off|disable-legacy=off",
}

NIC, PEER = "0000:00:04.0", "0000:00:05.0"
HOST = Host()
MODE = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")


@pytest.fixture(scope="module", autouse=True)
def _huge_pages() -> None:
    Path("/proc/sys/vm/nr_hugepages").write_text("96")


@pytest.fixture(scope="module")
def bound() -> Iterator[None]:
    assert bind.main(["bind", "--noiommu", NIC, PEER]) == 0
    yield
    assert bind.main(["restore", NIC, PEER]) == 0


def run(code: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-c", code]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_it_is_opt_in_when_binding(capsys: pytest.CaptureFixture[str]) -> None:
    if MODE.exists():  # another module of this guest was here first
        MODE.write_text("N")
    assert bind.main(["bind", NIC]) == 3  # what the machine lacks
    assert "--noiommu, which protects no memory" in capsys.readouterr().err
    assert HOST.driver(NIC) == "virtio-pci"


def test_binding_says_what_is_lost(bound: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert bind.main(["bind", "--noiommu", NIC, "--dry-run"]) == 0
    assert "reading and writing ALL memory of this machine" in capsys.readouterr().out
    assert Path(f"/dev/vfio/noiommu-{HOST.group(NIC)}").is_char_device()
    assert bind.main(["status", "--json"]) == 0
    nics = {nic["bdf"]: nic for nic in json.loads(capsys.readouterr().out)["nics"]}
    assert (nics[NIC]["ready"], nics[NIC]["iommu"]) == (True, False)


def test_it_is_opt_in_when_opening(bound: None) -> None:
    with pytest.raises(NoIommu, match=r"open\(\.\.\., noiommu=True\)"):
        pyvirtnet.open(NIC)


def test_an_ordinary_user_may_not(bound: None) -> None:
    code = f"""
import pyvirtnet
try:
    pyvirtnet.open({NIC!r}, noiommu=True)
except pyvirtnet.Error as error:
    print(type(error).__name__, error.mend)
"""
    user = ("setpriv", "--reuid=user", "--regid=user", "--clear-groups", "--inh-caps=-all")
    assert run(code, *user).stdout == f"{NoPermission.__name__} run as root\n"


def test_opening_warns(bound: None) -> None:
    with pytest.warns(UnsafeNoIommu, match="read and write all memory"):
        pyvirtnet.open(NIC, noiommu=True).close()


@pytest.mark.filterwarnings("ignore::pyvirtnet.vfio.noiommu.UnsafeNoIommu")
class TestTraffic:
    def test_frames_of_every_size_go_both_ways(self, bound: None) -> None:
        with (
            pyvirtnet.open(NIC, noiommu=True) as one,
            pyvirtnet.open(f"{PEER}?noiommu=on") as other,
        ):
            assert pyvirtnet.Feature.ACCESS_PLATFORM not in one.features.negotiated
            exchange(one, other)
            flood(one, other, 20_000)
            forward(one, other, other, one)
            wake(other, one)
            one.reset()
            other.reset()
            exchange(one, other, rounds=2)

    def test_memory_is_where_the_device_is_told(self, bound: None) -> None:
        with pyvirtnet.open(NIC, noiommu=True, pages=4096) as port:
            port.alloc_burst(4096, 1514)
            regions = list(dma.memory.regions())
            assert len(regions) >= 2
            for region in regions:
                assert region.page_size == hugepages.HUGE_PAGE
                wanted = range(region.iova, region.iova + region.size, hugepages.HUGE_PAGE)
                assert hugepages.physical(region.address, region.size) == list(wanted)
            assert max(region.size for region in regions) > 4096 * 4096
        assert dma.memory.allocate(1).iova >= dma.FIRST_IOVA  # and back to ordinary addresses

    def test_too_few_huge_pages_tell_the_mend(self, bound: None) -> None:
        with pytest.raises(pyvirtnet.OutOfMemory, match="nr_hugepages"):
            pyvirtnet.open(NIC, noiommu=True, pages=100_000)

    def test_memory_from_before_is_refused(self, bound: None) -> None:
        before = dma.memory.allocate(4096)
        with pytest.raises(Error, match="before all others"):
            pyvirtnet.open(NIC, noiommu=True)
        del before
        pyvirtnet.open(NIC, noiommu=True).close()

    def test_pktgen_takes_such_an_address(self, bound: None) -> None:
        words = ["loop", f"{NIC}?noiommu=on", f"{PEER}?noiommu=on", "--count", "2000", "--json"]
        done = subprocess.run(
            ["/mnt/project/tools/pktgen", *words], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "UnsafeNoIommu" in done.stderr

    def test_a_process_that_is_killed_leaves_working_nics(self, bound: None) -> None:
        code = f"""
import pyvirtnet
with pyvirtnet.open({NIC!r}, noiommu=True) as a, pyvirtnet.open({PEER!r}, noiommu=True) as b:
    burst = a.alloc_burst(64, 1514)
    print("running", flush=True)
    while True:
        a.send_burst(burst)
        b.recv_burst(64)
"""
        for _ in range(3):
            with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"running\n"
                os.kill(process.pid, signal.SIGKILL)
            with (
                pyvirtnet.open(NIC, noiommu=True) as one,
                pyvirtnet.open(PEER, noiommu=True) as other,
            ):
                exchange(one, other, rounds=1)
