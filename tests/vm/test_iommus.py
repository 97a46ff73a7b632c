"""Type 1 and iommufd behind virtio-iommu, which Debian 13 has; other modules use intel-iommu."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvirtnet
from pyvirtnet.cli import bind
from pyvirtnet.errors import DeviceBusy, NoIommu

from .traffic import exchange, flood, forward, wake

MACHINE = {"image": "debian13", "ports": 2, "iommu": "virtio"}

NIC, PEER = "0000:00:04.0", "0000:00:05.0"
UNSAFE = Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")


@pytest.fixture(scope="module", autouse=True)
def _bound() -> Iterator[None]:
    assert bind.main(["bind", NIC, PEER]) == 0
    yield
    assert bind.main(["restore", NIC, PEER]) == 0


@pytest.fixture
def allowed() -> Iterator[None]:
    """virtio-iommu translates memory accesses and not interrupts: VFIO wants to be told."""
    UNSAFE.write_text("1")
    yield
    UNSAFE.write_text("0")


def test_it_is_a_virtio_iommu() -> None:
    (iommu,) = Path("/sys/class/iommu").iterdir()
    assert "virtio" in str(iommu.resolve())


def test_interrupts_that_it_does_not_remap_are_named_with_the_mend() -> None:
    with pytest.raises(NoIommu, match="allow_unsafe_interrupts"):
        pyvirtnet.open(NIC)


@pytest.mark.usefixtures("allowed")
def test_frames_of_every_size_go_both_ways() -> None:
    with pyvirtnet.open(NIC) as one, pyvirtnet.open(PEER) as other:
        exchange(one, other)
        flood(one, other, 10_000)
        forward(one, other, other, one)
        wake(one, other)
        one.reset()
        exchange(one, other, rounds=2)


@pytest.fixture
def allowed_there() -> Iterator[None]:
    iommufd = Path("/sys/module/iommufd/parameters/allow_unsafe_interrupts")
    iommufd.write_text("1")
    yield
    iommufd.write_text("0")


class TestIommufd:
    """The same by way of /dev/iommu, which needs a kernel built with it: this image's is."""

    def test_interrupts_that_are_not_remapped_are_named_with_the_mend(self) -> None:
        with pytest.raises(NoIommu, match="iommufd/parameters/allow_unsafe_interrupts"):
            pyvirtnet.open(f"{NIC}?iommufd=on")

    @pytest.mark.usefixtures("allowed_there")
    def test_frames_of_every_size_go_both_ways(self) -> None:
        with (
            pyvirtnet.open(f"{NIC}?iommufd=on") as one,
            pyvirtnet.open(f"{PEER}?iommufd=on") as other,
        ):
            exchange(one, other)
            flood(one, other, 10_000)
            forward(one, other, other, one)
            wake(one, other)
            one.reset()
            exchange(one, other, rounds=2)

    @pytest.mark.usefixtures("allowed", "allowed_there")
    def test_both_ways_together_share_the_memory(self) -> None:
        with pyvirtnet.open(NIC) as one, pyvirtnet.open(f"{PEER}?iommufd=on") as other:
            exchange(one, other, rounds=2)
            forward(one, other, other, one)

    @pytest.mark.usefixtures("allowed_there")
    def test_busy_and_open_again(self) -> None:
        with pyvirtnet.open(f"{NIC}?iommufd=on"):
            with pytest.raises(DeviceBusy):
                pyvirtnet.open(f"{NIC}?iommufd=on")
        pyvirtnet.open(f"{NIC}?iommufd=on").close()
